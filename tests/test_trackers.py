"""examples/trackers.py records every epoch, without a server."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from test_balance import photos
from test_resume import _SMALL

pytestmark = [
    # Of the trackers' own dependencies.
    pytest.mark.filterwarnings("ignore"),
]
_FIELDS: dict[str, Any] = {**_SMALL, "epochs": 2}


def example() -> Any:
    path = Path(__file__).parent.parent / "examples" / "trackers.py"
    spec = importlib.util.spec_from_file_location("trackers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mlflow_has_the_numbers_of_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    # Its store in plain files, which needs no database.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "mlruns").as_uri()
    run = example().train_with_mlflow("resnet8", photos(), place, **_FIELDS)
    client = mlflow.MlflowClient(place)
    (recorded,) = client.search_runs(["0"])
    for name in ("loss", "validation_top1", "validation_balanced_accuracy"):
        found = client.get_metric_history(recorded.info.run_id, name)
        steps = {each.step: each.value for each in found}
        expected = {row.epoch: getattr(row, name) for row in run.history}
        assert steps == pytest.approx(expected)
    assert recorded.data.params["learning_rate"] == "0.01"


def test_weights_and_biases_has_the_numbers_of_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    run = example().train_with_wandb("resnet8", photos(), str(tmp_path), **_FIELDS)
    (file,) = tmp_path.rglob("*.wandb")
    recorded = file.read_bytes()
    for row in run.history:
        for name in ("loss", "validation_macro_f1"):
            assert name.encode() in recorded
            assert json.dumps(getattr(row, name)).encode() in recorded
