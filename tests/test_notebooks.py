# Copyright 2026 The glip_hf authors. MIT licence.
"""The notebooks of the documentation run, and print what is stored in them."""

from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="needs the extra docs: make docs")
pytest.importorskip("ipykernel", reason="needs the extra docs: make docs")
from scripts.run_notebooks import NOTEBOOKS, run_notebook


def printed(notebook) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_it_shows(path: Path, tmp_path: Path) -> None:
    import nbformat

    stored = nbformat.read(path, as_version=4)
    now = run_notebook(path, tmp_path)
    assert any(printed(stored)), "the stored notebook has no outputs: python scripts/run_notebooks.py"
    assert printed(now) == printed(stored)
