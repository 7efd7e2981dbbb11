"""Optimizers whose updates equal torch's and timm's, and moving averages of weights.

An update rule is pure data and arithmetic on one variable; `Optimizer` holds the
variables that a rule needs between steps, and `MovingAverage` those of a moving
average. All of them are plain `tf.Variable`s, created once, so that a run can save
and restore them.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from reszoo.architecture import FINAL_NORM
from reszoo.errors import UsageError
from reszoo.training.recipes import Decayed


def is_decayed(path: str, ndim: int, which: Decayed = "kernels") -> bool:
    """Return whether weight decay applies to a weight of so many axes, by Keras' path.

    "kernels" are those of convolutions and dense layers, which have two axes or more
    (timm's groups); "all-but-norm" adds biases, as torchvision's reference script does
    with `--norm-weight-decay 0`; "all" is torch's plain SGD.
    """
    if which == "kernels":
        return ndim > 1
    return which == "all" or not path.endswith(("/gamma", "/beta"))


def rate_scales(layers: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Return the multiple of the learning rate that each layer of a ResNet has.

    As timm's `--layer-decay`: 1 for the head, and `layer_decay` times less for each
    block before it, down to the stem. Frozen layers are named as well.
    """
    places = {}
    for name in layers:
        block = re.match(r"layer(\d+)\.(\d+)\.", name)
        end = math.inf if name in ("fc", FINAL_NORM) else 0
        places[name] = (int(block[1]), int(block[2])) if block else (end, 0)
    order = sorted(set(places.values()), reverse=True)
    return {name: layer_decay ** order.index(place) for name, place in places.items()}


class Update(NamedTuple):
    """What an update rule needs to know beside the variable itself."""

    slots: Sequence[Any]  # as many as the rule has, of the variable's shape
    gradient: Any  # of the loss, without the weight decay
    rate: Any  # learning rate, a float32 scalar tensor
    decay: float  # weight decay of this variable; 0 for none
    step: Any  # int64 scalar tensor, counted from 1


class UpdateRule(ABC):
    """How an optimizer updates one weight: `Sgd`, `Adam` or `Lamb`."""

    # Names of the variables kept for each weight; they start at zero.
    slots: ClassVar[tuple[str, ...]]

    def prepare(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients after clipping, which concerns all of them at once."""
        return list(gradients)

    @abstractmethod
    def apply(self, variable: Any, update: Update) -> None:
        """Assign one weight, a float32 `tf.Variable`, and its slots."""


@dataclass(frozen=True)
class Sgd(UpdateRule):
    """Stochastic gradient descent with momentum and coupled weight decay.

    With g the gradient plus `decay * w`, torch's form (`torch.optim.SGD`) is v =
    momentum v + g; w -= rate v. It equals the other form as long as the rate is
    constant; when the rate falls, torch's slows down at once. Nesterov's moves by g +
    momentum v in place of v. With `rate_inside` the velocity includes the rate, v =
    momentum v + rate g; w -= v, as in Caffe (with which He et al. 2015 trained) and in
    Keras.
    """

    slots = ("velocity",)
    momentum: float = 0.9
    nesterov: bool = False
    rate_inside: bool = field(default=False, kw_only=True)

    def apply(self, variable: Any, update: Update) -> None:
        """Assign the weight and its velocity."""
        (velocity,), gradient, rate, decay, _ = update
        gradient = gradient + decay * variable if decay else gradient
        gradient = rate * gradient if self.rate_inside else gradient
        moved = self.momentum * velocity + gradient
        velocity.assign(moved)
        change = gradient + self.momentum * moved if self.nesterov else moved
        variable.assign_sub(change if self.rate_inside else rate * change)


@dataclass(frozen=True, kw_only=True)
class Adam(UpdateRule):
    """Adam (Kingma & Ba, arXiv:1412.6980) as torch's `Adam` and `AdamW`."""

    # Running means of the gradient and of its square.
    slots = ("mean", "square")
    beta1: float = 0.9  # decay of the mean gradient, in [0, 1)
    beta2: float = 0.999  # decay of the mean squared gradient, in [0, 1)
    epsilon: float = 1e-8  # added to the root of the mean square
    # Whether weights decay by `rate * decay` apart from the gradient (AdamW,
    # arXiv:1711.05101); otherwise the decay is added to it.
    decoupled: bool = False

    def apply(self, variable: Any, update: Update) -> None:
        """Assign the weight and both means."""
        if update.decay and self.decoupled:
            variable.assign_sub(update.rate * update.decay * variable)
        elif update.decay:
            coupled = update.gradient + update.decay * variable
            update = update._replace(gradient=coupled)
        variable.assign_sub(update.rate * self._direction(update))

    def _direction(self, update: Update) -> Any:
        """Assign both means; return the change of the weight at a rate of 1."""
        (mean, square), gradient, _, _, step = update
        new_mean = self.beta1 * mean + (1 - self.beta1) * gradient
        new_square = self.beta2 * square + (1 - self.beta2) * gradient * gradient
        mean.assign(new_mean)
        square.assign(new_square)
        root = tf.sqrt(new_square) / tf.sqrt(_bias_correction(self.beta2, step))
        return new_mean / _bias_correction(self.beta1, step) / (root + self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Lamb(Adam):
    """LAMB (You et al., arXiv:1904.00962) as timm 1.0.31 implements it.

    Adam's direction plus `decay * w`, scaled to the length of the weight. Keras' own
    `Lamb` adds the decay after scaling and clips nothing, which is another optimizer.
    As in timm, weights without decay are not scaled: they move by Adam alone. All
    gradients together are clipped to a global norm of `max_norm`, if it is not None.
    """

    epsilon: float = 1e-6
    max_norm: float | None = 1.0

    def prepare(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients, clipped together to `max_norm`."""
        if self.max_norm is None:
            return list(gradients)
        excess = tf.maximum(tf.linalg.global_norm(gradients) / self.max_norm, 1.0)
        return [gradient / excess for gradient in gradients]

    def apply(self, variable: Any, update: Update) -> None:
        """Assign the weight and both means."""
        change = self._direction(update)
        if update.decay:
            change += update.decay * variable
            length, step = tf.norm(variable), tf.norm(change)
            ratio = tf.math.divide_no_nan(length, step)
            change *= tf.where((length > 0) & (step > 0), ratio, 1.0)
        variable.assign_sub(update.rate * change)


def _bias_correction(beta: float, step: Any) -> Any:
    # In float32, 1 - 0.999 would be wrong in the fifth digit.
    power = tf.pow(tf.constant(beta, tf.float64), tf.cast(step, tf.float64))
    return tf.cast(1 - power, tf.float32)


class Optimizer:
    """An update rule, the weights it updates and the slots of each.

    Every variable is created here, so create the optimizer within `strategy.scope()`
    where there is a strategy; `apply` may then be called within `strategy.run` and
    outside of it. Variables are Keras' or `tf.Variable`s, float32, of different names.
    Decays are the weight decay of each, 0 for none (see `is_decayed`), scales the
    multiple of the learning rate of each; None is 1.
    """

    def __init__(
        self,
        rule: UpdateRule,
        variables: Sequence[Any],
        decays: Sequence[float],
        scales: Sequence[float] | None = None,
    ) -> None:
        named = _by_name(variables)
        if len(decays) != len(named):
            raise UsageError(
                "`decays` must have one value per variable. Received: "
                f"{len(decays)} decays and {len(named)} variables."
            )
        self.rule = rule
        self._strategy = tf.distribute.get_strategy()
        self.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
        self._variables = named
        self._decays = tuple(map(float, decays))
        self._scales = scales or [1.0] * len(named)
        self._slots = [
            [
                tf.Variable(
                    tf.zeros(each.shape), trainable=False, name=f"{slot}/{name}"
                )
                for slot in rule.slots
            ]
            for name, each in named.items()
        ]

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        """Take one step at a learning rate, a float32 scalar tensor.

        Gradients are of the loss by each variable, in their order, and of the global
        batch: with several replicas, reduce them first
        (`tf.distribute.get_replica_context().all_reduce`). Each new Python number would
        trace a surrounding `tf.function` again. A UsageError if a variable has no
        gradient, or the strategy is another one than where the optimizer was created.
        """
        pairs = zip(self._variables, gradients, strict=True)
        missing = [name for name, gradient in pairs if gradient is None]
        if missing:
            raise UsageError(
                "Every variable needs a gradient, for the loss must depend on it. "
                f"Without one: {', '.join(missing)}. Leave frozen ones out."
            )
        prepared, rate = self.rule.prepare(gradients), tf.cast(rate, tf.float32)
        _merge(self._strategy, self._update_all, prepared, rate)

    def state(self) -> dict[str, tf.Variable]:
        """Return what a checkpoint must hold: `iterations`, `<slot>/<variable>`."""
        state = {"iterations": self.iterations}
        for name, slots in zip(self._variables, self._slots, strict=True):
            for slot, variable in zip(self.rule.slots, slots, strict=True):
                state[f"{slot}/{name}"] = variable
        return state

    def _update_all(self, strategy: Any, gradients: Sequence[Any], rate: Any) -> None:
        self.iterations.assign_add(1)
        step = self.iterations.read_value()
        constant = self._variables.values(), self._slots, self._decays, self._scales
        rows = zip(*constant, gradients, strict=True)
        for variable, slots, decay, scale, gradient in rows:
            update = Update(slots, gradient, scale * rate, decay, step)
            strategy.extended.update(variable, self.rule.apply, (update,))


class MovingAverage:
    """An exponential moving average of weights, including batch-norm statistics.

    It starts as a copy. torchvision averages buffers as well as parameters
    (`use_buffers=True`), so pass all variables of the layers that are trained, whose
    batch-norm statistics are those buffers. Create it within `strategy.scope()` where
    there is a strategy; `update` may then be called within `strategy.run` and outside
    of it. Variables are float32, of different names; `copies` are in their order.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._strategy = tf.distribute.get_strategy()
        self._sources = _by_name(variables)
        self.copies = tuple(
            tf.Variable(source.read_value(), trainable=False, name=f"average/{name}")
            for name, source in self._sources.items()
        )

    def update(self, decay: Any) -> None:
        """Update the averages: decay * average + (1 - decay) * weight.

        The decay is in [0, 1); 0 copies. See `Phase.ema_decay`. In a `tf.function` pass
        a float64 tensor, for the share of the new weights, 1 - decay, is small and
        float32 would round it coarsely. A UsageError in another strategy than where it
        was created.
        """
        exact = tf.convert_to_tensor(decay, tf.float64)
        keep, share = tf.cast(exact, tf.float32), tf.cast(1 - exact, tf.float32)
        _merge(self._strategy, self._update_all, keep, share)

    def averages(self) -> dict[str, tf.Variable]:
        """Return the averages by the names of the variables."""
        return dict(zip(self._sources, self.copies, strict=True))

    def state(self) -> dict[str, tf.Variable]:
        """Return what a checkpoint must hold: `average/<variable>`."""
        return {f"average/{name}": copy for name, copy in self.averages().items()}

    def _update_all(self, strategy: Any, keep: Any, share: Any) -> None:
        for copy, source in zip(self.copies, self._sources.values(), strict=True):
            strategy.extended.update(copy, _average, (source, keep, share))


def _average(copy: Any, source: Any, keep: Any, share: Any) -> None:
    copy.assign(keep * copy + share * source)


def _merge(strategy: Any, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function where the copies of a variable may be assigned together."""
    current = tf.distribute.get_strategy()
    if current is not strategy and tf.distribute.has_strategy():
        raise UsageError(
            "What is used under a strategy must be created under the same one. Create "
            "it within `strategy.scope()`."
        )
    context = tf.distribute.get_replica_context()
    if current is not strategy or context is None:
        function(strategy, *arguments)
    else:
        context.merge_call(function, args=arguments)


def _by_name(variables: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for variable in variables:
        # Stored raw: within the call of a layer of mixed precision Keras' `.value` is a
        # cast copy, which cannot be assigned to.
        if isinstance(variable, keras.Variable):
            name, raw = variable.path, variable.value
        else:
            name, raw = variable.name.removesuffix(":0"), variable
        if name in named:
            raise UsageError(
                "Variables must have different names, for their state is saved by "
                f"name. Received two of the name {name!r}."
            )
        if raw.dtype != tf.float32:
            raise UsageError(
                f"Variables must be float32. Received: {name!r} of {raw.dtype.name}."
            )
        named[name] = raw
    return named
