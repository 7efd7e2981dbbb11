"""Is a folder of resized images enough, or do TFRecord files read faster?

Run: python benchmarks/resize.py [--images N] [--side PIXELS]

Random resized crops to 224 pixels, with flips, of synthetic 12-megapixel JPEGs: from
the originals, from the folder that `reszoo.resize_images` makes of them, and from
TFRecord files of the same resized JPEGs, which the same pipeline reads by number
(offset and length), so that only the storage differs. Folder and TFRecord are measured
in turns (A B B A) in one process; processor time hardly depends on other processes.
"""

import argparse
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

import reszoo
from reszoo.data.examples import Examples, Records
from reszoo.data.pipeline import Augmentation, training_batches
from reszoo.data.sources import open_source
from reszoo.preprocessing import default_preprocessing
from reszoo.specs import SPECS

WIDTH, HEIGHT, BATCH, EPOCHS, ROUNDS = 4000, 3000, 16, 60, 3


def make_folder(folder: Path, images: int) -> Path:
    """Write JPEGs with detail at several scales, of about 4 MB each."""
    for number in range(images):
        draw = np.random.default_rng(number)
        pixels = draw.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.float32)
        for shape, weight in (((9, 12, 3), 0.7), ((150, 200, 3), 0.3)):
            small = Image.fromarray(draw.integers(0, 256, shape, np.uint8))
            wide = small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            pixels = pixels + weight * np.asarray(wide, np.float32)
        file = folder / "ab"[number % 2] / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return folder


def as_tfrecord(examples: Examples, file: Path) -> Examples:
    """Write examples to one TFRecord file and read them from there."""
    offsets, lengths = [], []
    with tf.io.TFRecordWriter(str(file)) as writer:
        for path in examples.paths or ():
            writer.write(Path(path).read_bytes())
    with file.open("rb") as stream:
        # Length (8 bytes), checksum (4), data, checksum (4): record_writer.h.
        while head := stream.read(12):
            lengths.append(struct.unpack("<Q", head[:8])[0])
            offsets.append(stream.tell())
            stream.seek(lengths[-1] + 4, 1)

    def read(number: int) -> bytes:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offsets[number])
            return stream.read(lengths[number])

    numbers = np.arange(len(offsets))
    records = Records(str(file), read, numbers, np.asarray(lengths))
    return Examples(examples.targets, records=records).read_headers()


def milliseconds(examples: Examples, epochs: int) -> tuple[float, float]:
    """Return wall-clock and processor time an image, without the first batch."""
    preprocessing = default_preprocessing(SPECS["resnet50"])
    varied = Augmentation(crop="resized", flip=True)
    batches = iter(
        training_batches(
            examples, preprocessing, varied,
            batch_size=BATCH, seed=0, epoch=0, epochs=epochs,
        )
    )  # fmt: skip
    next(batches)
    wall, processor = time.perf_counter(), time.process_time()
    images = sum(len(targets) for _, targets in batches)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return 1000 * wall / images, 1000 * processor / images


def main() -> None:
    """Compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--side", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        photos = make_folder(Path(name) / "photos", given.images)
        done = reszoo.resize_images(photos, Path(name) / "small", side=given.side)
        print(f"{done.bytes_before / 1e6:.1f} MB -> {done.bytes_after / 1e6:.1f} MB")
        folder = open_source(done.folder).examples("train")
        record = as_tfrecord(folder, Path(name) / "images.tfrecord")
        wall, processor = milliseconds(open_source(photos).examples("train"), 2)
        print(f"originals: {wall:.2f} ms an image, {processor:.2f} of processor")
        ratios = []
        for turn in range(2 * ROUNDS):
            pair = (folder, record) if turn % 2 else (record, folder)
            times = {id(one): milliseconds(one, EPOCHS) for one in pair}
            ratios.append(np.divide(times[id(folder)], times[id(record)]))
            for kind, one in (("folder", folder), ("TFRecord", record)):
                wall, processor = times[id(one)]
                print(f"{kind}: {wall:.2f} ms an image, {processor:.2f} of processor")
        wall, processor = np.median(ratios, axis=0)
        print(f"TFRecord: {wall:.2f} times as fast, {processor:.2f} by processor time")


if __name__ == "__main__":
    main()
