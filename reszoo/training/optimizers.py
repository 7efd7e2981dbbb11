"""How a gradient moves a weight: rules equal to torch's and timm's, step by step.

A rule is pure data and arithmetic on one variable; `Optimizer` holds the variables
that a rule needs between steps, and `Average` those of a moving average. Both are
plain `tf.Variable`s, made once, so that a run can save and restore all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

import keras
import tensorflow as tf

from reszoo.errors import UnknownNameError, UsageError
from reszoo.training.schedules import Decayed

DECAYED: tuple[str, ...] = get_args(Decayed)
"""Which weights can be decayed: see `decay_of`."""


def decay_of(path: str, ndim: int, which: Decayed = "kernels") -> bool:
    """Tell whether a trainable weight is decayed.

    Args:
        path: Keras' path of the weight, such as "layer1.0.conv1/kernel".
        ndim: Number of its axes.
        which: "kernels" of convolutions and dense layers, which have two axes or more
            (timm's groups); "all-but-norm" adds biases, as torchvision's reference
            script does with `--norm-weight-decay 0`; "all" is torch's plain SGD.

    Raises:
        UnknownNameError: `which` is not in `DECAYED`.
    """
    if which not in DECAYED:
        raise UnknownNameError("choice of decayed weights", which, DECAYED)
    if which == "kernels":
        return ndim > 1
    return which == "all" or not path.endswith(("/gamma", "/beta"))


class Rule(Protocol):
    """What `Optimizer` asks of a rule: `Sgd` and `Lamb` are the two."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the variables kept for each weight; they start at zero."""

    def prepare(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients after what concerns all of them at once."""

    def move(
        self,
        variable: Any,
        slots: Sequence[Any],
        gradient: Any,
        rate: Any,
        decay: float,
        step: Any,
    ) -> None:
        """Assign one weight and its slots.

        Args:
            variable: float32 `tf.Variable`.
            slots: As many as names in `slots`, each of the variable's shape.
            gradient: Of the loss, without the weight decay; the variable's shape.
            rate: float32 scalar tensor.
            decay: Of this weight; 0 for none.
            step: int64 scalar tensor, counted from 1.
        """


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum and coupled weight decay.

    With g the gradient plus `decay * w`, torch's form (`torch.optim.SGD`) is
    v = momentum v + g; w -= rate v. It and the other form are the same as long as the
    rate stays what it is; when the rate falls, torch's slows down at once.

    Attributes:
        momentum: In [0, 1).
        nesterov: Whether to move by g + momentum v in place of v.
        rate_inside: Whether the velocity holds the rate, v = momentum v + rate g;
            w -= v, as in Caffe (with which He et al. 2015 trained) and in Keras.
    """

    momentum: float = 0.9
    nesterov: bool = False
    rate_inside: bool = field(default=False, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity."""
        return ("velocity",)

    def prepare(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients as they came."""
        return list(gradients)

    def move(
        self,
        variable: Any,
        slots: Sequence[Any],
        gradient: Any,
        rate: Any,
        decay: float,
        step: Any,
    ) -> None:
        """Assign the weight and its velocity; see `Rule.move`."""
        del step
        (velocity,) = slots
        push = gradient + decay * variable if decay else gradient
        push = rate * push if self.rate_inside else push
        speed = self.momentum * velocity + push
        velocity.assign(speed)
        way = push + self.momentum * speed if self.nesterov else speed
        variable.assign_sub(way if self.rate_inside else rate * way)


@dataclass(frozen=True, kw_only=True)
class Lamb:
    """LAMB (You et al., arXiv:1904.00962) as timm 1.0.31 carries it out.

    Adam's direction plus `decay * w`, scaled to the length of the weight. Keras' own
    `Lamb` adds the decay after scaling and clips nothing, which is another optimizer.
    As in timm, weights without decay are not scaled: they move by Adam alone.

    Attributes:
        beta1: Memory of the gradient, in [0, 1).
        beta2: Memory of its square, in [0, 1).
        epsilon: Added to the root of the square.
        max_norm: All gradients together are shortened to this length if they are
            longer; None leaves them.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    max_norm: float | None = 1.0

    @property
    def slots(self) -> tuple[str, ...]:
        """Running means of the gradient and of its square."""
        return ("mean", "square")

    def prepare(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients, shortened together to `max_norm`."""
        if self.max_norm is None:
            return list(gradients)
        excess = tf.maximum(tf.linalg.global_norm(gradients) / self.max_norm, 1.0)
        return [gradient / excess for gradient in gradients]

    def move(
        self,
        variable: Any,
        slots: Sequence[Any],
        gradient: Any,
        rate: Any,
        decay: float,
        step: Any,
    ) -> None:
        """Assign the weight and both means; see `Rule.move`."""
        mean, square = slots
        new_mean = self.beta1 * mean + (1 - self.beta1) * gradient
        new_square = self.beta2 * square + (1 - self.beta2) * gradient * gradient
        mean.assign(new_mean)
        square.assign(new_square)
        root = tf.sqrt(new_square) / tf.sqrt(_warmed(self.beta2, step))
        way = new_mean / _warmed(self.beta1, step) / (root + self.epsilon)
        if decay:
            way += decay * variable
            way *= _trust_ratio(variable, way)
        variable.assign_sub(rate * way)


def _warmed(beta: float, step: Any) -> Any:
    # In float32, 1 - 0.999 would be wrong in the fifth digit.
    power = tf.pow(tf.constant(beta, tf.float64), tf.cast(step, tf.float64))
    return tf.cast(1 - power, tf.float32)


def _trust_ratio(variable: Any, way: Any) -> Any:
    ours, theirs = tf.norm(variable), tf.norm(way)
    ratio = tf.math.divide_no_nan(ours, theirs)
    return tf.where((ours > 0) & (theirs > 0), ratio, 1.0)


class Optimizer:
    """A rule, the weights it moves and what it remembers of each.

    Every variable is made here, so make it within `strategy.scope()` where there is a
    strategy; `apply` may then be called within `strategy.run` and outside of it.

    Args:
        rule: `Sgd(...)` or `Lamb(...)`.
        variables: Keras variables or `tf.Variable`s, float32, of different names.
        decays: The weight decay of each, 0 for none; see `decay_of`.

    Raises:
        UsageError: Two variables have one name, or `decays` has another length.
    """

    def __init__(
        self, rule: Rule, variables: Sequence[Any], decays: Sequence[float]
    ) -> None:
        named = _by_name(variables)
        if len(decays) != len(named):
            raise UsageError(
                "`decays` must have one value a variable. Received: "
                f"{len(decays)} decays and {len(named)} variables."
            )
        self.rule = rule
        self._home = tf.distribute.get_strategy()
        self.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
        self._names = tuple(named)
        self._variables = tuple(named.values())
        self._decays = tuple(float(decay) for decay in decays)
        self._slots = [
            [_zeros(f"{slot}/{name}", variable) for slot in rule.slots]
            for name, variable in named.items()
        ]

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        """Take one step.

        Args:
            gradients: Of the loss by each variable, in the order of `variables`. They
                are those of the global batch: with several replicas, reduce them
                first (`tf.distribute.get_replica_context().all_reduce`).
            rate: Learning rate, a float32 scalar tensor. Each new Python number would
                trace a surrounding `tf.function` again.

        Raises:
            UsageError: A variable has no gradient, or the strategy is another one than
                where the optimizer was made.
        """
        pairs = zip(self._names, gradients, strict=True)
        missing = [name for name, gradient in pairs if gradient is None]
        if missing:
            raise UsageError(
                "Every variable needs a gradient, for the loss must depend on it. "
                f"Without one: {', '.join(missing)}. Leave frozen ones out."
            )
        prepared = self.rule.prepare(gradients)
        _merge(self._home, self._move_all, prepared, tf.cast(rate, tf.float32))

    def state(self) -> dict[str, tf.Variable]:
        """Return what has to be saved to go on: `iterations`, `<slot>/<variable>`."""
        state = {"iterations": self.iterations}
        for name, slots in zip(self._names, self._slots, strict=True):
            for slot, variable in zip(self.rule.slots, slots, strict=True):
                state[f"{slot}/{name}"] = variable
        return state

    def _move_all(self, strategy: Any, gradients: Sequence[Any], rate: Any) -> None:
        self.iterations.assign_add(1)
        step = self.iterations.read_value()
        for variable, slots, gradient, decay in zip(
            self._variables, self._slots, gradients, self._decays, strict=True
        ):
            strategy.extended.update(
                variable, self.rule.move, (slots, gradient, rate, decay, step)
            )


class Average:
    """An exponential moving average of weights, statistics included.

    It starts as a copy. torchvision averages buffers as well as parameters
    (`use_buffers=True`), so hand over all of `model.variables`, whose batch-norm
    statistics are those buffers. Make it within `strategy.scope()` where there is a
    strategy; `update` may then be called within `strategy.run` and outside of it.

    Args:
        variables: Keras variables or `tf.Variable`s, float32, of different names.

    Attributes:
        copies: The averages, in the order of `variables`.

    Raises:
        UsageError: Two variables have one name, or one holds no float32 numbers.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._home = tf.distribute.get_strategy()
        self._sources = _by_name(variables)
        self.copies = tuple(
            tf.Variable(source.read_value(), trainable=False, name=f"average/{name}")
            for name, source in self._sources.items()
        )

    def update(self, decay: Any) -> None:
        """Let the average follow: decay * average + (1 - decay) * weight.

        Args:
            decay: In [0, 1); 0 copies. See `schedules.ema_decay_at`. In a
                `tf.function` hand over a float64 tensor, for the share of the new
                weights, 1 - decay, is small and float32 would blur it.

        Raises:
            UsageError: The strategy is another one than where the average was made.
        """
        exact = tf.convert_to_tensor(decay, tf.float64)
        keep, share = tf.cast(exact, tf.float32), tf.cast(1 - exact, tf.float32)
        _merge(self._home, self._follow, keep, share)

    def state(self) -> Mapping[str, tf.Variable]:
        """Return what has to be saved to go on: `average/<variable>`."""
        names = (f"average/{name}" for name in self._sources)
        return dict(zip(names, self.copies, strict=True))

    def _follow(self, strategy: Any, keep: Any, share: Any) -> None:
        for copy, source in zip(self.copies, self._sources.values(), strict=True):
            strategy.extended.update(copy, _mix, (source, keep, share))


def _mix(copy: Any, source: Any, keep: Any, share: Any) -> None:
    copy.assign(keep * copy + share * source)


def _merge(home: Any, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function where copies on several replicas may be assigned together."""
    current = tf.distribute.get_strategy()
    if current is not home and tf.distribute.has_strategy():
        raise UsageError(
            "What is used under a strategy must be made under the same one. Make it "
            "within `strategy.scope()`."
        )
    context = tf.distribute.get_replica_context()
    if current is not home or context is None:
        function(home, *arguments)
    else:
        context.merge_call(function, args=arguments)


def _by_name(variables: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for variable in variables:
        name, raw = _raw(variable)
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


def _raw(variable: Any) -> tuple[str, Any]:
    # Kept raw, for within the call of a layer of mixed precision Keras' `.value` is a
    # cast copy, which nothing can be assigned to.
    if isinstance(variable, keras.Variable):
        return variable.path, variable.value
    return variable.name.removesuffix(":0"), variable


def _zeros(name: str, like: Any) -> tf.Variable:
    return tf.Variable(tf.zeros(like.shape, tf.float32), trainable=False, name=name)
