"""What a run keeps of its epochs: the history and the best weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reszoo.cards import Card, Metric
from reszoo.checkpoints.names import Tensors
from reszoo.checkpoints.safetensors import read, write
from reszoo.evaluation import Metrics
from reszoo.training.history import Epoch, write_history
from reszoo.training.setting import Setting

HISTORY = "history.csv"
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class Best:
    """The best epoch so far: the higher accuracy, then the lower loss, wins."""

    epoch: int
    merit: tuple[float, float]


class Chronicle:
    """The finished epochs of a run.

    Attributes:
        history: One row for each.
        best: The best of them.
        best_tensors: Its weights, by torchvision's names.
        best_card: Its card.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.history: list[Epoch] = []
        self.best: Best | None = None
        self.best_tensors: Tensors = {}
        self.best_card = setting.card

    def to_json(self) -> dict[str, Any]:
        """Return all but the weights, as plain JSON values."""
        return {
            "history": [asdict(row) for row in self.history],
            "best": self.best and [self.best.epoch, list(self.best.merit)],
        }

    def take(self, content: Mapping[str, Any], folder: Path) -> None:
        """Take what `to_json` returned, and the best weights from the run's folder."""
        self.history = [Epoch(**row) for row in content["history"]]
        if content["best"]:
            epoch, merit = content["best"]
            self.best = Best(epoch, (merit[0], merit[1]))
            self.best_tensors, card = read(folder / BEST)
            self.best_card = card or self.best_card

    def add(self, row: Epoch, measured: Metrics | None, tensors: Tensors) -> None:
        """Add an epoch; write its weights and the history where the run is kept."""
        self.history.append(row)
        card = self._card_after(row.epoch, measured)
        merit = (measured.top1, -measured.loss) if measured else (0.0, float(row.epoch))
        improved = self.best is None or merit > self.best.merit
        if improved:
            self.best, self.best_tensors = Best(row.epoch, merit), tensors
            self.best_card = card
        folder = self._setting.folder
        if not folder:
            return
        if improved:
            write(folder / BEST, tensors, card)
        write(folder / LAST, tensors, card)
        write_history(folder / HISTORY, self.history)

    def _card_after(self, epoch: int, measured: Metrics | None) -> Card:
        setting = self._setting
        provenance = {
            "source": "trained with reszoo",
            "data": setting.source.name,
            "images": len(setting.source.examples("train")),
            "recipe": setting.recipe.to_json(),
            "epoch": epoch,
        }
        return setting.card.after(provenance, _as_metrics(measured) if measured else ())


def _as_metrics(measured: Metrics) -> tuple[Metric, ...]:
    """Return a measurement as a card has it."""
    data = f"{measured.data}, {measured.images} images"
    values = asdict(measured)
    names = ("top1", "top5", "loss")
    return tuple(Metric(name=name, value=values[name], data=data) for name in names)
