"""The images that files are compared on, and how another process gets them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo_export.formats import FORMATS, ExportOptions
from reszoo_export.verification.reference import (
    make_reference,
    read_reference,
    synthetic_images,
)
from reszoo_export.verification.verify import verify_file


@pytest.mark.parametrize("size", [1, 32, 33])
def test_made_up_images_differ_in_what_exporters_mix_up(size: int) -> None:
    images = synthetic_images(size)
    assert images.shape == (17, size, size, 3)
    assert images.dtype == np.uint8
    if size == 1:
        return
    assert len({image.tobytes() for image in images}) == 17
    # Nobody can swap or mirror anything in all of them unseen.
    for changed in (
        images[..., ::-1],
        images.transpose(0, 2, 1, 3),
        images[:, ::-1],
        images[:, :, ::-1],
    ):
        assert (changed != images).any()
    assert images[15].sum() == images[16].sum() == 3 * 255


def test_a_function_may_answer_in_place_of_a_model(run: Any) -> None:
    card = reszoo.card(run.model)

    def features(images: Any) -> Any:
        return images.mean(axis=(1, 2)).astype(np.float32)

    reference = make_reference(features, card, None)
    np.testing.assert_array_equal(reference.outputs, features(reference.images))
    assert reference.synthetic == len(reference.images) == 17


def test_features_are_kept_and_read_as_such(run: Any, tmp_path: Path) -> None:
    card = reszoo.card(run.model)
    reference = make_reference(
        lambda images: np.ones((len(images), 3), "f"), card, None
    )
    reference.write(tmp_path)
    assert read_reference(tmp_path, card, "features").outputs.shape == (17, 3)
    with pytest.raises(reszoo.ExportError, match="float32 outputs for 10 classes"):
        read_reference(tmp_path, card)


@pytest.mark.usefixtures("subprocesses")
def test_a_file_is_verified_in_a_subprocess(exported: Any) -> None:
    kept = read_reference(exported.folder, exported.card)
    (record,) = [each for each in exported.files if each.format == "onnx"]
    path = exported.folder / record.file
    asked = FORMATS["onnx"], path, kept, ExportOptions(), exported.card
    found = verify_file(*asked)
    assert found.verification == record.verification
    assert (found.inputs, found.outputs) == (record.inputs, record.outputs)
    with pytest.raises(
        reszoo.VerificationError, match=r"did not finish within 0\.01 s"
    ):
        verify_file(*asked, seconds=0.01)


def test_tflite_and_onnx_are_verified_without_tensorflow() -> None:
    code = (
        "import sys\n"
        "from reszoo_export.verification import divergence, verify\n"
        "print({'tensorflow', 'keras', 'onnx'} & set(sys.modules) or 'none')"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert told.stdout == "none\n"
