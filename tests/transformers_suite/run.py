# Copyright 2026 The glip_hf authors. MIT licence.
"""Run the common test suites of the installed Transformers against GLIP's classes.

    python tests/transformers_suite/run.py [options for pytest]

The suites are part of Transformers' source distribution, not of its wheel. It is fetched once per version with pip and
its `tests` folder unpacked under out/, which git ignores: none of its text enters this repository. The report ends with
every skip and its reason, and the number of tests passed.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def fetch_suites() -> Path:
    """Folder that holds the unpacked suites as the package `transformers_tests`; downloaded where it is missing.

    Raises:
        subprocess.CalledProcessError: pip could not fetch the source distribution.
    """
    release = version("transformers")
    folder = ROOT / "out" / f"transformers-{release}"
    package = folder / "transformers_tests"
    if package.is_dir():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        source = ["--no-binary", ":all:", "--no-deps", "--dest", work, f"transformers=={release}"]
        subprocess.run(download + source, check=True)
        (archive,) = Path(work).glob("*.tar.gz")
        prefix = f"{archive.name.removesuffix('.tar.gz')}/tests/"
        with tarfile.open(archive) as distribution:
            members = [member for member in distribution.getmembers() if member.name.startswith(prefix)]
            distribution.extractall(work, members, filter="data")
        (Path(work) / prefix).rename(package)  # last, so that an interrupted run leaves no half a package
    return folder


def main(arguments: list[str]) -> int:
    """Exit status of pytest; a run that collects nothing fails."""
    environment = os.environ | {"TRANSFORMERS_SUITES": str(fetch_suites())}
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--override-ini=addopts=", str(HERE)]
    command += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]  # the suites' own markers
    return subprocess.run(command + arguments, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
