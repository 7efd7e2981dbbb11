"""Temperature and thresholds: fitted on held-out images, kept in card and files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomise
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from tiny import RESNET8

import reszoo
from reszoo.cards import Card
from reszoo.confidence import (
    MIN_IMAGES,
    fit_temperature,
    keeping_threshold,
    measure,
)
from reszoo.data.sources import open_source
from reszoo.data.splits import calibration_halves
from reszoo.metrics import softmax, tempered
from reszoo_export.runtimes import open_runtime
from reszoo_export.serving import make_serving


def logits_of(count: int, temperature: float, seed: int = 0) -> tuple[Any, Any]:
    """Logits `(n, 5)` whose targets were drawn from their softmax at a temperature."""
    draw = np.random.default_rng(seed)
    exact = draw.normal(0, 2, (count, 5))
    shares = softmax(exact)
    targets = (shares.cumsum(1) < draw.random((count, 1))).sum(1)
    return (temperature * exact).astype(np.float32), targets.astype(np.int64)


def best_temperature(logits: Any, targets: Any) -> float:
    """What scipy finds."""

    def loss(log: float) -> float:
        scores = log_softmax(logits.astype(np.float64) / np.exp(log), axis=1)
        return float(-scores[np.arange(len(targets)), targets].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_least_cross_entropy(temperature: float) -> None:
    logits, targets = logits_of(4000, temperature)
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(best_temperature(logits, targets), rel=1e-3)
    assert found == pytest.approx(temperature, rel=0.1)
    # Shifts of a row change nothing, scale is proportional.
    assert fit_temperature(2 * logits + 7, targets) == pytest.approx(2 * found, 1e-4)


def test_the_temperature_is_netcals() -> None:
    scaling = pytest.importorskip("netcal.scaling", reason="netcal is not installed")
    logits, targets = logits_of(4000, 2.5)
    theirs = scaling.TemperatureScaling()
    # In float32 its differences of the loss vanish; its parameter is the inverse.
    theirs.fit(np.exp(log_softmax(logits.astype(np.float64), axis=1)), targets)
    own = fit_temperature(logits, targets)
    assert own == pytest.approx(1 / float(np.squeeze(theirs.temperature)), rel=0.01)


def test_scores_and_figures_of_unknown_images_are_those_of_pytorch_ood() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    try:
        from pytorch_ood.detector import EnergyBased, MaxLogit
        from pytorch_ood.metrics import OODMetrics
    except Exception as error:  # A torchvision of another torch is a RuntimeError.
        pytest.skip(f"pytorch-ood cannot be imported ({type(error).__name__})")
    area = pytest.importorskip("sklearn.metrics").roc_auc_score
    draw = np.random.default_rng(0)
    known = draw.normal(0, 2, (3000, 10)).astype(np.float32)
    known[:, 0] += 4
    others = draw.normal(0, 2, (2000, 10)).astype(np.float32)
    pairs: Any = (
        (MaxLogit, lambda logits: logits.max(axis=1)),
        (EnergyBased, lambda logits: np.logaddexp.reduce(logits, axis=1)),
    )
    for detector, score in pairs:
        ours = [score(each) for each in (known, others)]
        theirs = [
            -detector.score(torch.tensor(each)).numpy() for each in (known, others)
        ]
        for own, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-5)
        # Known images are what is to be detected: their positive class.
        scores, labels = np.concatenate(ours), np.repeat([-1, 1], [3000, 2000])
        figures: Any = OODMetrics()
        figures.update(torch.tensor(scores), torch.tensor(labels))
        found = figures.compute()
        assert found["AUROC"] == pytest.approx(area(labels < 0, scores), abs=1e-6)
        passed = (ours[1] >= keeping_threshold(ours[0], 0.95)).mean()
        assert found["FPR95TPR"] == pytest.approx(passed, abs=1e-3)
        assert 0.1 < passed < 0.9


def test_without_a_mistake_there_is_no_temperature_to_find() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    assert fit_temperature(logits, np.arange(4)) == 1.0
    # Where it would be beyond all bounds, it is the bound.
    wrong = np.array([1, 0, 3, 2])
    assert fit_temperature(logits, wrong) == pytest.approx(20, rel=1e-3)


def test_probabilities_are_tempered_without_their_logits() -> None:
    logits, _ = logits_of(50, 1.0)
    found = tempered(softmax(logits), 2.5)
    np.testing.assert_allclose(found, softmax(logits / 2.5), atol=1e-6)
    sure = tempered(np.array([[1.0, 0.0]], np.float32), 0.5)
    np.testing.assert_array_equal(sure, [[1, 0]])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 1.0])
def test_a_threshold_keeps_its_share(share: float) -> None:
    scores = np.random.default_rng(0).permutation(100).astype(np.float32)
    threshold = keeping_threshold(scores, share)
    assert (scores >= threshold).mean() == pytest.approx(share)
    # Of equal scores all are kept.
    assert keeping_threshold(np.zeros(9, np.float32), share) == 0


CONFIDENCE = reszoo.Confidence(
    temperature=2.5, keep=0.95, min_logit=1.0, min_probability=0.4, error_before=0.1,
    error_after=0.01, images=50, data="made up", data_sha256="0",
)  # fmt: skip


def tiny(confidence: Any = CONFIDENCE) -> Any:
    labels = ["a", "b", "c"]
    made = reszoo.build(RESNET8, classes=labels, input_shape=(32, 32, 3), seed=0)
    model = randomise(made)
    from reszoo.zoo import set_card

    set_card(model, replace(reszoo.card(model), confidence=confidence))
    return model


def test_a_card_without_confidence_is_as_before() -> None:
    card = reszoo.card(tiny())
    assert Card.from_text(card.to_text()) == card
    plain = replace(card, confidence=None)
    assert "confidence" not in json.loads(plain.to_text())
    assert Card.from_text(plain.to_text()).confidence is None
    # New weights are not what was measured.
    assert card.after({"source": "trained"}).confidence is None
    for wrong in (
        {**card.to_json(), "confidence": {"temperature": 2}},
        {**card.to_json(), "confidence": {**vars(CONFIDENCE), "temperature": 0}},
        {**card.to_json(), "confidence": {**vars(CONFIDENCE), "min_logit": "x"}},
        {**card.to_json(), "confidence": [1]},
    ):
        with pytest.raises(reszoo.CheckpointError, match="card cannot be read"):
            Card.from_json(wrong)


def test_confidence_stays_with_its_weights(tmp_path: Path) -> None:
    path = reszoo.save(tiny(), tmp_path / "tiny.safetensors")
    assert reszoo.card(reszoo.load(path)).confidence == CONFIDENCE
    other = reszoo.build(RESNET8, weights=str(path), classes=["x", "y"])
    assert reszoo.card(other).confidence is None
    model = tiny()
    kernel = model.get_layer("fc").kernel
    kernel.assign(2 * kernel)
    assert reszoo.card(model).confidence is None


def images(count: int = 4) -> Any:
    draw = np.random.default_rng(1)
    return draw.integers(0, 256, (count, 32, 32, 3), np.uint8)


def own_logits(model: Any, pixels: Any) -> Any:
    record = reszoo.card(model).preprocessing
    return model(record.normalise(pixels.astype(np.float32)), training=False).numpy()


def test_predictor_is_calibrated_and_the_model_is_not() -> None:
    plain, model, pixels = tiny(None), tiny(), images()
    expected = own_logits(plain, pixels)
    np.testing.assert_array_equal(own_logits(model, pixels), expected)
    found = reszoo.Predictor(model).predict(pixels)
    np.testing.assert_allclose(found, softmax(expected / 2.5), atol=1e-6)
    raw = reszoo.Predictor(plain).predict(pixels)
    np.testing.assert_allclose(raw, softmax(expected), atol=1e-6)


def test_export_folds_the_temperature_into_the_classifier() -> None:
    plain, calibrated = (make_serving(model) for model in (tiny(None), tiny()))
    for kind in ("kernel", "bias"):
        own, other = (
            getattr(serving.model.get_layer("fc"), kind).numpy()
            for serving in (calibrated, plain)
        )
        np.testing.assert_allclose(own, other / 2.5, rtol=1e-6)
    size = reszoo_options(input_size=64)
    resized = make_serving(tiny(), size)
    assert resized.card.confidence is None
    np.testing.assert_array_equal(
        resized.model.get_layer("fc").kernel, plain.model.get_layer("fc").kernel
    )


def reszoo_options(**options: Any) -> Any:
    from reszoo_export.formats import ExportOptions

    return ExportOptions(**options)


def arrays(seed: int = 0, each: int = 80) -> dict[str, Any]:
    """Noisy images of three colours, in splits."""
    draw = np.random.default_rng(seed)
    parts = {}
    for split, count in (("train", 20), ("validation", each), ("test", 20)):
        targets = np.arange(3 * count) % 3
        pixels = draw.integers(0, 200, (3 * count, 32, 32, 3), np.uint8)
        pixels[np.arange(3 * count), ..., targets] += 30
        parts[split] = pixels, np.array(["a", "b", "c"])[targets]
    return parts


def test_calibrate_uses_one_half_of_the_validation_split(tmp_path: Path) -> None:
    data = arrays()
    model = tiny(None)
    path = reszoo.save(model, tmp_path / "tiny.safetensors")
    before = path.read_bytes()
    found = reszoo.calibrate(path, data, keep=0.9, output=tmp_path / "new.safetensors")
    assert path.read_bytes() == before
    assert reszoo.card(reszoo.load(tmp_path / "new.safetensors")).confidence == found
    assert reszoo.calibrate(model, data, keep=0.9) == found
    assert reszoo.card(model).confidence == found
    # Against scipy, on the half that it says.
    pixels, named = data["validation"]
    targets = np.array(["abc".index(each) for each in named])
    fitted, others = calibration_halves(targets)
    logits = own_logits(tiny(None), pixels)
    assert found.temperature == pytest.approx(
        best_temperature(logits[fitted], targets[fitted]), rel=0.01
    )
    assert len({*fitted} & {*others}) == 0
    assert len(fitted) == len(others) == found.images == 120
    kept = (logits[fitted].max(1) / found.temperature) >= found.min_logit - 1e-5
    assert kept.mean() == pytest.approx(0.9)
    probabilities = softmax(logits[fitted] / found.temperature).max(1)
    assert (probabilities >= found.min_probability - 1e-6).mean() == pytest.approx(0.9)
    # Neither test images nor the other half count.
    data["test"] = images(60), data["test"][1]
    pixels = pixels.copy()
    pixels[others] = images(len(others))
    data["validation"] = pixels, named
    again = reszoo.calibrate(model, data, keep=0.9)
    for name in ("temperature", "min_logit", "min_probability"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), rel=1e-5)
    assert again.error_after != found.error_after


def test_calibrate_refuses_what_it_cannot_measure(tmp_path: Path) -> None:
    model, few = tiny(None), arrays(each=10)
    with pytest.raises(reszoo.DataError, match=f"at least {MIN_IMAGES} images in half"):
        reszoo.calibrate(model, few)
    alone = {"test": few["test"], "train": few["train"]}
    alone_source = open_source(alone, validation_share=0.0)
    assert "validation" not in alone_source.splits
    with pytest.raises(reszoo.UsageError, match=r"keep must be in \(0, 1\]"):
        reszoo.calibrate(model, few, keep=0.0)
    with pytest.raises(reszoo.UsageError, match=r"Only \.safetensors checkpoints"):
        reszoo.calibrate(model, few, output=tmp_path / "x.pth")


def test_training_ends_with_what_calibrate_finds(run: Any, tmp_path: Path) -> None:
    found = reszoo.card(reszoo.load(run.best)).confidence
    assert found is not None
    assert found == reszoo.card(run.model).confidence
    copy = tmp_path / "best.safetensors"
    copy.write_bytes(Path(run.best).read_bytes())
    again = reszoo.calibrate(copy, "digits")
    assert again.temperature == pytest.approx(found.temperature, rel=1e-3)
    assert again.min_logit == pytest.approx(found.min_logit, rel=1e-3)
    assert again.data_sha256 == found.data_sha256
    assert reszoo.card(reszoo.load(run.last)).confidence is None
    page = Path(run.report).read_text()
    assert f"temperature {found.temperature:.3f}" in page


def test_exported_files_are_calibrated_with_the_same_top1(
    run: Any, exported: Any
) -> None:
    found = exported.card.confidence
    assert found is not None
    assert found.temperature != 1
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (6, 32, 32, 3), np.uint8)
    logits = own_logits(reszoo.load(run.best), pixels)
    for record in exported.files:
        runtime = open_runtime(exported.folder / record.file)
        assert runtime.card.confidence == found
        if record.format in ("onnx", "saved_model"):
            given = runtime.call(pixels, "logits")
            np.testing.assert_allclose(given, logits / found.temperature, atol=1e-4)
            assert (given.argmax(1) == logits.argmax(1)).all()
        told = record.verification.reliability
        assert told is not None
        assert sum(each.images for each in told.after) == record.verification.images
        if record.format == "onnx":
            expected = softmax(logits / found.temperature)
            np.testing.assert_allclose(runtime.run(pixels), expected, atol=1e-5)


def test_evaluation_leaves_out_what_a_temperature_was_measured_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {k: v for k, v in arrays().items() if k != "test"}
    model = tiny(None)
    assert reszoo.evaluate(model, data).images == 240
    reszoo.calibrate(model, data)
    assert reszoo.evaluate(model, data).images == 120
    assert "measured are the other 120 images" in capsys.readouterr().err
    assert reszoo.evaluate(model, data, split="validation").images == 240
    # Other data, or a test split, is measured whole.
    assert reszoo.evaluate(model, arrays()).images == 60
    assert reszoo.evaluate(model, {**data, "train": data["validation"]}).images == 240


def test_measure_needs_images() -> None:
    source = open_source({k: v for k, v in arrays(each=10).items() if k != "test"})
    assert measure(np.zeros((30, 3), np.float32), source) is None


def test_the_command_stores_what_it_prints(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from reszoo.cli.options import app

    output = tmp_path / "calibrated.safetensors"
    command = ["calibrate", str(run.best), "digits", "--output", str(output)]
    app(command, standalone_mode=False)
    found = reszoo.card(reszoo.load(output)).confidence
    assert found is not None
    told = capsys.readouterr().out
    assert f"Temperature {found.temperature:.3f}, from {found.images} images" in told


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    folder, data = tmp_path / "run", arrays()
    folder.mkdir()
    reszoo.save(tiny(None), folder / "best.safetensors")
    found = reszoo.calibrate(folder, data)
    assert [path.name for path in folder.iterdir()] == ["best.safetensors"]
    assert reszoo.card(reszoo.load(folder)).confidence == found
