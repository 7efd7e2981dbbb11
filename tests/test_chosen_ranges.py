"""Int8 files of every kind of block have the ranges that calibration chose."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import family
import numpy as np
import pytest
from conftest import randomise
from tiny import TWO_BLOCKS

import reszoo
from reszoo.metrics import probabilities
from reszoo.specs import SPECS
from reszoo_export.formats import FORMATS, ExportOptions, Format
from reszoo_export.quantization.ranges import Calibration, recorded
from reszoo_export.serving import make_serving
from reszoo_export.verification.reference import Reference, make_reference
from reszoo_export.verification.verify import verify_in_process

Options = dict[str, Any]
SIDE = 32
SPEC = {**family.SPECS, "two-blocks": TWO_BLOCKS, "plain": SPECS["plain20"]}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("two-blocks", {}),
        ("two-blocks", {"integer_io": "int8"}),
        ("two-blocks", {"outputs": "cam"}),
        *(
            pytest.param(name, options, marks=pytest.mark.slow)
            for name, options in (
                ("two-blocks", {"outputs": "features"}),
                ("plain", {"outputs": "logits"}),
                ("plain", {"integer_io": "uint8"}),
                ("tiny", {"layout": "nchw"}),
                ("tiny", {"batch": 3}),
                *(
                    (name, {})
                    for name in ("deep", "pre", "pre-deep", "grouped", "late")
                ),
                *((name, {"outputs": "cam"}) for name in ("deep", "pre", "grouped")),
                *((name, {"integer_io": "int8"}) for name in ("deep", "pre", "late")),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_good_files_have_the_chosen_ranges(
    name: str, options: Options, tmp_path: Path
) -> None:
    check(randomise(reszoo.build(SPEC[name]), seed=1), options, tmp_path)


def test_a_branch_that_gives_zeros_has_the_chosen_range(tmp_path: Path) -> None:
    """Weight decay can bring one there; `zero_init_residual` begins so."""
    model = randomise(reszoo.build(TWO_BLOCKS), seed=1)
    last = model.get_layer("layer1.0.bn2")
    last.set_weights([0 * last.gamma, 0 * last.beta, *last.get_weights()[2:]])
    check(model, {}, tmp_path)


def check(model: Any, options: Options, tmp_path: Path) -> None:
    serving = make_serving(model, ExportOptions(**options))
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (100, SIDE, SIDE, 3), np.uint8)
    calibration = Calibration(pixels)
    nothing = Reference(pixels[:0], np.zeros((0, 10), "f4"), np.zeros(0, np.int64), 0)
    # TFLite has no other layout, ONNX no integers in and out.
    formats = ["tflite-int8"] * ("layout" not in options)
    formats += ["onnx-int8"] * ("integer_io" not in options)
    for row in map(FORMATS.get, formats):
        assert row is not None
        path = tmp_path / row.file
        row.write(serving, path, calibration)
        told = recorded(row, serving, calibration, nothing)
        assert told is not None
        assert len(told["activations"]) > 4
        find, row = row.runtime.reader.find_problems, row.explained_by(told)
        assert find(path, row, serving.card, pixels, serving.options) == []


@pytest.mark.parametrize("name", ["tflite-int8", "onnx-int8"])
def test_synthetic_images_may_differ_by_what_the_ranges_explain(
    name: str, run: Any, tmp_path: Path
) -> None:
    """Calibrated on noise alone, a file clips the activations of all other images."""
    serving, row = make_serving(run.model), FORMATS[name]
    pixels = np.random.default_rng(0).integers(0, 256, (100, SIDE, SIDE, 3), np.uint8)
    calibration = Calibration(pixels)
    path = tmp_path / row.file
    row.write(serving, path, calibration)
    reference = make_reference(
        lambda images: probabilities(
            run.model, serving.card.preprocessing, images,
            temperature=serving.card.temperature,
        ),
        serving.card, None,
    )  # fmt: skip
    told = recorded(row, serving, calibration, reference)
    assert told is not None
    assert "variation" not in told
    simulated = told["synthetic_variation"]
    assert simulated > 0.01
    tight = replace(row.tolerance, max_variation_synthetic=0.7 * simulated)

    def problem(row: Format) -> str:
        given = (row, path, reference, serving.options, serving.card)
        found = verify_in_process(*given).verification.problems
        return "".join(each for each in found if "synthetic" in each)

    shown = problem(replace(row, tolerance=tight))
    assert 0.9 < float(re.findall(r"[\d.]+(?=%)", shown)[0]) / 100 / simulated < 1.1
    assert problem(replace(row, tolerance=tight).explained_by(told)) == ""
    usual = row.explained_by({"synthetic_variation": 0.01}).tolerance
    assert usual.max_variation_synthetic == row.tolerance.max_variation_synthetic
