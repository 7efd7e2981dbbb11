"""The notebooks run from top to bottom, and show what they ran to."""

from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import reads

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def notebook_of(path: Path) -> Any:
    return reads(path.read_text(encoding="utf-8"))  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOK_QUICK", "1")
    notebook = notebook_of(path)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 4
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    said = [text for cell in cells for text in cell.outputs if "text" in text]
    # TensorFlow's log noise.
    assert not [each for each in said if "oneDNN" in each["text"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_its_outputs(path: Path) -> None:
    notebook = notebook_of(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error"]
    kinds = {kind for each in outputs for kind in each.get("data", {})}
    assert "image/png" in kinds
    assert str(Path.home()) not in path.read_text()
