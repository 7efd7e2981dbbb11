"""How many images a second come from JPEGs? reszoo, Keras and torch.

Run: python benchmarks/input.py [--peers PYTHON] [--json FILE]

Random resized crop to 224 pixels and flip, of photo-like JPEGs of 500 x 375 pixels (40
to 60 kB, which are made once): reszoo from the folder and from the folder that
`reszoo.resize_images` makes of it (side 256), torch's DataLoader with torchvision's
transforms in 2 workers, and `keras.utils.image_dataset_from_directory`, which only
resizes.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import roof
from harness import Contender, Target
from PIL import Image

WIDTH, HEIGHT, SIDE, SHORT = 500, 375, 224, 256
CLASSES, FILES, LINKS = 10, 400, 10
BATCH, BATCHES, SAMPLES = 32, 8, 10


def photo(draw: np.random.Generator) -> Image.Image:
    """Draw an image with as much detail at each scale as photos have."""
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for cells, strength in ((3, 60), (8, 40), (25, 22), (80, 12), (250, 5)):
        shape = (max(2, cells * 3 // 4), cells)
        grey = draw.normal(0, strength, shape)
        for channel in range(3):
            level = (grey + draw.normal(0, strength / 3, shape)).astype(np.float32)
            wide = Image.fromarray(level).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            )
            pixels[..., channel] += np.asarray(wide)
    return Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8))


def make_folder(folder: Path) -> Path:
    """Write the photos; each has several names, so that an epoch is long enough."""
    draw = np.random.default_rng(0)
    for number in range(FILES):
        label = folder / f"class-{number % CLASSES}"
        label.mkdir(parents=True, exist_ok=True)
        first = label / f"{number:04d}.jpg"
        photo(draw).save(first, quality=90)
        for again in range(1, LINKS):
            os.link(first, label / f"{number:04d}-{again}.jpg")
    return folder


def from_reszoo(data: str) -> Iterator[Any]:
    """Yield batches as `reszoo.train` sees them."""
    from reszoo.data.pipeline import Augmentation, training_batches
    from reszoo.data.sources import open_source
    from reszoo.preprocessing import default_preprocessing
    from reszoo.specs import SPECS

    batches = training_batches(
        open_source(data).examples("train"),
        default_preprocessing(SPECS["resnet50"]),
        Augmentation(crop="resized", flip=True),
        batch_size=BATCH,
        seed=0,
        epoch=0,
    )
    return iter(batches)


def from_keras(data: str) -> Iterator[Any]:
    """Yield batches that are only resized."""
    import keras

    batches = keras.utils.image_dataset_from_directory(
        data, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False
    )
    return iter(batches)


def from_torch(data: str) -> Iterator[Any]:
    """Yield batches of torch's own loader."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch_peers import import_torchvision

    torchvision = import_torchvision()
    import torch

    shown = torchvision.transforms
    chain = [shown.RandomResizedCrop(SIDE), shown.RandomHorizontalFlip()]
    images = torchvision.datasets.ImageFolder(
        data, shown.Compose([*chain, shown.ToTensor()])
    )
    return iter(
        torch.utils.data.DataLoader(
            images, BATCH, shuffle=True, num_workers=harness.THREADS
        )
    )


LOADERS: dict[str, tuple[Callable[[str], Iterator[Any]], tuple[str, ...]]] = {
    "reszoo": (from_reszoo, ("tensorflow",)),
    "keras": (from_keras, ("keras", "tensorflow")),
    "torch": (from_torch, ("torch", "torchvision", "pillow")),
}


def load(library: str, data: str) -> None:
    """Measure one loader in this process."""
    opened, packages = LOADERS[library]
    step = partial(take, opened(data))
    run = harness.sampled(step, items=BATCH * BATCHES, warm_up=2, samples=SAMPLES)
    harness.emit(run, versions=harness.versions(*packages))


def take(batches: Iterator[Any]) -> None:
    """Take as many batches as a sample has."""
    for _ in range(BATCHES):
        images, _labels = next(batches)
        if SIDE not in tuple(images.shape)[1:] or len(images) != BATCH:
            raise SystemExit(f"A batch of another shape: {images.shape}")


def contenders(root: Path, peers: str | None) -> list[Contender]:
    """Return the contenders."""
    folder, resized = str(root / "photos"), str(root / "resized")

    def of(name: str, python: str, library: str, data: str) -> Contender:
        words = (python, __file__, "--process", library, data)
        return Contender(name, words)

    found = [
        roof.contender("float32"),
        of("reszoo, folder", sys.executable, "reszoo", folder),
        of("reszoo, resized folder", sys.executable, "reszoo", resized),
        of("keras, folder (resize only)", sys.executable, "keras", folder),
    ]
    if peers:
        found.append(of("torch, folder", peers, "torch", folder))
    return found


TARGETS = (
    Target("reszoo, folder", "torch, folder", 2.5),
    Target("reszoo, resized folder", "reszoo, folder", 1.0),
    Target("reszoo, folder", "keras, folder (resize only)", 1.0),
)


def main() -> None:
    """Compare the loaders."""
    given = harness.parser(__doc__ or "", rounds=4).parse_args()
    if given.process:
        load(*given.process)
        return
    import reszoo

    notes = [] if given.peers else ["torch is left out: pass --peers PYTHON."]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_folder(root / "photos")
        reszoo.resize_images(root / "photos", root / "resized", side=SHORT)
        entrants = contenders(root, given.peers)
        runs = harness.measure(entrants, given.rounds)
    targets = [target for target in TARGETS if target.theirs in runs]
    results = harness.summary(entrants, runs, targets, notes)
    harness.report(results, given.json)


if __name__ == "__main__":
    main()
