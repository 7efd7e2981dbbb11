"""Keras models that reszoo did not build, and what their exports are held against."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from conftest import randomise

import reszoo
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.keras_models.graph import all_layers
from reszoo_export.quantization.ranges import Calibration
from reszoo_export.serving import Serving, make_serving, source_answers
from reszoo_export.verification.reference import make_reference
from reszoo_export.verification.verify import verify_in_process

layers = keras.layers


def stir(model: Any) -> Any:
    """Give every layer weights that are nowhere trivial, small where blocks end."""
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            stir(layer)
        elif isinstance(layer, layers.BatchNormalization):
            top = 0.3 if layer.name.endswith(("_3_bn", "bn2")) else 1.5
            kinds = [(top / 3, top), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)]
            shape = layer.gamma.shape
            layer.set_weights([draw.uniform(*kind, shape) for kind in kinds])
        elif isinstance(layer, layers.Conv2D) and layer.use_bias:
            layer.bias.assign(draw.normal(0, 0.2, layer.bias.shape))
    return model


def pixels(size: int, count: int = 3) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def check(serving: Serving, images: Any, expected: Any, atol: float = 1e-5) -> None:
    name = "probabilities" if serving.card.architecture.include_top else "features"
    answers = serving.function(name)(images)[name].numpy()
    assert expected.std(axis=0).max() > 1e-3, "the images must differ in their answers"
    np.testing.assert_allclose(answers, expected, atol=atol)


def head_on(base: Any, *more: Any) -> Any:
    x = base.output
    # Seeded: a head that happens to be flat would tell no images apart.
    kernel = keras.initializers.RandomNormal(stddev=0.3, seed=0)
    dense = layers.Dense(4, activation="softmax", kernel_initializer=kernel)
    for layer in (*more, dense):
        x = layer(x)
    return keras.Model(base.input, x)


def small(name: str = "resnet8", **options: Any) -> Any:
    shape = {"input_shape": (32, 32, 3), "include_top": False, "seed": 0}
    return randomise(reszoo.build(name, **{**shape, **options}))


RECORD = reszoo.Preprocessing(
    train_size=32, eval_size=32, crop_pct=1.0, interpolation="bilinear",
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip


def settle(model: Any, images: Any) -> Any:
    """Give batch normalisation the statistics of some images, as after training."""
    norms = [each for each in all_layers(model) if hasattr(each, "moving_mean")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


FLOAT = ("saved_model", "tflite", "tflite-fp16", "tflite-dynamic", "onnx", "onnx-fp16")


def verified(
    model: Any,
    folder: Path,
    formats: Any = FLOAT,
    calibration: Any = None,
    **options: Any,
) -> dict[str, float]:
    """Write and verify files in this process; return the largest differences.

    What `reszoo.export` does, without starting a process for each file.
    """
    serving = make_serving(model, **options)
    reference = make_reference(source_answers(model, serving), serving.card, None)
    assert reference.outputs.std(axis=0).max() > 1e-3, "images must differ"
    differences = {}
    for name in formats:
        row = FORMATS[name]
        row.write(serving, folder / row.file, calibration)
        found = verify_in_process(
            row, folder / row.file, reference, ExportOptions(), serving.card
        ).verification
        assert not found.problems, (name, found.problems)
        differences[name] = found.max_difference
    return differences


def head(image: Any, *more: Any) -> Any:
    """A small classifier, whose answers differ from image to image."""
    start = keras.initializers.RandomNormal(0, 0.5, seed=1)
    x = layers.Conv2D(8, 3, 2, activation="relu", kernel_initializer=start)(image)
    x = layers.GlobalAveragePooling2D()(x)
    for layer in more:
        x = layer(x)
    return x


def dense(units: int = 4, activation: str | None = None) -> Any:
    start = keras.initializers.RandomNormal(0, 0.5, seed=2)
    return layers.Dense(units, activation, kernel_initializer=start)


def calibration(size: int = 32) -> Calibration:
    """Smooth images of random colours, distinct from all others."""
    draw = np.random.default_rng(5)
    coarse = draw.integers(0, 256, (300, 4, 4, 3)).astype(np.float32)
    images = np.stack(
        [np.kron(each, np.ones((size // 4, size // 4, 1))) for each in coarse]
    )
    images += draw.normal(0, 20, images.shape)
    images = np.clip(images, 0, 255).astype(np.uint8)
    return Calibration(images[:200], images[200:])
