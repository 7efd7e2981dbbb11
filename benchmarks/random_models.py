"""Models with random weights that tell images apart, and the images.

Each class is noise of one colour and structure, and the classifier gets the mean
features of each class; in `random_checkpoint` batch normalisation also gets its
statistics from the images. Files are judged by the images with the clearest logits:
trained models are surer than any random one.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Calibration images; candidates for test images, and the number chosen.
TRAIN, CANDIDATES, TEST = 100, 120, 40
# A class each: the corners of the cube of colours, grey and black.
COLOURS = (*itertools.product((60, 195), repeat=3), (128, 128, 128), (30, 30, 30))
CLASSES = len(COLOURS)
# Grey levels by which pixels, 2 x 2, 8 x 8 pixels and whole images vary, at most.
STRENGTHS = (25, 25, 25, 5)
# Share of other classes' logits in that of a class without images.
MIXED = 0.6
# Median lead of the right logit. The features of a deep random model differ little
# between images: a larger lead would amplify rounding.
LEAD = 0.5


def random_checkpoint(name: str, size: int, seed: int, folder: Path) -> tuple[str, str]:
    """Make a model with random weights and images for it; return both paths."""
    import keras

    import reszoo

    draw = np.random.default_rng(seed)
    labels = tuple("abcdefghij"[:CLASSES])
    model = reszoo.build(name, classes=labels, input_shape=(size, size, 3))
    randomise(model, draw)
    calm(model)
    teach(model, labels, size, draw, folder / "data")
    path = folder / "model.safetensors"
    reszoo.save(model, path)
    keras.backend.clear_session()
    return str(path), str(folder / "data")


@dataclass(frozen=True)
class Lesson:
    """How many images of each kind there are, and how clearly they are told apart."""

    train: int = TRAIN
    settled: int = 2 * CLASSES  # of those, which give the statistics
    candidates: int = CANDIDATES
    test: int = TEST
    lead: float = LEAD


def teach(
    model: Any,
    labels: Any,
    size: int,
    draw: np.random.Generator,
    folder: Path,
    lesson: Lesson = Lesson(),
) -> None:
    """Let a model with random weights tell images apart; write train/ and test/."""
    strengths = draw.uniform(2, STRENGTHS, (CLASSES, len(STRENGTHS)))
    answers = np.arange(lesson.train) % CLASSES
    images = noise(answers, size, strengths, draw)
    settle(model, images[: lesson.settled])
    classify(model, images, answers, draw)
    write_images(folder / "train", images, answers, labels)
    answers = np.arange(lesson.candidates) % CLASSES
    images = noise(answers, size, strengths, draw)
    lead = leads(model, images, answers)
    chosen = surest(lead, answers, lesson.test // CLASSES)
    sharpen(model, lesson.lead / np.median(lead[chosen]))
    write_images(folder / "test", images[chosen], answers[chosen], labels)


def randomise(model: Any, draw: np.random.Generator) -> None:
    """Give a model random weights and statistics that are nowhere trivial."""
    from reszoo.weights.names import assign_tensors, to_tensors

    plain = model.name.startswith("plain")
    tensors = to_tensors(model)
    for key, tensor in tensors.items():
        if key.endswith("running_var") or (tensor.ndim == 1 and "weight" in key):
            tensors[key] = draw.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
            # As in trained models; otherwise activations grow with depth.
            if key.endswith(("bn2.weight", "bn3.weight")) and not plain:
                tensors[key] *= 0.3
        elif tensor.ndim == 1:
            tensors[key] = draw.normal(0, 0.2, tensor.shape).astype(np.float32)
        elif tensor.ndim > 1:
            # As `reszoo.build` draws them, by fan-out, but by our seed.
            spread = np.sqrt(2 * tensor.shape[1] / tensor.size)
            if key == "fc.weight":
                # From undecided to sure of itself.
                spread = draw.uniform(1, 5) / np.sqrt(3 * tensor.shape[1])
            tensors[key] = draw.normal(0, spread, tensor.shape).astype(np.float32)
    assign_tensors(model, tensors, "random numbers")


def noise(answers: Any, size: int, strengths: Any, draw: np.random.Generator) -> Any:
    """Make uint8 `(count, size, size, 3)` of each class's colour and structure."""
    made = np.zeros((len(answers), size, size, 3))
    made += np.asarray(COLOURS)[answers][:, None, None]
    for scale, side in enumerate((size, size // 2, size // 8, 1)):
        tiles = -(-size // side)
        drawn = draw.normal(0, 1, (len(answers), tiles, tiles, 3))
        drawn *= strengths[answers, scale][:, None, None, None]
        made += drawn.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return np.clip(made, 0, 255).astype(np.uint8)


def calm(model: Any) -> None:
    """Weaken the branch of every block, the more the deeper a model is.

    The sum of all branches then outweighs the stem no more than in ResNet-18; with
    random weights anything stronger enlarges rounding from block to block.
    """
    from reszoo.weights.names import assign_tensors, to_tensors

    tensors = to_tensors(model)
    kinds = ("bn3.weight", "bn2.weight")
    last = next(kind for kind in kinds if any(key.endswith(kind) for key in tensors))
    ends = [key for key in tensors if key.endswith(last)]
    for key in ends:
        tensors[key] *= np.float32(np.sqrt(8 / len(ends)))
    assign_tensors(model, tensors, "random numbers")


def settle(model: Any, images: Any) -> None:
    """Make the statistics of every batch norm those of some images.

    With others a deep model adds the same large offset to all its features, and what
    tells images apart drowns in it.
    """
    import keras

    norms = [
        each
        for each in model.layers
        if isinstance(each, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(inputs_of(model, images), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def inputs_of(model: Any, images: Any) -> Any:
    """Return images as the model takes them: float32 `(count, size, size, 3)`."""
    import reszoo

    preprocessing = reszoo.card(model).preprocessing
    pixels = np.stack([preprocessing.prepare(image) for image in images])
    return preprocessing.normalise(pixels.astype(np.float32))


def classify(model: Any, images: Any, answers: Any, draw: np.random.Generator) -> None:
    """Give a model the classifier that takes the class of the nearest mean feature.

    Classes without images are mixtures of those with some, and never lead.
    """
    import keras

    from reszoo.weights.names import assign_tensors, to_tensors

    features = keras.Model(model.input, model.get_layer("fc").input)
    seen = features.predict(inputs_of(model, images), batch_size=4, verbose=0)
    shown = answers.max() + 1
    means = np.stack([seen[answers == each].mean(axis=0) for each in range(shown)])
    # |x - m|^2 is least where (m - c) x - (|m|^2 - |c|^2) / 2 is greatest.
    centre = means.mean(axis=0)
    bias = ((centre**2).sum() - (means**2).sum(axis=-1)) / 2
    others = MIXED * draw.dirichlet(np.ones(shown), model.output_shape[-1] - shown)
    shares = np.concatenate([np.eye(shown), others])
    tensors = to_tensors(model)
    tensors["fc.weight"] = (shares @ (means - centre)).astype(np.float32)
    tensors["fc.bias"] = (shares @ bias).astype(np.float32)
    assign_tensors(model, tensors, "a classifier that tells the images apart")


def sharpen(model: Any, factor: float) -> None:
    """Multiply all logits."""
    from reszoo.weights.names import assign_tensors, to_tensors

    tensors = to_tensors(model)
    tensors["fc.weight"] = (factor * tensors["fc.weight"]).astype(np.float32)
    tensors["fc.bias"] = (factor * tensors["fc.bias"]).astype(np.float32)
    assign_tensors(model, tensors, "a classifier as sure as it should be")


def leads(model: Any, images: Any, answers: Any) -> Any:
    """Return by how much the logit of the right answer leads: `(count,)`."""
    logits = model.predict(inputs_of(model, images), batch_size=4, verbose=0)
    right = np.eye(logits.shape[-1], dtype=bool)[answers]
    return logits[right] - np.where(right, -np.inf, logits).max(axis=-1)


def surest(lead: Any, answers: Any, each: int) -> Any:
    """Return which lead most among their class, so many of each."""
    ordered = np.lexsort((-lead, answers))
    rank = np.arange(len(lead)) - np.searchsorted(answers[ordered], answers[ordered])
    return ordered[rank < each]


def write_images(root: Path, images: Any, answers: Any, labels: Any) -> None:
    """Write a folder of class folders."""
    from PIL import Image

    for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
        place = root / labels[answer]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
