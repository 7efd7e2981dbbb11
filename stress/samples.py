"""Valid files of every kind that reszoo reads, which `mutated_files.py` damages."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# Others than those of this file are made anew.
_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
SAMPLES = Path(tempfile.gettempdir()) / f"reszoo-samples-{os.getuid()}-{_VERSION}"


def make_samples(folder: Path) -> None:
    """Write the valid files that are damaged."""
    folder.mkdir(parents=True)
    _write_checkpoints(folder)
    _write_configs(folder)
    _write_export(folder)
    _write_images(folder)


def _write_checkpoints(folder: Path) -> None:
    from checkpoint_layouts import transformers, write
    from conftest import randomise
    from safetensors.numpy import save_file

    import reszoo
    from reszoo.specs import ResNetSpec
    from reszoo.weights.names import to_tensors
    from reszoo.weights.safetensors import write_timm_folder

    model = randomise(reszoo.build("resnet8", classes=5, shortcut="projection"), seed=3)
    tensors, card = to_tensors(model), reszoo.card(model)
    write(folder / "zip.pth", tensors)
    write(folder / "nested.pth", {"epoch": 3, "model": transformers(tensors)})
    write(folder / "legacy.pth", tensors, "legacy")
    reszoo.save(model, folder / "reszoo.safetensors")
    save_file(tensors, folder / "plain.safetensors")
    # What takes time to read is small.
    small = ResNetSpec(
        name="one-block", depths=(1,), widths=(8,), stem="3x3", classes=2, image_size=32
    )
    one_block = randomise(reszoo.build(small), seed=4)
    reszoo.save(one_block, folder / "one.safetensors")
    other = reszoo.build("resnet10t", classes=2)
    write_timm_folder(folder / "timm", to_tensors(other), reszoo.card(other))
    (folder / "timm" / "config.json").rename(folder / "timm.json")
    shutil.rmtree(folder / "timm")
    for name in ("model.keras", "model.h5"):
        one_block.save(folder / name)
    (folder / "card.json").write_text(card.to_text())


def _write_configs(folder: Path) -> None:
    """Write those of Transformers."""
    described = {
        "model_type": "resnet", "architectures": ["ResNetForImageClassification"],
        "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048],
        "embedding_size": 64, "layer_type": "bottleneck", "hidden_act": "relu",
        "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
        "num_channels": 3, "id2label": {"0": "cat", "1": "dog"},
        "label2id": {"cat": 0, "dog": 1},
    }  # fmt: skip
    processor = {
        "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": 224},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "transformers.json").write_text(json.dumps(described))
    (folder / "preprocessor.json").write_text(json.dumps(processor))


def _write_export(folder: Path) -> None:
    """Write exported files of the model of one block, a manifest and reference data."""
    from conftest import photos

    import reszoo

    exported, photo_folder = folder / "exported", folder / "photos"
    formats = ["tflite", "tflite-int8", "onnx", "saved_model"]
    data = str(photos(photo_folder, each=75))
    reszoo.export(
        folder / "one.safetensors", exported, formats=formats, calibration=data
    )
    for name in ("model.tflite", "model-int8.tflite", "model.onnx", "manifest.json"):
        shutil.copy(exported / name, folder)
    shutil.copy(next(exported.rglob("saved_model.pb")), folder)
    shutil.rmtree(exported)
    shutil.rmtree(photo_folder)
    np.savez(
        folder / "reference.npz",
        images=np.zeros((8, 32, 32, 3), np.uint8),
        answers=np.full((8, 5), 0.2, np.float32),
        labels=np.zeros(6, np.int64),
        synthetic=2,
    )


def _write_images(folder: Path) -> None:
    """Write a list of images, and an image in each format."""
    from PIL import Image

    rows = [
        f"image{number}.png,{'cat' if number % 3 else 'dog'}" for number in range(12)
    ]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    picture = Image.fromarray(np.kron(pixels, np.ones((4, 4, 1), np.uint8)))
    exif = Image.Exif()
    exif[274] = 6
    for number in range(12):
        picture.rotate(30 * number).save(folder / f"image{number}.png")
    picture.save(folder / "image.png", exif=exif)
    picture.save(folder / "image.jpg", exif=exif)
    picture.save(folder / "progressive.jpg", progressive=True)
    for suffix in ("gif", "bmp", "webp", "tiff"):
        picture.save(folder / f"image.{suffix}")
