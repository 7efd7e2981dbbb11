"""Weight files of strangers: bounded memory, regular files, no shared objects."""

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import within

import reszoo
from reszoo.files import check_regular, open_regular, read_json, read_regular
from reszoo.weights import location
from reszoo.weights.location import Found, read_located


@pytest.fixture
def specials(tmp_path: Path) -> list[Path]:
    pipe, device = tmp_path / "pipe.safetensors", tmp_path / "device.h5"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    return [pipe, device]


def test_only_regular_files_are_read(specials: list[Path], tmp_path: Path) -> None:
    for path in specials:
        for function in (check_regular, open_regular, read_json):
            error = within(10, function, path)
            assert isinstance(error, OSError)
            assert error.strerror == "not a regular file"
        error = within(10, location.read, path)
        assert isinstance(error, reszoo.CheckpointError)
        assert "must be a regular file" in str(error)
    assert isinstance(within(10, check_regular, tmp_path), IsADirectoryError)
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(file)
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(file, 4)


def shared_dataset(file: h5py.File) -> None:
    weights = np.zeros(1000, np.float32)
    first = file.create_group("layer0").create_dataset("kernel:0", data=weights)
    for number in range(1, 200):
        file.create_group(f"layer{number}")["kernel:0"] = first


def shared_groups(file: h5py.File) -> None:
    """Six levels of forty links each: 4 billion ways to the last one."""
    group = file
    for _ in range(6):
        inside = group.create_group("0")
        for number in range(1, 40):
            group[str(number)] = inside
        group = inside
    group.create_dataset("kernel:0", data=np.zeros(1, np.float32))


def circle(file: h5py.File) -> None:
    file.create_group("layer")["again"] = file["/"]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (shared_dataset, "has one dataset under several names"),
        (shared_groups, "nests groups deeper .* in a circle"),
        (circle, "nests groups deeper .* in a circle"),
    ],
)
def test_each_object_of_hdf5_is_read_once(harm: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        harm(file)
    error = within(20, location.read, path)
    assert isinstance(error, reszoo.CheckpointError)
    assert str(path) in str(error)
    with pytest.raises(reszoo.CheckpointError, match=text):
        raise error


def test_a_long_header_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    length = 40 << 20
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(8 + length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        reszoo.CheckpointError, match=r"damaged header .* more than 16,"
    ):
        location.read(path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000


@pytest.mark.parametrize(
    "header",
    [
        "[1]", "{}x", '{"a": 5}', "[" * 50_000, '{"a": {"dtype": 99}}',
        '{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"__metadata__": {"reszoo_card": "[[["}}',
        '{"__metadata__": {"reszoo_card": "5"}}',
    ],
)  # fmt: skip
def test_any_header_is_refused_in_words(header: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    content = header.encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(4))
    with pytest.raises(reszoo.CheckpointError):
        location.read(path)


def test_a_download_that_cannot_be_read_is_removed(home: Path, tmp_path: Path) -> None:
    for place in (home / "url" / "0123", tmp_path / "mine"):
        place.mkdir(parents=True)
        path = place / "a.safetensors"
        path.write_bytes(b"0123456789")
        found = Found(path=path, source="https://host/a.safetensors")
        with pytest.raises(reszoo.CheckpointError) as error:
            read_located(found)
        kept = place == tmp_path / "mine"
        assert path.exists() == kept
        text = "came from https://host/a.safetensors and was removed from the cache"
        assert (text in str(error.value)) == (not kept)


def test_a_run_is_not_written_among_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.html").write_text("my own")
    text = "must be a new or empty folder, or one with a"
    calls = (
        lambda output, **more: reszoo.train("plain20", "digits", output=output, **more),
        lambda output, **more: reszoo.study(
            "cifar", data="digits", output=output, **more
        ),
    )
    for call in calls:
        for output in (mine, "~/mine", "/"):
            for more in ({}, {"overwrite": True}, {"resume": True}):
                with pytest.raises(reszoo.UsageError, match=text):
                    call(output, **more)
    assert (mine / "report.html").read_text() == "my own"
    assert [path.name for path in mine.iterdir()] == ["report.html"]
    assert not (tmp_path / "~").exists()


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    reszoo.save(reszoo.build("plain20"), "~/a.safetensors")
    assert (tmp_path / "a.safetensors").is_file()
    assert not (tmp_path / "~").exists()


def test_a_state_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from reszoo.training.state import read_state

    for text in ("[", "5", "{}", json.dumps({"version": [1]})):
        path = tmp_path / "state.safetensors"
        save_file({"a": np.zeros(1, np.float32)}, path, {"reszoo_state": text})
        with pytest.raises(reszoo.CheckpointError):
            read_state(path)
