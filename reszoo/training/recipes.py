"""Recipes: every option of a training run except the model and the data."""

import re
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

from reszoo.data.augment import strength_of
from reszoo.errors import Rules, UsageError, check_rules
from reszoo.fields import check_fields, plain_values

Decayed = Literal["kernels", "all-but-norm", "all"]
"""Which weights can be decayed: see `optimizers.is_decayed`."""

NEEDS = {
    "pad": ("crop", "pad"), "scale": ("crop", "resized"), "ratio": ("crop", "resized"),
    "milestones": ("schedule", "steps"), "factor": ("schedule", "steps"),
    "floor": ("schedule", "cosine"), "warmup_prefix": ("schedule", "cosine"),
    "momentum": ("optimizer", "sgd", "caffe-sgd"),
    "nesterov": ("optimizer", "sgd", "caffe-sgd"),
}  # fmt: skip
"""Field -> another field and its values, without which the field has no effect."""
# Defaults of the temperature and weight of distillation.
_TAUGHT = (4.0, 0.9)
_RULES: Rules = {
    'freeze must be "backbone", "stages:N" with a number of stages, or None. '
    "Received: {freeze}.": lambda r: (
        r.freeze is None or re.fullmatch(r"backbone|stages:[0-9]", r.freeze)
    ),
    "scale must be two numbers in (0, 1], the smaller one first. "
    "Received: {scale}.": lambda r: 0 < r.scale[0] <= r.scale[1] <= 1,
    "ratio must be two numbers in (0, inf], the smaller one first. "
    "Received: {ratio}.": lambda r: 0 < r.ratio[0] <= r.ratio[1],
    "milestones must be increasing shares of the training, in (0, 1). "
    "Received: {milestones}.": lambda r: all(
        a < b for a, b in pairwise((0, *r.milestones, 1))
    ),
    'schedule="steps" needs milestones, the shares of the training after which the '
    "rate falls, such as milestones=(0.5, 0.75). "
    "Received: {milestones}.": lambda r: r.schedule != "steps" or r.milestones,
    "distillation_temperature and distillation_weight need a teacher. Received: "
    "{teacher}, {distillation_temperature}, {distillation_weight}.": lambda r: (
        r.teacher is not None
        or (r.distillation_temperature, r.distillation_weight) == _TAUGHT
    ),
    "A recipe has epochs or steps, not both. Received: {epochs}, {steps}.": lambda r: (
        None in (r.epochs, r.steps)
    ),
    "accumulate must divide batch_size. "
    "Received: {accumulate}, {batch_size}.": lambda r: r.batch_size % r.accumulate == 0,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        name: The row of `RECIPES` that it is based on.
        epochs: Passes over the training images, after those of the head alone.
        steps: Number of steps instead, likewise. With neither, the size of the
            training set decides, as in BiT's HyperRule (arXiv:1912.11370, section 3.3).
        batch_size: Images per step, over all devices.
        accumulate: Number of parts whose gradients are accumulated, to save memory.
            Batch normalisation sees the parts.
        optimizer: "sgd" (torch's form), "caffe-sgd" (the rate is inside the
            velocity, as in He et al.), "adam" or "adamw" (torch's), or "lamb" (timm's).
            Adam's betas are 0.9 and 0.999; `find_recipe` changes learning rates made
            for SGD to 0.001 for it.
        learning_rate: Peak learning rate.
        layer_decay: Multiplies the learning rate once for each block between a layer
            and the head, as timm's `--layer-decay`; 1 for equal rates.
        momentum: Of the gradient.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Coupled L2, as in torch's SGD and Adam; decoupled for AdamW, for
            LAMB inside the trust ratio.
        decay_on: "kernels" excludes biases and batch normalisation, "all-but-norm"
            batch normalisation alone; or "all".
        schedule: How the rate changes: "cosine" falls along a half cosine to
            `floor` (arXiv:1608.03983), "steps" by `factor` at each milestone,
            "constant" not at all; see `phases.learning_rate`.
        schedule_per: Whether the rate changes each "step" or each "epoch".
        milestones: Of the schedule "steps", as shares of the training.
        factor: Of the schedule "steps": multiplies the rate at each milestone.
        floor: Lowest rate of the cosine, as a share of `learning_rate`.
        warmup_epochs: Epochs until the peak rate is reached, fractions allowed; None
            is a twentieth of the training.
        warmup_start: First rate of the warm-up, as a share of `learning_rate`.
        warmup_shape: "linear", or "constant" for `warmup_start` during all of the
            warm-up, as He et al. 2015 do for their ResNet-110 (section 4.2).
        warmup_prefix: Whether the cosine starts when the warm-up ends; otherwise it
            starts beneath the warm-up, after which the rate jumps down a little.
        loss: "softmax" cross-entropy or "binary" cross-entropy of every class.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weight: Weights of the classes in the loss, by label; 1 for a label that
            is left out. The loss of an image is multiplied by the weight of its class
            (of both, in their shares, where mixup or cutmix mixes them), and averaged
            over the batch. "balanced" is n / (k n_c) for n images, k classes and n_c
            images of the class, as in scikit-learn; with `sampling` the images that
            an epoch shows are counted.
        sampling: How often an epoch, which stays as long, shows each class: with
            probability proportional to n_c ** `sampling` (Kang et al. 2020,
            arXiv:1910.09217, section 4.1). 0 or "balanced" shows all classes
            equally often, 0.5 is between, 1 or None is as in the data. Within an epoch
            the images of a class are shown equally often, give or take one.
        best_by: Which epoch's weights are kept, by the validation split: that of the
            highest "accuracy" or "balanced_accuracy" (the lower loss decides between
            equals) or of the lowest "loss".
        patience: Epochs without a better one, by `best_by`, after which training
            stops; those of the head alone are not counted. The learning rates stay
            those of the whole training.
        teacher: Checkpoint of a model with the same classes, whose softened
            probabilities are learned as well (Hinton et al. 2015, arXiv:1503.02531):
            anything that `reszoo.load` reads. It sees the same augmented images.
        distillation_temperature: What both logits are divided by for that. 4, and the
            weight below, are those of Tian et al. 2020 (arXiv:1910.10699) for CIFAR.
        distillation_weight: Share of the teacher in the loss; the rest is `loss`.
        ema: Decay of the averaged weights, which are then evaluated and saved; None
            averages nothing.
        ema_every: Steps between two updates of the average.
        crop: Training crops: "pad" shifts by up to `pad`, "resized" cuts a random
            part (`scale`, `ratio`) and resizes it, "none" prepares images as in
            evaluation. "auto" is "pad" below 96 pixels, else "resized".
        pad: Border from which crops are cut, as a share of the side.
        scale: Least and largest share of the area of a resized crop.
        ratio: Least and largest width over height of a resized crop, compared with
            that of the input; with resize "squash", of the image.
        flip: Whether half of the images are flipped horizontally; None decides by
            the data, for a mirrored digit is not a digit.
        vertical_flip: Whether half of the images are flipped vertically.
        rotation: Greatest angle, in degrees, by which images are rotated to either side
            about their centre; corners show the mean colour.
        policy: "trivial" (TrivialAugmentWide), "rand-m7-mstd0.5" (timm's
            RandAugment) or None.
        erase: Probability that a part is erased.
        mixup: Alpha of mixup; 0 is off. With both, each batch gets one of them.
        cutmix: Alpha of cutmix; 0 is off.
        repeats: Copies of each image in a batch (arXiv:1902.05509).
        stochastic_depth: Probability of dropping the last block; it falls linearly
            towards the first (arXiv:1603.09382).
        dropout: Probability of setting a feature before the classifier to zero.
        block_dropout: The same before the last convolution of each block, as of wide
            ResNets; 0 leaves that to the model (`reszoo.build(dropout=)`).
        zero_init_residual: Whether each block starts as its shortcut alone; for
            models that `train` itself builds with fresh weights.
        freeze: "backbone" trains the head alone, "stages:N" all but the stem and
            the first N stages, None everything.
        freeze_bn: Whether batch normalisation keeps its statistics and scales.
            None freezes them where a device sees fewer than 16 images at a time.
        bn_momentum: Of the moving statistics (Keras' convention; torch's 0.1 is 0.9
            here). None is `max(1 - 10 / steps per epoch, 0.9)` (Kornblith et al. 2019).
        sync_bn: Whether devices share their batch statistics.
        head_epochs: Epochs before all others in which the head alone is trained, at
            a constant rate and with frozen batch normalisation.
        head_learning_rate: Learning rate of those.
        recompute: Whether gradients compute most activations a second time instead of
            keeping them: a third more time for a fraction of the memory
            (arXiv:1604.06174). The updates are the same.
        precision: "bfloat16" computes in it and keeps float32 weights; "auto" does
            so where the processor supports it.
        train_size: Side of the training images, or height and width; None is the
            card's, as below.
        eval_size: The same of the evaluation images.
        crop_pct: Share that the centre crop keeps.
        interpolation: "bilinear" or "bicubic".
        resize: "crop" shows the centre of an image, "squash" and "pad" all of it (see
            `Preprocessing`); for these, `crop_pct` is 1 unless given.
        channels: 1 for a model of grey images, 3 for RGB; for models that `train`
            itself builds.
        validation_share: Of each class that is held out where the data has no
            validation split; None is a fifth, or a tenth where there is a test split.
            0 trains on all of it.
        seed: Of fresh weights, the order of images and their augmentation.
    """

    # With the intervals that numbers must be in, unless they are None.
    name: str
    batch_size: Annotated[int, "[2, inf)"]
    learning_rate: Annotated[float, "(0, inf)"]
    epochs: Annotated[int | None, "[1, inf)"] = None
    steps: Annotated[int | None, "[1, inf)"] = None
    accumulate: Annotated[int, "[1, inf)"] = 1
    optimizer: Literal["sgd", "caffe-sgd", "adam", "adamw", "lamb"] = "sgd"
    layer_decay: Annotated[float, "(0, 1]"] = 1.0
    momentum: Annotated[float, "[0, 1)"] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, "[0, 1)"] = 0.0
    decay_on: Decayed = "kernels"
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    schedule_per: Literal["step", "epoch"] = "step"
    milestones: tuple[float, ...] = ()
    factor: Annotated[float, "[0, 1]"] = 0.1
    floor: Annotated[float, "[0, 1]"] = 0.0
    warmup_epochs: Annotated[float | None, "[0, inf)"] = 0.0
    warmup_start: Annotated[float, "[0, 1]"] = 0.01
    warmup_shape: Literal["linear", "constant"] = "linear"
    warmup_prefix: bool = True
    loss: Literal["softmax", "binary"] = "softmax"
    label_smoothing: Annotated[float, "[0, 1)"] = 0.0
    class_weight: Annotated[
        Literal["balanced"] | dict[str, float] | None, "(0, inf)"
    ] = None
    sampling: Annotated[Literal["balanced"] | float | None, "[0, 1]"] = None
    best_by: Literal["accuracy", "balanced_accuracy", "loss"] = "accuracy"
    patience: Annotated[int | None, "[1, inf)"] = None
    teacher: str | None = None
    distillation_temperature: Annotated[float, "(0, inf)"] = _TAUGHT[0]
    distillation_weight: Annotated[float, "[0, 1]"] = _TAUGHT[1]
    ema: Annotated[float | None, "[0, 1)"] = None
    ema_every: Annotated[int, "[1, inf)"] = 1
    crop: Literal["auto", "pad", "resized", "none"] = "resized"
    pad: Annotated[float, "[0, 0.5)"] = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | None = None
    vertical_flip: bool = False
    rotation: Annotated[float, "[0, 180]"] = 0.0
    policy: str | None = None
    erase: Annotated[float, "[0, 1]"] = 0.0
    mixup: Annotated[float, "[0, inf)"] = 0.0
    cutmix: Annotated[float, "[0, inf)"] = 0.0
    repeats: Annotated[int, "[1, inf)"] = 1
    stochastic_depth: Annotated[float, "[0, 1)"] = 0.0
    dropout: Annotated[float, "[0, 1)"] = 0.0
    block_dropout: Annotated[float, "[0, 1)"] = 0.0
    zero_init_residual: bool = False
    freeze: str | None = None
    freeze_bn: bool | None = False
    bn_momentum: Annotated[float | None, "[0, 1)"] = None
    sync_bn: bool = False
    head_epochs: Annotated[int, "[0, inf)"] = 0
    head_learning_rate: Annotated[float, "(0, inf)"] = 0.1
    recompute: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    train_size: Annotated[int | tuple[int, int] | None, "[1, inf)"] = None
    eval_size: Annotated[int | tuple[int, int] | None, "[1, inf)"] = None
    crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    resize: Literal["crop", "squash", "pad"] | None = None
    channels: Annotated[int | None, "[1, inf)"] = None
    validation_share: Annotated[float | None, "[0, 1)"] = None
    seed: Annotated[int, "[0, inf)"] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.policy is not None:
            strength_of(self.policy)
        check_rules(self, _RULES)
        for field, (other, *values) in NEEDS.items():
            received, chosen = getattr(self, field), getattr(self, other)
            if chosen not in (*values, "auto") and received != DEFAULTS[field]:
                needed = " or ".join(f'{other}="{value}"' for value in values)
                raise UsageError(
                    f"{field} has an effect with {needed} only. Received: "
                    f"{field}={received} with {other}={chosen!r}. Leave one out."
                )
        if self.epochs is not None:
            self.warmup(self.epochs)

    def warmup(self, epochs: float) -> float:
        """Return the epochs of warm-up in a training of `epochs`.

        Raises:
            UsageError: The warm-up is not shorter than the training.
        """
        warmup = epochs / 20 if self.warmup_epochs is None else self.warmup_epochs
        if warmup >= epochs:
            raise UsageError(
                "warmup_epochs must be less than the epochs of the training, which "
                "otherwise never reaches its learning rate. Received: warmup_epochs="
                f"{warmup:g}, epochs={epochs:g}. Give a smaller number, or None for "
                "a twentieth of the training, or train longer."
            )
        return warmup

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return plain_values(self)


DEFAULTS = {field.name: field.default for field in fields(Recipe)}
"""Field -> its value when it is left out."""

LEARNING = frozenset({
    "bn_momentum", "decay_on", "epochs", "factor", "floor", "label_smoothing",
    "learning_rate", "loss", "milestones", "momentum", "nesterov", "optimizer",
    "schedule", "schedule_per", "warmup_epochs", "warmup_prefix", "warmup_shape",
    "warmup_start", "weight_decay",
})  # fmt: skip
"""Fields that define the loss, learning rate, update and statistics of each step."""
