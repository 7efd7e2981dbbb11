"""`reszoo web`: the site in a real browser, against Predictor."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser, browser, hosted
from conftest import randomise
from PIL import Image, ImageCms
from sample_images import orientation_exif
from scripts import EXPORT, ROOT
from tiny import RESNET8, TWO_BLOCKS

import reszoo
from reszoo.cards import Confidence
from reszoo.data.image_files import open_image
from reszoo.zoo import set_card
from reszoo_export import site as sites
from reszoo_export.manifest import read_manifest
from reszoo_export.site import write_site

# Where `make browser` puts npm's packages.
PACKAGES = ROOT / ".browser"
PHOTOS = 50
needs_chromium = pytest.mark.skipif(
    not CHROMIUM or not (PACKAGES / "npm").is_dir(),
    reason="needs Chromium and npm's packages: make browser",
)
_FRAMES = 640, 480
# Opens a file of the site, and gives of each photo the pixels and the probabilities.
_ANSWERS = """
const { decode, openModel } = await import("./run.js");
const { prepare } = await import("./preprocess.js");
const site = await (await fetch("site.json")).json();
const model = await openModel(site, site.files[FILE], "BACKEND");
const answers = [];
for (let number = 0; number < COUNT; number++) {
  const photo = await (await fetch(`photos/${number}`)).blob();
  const { data, width, height } = await decode(photo);
  const pixels = prepare(data, width, height);
  answers.push([[...pixels], (await model.run(pixels)).probabilities]);
}
await model.close();
return answers;
"""
_DROP = """
const blob = await (await fetch("photos/NAME")).blob();
const moved = new DataTransfer();
moved.items.add(new File([blob], "photo", { type: blob.type }));
const event = "EVENT" === "paste"
  ? new ClipboardEvent("paste", { clipboardData: moved, bubbles: true })
  : new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true });
document.body.dispatchEvent(event);
"""
_TEXT = "return document.getElementById('NAME').textContent"


def _profile() -> bytes:
    """Return an ICC profile that swaps red and green."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    parts = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    return re.sub(b"[rg]XYZ", lambda found: parts[found[0]], srgb)


