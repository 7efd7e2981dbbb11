import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import reszoo
from reszoo.cli import main, options
from reszoo.weights.location import bundled_rows
from reszoo.weights.published import table_rows


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line; return its exit code, output and error output."""
    # The process is that of all tests.
    monkeypatch.setattr("reszoo.cli.enable_quiet_cli", lambda: None)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reszoo", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


COMMANDS = (
    "list", "train", "evaluate", "predict", "export", "verify", "convert", "study",
    "demo",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Any, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Usage: reszoo" in out
    assert "--json" in out
    assert command in call("--help")[1]


def test_list_shows_the_table(call: Any) -> None:
    code, out, _ = call("list", "*50")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:] if line.strip()] == [
        "resnet50",
        "plain50",
    ]
    listed = json.loads(call("list", "--json")[1])
    assert [row["name"] for row in listed] == reszoo.list_models()


def test_list_shows_sizes_and_accuracy_by_family(call: Any) -> None:
    rows = {row["name"]: row for row in json.loads(call("list", "--json")[1])}
    # torchvision's `_ops` in meta, in G.
    operations = {
        "resnet18": 1.814, "resnet50": 4.089, "resnext50_32x4d": 4.23,
        "resnext101_64x4d": 15.46, "wide_resnet101_2": 22.753,
    }  # fmt: skip
    for name, expected in operations.items():
        assert round(rows[name]["multiply_adds"] / 1e9, 3) == expected
    assert rows["resnet50"]["parameters"] == 25_557_032
    measured: dict[str, float] = {}
    for row in table_rows() + bundled_rows():
        best = max(row["top1"] or 0, measured.get(row["model"], 0))
        measured[row["model"]] = best
    for name, row in rows.items():
        # The table of weights tells the default input size only.
        assert (row["top1"] or 0) >= measured.get(name, 0)
    assert rows["resnet50"]["top1"] == 81.24
    assert rows["resnet20"]["top1"] == measured["resnet20"] == 88.31
    assert rows["resnet32"]["top1"] == measured["resnet32"]
    assert rows["resnet50v2"]["top1"] == 76.0
    assert rows["resnet152d"]["top1"] == 83.684
    assert rows["resnext101_64x4d"]["top1"] == 83.246
    assert rows["plain20"]["top1"] is None
    families = [row["family"] for row in rows.values()]
    assert families == sorted(families, key=families.index)
    assert rows["wrn16_4"]["family"] == "wide ResNet, small images"
    assert rows["preresnet20"]["family"] == "pre-activation, small images"
    assert rows["resnet50d"]["family"] == "ResNet-D"
    kept = Path(__file__).parents[1] / "saved_models/resnet20-cifar10/model-int8.tflite"
    estimate = rows["resnet20"]["int8_bytes"]
    assert estimate == pytest.approx(kept.stat().st_size, rel=0.1)


def test_list_sorts(call: Any) -> None:
    listed = json.loads(call("list", "--sort", "parameters", "--json")[1])
    counts = [row["parameters"] for row in listed]
    assert counts == sorted(counts, reverse=True)
    listed = json.loads(call("list", "--sort", "top1", "--json")[1])
    assert listed[0]["name"] == "resnext101_32x8d"
    assert listed[-1]["top1"] is None
    listed = json.loads(call("list", "resnet*", "--sort", "name", "--json")[1])
    assert listed[0]["name"] == "resnet101"
    code, _, err = call("list", "--sort", "speed")
    assert code == 2
    assert "multiply_adds" in err


@pytest.mark.slow
def test_study_prints_what_it_found(call: Any, tmp_path: Path) -> None:
    words: tuple[Any, ...] = (
        "study",
        "--family",
        "dense",
        "--layers",
        "4",
        "--seeds",
        1,
    )
    words += ("--set", "steps=3", "--set", "seed=5", "--output", tmp_path / "study")
    code, out, err = call(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [each["shortcut"] for each in found["models"]] == ["none", "identity"]
    assert "only one depth" in found["conclusion"][-1]
    assert "residual-4 (A), seed 5: training error" in err
    code, out, _ = call(*words, "--resume")
    assert code == 0
    assert "plain-4" in out
    assert "study.html" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layers", "20,x"), "must be comma-separated numbers"),
        (
            ("--layers", "21"),
            "The cifar family has networks of 8, 14, 20, 32, 44, 56, 110, 1202",
        ),
        (("--family", "deep"), "Unknown family 'deep'"),
    ],
)
def test_a_study_that_cannot_be_is_wrong_usage(
    call: Any, words: tuple[str, ...], told: str
) -> None:
    code, _, err = call("study", *words)
    assert code == 2
    assert told in err


def test_list_shows_the_published_weights(call: Any) -> None:
    code, out, _ = call("list", "resnet34", "--weights")
    assert code == 0
    assert "torchvision/IMAGENET1K_V1 *" in out
    assert "timm/a1_in1k" in out
    rows = json.loads(call("list", "resnet34", "--weights", "--json")[1])
    assert [row["model"] for row in rows] == ["resnet34"] * 8


@pytest.mark.parametrize(("name", "top1"), [("resnet20", 88.31), ("resnet32", 89.09)])
def test_list_shows_the_weights_inside_the_package(
    call: Any, name: str, top1: float
) -> None:
    rows = json.loads(call("list", name, "--weights", "--json")[1])
    assert [(row["model"], row["weights"]) for row in rows] == [(name, "cifar10")]
    assert rows[0]["top1"] == top1


def test_convert_writes_what_it_read(call: Any, run: Any, tmp_path: Path) -> None:
    output = tmp_path / "copy.safetensors"
    code, out, _ = call("convert", run.best, output)
    assert code == 0
    assert "resnet8" in out
    assert output.read_bytes() == run.best.read_bytes()
    code, _, err = call("convert", run.best, output)
    assert code == 2
    assert "--overwrite" in err
    code, _, err = call("convert", run.best, tmp_path / "for-timm")
    assert code == 2
    assert "timm has no resnet8" in err
    code, _, err = call(
        "convert", run.best, output, "--model", "plain32", "--overwrite"
    )
    assert code == 1
    assert "holds a resnet8" in err


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.slow
def test_the_whole_way(call: Any, run: Any, tmp_path: Path) -> None:
    output = tmp_path / "export"
    code, out, err = call(
        "export", run.best, "--output", output, "--formats", "tflite,onnx",
        "--verify", "digits",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "model.tflite" in out
    assert "359 held-out images" in out
    code, out, _ = call("verify", output, "--json")
    assert code == 0
    assert [file["format"] for file in json.loads(out)["files"]] == ["tflite", "onnx"]
    code, out, _ = call("evaluate", output / "model.onnx", "digits", "--json")
    measured = json.loads(out)
    assert code == 0
    assert measured["images"] == 359
    assert len(measured["classes"]) == len(measured["confusion"]) == 10
    top1 = measured["top1"]
    code, out, _ = call("evaluate", output / "model.onnx", "digits")
    for name in ("top1", "balanced_accuracy", "macro_f1"):
        assert f"{measured[name]:.2%}" in out
    lowest = out.split("most often taken for")[1].splitlines()[2].split()
    assert lowest[0] == measured["classes"][0]["label"]
    for command in (
        ("evaluate", output / "model.onnx", "digits"), ("verify", output),
    ):  # fmt: skip
        assert call(*command, "--min-accuracy", top1 - 1e-4)[0] == 0
        code, out, err = call(*command, "--min-accuracy", top1 + 1e-4)
        assert code == 1
        assert "model.onnx" in out + err
        assert f"top-1 {top1:.2%} is below --min-accuracy" in err
        code, _, err = call(*command, "--min-accuracy", 90)
        assert code == 2
        assert "--min-accuracy must be in [0, 1]. Received: --min-accuracy=90" in err
    (output / "model.onnx").write_bytes(b"")
    code, out, err = call("verify", output)
    assert code == 1
    assert "model.onnx" in err


def test_train_and_predict(call: Any, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    code, out, err = call(
        "train", folder, "--model", "resnet8", "--output", output,
        "--epochs", 2, "--batch-size", 4,
    )  # fmt: skip
    assert code == 0
    assert f"reszoo export {output / 'best.safetensors'}" in out
    assert "epoch   2/2" in err
    image = folder / "cat" / "0.png"
    code, out, _ = call("predict", output / "best.safetensors", image, "--json")
    assert code == 0
    (answers,) = json.loads(out).values()
    assert {answer["label"] for answer in answers} == {"cat", "dog"}
    code, out, _ = call("predict", output / "best.safetensors", image, "--top", 1)
    assert out.count("%") == 1
    code, _, err = call("train", folder, "--model", "resnet8", "--output", output)
    assert code == 2
    assert "already holds a run" in err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["list", "resnet5"], 2, "'resnet50' or"),
        (["train", "digits", "--model", "resnet5", "--output", "x"], 2, "'resnet50'"),
        (["train", "digitss", "--model", "resnet20", "--output", "x"], 2, "'digits'"),
        (["train", "digits", "--model", "resnet20", "--output", "x", "--recipe", "ci"],
         2, "Unknown recipe 'ci'"),
        (["train", "digits", "--output", "x"], 2, "Missing option '--model'"),
        (["export", "none.safetensors", "--output", "x"], 1, "There is no checkpoint"),
        (["export", "n", "--output", "x", "--formats", "onx"], 2, "mean 'onnx'"),
        (["evaluate", "none.onnx", "digits"], 1, "There is no file none.onnx"),
        (["predict", "none.onnx", "cat.jpg"], 1, "There is no file none.onnx"),
        (["verify", "nowhere"], 1, "nowhere is not an export: it does not exist."),
        (["trian"], 2, "No such command 'trian'"),
    ],
)  # fmt: skip
def test_mistakes_end_in_a_sentence(
    call: Any, arguments: list[str], code: int, text: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, _, err = call(*arguments)
    assert found == code
    assert text in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_error_whose_message_cannot_be_set_stays_itself() -> None:
    error = tf.errors.UnavailableError(None, None, "\x1b[2J")
    with pytest.raises(tf.errors.UnavailableError) as raised, options._escaped():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "arguments",
    [("none\u202e\x9b\x1b[2J",), ("list", "--none\u202e\x9b\x1b[2J"),
     ("list", "a", "none\u202e\x9b\x1b[2J\nusage")],
)  # fmt: skip
def test_what_is_typed_is_printed_escaped(call: Any, arguments: Any) -> None:
    code, _, err = call(*arguments)
    assert code == 2
    assert r"none\u202e\x9b\x1b[2J" in err
    assert all(line.isprintable() for line in err.split("\n"))


@pytest.mark.slow
def test_the_demo_does_it_all(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reszoo.cli.files

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(reszoo.cli.files.DEMO_RECIPE, "epochs", 1)
    # The others cost time, and their tests are elsewhere.
    monkeypatch.setattr(reszoo.cli.files, "DEMO_FORMATS", ("tflite-int8", "onnx"))
    code, out, err = call("demo")
    assert code == 0
    tuned, scratch = (
        float(re.findall(rf"{start} +top-1 ([\d.]+)%", err)[0])
        for start in ("fine-tuned", "from scratch")
    )
    (gain,) = re.findall(r"add \+([\d.]+) points", err)
    assert float(gain) == pytest.approx(tuned - scratch, abs=0.011)
    for file in ("model-int8.tflite", "model.onnx"):
        assert file in out
        assert (tmp_path / "saved_models" / "demo" / file).exists()
    assert "reszoo verify saved_models/demo" in out
    assert (tmp_path / "runs" / "demo" / "best.safetensors").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    code, _, err = call("demo", "--output", tmp_path / "photos")
    assert code == 2
    assert err.startswith("reszoo: ")
    assert "is not an export of reszoo" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--integer-io"], "uint8"),
        (["--integer-io", "uint8"], "uint8"),
        (["--integer-io", "int8"], "int8"),
        (["--integer-io", "--json"], "uint8"),
    ],
)
def test_integer_io_stands_alone_or_with_its_dtype(
    call: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str | None
) -> None:
    given: dict[str, Any] = {}

    def export(*_: Any, **options: Any) -> Any:
        given.update(options)
        raise reszoo.ExportError("stop here")

    monkeypatch.setattr(reszoo, "export", export, raising=False)
    call("export", *words, "a.safetensors", "--output", "b", "--opset", "13")
    assert (given["integer_io"], given["opset"]) == (expected, 13)
