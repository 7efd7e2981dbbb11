"""examples/ray_batch.py with two workers of one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import reszoo

pytest.importorskip("ray", reason="needs the extra ray")

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "saved_models" / "resnet20-cifar10" / "model-int8.tflite"


@pytest.mark.slow
def test_ray_gives_the_rows_of_predict_files(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    draw = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(150):
        pixels = draw.integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number:03}.png")
    (images / "broken.jpg").write_bytes(b"no image")
    words = [MODEL, images, "--output", tmp_path / "rows", "--workers", 2, "--top", 2]
    subprocess.run(
        [sys.executable, ROOT / "examples" / "ray_batch.py", *map(str, words)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            # Ray keeps a token there.
            "HOME": str(tmp_path),
            # On a busy machine its processes start slowly.
            "RAY_raylet_start_wait_time_s": "300",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        check=True,
    )
    reszoo.predict_files(MODEL, images, tmp_path / "rows.jsonl", top=2)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [json.loads(line) for line in lines]
    assert len(expected) == 151
    assert parquet.read_table(tmp_path / "rows").to_pylist() == expected