def write_photos(folder: Path) -> list[Path]:
    """Write crops of photos: every orientation, with profiles, alpha and progression.

    Without suffixes, so that the server does not tell their type.
    """
    samples = pytest.importorskip("sklearn.datasets").load_sample_images().images
    draw, profile = np.random.default_rng(0), _profile()
    folder.mkdir()
    for number in range(PHOTOS):
        image = Image.fromarray(samples[number % 2])
        sides = [int(draw.integers(60, side + 1)) for side in image.size]
        left, top = (
            int(draw.integers(0, whole - side + 1))
            for whole, side in zip(image.size, sides, strict=True)
        )
        image = image.crop((left, top, left + sides[0], top + sides[1]))
        exif = orientation_exif(1 + number % 8)
        options: dict[str, Any] = {"exif": exif}
        if number % 3 == 0:
            options["icc_profile"] = profile
        kind = ("JPEG", "PNG", "WEBP", "JPEG", "JPEG")[number % 5]
        if kind == "JPEG":
            options |= {"quality": 60 + number % 40, "subsampling": number % 3}
            options["progressive"] = number % 4 == 0
        elif kind == "PNG":
            alpha = draw.integers(0, 256, image.size[::-1], np.uint8)
            image.putalpha(Image.fromarray(alpha))
        else:
            options["lossless"] = True
        image.save(folder / str(number), kind, **options)
    return [folder / str(number) for number in range(PHOTOS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = os.environ.get("RESZOO_HOME")
    os.environ["RESZOO_HOME"] = str(PACKAGES)
    made = write_site(EXPORT, tmp_path_factory.mktemp("web") / "site")
    write_photos(made / "photos")
    yield made
    os.environ.pop("RESZOO_HOME")
    if before is not None:
        os.environ["RESZOO_HOME"] = before


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page, with a camera that films a still photo."""
    film = tmp_path_factory.mktemp("film") / "camera.y4m"
    with Image.open(folder / "photos/0") as photo:
        still = np.asarray(photo.convert("RGB").resize(_FRAMES).convert("YCbCr"))
    planes = still[..., 0].tobytes() + b"".join(
        still[::2, ::2, plane].tobytes() for plane in (1, 2)
    )
    head = "YUV4MPEG2 W{} H{} F30:1 Ip A1:1 C420jpeg\n".format(*_FRAMES).encode()
    film.write_bytes(head + (b"FRAME\n" + planes) * 3)
    flags = (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )
    with hosted(folder) as url, browser(film.parent / "profile", *flags) as opened:
        opened.open(f"{url}/index.html")
        _wait(opened, _TEXT.replace("NAME", "message"), "Ready.")
        yield opened


def _wait(page: Browser, script: str, expected: Any) -> None:
    """Wait until a script returns a text that matches, at most for 30 seconds."""
    for _ in range(300):
        if re.search(expected, str(found := page.run(script))):
            return
        time.sleep(0.1)
    raise AssertionError(f"{script}: {found!r}, {page.complaints()}")


def _answers(page: Browser, file: int, backend: str, count: int) -> list[Any]:
    words = {"FILE": file, "BACKEND": backend, "COUNT": count}
    script = _ANSWERS
    for word, value in words.items():
        script = script.replace(word, str(value))
    answers = page.run(script)
    pixels = np.array([pixels for pixels, _ in answers], np.uint8)
    return [pixels.reshape(-1, 32, 32, 3), np.array([each for _, each in answers])]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with maps; half of the images it knows have a probability above 0.2."""
    model = randomise(reszoo.build(RESNET8, classes=["a", "b", "c"], seed=0))
    confidence = Confidence(
        temperature=1.0, keep=0.5, min_logit=0.0, min_probability=0.2, error_before=0.1,
        error_after=0.1, images=100, data="photos", data_sha256="0",
    )  # fmt: skip
    set_card(model, replace(reszoo.card(model), confidence=confidence))
    folder = tmp_path_factory.mktemp("mapped") / "export"
    reszoo.export(model, folder, formats="tflite,onnx", outputs="cam")
    return folder


_CHOSEN = "return document.getElementById('model').selectedIndex"
_SHOWN = """
const canvas = document.getElementById("input");
const context = canvas.getContext("2d");
const texts = [...document.querySelectorAll("#answer li")].map((li) => li.textContent);
return [texts, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
"""


def _drop_photo(page: Any, url: str, number: int) -> None:
    """Open the page, choose a file of the export and drop photo 3; wait for answers."""
    page.open(f"{url}/index.html")
    _wait(page, _TEXT.replace("NAME", "message"), "Ready.")
    choose = "const list = document.getElementById('model'); "
    choose += f"list.selectedIndex = {number}; "
    page.run(f"{choose} list.dispatchEvent(new Event('change'));")
    page.run(_DROP.replace("NAME", "3").replace("EVENT", "drop"))
    _wait(page, _TEXT.replace("NAME", "timing"), "model")
    _wait(page, _CHOSEN, str(number))
    time.sleep(1)


@needs_chromium
@pytest.mark.slow
def test_maps_and_unknown_images_are_shown(
    mapped: Path, folder: Path, tmp_path: Path
) -> None:
    site = write_site(mapped, tmp_path / "site")
    shutil.copytree(folder / "photos", site / "photos")
    content = json.loads((site / "site.json").read_text())
    assert content["unknownBelow"] == 0.2
    photo, shown = folder / "photos/3", {}
    with hosted(site) as url, browser(tmp_path / "profile") as opened:
        for number, file in enumerate(["model.tflite", "model.onnx"]):
            _drop_photo(opened, url, number)
            labels, pixels = opened.run(_SHOWN)
            opened.run("document.getElementById('heat').click();")
            time.sleep(1)
            _, plain = opened.run(_SHOWN)
            expected = reszoo.Predictor(mapped / file).top(photo, unknown=True)
            assert [text[0] for text in labels] == [label for label, _ in expected]
            difference = np.subtract(pixels, plain, dtype=float).reshape(32, 32, 4)
            shown[file] = np.abs(difference).sum(-1)
            assert shown[file].max() > 50
            # Strongest where Predictor's map is.
            strength = np.maximum(reszoo.explain(mapped / file, photo).map, 0)
            rows, columns = strength.shape
            cells = shown[file].reshape(rows, 32 // rows, columns, 32 // columns)
            coarse = cells.mean((1, 3)).ravel()
            assert np.corrcoef(coarse, strength.ravel())[0, 1] > 0.7
            assert opened.complaints() == []
        content["unknownBelow"] = 1
        (site / "site.json").write_text(json.dumps(content))
        opened.open(f"{url}/index.html")
        _wait(opened, _TEXT.replace("NAME", "message"), "Ready.")
        opened.run(_DROP.replace("NAME", "3").replace("EVENT", "drop"))
        _wait(opened, _TEXT.replace("NAME", "answer"), "unknown")
        labels, _ = opened.run(_SHOWN)
        assert len(labels) == 1
        assert labels[0].startswith("unknownat most ")


def test_the_page_stays_small() -> None:
    files = (ROOT / "export/reszoo_export/web").iterdir()
    code = [each for each in files if each.suffix in (".js", ".css", ".j2")]
    assert len(code) == 4
    assert sum(len(each.read_text().splitlines()) for each in code) <= 500


@needs_chromium
@pytest.mark.parametrize("file", ["model.tflite", "model-int8.tflite", "model.onnx"])
def test_the_browser_answers_as_predictor_does(
    page: Browser, folder: Path, file: str
) -> None:
    listed = json.loads((folder / "site.json").read_text())["files"]
    number = [each["file"] for each in listed].index(file)
    pixels, answers = _answers(page, number, "wasm", PHOTOS)
    photos = [folder / "photos" / str(number) for number in range(PHOTOS)]
    with reszoo.Predictor(EXPORT / file) as predictor:
        expected = [
            predictor.card.preprocessing.prepare(open_image(each)) for each in photos
        ]
        difference = np.abs(pixels.astype(int) - np.stack(expected))
        assert difference.max() <= 1
        prepared = predictor.predict_prepared(pixels)
        np.testing.assert_allclose(answers, prepared, atol=1e-4)
        # Grey levels that differ by one move the answers to whole photos.
        whole = predictor.predict(photos)
        np.testing.assert_allclose(answers, whole, atol=0.05)
        certain = np.diff(np.sort(whole)[:, -2:])[:, 0] > 0.05
        assert certain.sum() > 0.9 * PHOTOS
        same = answers.argmax(1) == whole.argmax(1)
        assert same[certain].all()
    assert not page.complaints()


@needs_chromium
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_that_is_dropped_or_pasted_is_answered(
    page: Browser, folder: Path, event: str
) -> None:
    name = "3" if event == "drop" else "1"
    page.run(_DROP.replace("NAME", name).replace("EVENT", event))
    top = reszoo.Predictor(EXPORT / "model.tflite").top(folder / "photos" / name)
    shown = "return document.getElementById('answer').innerText"
    _wait(page, shown, rf"^{top[0][0]}\n[\d.]+ %\n{top[1][0]}\n")
    rows = page.run(shown).split("\n")
    assert float(rows[1].split()[0]) == pytest.approx(100 * top[0][1], abs=5)
    assert [row for row in rows if row and "%" not in row] == [one for one, _ in top]
    width = page.run("return document.querySelector('#answer i').style.width")
    assert float(width.removesuffix("%")) == pytest.approx(100 * top[0][1], abs=5)
    assert page.run(_TEXT.replace("NAME", "spoken")).startswith(top[0][0])
    assert "model" in page.run(_TEXT.replace("NAME", "timing"))


@needs_chromium
def test_the_camera_is_answered_until_escape_stops_it(page: Browser) -> None:
    page.run("document.getElementById('camera').click()")
    _wait(page, _TEXT.replace("NAME", "timing"), r"\d frames per second")
    assert page.run("return document.getElementById('video').videoWidth") == _FRAMES[0]
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    _wait(page, _TEXT.replace("NAME", "camera"), "Start camera")
    assert not page.complaints()


@needs_chromium
def test_a_file_that_is_no_image_is_reported_and_the_next_photo_answered(
    page: Browser, folder: Path
) -> None:
    (folder / "photos/text").write_text("no image")
    page.run(_DROP.replace("NAME", "text").replace("EVENT", "drop"))
    _wait(page, _TEXT.replace("NAME", "message"), "cannot decode the file")
    page.run(_DROP.replace("NAME", "2").replace("EVENT", "drop"))
    _wait(page, _TEXT.replace("NAME", "message"), "^$")


@needs_chromium
@pytest.mark.slow
def test_webgpu_answers_as_predictor_does(folder: Path, tmp_path: Path) -> None:
    # SwiftShader is a GPU in software, as slow as that.
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    flags.append("--enable-features=Vulkan")
    with hosted(folder) as url, browser(tmp_path, *flags) as page:
        page.open(f"{url}/index.html")
        pixels, answers = _answers(page, 2, "webgpu", 2)
        expected = reszoo.Predictor(EXPORT / "model.onnx").predict_prepared(pixels)
        np.testing.assert_allclose(answers, expected, atol=1e-4)


@needs_chromium
def test_labels_are_text_and_changed_files_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    labels = [f"</script><img src=x onerror=alert({number})>" for number in range(10)]
    manifest = read_manifest(EXPORT)
    card = replace(manifest.card, labels=tuple(labels), provenance={"licence": "<b>"})
    export = tmp_path / "export"
    shutil.copytree(EXPORT, export)
    replace(manifest, card=card).write(export)
    # The file named first, which the page opens.
    site = write_site(export, tmp_path / "site")
    text = (site / "index.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    write_photos(site / "photos")
    with hosted(site) as url, browser(tmp_path / "profile") as page:
        page.open(f"{url}/index.html")
        _wait(page, _TEXT.replace("NAME", "message"), "Ready.")
        page.run(_DROP.replace("NAME", "0").replace("EVENT", "drop"))
        answer = "return document.getElementById('answer').innerHTML"
        _wait(page, answer, "&lt;/script&gt;&lt;img src=x")
        assert not page.run("return document.querySelectorAll('#answer img').length")
        model = site / "model.tflite"
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(content)
        page.open(f"{url}/index.html")
        _wait(page, _TEXT.replace("NAME", "message"), "is not the file it should be")


@needs_chromium
def test_a_cdn_that_serves_other_bytes_is_refused(tmp_path: Path) -> None:
    """The CDN is played by the browser's own interception of requests."""
    site = write_site(EXPORT, tmp_path / "site", vendor=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESZOO_HOME", str(PACKAGES))
        files = {
            f"{each.name}@{each.version}/{file}": each.cached / file
            for row in sites._PACKAGES.values()
            for each in row
            for file in each.files
        }
    ready, message = "Ready.", _TEXT.replace("NAME", "message")
    with hosted(site) as url, browser(tmp_path / "profile") as page:
        page.call("Network.setCacheDisabled", cacheDisabled=True)
        page.intercept("https://cdn.jsdelivr.net/npm/", files)
        page.open(f"{url}/index.html")
        _wait(page, message, ready)
        page.damaged = "litert_wasm_internal.wasm"
        page.open(f"{url}/index.html")
        _wait(page, message, "litert_wasm_internal.wasm cannot be loaded, or is not")


@needs_chromium
@pytest.mark.slow
def test_a_page_that_is_opened_as_a_file_tells_what_to_do(
    folder: Path, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as page:
        page.open((folder / "index.html").as_uri())
        seen = "return getComputedStyle(document.querySelector('#message span'))"
        _wait(page, f"{seen}.visibility", "visible")
        message = page.run(_TEXT.replace("NAME", "message"))
        assert "web server (python -m http.server), not as a file" in message
        # In the page's own style.
        assert page.run(f"{seen}.animationName") == "late"


_CLICK = "document.getElementById('camera').click();"
# How often the page asked for the camera.
_COUNTED = """
const devices = navigator.mediaDevices;
const ask = devices.getUserMedia.bind(devices);
window.asked = 0;
devices.getUserMedia = (wanted) => (window.asked++, ask(wanted));
"""


@needs_chromium
def test_the_camera_is_opened_once_and_its_end_is_noticed(page: Browser) -> None:
    page.run(_COUNTED + _CLICK + _CLICK)
    _wait(page, _TEXT.replace("NAME", "camera"), "Stop camera")
    assert page.run("return window.asked") == 1
    page.run(
        "const [track] = document.getElementById('video').srcObject.getVideoTracks();"
        "track.dispatchEvent(new Event('ended'));"
    )
    _wait(page, _TEXT.replace("NAME", "camera"), "Start camera")
    assert page.run("return document.getElementById('video').hidden")
    assert not page.complaints()


@needs_chromium
@pytest.mark.parametrize(("facing", "shown"), [("user", "mirrored"), (None, "")])
def test_only_a_camera_that_faces_the_visitor_is_mirrored(
    page: Browser, facing: str | None, shown: str
) -> None:
    given = json.dumps({"facingMode": facing} if facing else {})
    page.run(
        "const track = MediaStreamTrack.prototype; window.told ??= track.getSettings;"
        f"track.getSettings = () => ({given}); {_CLICK}"
    )
    _wait(page, _TEXT.replace("NAME", "camera"), "Stop camera")
    assert page.run("return document.getElementById('video').className") == shown
    page.run(f"MediaStreamTrack.prototype.getSettings = window.told; {_CLICK}")
    _wait(page, _TEXT.replace("NAME", "camera"), "Start camera")
    # What the camera showed last is not left over.
    seen = "return getComputedStyle(document.getElementById('seen')).display"
    assert page.run(seen) == "none"


@needs_chromium
def test_a_photo_that_is_dropped_while_the_camera_starts_is_answered(
    page: Browser,
) -> None:
    drop = _DROP.replace("NAME", "3").replace("EVENT", "drop")
    page.run(f"{_CLICK} {drop}")
    _wait(page, "return document.getElementById('photo').hidden", "False")
    _wait(page, _TEXT.replace("NAME", "camera"), "Start camera")
    time.sleep(0.5)
    assert page.run("return document.getElementById('video').hidden")
    assert "frames" not in page.run(_TEXT.replace("NAME", "timing"))


_ODD: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "one grey class": (["only"], (24, 40, 1)),
    "a thousand without labels": (1000, (32, 32, 3)),
    "odd labels": (
        ["x" * 3000, "\u0642\u0637\u0629!", "\U0001f408", "<i>a"],
        (32, 32, 3),
    ),
}


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("kind", _ODD)
def test_unusual_models_and_labels_are_shown(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    classes, shape = _ODD[kind]
    model = reszoo.build(TWO_BLOCKS, classes=classes, input_shape=shape, seed=0)
    reszoo.export(randomise(model), tmp_path / "export", formats="tflite,onnx")
    site = write_site(tmp_path / "export", tmp_path / "site")
    shutil.copytree(folder / "photos", site / "photos")
    with hosted(site) as url, browser(tmp_path / "profile") as page:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        for number, name in enumerate(["model.tflite", "model.onnx"]):
            _drop_photo(page, url, number)
            shown, _ = page.run(_SHOWN)
            with reszoo.Predictor(tmp_path / "export" / name) as predictor:
                expected = predictor.top(folder / "photos/3")
            start = "" if isinstance(classes, list) else "class "
            for text, (label, share) in zip(shown, expected, strict=True):
                assert text.startswith(f"{start}{label}")
                told = float(text.removeprefix(f"{start}{label}").split()[0])
                assert told == pytest.approx(100 * share, abs=5)
            # Nothing is wider than the screen, nor pushes the rest from it.
            assert page.run("return document.documentElement.scrollWidth") <= 390
            height = "return document.querySelector('#answer li').offsetHeight"
            assert page.run(height) < 150
            assert not page.complaints()
