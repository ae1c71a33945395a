"""Every notebook runs from its first cell to its last, and is stored without outputs."""

import asyncio
import warnings
from pathlib import Path

import nbformat
import pytest

with warnings.catch_warnings():
    # Jupyter's own modules announce their own deprecations when they are imported.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_notebook_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_notebook_runs_to_its_end(notebook, tmp_path):
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    asyncio.run(client.async_execute())
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    printed = [output for cell in cells for output in cell.outputs]
    assert not [output for output in printed if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in printed)
