# Copyright 2026 The glip_hf authors. MIT licence.
"""Run the notebooks of docs/notebooks and store their outputs, images as small JPEG files.

    python scripts/run_notebooks.py [NAME ...]  # default: all; a minute or two on 2 CPU cores; needs the extra `docs`

They run in a temporary directory that has the folders of the clone. tests/test_notebooks.py runs them and compares.
"""

import argparse
import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
FOLDERS = ("benchmarks", "examples", "src")


def run_notebook(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`; an error in a cell is raised."""
    for name in FOLDERS:
        (folder / name).symlink_to(ROOT / name)
    paths = [str(folder), str(folder / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TQDM_DISABLE": "1"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # warnings and progress bars differ from run to run
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                _shrink(output.get("data", {}))
    return notebook


def _shrink(data: dict) -> None:
    if "image/png" in data:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB").save(buffer, "JPEG", quality=80)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of notebooks, without .ipynb")
    names = parser.parse_args().names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        path = NOTEBOOKS / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run_notebook(path, Path(folder)), path)
        print(path)


if __name__ == "__main__":
    main()
