"""How far the answers of an exported file may lie from its model's."""

from dataclasses import dataclass, replace

# A file that gives one class to more of the images than the first, where the model
# gives none to more than the second, has lost its input.
ONE_CLASS = 0.95
VARIED = 0.8


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The rules of one precision.

    Attributes:
        max_difference: Largest allowed difference of a probability; None where
            `max_moved` says it.
        max_log_difference: Largest allowed difference of a probability's logarithm,
            relative to it where it is beyond 1; None where rounding is coarser. It
            sees what hides behind answers that are all 0 or 1.
        max_moved: Most probability that may go to other classes, mean over the
            real images, in 0..1; None where `max_difference` says it.
        max_moved_synthetic: The same of the made-up images, which lie far from what
            calibration saw.
        max_lost: Most that may be lost of what tells the real images apart, or the
            made-up ones where there are no real ones: what moved by what the model's
            own answers move from image to image. It judges flat answers as strictly
            as confident ones.
        max_drift: Most that the mean confidence may change; None as above.
        margin: Where the model's top probability leads that of the file's class by
            at most this, the model is undecided and either answer agrees.
        tie: The same as a share: where the model gives the file's class at least
            this share of its top probability.
        min_agreement: Least share of images with the model's top-1, ties included.
        min_same: Least share of images with the model's top-1, ties not included.
        max_accuracy_drop: Most that top-1 accuracy may fall, in 0..1, where chance
            explains no more; None where agreement leaves nothing to lose.
        max_batch_difference: Most that a probability may change with the batch that
            its image is asked in.
        max_relative: Largest allowed difference of a feature, relative to the
            largest feature; None where `min_cosine` says it.
        min_cosine: Least cosine between the file's features and the model's, mean
            over the real images.
    """

    max_difference: float | None = None
    max_log_difference: float | None = None
    max_moved: float | None = None
    max_moved_synthetic: float | None = None
    max_lost: float | None = None
    max_drift: float | None = None
    margin: float = 0.0
    tie: float = 1.0
    min_agreement: float = 1.0
    min_same: float = 0.9
    max_accuracy_drop: float | None = None
    max_batch_difference: float = 1e-5
    max_relative: float | None = None
    min_cosine: float | None = None


FLOAT32 = Tolerance(
    max_difference=1e-5, max_log_difference=1e-4, margin=1e-4, max_relative=1e-4
)
FLOAT16 = Tolerance(
    max_difference=2e-3, margin=5e-3, max_batch_difference=2e-3, max_relative=1e-2
)
# Single probabilities move; what counts is the class. Nets with random weights, whose
# answers to real images are nearly alike, lose up to 0.19 with int16 activations and
# 0.09 with dynamic ranges.
INT8 = Tolerance(
    max_moved=0.15,
    max_moved_synthetic=0.35,
    max_lost=0.5,
    max_drift=0.1,
    tie=0.9,
    min_agreement=0.97,
    max_accuracy_drop=0.01,
    min_cosine=0.97,
)
DYNAMIC = Tolerance(
    max_moved=0.05,
    max_moved_synthetic=0.15,
    max_lost=0.3,
    max_drift=0.03,
    tie=0.9,
    min_agreement=0.98,
    max_accuracy_drop=0.01,
    min_cosine=0.99,
)
# Ranges of activations are measured beforehand, as for int8, but finely divided.
INT16X8 = replace(DYNAMIC, max_moved_synthetic=0.35, max_lost=0.4)
