"""The one definition of how an image becomes the input of a model.

A `Preprocessing` is carried out by TensorFlow in pipelines and by Pillow and
NumPy where TensorFlow is not loaded. Both follow the same geometry functions and
differ by one grey level at most. The rules are torchvision's: resize the short
side with antialiasing, crop the centre, scale by mean and standard deviation.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

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
# Names of the same filters in TensorFlow, which widens them by `antialias`.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
# Cards come from files of strangers: the sides in pixels decide how much memory an
# image takes, and the rest must leave finite numbers in float32.
MOST_SIDE = 4096
_LEAST_CROP = 0.1
_LEAST_STD, _MOST_STATISTIC = 1e-4, 1e3
# Pixels that are converted at a time, 4 bytes each: so an image that is decoded
# already takes hardly more memory.
_BAND = 1 << 22
# Images of more pixels, before or after resizing, are not resized as a whole by
# Pillow; TensorFlow resizes them vertically first, for its horizontal pass takes 12
# bytes a pixel (`ScaleAndTranslate` keeps all of them as float32).
LARGE = 1 << 24
# Of the long side to the short one: beyond this float32 coordinates are inexact.
_LONG = 8


# Left, top, right and bottom of a part of an image, in pixels.
Box = tuple[int, int, int, int]


class Window(NamedTuple):
    """The pixels along one side of an image that the centre crop comes from.

    Attributes:
        start: The first of them.
        end: Behind the last.
        side: Length of the side.
        scaled: Its length once it is resized.
        offset: Where the crop begins then.
    """

    start: Any
    end: Any
    side: Any
    scaled: Any
    offset: Any

    def box(self, crop: int) -> tuple[float, float]:
        """Return where the crop begins and ends before resizing, from `start` on."""
        first = self.offset * self.side - self.start * self.scaled
        last = (self.offset + crop) * self.side - self.start * self.scaled
        return first / self.scaled, last / self.scaled


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
        if self.interpolation not in tuple(_PILLOW):
            raise UnknownNameError("interpolation", self.interpolation, _PILLOW)
        sizes = (self.train_size, self.eval_size)
        if not (
            _is_number(self.crop_pct)
            and _LEAST_CROP <= self.crop_pct <= 1
            and all(_is_whole(size) and 1 <= size <= MOST_SIDE for size in sizes)
        ):
            raise UsageError(
                f"crop_pct must lie in {_LEAST_CROP} to 1 and sizes in 1 to "
                f"{MOST_SIDE} pixels. Received: "
                f"crop_pct={self.crop_pct}, train_size={self.train_size}, "
                f"eval_size={self.eval_size}."
            )
        numbers = (*self.mean, *self.std)
        if not (
            len(self.mean) == len(self.std) >= 1
            and all(_is_number(x) and abs(x) <= _MOST_STATISTIC for x in numbers)
            and min(self.std) >= _LEAST_STD
        ):
            raise UsageError(
                "mean and std must have one entry per channel, finite, std of at least "
                f"{_LEAST_STD}. Received: mean={self.mean}, std={self.std}."
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
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return self.prepare_parts(picture.size, lambda box: to_rgb(picture.crop(box)))

    def prepare_parts(
        self, size: tuple[int, int], part: Callable[[Box], Image.Image]
    ) -> Pixels:
        """Resize and crop an image of which only parts are looked at.

        Args:
            size: Width and height of the upright image.
            part: Returns a part of it as RGB.

        Returns:
            uint8 RGB of shape `(eval_size, eval_size, 3)`.
        """
        crop = self.eval_size
        columns, rows = (self._window(side, min(size)) for side in size)
        left, top = columns.offset, rows.offset
        centre = (left, top, left + crop, top + crop)
        scaled = (columns.scaled, rows.scaled)
        if scaled == size:
            return np.asarray(part(centre))
        if max(math.prod(size), math.prod(scaled)) <= LARGE:
            # To the last bit as torchvision and timm, which resize the whole image.
            whole = part((0, 0, *size)).resize(scaled, _PILLOW[self.interpolation])
            return np.asarray(whole.crop(centre))

        # One side at a time, for Pillow 13 resizes some images vertically first.
        def resized(image: Image.Image, window: Window, *, down: bool) -> Image.Image:
            first, last = window.box(crop)
            new = (image.width, crop) if down else (crop, image.height)
            old = (
                (0, first, image.width, last)
                if down
                else (first, 0, last, image.height)
            )
            return image.resize(new, _PILLOW[self.interpolation], old)

        wide = Image.new("RGB", (crop, rows.end - rows.start))
        band = max(1, _BAND // (columns.end - columns.start))
        for top in range(rows.start, rows.end, band):
            box = (columns.start, top, columns.end, min(top + band, rows.end))
            wide.paste(resized(part(box), columns, down=False), (0, top - rows.start))
        return np.asarray(resized(wide, rows, down=True))

    def prepare_tensor(self, image: Any) -> Any:
        """Resize and crop one image with TensorFlow, also inside `tf.data`.

        Args:
            image: uint8 tensor `(height, width, channels)` of any size.

        Returns:
            uint8 tensor `(eval_size, eval_size, channels)`.
        """
        import tensorflow as tf

        crop, kind = self.eval_size, self.interpolation
        height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
        short = tf.minimum(height, width)
        rows, columns = (self._window(side, short) for side in (height, width))

        def cut() -> Any:
            top, left = rows.offset, columns.offset
            return image[top : top + crop, left : left + crop]

        def resized() -> Any:
            part = image[rows.start : rows.end, columns.start : columns.end]
            wide = _resample_columns(part, columns, crop, kind)
            return _resample_rows(wide, rows, crop, kind)

        def resized_large() -> Any:
            low = _resample_rows(image, rows._replace(start=0), crop, kind)
            return _resample_columns(low, columns._replace(start=0), crop, kind)

        large = (height * width > LARGE) & (tf.maximum(height, width) <= _LONG * short)
        # Skipping images that have the size already saves half of their time.
        same = tf.reduce_all([rows.scaled == height, columns.scaled == width])
        prepared = tf.cond(same, cut, lambda: tf.cond(large, resized_large, resized))
        return tf.ensure_shape(prepared, (crop, crop, image.shape[-1]))

    def _window(self, side: Any, short: Any) -> Window:
        """Return what of one side of an image the centre crop comes from.

        Works on Python integers and on int64 tensors alike.
        """
        crop = self.eval_size
        scaled = scaled_side(side, short, self.resize_size)
        offset = crop_offset(scaled, crop)
        # Both filters reach two pixels of the smaller image at most, and rounding one.
        reach = 2 * (-(-side // scaled)) + 2
        start = offset * side // scaled - reach
        end = -(-(offset + crop) * side // scaled) + reach
        if isinstance(side, int):
            start, end = max(start, 0), min(end, side)
        else:
            import tensorflow as tf

            start, end = tf.maximum(start, 0), tf.minimum(end, side)
        return Window(start, end, side, scaled, offset)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocessing":
        """Return what `to_json` wrote; unknown or missing fields are a TypeError."""
        known = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or set(content) != known:
            raise TypeError(f"expected the fields {sorted(known)}")
        triples = {name: content[name] for name in ("mean", "std")}
        if not all(isinstance(value, list) for value in triples.values()):
            raise TypeError("mean and std must be lists")
        return cls(**{**content, **{k: tuple(v) for k, v in triples.items()}})


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
    return image if image.mode == "RGB" else image.convert("RGB")


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


def _resample_columns(image: Any, window: Window, crop: int, kind: str) -> Any:
    """Resize the columns from `window.start` on and cut the crop from the result.

    Pillow resizes horizontally, rounds to uint8, then vertically; following it
    leaves a difference in one pixel of a thousand, a single pass in one of seven.
    """
    import tensorflow as tf

    scale, translation = _placement(window)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.stack([tf.shape(image)[0], crop]),
        scale=tf.stack([1.0, scale]),
        translation=tf.stack([0.0, translation]),
        kernel_type=_KERNELS[kind],
    )
    return _to_bytes(pixels[0])


def _resample_rows(image: Any, window: Window, crop: int, kind: str) -> Any:
    """Resize the rows as `_resample_columns` does the columns.

    Each row becomes the channels of a single pixel: the kernel mixes those at once.
    """
    import tensorflow as tf

    height, width, channels = tf.unstack(tf.shape(image))
    scale, translation = _placement(window)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, height, 1, width * channels)),
        size=[crop, 1],
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([translation, 0.0]),
        kernel_type=_KERNELS[kind],
    )
    return _to_bytes(tf.reshape(pixels, (crop, width, channels)))


def _placement(window: Window) -> tuple[Any, Any]:
    """Return scale and translation of the pixels from `window.start` on, float32."""
    import tensorflow as tf

    scale = tf.cast(window.scaled / window.side, tf.float32)
    shift = (window.start * window.scaled - window.offset * window.side) / window.side
    return scale, tf.cast(shift, tf.float32)


def _to_bytes(pixels: Any) -> Any:
    import tensorflow as tf

    # Pillow rounds halves up; tf.round would round them to even.
    return tf.cast(tf.clip_by_value(tf.floor(pixels + 0.5), 0, 255), tf.uint8)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and math.isfinite(value)
