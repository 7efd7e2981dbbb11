"""Text from files of strangers is shown, not obeyed, on any stream."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_card import made_card

import reszoo
from reszoo.cards import Metric, public_origin
from reszoo.console import print_json, print_table, print_text, say
from reszoo.training.recipes import find_recipe, repeat_command
from reszoo.weights.safetensors import read, write

HOSTILE = "a\x1b[2J\x9b31m\nreszoo: all checks passed\r\u202egnp.\u2066\u2028\x7f\x00"
OBEYED = "\x1b\x9b\r\u202e\u2066\u2028\x7f\x00"
FOREIGN = "猫 кошка café 🐈 \ud800"


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def content_of(written: io.TextIOWrapper) -> str:
    written.flush()
    held: Any = written.buffer
    return str(held.getvalue().decode(written.encoding))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "utf-16-le"])
def test_any_text_is_printed_in_any_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = stream(encoding), stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for text in (FOREIGN, HOSTILE):
        print_text(text)
        say(text)
        print_table(["image"], [[text], [text]])
    print_json({FOREIGN: [HOSTILE, FOREIGN]})
    shown, progress = content_of(out), content_of(err)
    assert not set(OBEYED) & set(shown + progress)
    # Each is one line.
    assert progress.count("\n") == 2
    assert ("猫" in shown) == ("utf" in encoding)
    assert ("café" in shown) == (encoding != "ascii")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_printed_json_is_the_same_json(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {FOREIGN: [HOSTILE, {"é": 1.5}], "\x7f\x9b": None}
    out = stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    print_json(content)
    assert json.loads(content_of(out)) == content


def test_errors_show_what_they_quote() -> None:
    errors = [
        reszoo.CheckpointError(f"There is no file {HOSTILE}."),
        reszoo.errors.UnknownNameError("model", HOSTILE, ["resnet18"]),
        reszoo.errors.VerificationError("2 checks failed:", f"  {HOSTILE}", "  b"),
    ]
    for error in errors:
        assert not set(OBEYED) & set(str(error))
    assert [str(error).count("\n") for error in errors] == [0, 0, 2]
    assert r"a\x1b[2J\x9b31m\nreszoo: all" in str(errors[0])


def test_inspect_forges_no_rows(tmp_path: Path) -> None:
    card = made_card(("cat", "dog"))
    metric = Metric(name=HOSTILE, value=0.5, data=HOSTILE)
    provenance = {"source": HOSTILE, HOSTILE: HOSTILE, "licence": HOSTILE}
    fields = {**vars(card), "metrics": (metric,), "provenance": provenance}
    plain = {**vars(card), "metrics": (metric,), "provenance": dict.fromkeys("abc", "")}
    lines = []
    for name, given in (("hostile", fields), ("plain", plain)):
        path = tmp_path / f"{name}.safetensors"
        write(path, {"fc.bias": np.zeros(2, np.float32)}, type(card)(**given))
        text = reszoo.inspect(path).text()
        assert not set(OBEYED) & set(text)
        assert not any(line.startswith("reszoo: all") for line in text.splitlines())
        lines.append(text.count("\n"))
    assert abs(lines[0] - lines[1]) <= 3


SECRET = "https://user:pass@host.example:8443/a/b.safetensors?X-Amz-Signature=SECRET#f"
PUBLIC = "https://host.example:8443/a/b.safetensors"


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (SECRET, PUBLIC),
        (f"from {SECRET} and s3://k:s@bucket/x", f"from {PUBLIC} and s3://bucket/x"),
        ({"began_as": {"source": [SECRET]}}, {"began_as": {"source": [PUBLIC]}}),
        ({SECRET: 1}, {PUBLIC: 1}),
        ("https://a@b@host/x", "https://host/x"),
        ("hf://owner/repo@main", "hf://owner/repo@main"),
        ("photos/what?.jpg", "photos/what?.jpg"),
        (5, 5),
    ],
)
def test_origins_are_recorded_without_secrets(value: Any, recorded: Any) -> None:
    assert public_origin(value) == recorded
    assert public_origin(recorded) == recorded


def test_no_card_holds_a_secret(tmp_path: Path) -> None:
    card = made_card(("cat", "dog")).after({"source": SECRET}).after({"source": "x"})
    assert card.provenance["began_as"]["source"] == PUBLIC
    path = tmp_path / "a.safetensors"
    write(path, {"fc.bias": np.zeros(2, np.float32)}, card)
    assert b"SECRET" not in path.read_bytes()
    stored = read(path)[1]
    assert stored == card


def test_the_command_that_repeats_a_run_holds_no_secret() -> None:
    for data in ("photos", {"train": "arrays"}):
        recipe = find_recipe("finetune")
        words = repeat_command("resnet18", data, recipe, SECRET, Path("run"), "error")
        assert PUBLIC in " ".join(words)
        assert "SECRET" not in " ".join(words)
