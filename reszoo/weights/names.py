"""The map between Keras layers and torchvision's tensor names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reszoo.cards import Layers
from reszoo.errors import CheckpointError, UsageError, summarized

if TYPE_CHECKING:
    import keras


Tensors = dict[str, NDArray[Any]]
HEAD = ("fc.weight", "fc.bias")
# torch counts the batches seen; inference never reads it, strict loading asks for it.
COUNTER = "num_batches_tracked"
# Kind of weight in Keras -> its name in torch.
TORCH_NAMES = {
    **dict.fromkeys(("kernel", "gamma", "scale"), "weight"),
    **dict.fromkeys(("bias", "beta", "shift"), "bias"),
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of the tensors of a file.

    Attributes:
        source: The file, or where it came from.
        loaded: Names of the tensors that went into the model.
        missing: Weights of the model that the file does not hold.
        unexpected: Tensors of the file that the model has no place for.
        wrong_shape: Tensors of another shape, with both shapes.
        head: Set where the classifier is fresh: classes before and now.
        skipped: Tensors of the file that are not of the model, such as other heads.
        notes: What was assumed or chosen where the file does not tell.
        mapping: For `match="order"`, modules of the file and of the model.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    head: tuple[int, int] | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mapping: tuple[tuple[str, str], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place, a replaced head aside."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        if not self.complete:
            problems = {
                "missing": self.missing,
                "unexpected": self.unexpected,
                "of another shape": self.wrong_shape,
            }
            listed = [
                f"{len(n)} {k}: {summarized(n)}. " for k, n in problems.items() if n
            ]
            return f"{''.join(listed)}Nothing was loaded."
        text = f"{len(self.loaded)} tensors loaded from {self.source}"
        if self.head is not None:
            before, now = self.head
            text += f": 100 % of the backbone; fresh head, {before} -> {now} classes"
        skipped = f"not part of the model: {summarized(self.skipped)}"
        return "; ".join((text, *self.notes, *[skipped] * bool(self.skipped)))


# From Keras' axes to torch's and back, by the number of them.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}


def to_torch(value: NDArray[Any]) -> NDArray[Any]:
    """Copy a weight of Keras in torch's layout, in float32 or wider."""
    turned = value.transpose(_TO_TORCH.get(value.ndim))
    return np.array(turned, np.promote_types(value.dtype, np.float32), order="C")


def _values(variable: Any) -> NDArray[Any]:
    """Return what a variable holds, not copied where NumPy has the type."""
    # `convert_to_numpy` of Keras 3.15 warns with NumPy 2, and copies.
    value = variable.value
    shared = hasattr(value, "read_value") and variable.dtype != "bfloat16"
    return np.asarray(memoryview(value.read_value()) if shared else value)


def _torch_shape(variable: Any) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    return tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), (0,)))


def layers_of(model: "keras.Model") -> Layers:
    """Return the weights of the layers of a model, those of models inside as well."""
    import keras

    return {
        layer.name: {
            weight.path.rsplit("/", 1)[-1]: _values(weight) for weight in layer.weights
        }
        for layer in model._flatten_layers(include_self=False)
        if layer.weights and not isinstance(layer, keras.Model)
    }


def to_tensors(model: "keras.Model") -> Tensors:
    """Return a model's weights under torchvision's names and in its layouts.

    A UsageError if a layer has weights of a kind that no layer of reszoo has.
    """
    tensors: Tensors = {}
    for name, variable in _slots(model):
        tensors[name] = to_torch(_values(variable))
        if name.endswith("running_var"):
            tensors[name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return tensors


def assign_tensors(
    model: "keras.Model", tensors: Tensors, source: str, *, fresh_head: bool = False
) -> LoadReport:
    """Set a model's weights from tensors by torchvision's names; report on that.

    Nothing is set unless everything fits: a CheckpointError lists the tensors that are
    missing, unexpected or of another shape. With `fresh_head` the classifier keeps the
    weights that it has.
    """
    slots = dict(_slots(model))
    given = {name for name in tensors if not name.endswith(COUNTER)}
    head = None
    if fresh_head and HEAD[0] in given and HEAD[0] in slots:
        head = (len(tensors[HEAD[0]]), _torch_shape(slots[HEAD[0]])[0])
    if fresh_head:
        slots = {name: slot for name, slot in slots.items() if name not in HEAD}
        given -= set(HEAD)
    shapes = {name: _torch_shape(variable) for name, variable in slots.items()}
    report = LoadReport(
        source=source,
        loaded=tuple(name for name in slots if name in given),
        missing=tuple(name for name in slots if name not in given),
        unexpected=tuple(sorted(given - set(slots))),
        wrong_shape=tuple(
            f"{name} is {tensors[name].shape}, not {shape}"
            for name, shape in shapes.items()
            if name in given and tensors[name].shape != shape
        ),
        head=head,
    )
    if not report.complete:
        raise CheckpointError(
            f"{source} does not hold the weights of {model.name}. {report}"
        )
    for name, variable in slots.items():
        tensor = tensors[name]
        variable.assign(tensor.transpose(_FROM_TORCH.get(tensor.ndim)))
    return report


def _slots(model: "keras.Model") -> Iterator[tuple[str, Any]]:
    """Yield torch's name of each weight, and its variable."""
    for layer in model.layers:
        for variable in layer.weights:
            kind = variable.path.rsplit("/", 1)[-1]
            if kind not in TORCH_NAMES:
                raise UsageError(
                    "A model of reszoo has convolutions, batch normalization and a "
                    f"Dense layer. Received: {model.name!r} with the weight "
                    f"{variable.path!r}; save it with Keras: model.save(path)."
                )
            yield f"{layer.name}.{TORCH_NAMES[kind]}", variable


def to_float32(tensor: NDArray[Any], name: str, source: str) -> NDArray[np.float32]:
    """Return weights in float32, which is exact for half precision.

    A CheckpointError if they are not floating point.
    """
    if not np.issubdtype(tensor.dtype, np.floating):
        raise CheckpointError(
            f"Weights must be floating point. {source} has {name} as {tensor.dtype}."
        )
    # What does not fit becomes infinite, and infinite weights are refused later.
    with np.errstate(over="ignore"):
        return tensor.astype(np.float32, copy=False)
