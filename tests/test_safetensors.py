"""safetensors files, read by mapping them: exact, and no trust in the header."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import reszoo
from reszoo.weights.safetensors import read


@pytest.fixture
def small(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        "conv1.weight": draw.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "fc.bias": draw.normal(size=5).astype(np.float16),
        "bn1.num_batches_tracked": np.array(7),
    }
    save_file(tensors, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def with_header(path: Path, header: Any, body: bytes = b"\0" * 16) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


@pytest.mark.parametrize(
    "dtype", ["f4", "f2", "f8", "i8", "i4", "i2", "i1", "u1", "?", ml_dtypes.bfloat16]
)
def test_every_type_is_read_as_the_library_reads_it(tmp_path: Path, dtype: Any) -> None:
    values = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    save_file({"x": values, "y": values[:1].copy()}, tmp_path / "x.safetensors")
    found, card = read(tmp_path / "x.safetensors")
    assert card is None
    for name, expected in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(found[name], expected.astype(found[name].dtype))
        assert found[name].shape == expected.shape


def test_reading_copies_nothing(small: Path) -> None:
    found, _ = read(small)
    assert not found["conv1.weight"].flags.owndata
    assert not found["conv1.weight"].flags.writeable


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        {"x": F32, "y": F32},
        {"x": {**F32, "data_offsets": [0, 8]}},
        {"x": {**F32, "data_offsets": [8, 24]}},
        {"x": {**F32, "shape": [2**40]}},
        {"x": {**F32, "shape": [2**62, 4]}},
        {"x": {**F32, "shape": [-4]}},
        {"x": {**F32, "dtype": "OBJECT"}},
        {"x": 3},
        b"[]",
        b"{",
        b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "x": 1}',
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: Any) -> None:
    path = with_header(tmp_path / "x.safetensors", header)
    with pytest.raises(reszoo.CheckpointError):
        read(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in (100, 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(reszoo.CheckpointError, match=r"not a complete safetensors"):
            read(path)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.floats(0, 1), change=st.binary(max_size=4), drop=st.integers(0, 4))
def test_damage_ends_in_one_kind_of_error_and_never_in_a_net(
    small: Path, place: float, change: bytes, drop: int
) -> None:
    content = small.read_bytes()
    start = int(place * len(content))
    damaged = content[:start] + change + content[start + drop :]
    other = small.with_suffix(".damaged")
    other.write_bytes(damaged)
    try:
        found, _ = read(other)
    except reszoo.CheckpointError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) < len(damaged)
    with pytest.raises(reszoo.CheckpointError):
        reszoo.load(other)
