"""The one definition of how an image becomes the input of a model.

A `Preprocessing` is carried out by TensorFlow in pipelines and by Pillow and
NumPy where TensorFlow is not loaded. Both follow the same geometry functions and
differ by one grey level at most. The rules are torchvision's: resize the short
side with antialiasing, crop the centre, scale by mean and standard deviation.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reszoo.errors import UnknownNameError, UsageError
from reszoo.specs import ResNetSpec

Pixels = NDArray[np.uint8]
# From the torchvision and timm sources; they belong to RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SIXTEEN_BITS = ("I", "I;16", "I;16B")
# Side of images that are too small to lose their border, in pixels.
_SMALL = 64
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalisation of the images that a model takes.

    Attributes:
        train_size: Side of the square training images, in pixels.
        eval_size: Side of the square evaluation images, in pixels.
        crop_pct: Share of the resized short side that the centre crop keeps, in
            (0, 1]; the short side becomes `floor(eval_size / crop_pct)`.
        interpolation: "bilinear" or "bicubic", always antialiased.
        mean: Subtracted per channel, of RGB in 0..1.
        std: Divided by, per channel, of RGB in 0..1.
    """

    train_size: int
    eval_size: int
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.interpolation not in _PILLOW:
            raise UnknownNameError("interpolation", self.interpolation, _PILLOW)
        if not 0 < self.crop_pct <= 1 or min(self.train_size, self.eval_size) < 1:
            raise UsageError(
                "crop_pct must lie in (0, 1] and sizes be positive. Received: "
                f"crop_pct={self.crop_pct}, train_size={self.train_size}, "
                f"eval_size={self.eval_size}."
            )
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UsageError(
                "mean and std must have one entry per channel, std above 0. Received: "
                f"mean={self.mean}, std={self.std}."
            )

    @property
    def resize_size(self) -> int:
        """Length of the short side before the centre crop, in pixels."""
        return math.floor(self.eval_size / self.crop_pct)

    def normalise(self, pixels: Any) -> Any:
        """Normalise RGB in 0..255 as the model expects it.

        Args:
            pixels: float32 `(..., channels)`; a NumPy array or a tensor.

        Returns:
            The same kind and shape: `(pixels / 255 - mean) / std`.
        """
        std = np.asarray(self.std, np.float64)
        scale = (1 / (255 * std)).astype(np.float32)
        offset = (-np.asarray(self.mean, np.float64) / std).astype(np.float32)
        return pixels * scale + offset

    def prepare(self, image: Image.Image | Pixels) -> Pixels:
        """Resize and crop one image with Pillow.

        Args:
            image: A PIL image, or uint8 RGB of shape `(height, width, 3)`.

        Returns:
            uint8 RGB of shape `(eval_size, eval_size, 3)`.
        """
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        image = to_rgb(image)
        short = min(image.size)
        width, height = (
            scaled_side(side, short, self.resize_size) for side in image.size
        )
        if (width, height) != image.size:
            image = image.resize((width, height), _PILLOW[self.interpolation])
        left, top = (crop_offset(side, self.eval_size) for side in (width, height))
        return np.asarray(
            image.crop((left, top, left + self.eval_size, top + self.eval_size))
        )

    def prepare_tensor(self, image: Any) -> Any:
        """Resize and crop one image with TensorFlow, also inside `tf.data`.

        Args:
            image: uint8 tensor `(height, width, channels)` of any size.

        Returns:
            uint8 tensor `(eval_size, eval_size, channels)`.
        """
        import tensorflow as tf

        sides = tf.unstack(tf.shape(image)[:2])
        short = tf.minimum(*sides)
        height, width = (scaled_side(side, short, self.resize_size) for side in sides)
        image = resize_tensor(image, height, width, self.interpolation)
        top, left = (crop_offset(side, self.eval_size) for side in (height, width))
        return tf.image.crop_to_bounding_box(
            image, top, left, self.eval_size, self.eval_size
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocessing":
        """Return what `to_json` wrote; unknown or missing fields are a TypeError."""
        triples = {name: tuple(content[name]) for name in ("mean", "std")}
        known = {field.name for field in fields(cls)}
        if set(content) != known:
            raise TypeError(f"expected the fields {sorted(known)}")
        return cls(**{**content, **triples})


def default_preprocessing(
    spec: ResNetSpec, eval_size: int | None = None
) -> Preprocessing:
    """Return the preprocessing of a model trained from scratch.

    Models for images of more than 64 pixels keep 7/8 of the resized image, as
    torchvision's for ImageNet; those for small images keep all of it.

    Args:
        spec: What is built.
        eval_size: Side of the input, in pixels; the spec's by default.
    """
    side = eval_size or spec.image_size
    return Preprocessing(
        train_size=side,
        eval_size=side,
        crop_pct=0.875 if spec.image_size > _SMALL else 1.0,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: the upper 8 of 16 bits per channel."""
    if image.mode in _SIXTEEN_BITS:
        # Pillow's own conversion would clip at 255.
        upper = np.clip(np.asarray(image) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    return image.convert("RGB")


def scaled_side(side: Any, short: Any, target: int) -> Any:
    """Scale one side so that the short one becomes `target`, rounding down.

    Works on Python integers and on integer tensors alike, as `crop_offset` does.
    """
    return side * target // short


def crop_offset(side: Any, crop: int) -> Any:
    """Return where a centre crop begins; halves round to even.

    torchvision rounds with Python's `round`, which does the same.
    """
    half = (side - crop) // 2
    return half + ((side - crop) % 2) * (half % 2)


def resize_tensor(image: Any, height: Any, width: Any, interpolation: str) -> Any:
    """Resize a uint8 tensor `(h, w, c)` with antialiasing, as Pillow does.

    Pillow resizes horizontally, rounds to uint8, then vertically; following it
    leaves a difference in one pixel of a thousand, a single pass in one of seven.
    """
    import tensorflow as tf

    def resized() -> Any:
        wide = _resize_once(image, tf.shape(image)[0], width, interpolation)
        return _resize_once(wide, height, width, interpolation)

    # Skipping images that have the size already saves half of their time.
    same = tf.reduce_all(tf.shape(image)[:2] == tf.stack([height, width]))
    return tf.cond(same, lambda: image, resized)


def _resize_once(image: Any, height: Any, width: Any, interpolation: str) -> Any:
    import tensorflow as tf

    size = tf.stack([height, width])
    pixels = tf.image.resize(image, size, interpolation, antialias=True)
    # Pillow rounds halves up; tf.round would round them to even.
    return tf.cast(tf.clip_by_value(tf.floor(pixels + 0.5), 0, 255), tf.uint8)
