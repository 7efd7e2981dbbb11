"""Record a training in MLflow or Weights & Biases, without any server.

    pip install mlflow      # then: python examples/trackers.py mlflow DATA
    pip install wandb       # then: python examples/trackers.py wandb DATA

MLflow's runs are in `mlruns` (`mlflow ui` shows them), those of Weights & Biases in
`wandb` (`wandb sync` uploads them). An epoch that is trained again after a kill is
recorded under the same step.
"""

import dataclasses
import sys
from typing import Any

import reszoo


def numbers(row: Any) -> dict[str, float]:
    """Return the numbers of a row of the history, by name."""
    values = dataclasses.asdict(row)
    return {k: v for k, v in values.items() if isinstance(v, int | float)}


def train_with_mlflow(model: Any, data: Any, place: str, **options: Any) -> Any:
    """Train as `reszoo.train` does; record in a local store of MLflow."""
    import mlflow

    mlflow.set_tracking_uri(place)
    with mlflow.start_run():
        run = reszoo.train(
            model,
            data,
            on_epoch_end=lambda row: mlflow.log_metrics(numbers(row), step=row.epoch),
            **options,
        )
        mlflow.log_params(run.recipe.to_json())
    return run


def train_with_wandb(model: Any, data: Any, place: str, **options: Any) -> Any:
    """Train as `reszoo.train` does; record for Weights & Biases, offline."""
    import wandb

    with wandb.init(mode="offline", dir=place, project="reszoo") as tracked:
        run = reszoo.train(
            model,
            data,
            on_epoch_end=lambda row: tracked.log(numbers(row), step=row.epoch),
            **options,
        )
        tracked.config.update(run.recipe.to_json())
    return run


if __name__ == "__main__":
    trackers = {
        "mlflow": (train_with_mlflow, "sqlite:///mlflow.db"),
        "wandb": (train_with_wandb, "."),
    }
    train, where = trackers[sys.argv[1]]
    train("resnet18", sys.argv[2], where, weights="imagenet", output="runs/tracked")
