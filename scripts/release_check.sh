#!/usr/bin/env bash
# Copyright 2026 The glip_hf authors. MIT licence.
# Builds the sdist, and the wheel from it; checks both; installs each into an environment that holds torch alone, runs
# it there, and type-checks a user's program against it. The files to publish are then in out/release/dist.
#     bash scripts/release_check.sh        # or `make release`
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD OUT=$PWD/out/release
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
rm -rf "$OUT"
mkdir -p "$OUT/elsewhere"

"${PYTHON:-python3}" -m venv "$OUT/tools"
"$OUT/tools/bin/pip" install -c constraints.txt build twine mypy
"$OUT/tools/bin/python" -m build --outdir "$OUT/dist" >"$OUT/build.log" || { cat "$OUT/build.log"; exit 1; }
"$OUT/tools/bin/twine" check --strict "$OUT"/dist/*

"$OUT/tools/bin/python" - "$OUT"/dist/*.whl "$OUT"/dist/*.tar.gz <<'PYTHON'
import sys, tarfile, zipfile

wheel = {name for name in zipfile.ZipFile(sys.argv[1]).namelist()}
sdist = {name.partition("/")[2] for name in tarfile.open(sys.argv[2]).getnames()}
tops = {name.partition("/")[0] for name in wheel}
assert len(tops) == 2 and all(top == "glip_hf" or top.endswith(".dist-info") for top in tops), tops
assert not [name for name in wheel if "test" in name.lower() or "__pycache__" in name], "tests in the wheel"
assets = ("py.typed", "assets/vocab.txt", "assets/scene.png", "assets/glip-scenes/model.safetensors")
assert not [name for name in assets if f"glip_hf/{name}" not in wheel], "the wheel lacks what the package needs"
assert any(name.endswith("licenses/LICENSE") for name in wheel), "the wheel has no licence"
lacking = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "tests/conftest.py", "pyproject.toml"} - sdist
assert not lacking, f"the sdist lacks {lacking}"
print(f"wheel: {len(wheel)} files, none of them a test; sdist: {len(sdist)} files")
PYTHON

"${PYTHON:-python3}" -m venv "$OUT/env"
"$OUT/env/bin/pip" install "$(grep '^torch==' constraints.txt)"
cd "$OUT/elsewhere"
for package in "$OUT"/dist/*.whl "$OUT"/dist/*.tar.gz; do
    "$OUT/env/bin/pip" install -c "$ROOT/constraints.txt" --force-reinstall --no-deps "$package"
    "$OUT/env/bin/pip" install -c "$ROOT/constraints.txt" "$package"
    "$OUT/env/bin/pip" check
    "$OUT/env/bin/glip" --version
    "$OUT/env/bin/python" - <<'PYTHON'
import pathlib, warnings

warnings.simplefilter("error", DeprecationWarning)
from transformers import pipeline
import glip_hf
from glip_hf.demo import DEMO_MODEL, load_demo_image

assert "site-packages" in glip_hf.__file__, glip_hf.__file__
image = load_demo_image()
image.save("scene.png")
found = pipeline("zero-shot-object-detection", model=str(DEMO_MODEL))(image, candidate_labels=["fish"], threshold=0.5)
assert found and found[0]["label"] == "fish", found
PYTHON
    "$OUT/env/bin/glip" ground scene.png fish "yellow cross" --model demo --save found.png
    test -s found.png
done
"$OUT/tools/bin/mypy" --strict --python-executable "$OUT/env/bin/python" --cache-dir "$OUT/mypy" \
    "$ROOT/tests/typing/consumer.py"
printf 'ready: %s\n' "$OUT"/dist/*
