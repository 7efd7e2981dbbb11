from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.make_torch_files import drawn
from torch_writer import (
    LAYOUTS,
    Writer,
    call,
    many,
    mapping,
    number,
    rebuilt,
    refused,
    same,
    text,
)

from reszoo.weights.torch_file import read

STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@pytest.fixture(params=LAYOUTS)
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(request.param)


@pytest.mark.parametrize(("kind", "code"), STORAGES.items())
def test_every_type_is_read_bit_by_bit(
    writer: Writer, kind: str, code: str, tmp_path: Path
) -> None:
    raw = np.random.default_rng(0).bytes(24 * np.dtype(code).itemsize)
    values = np.frombuffer(raw, code).reshape(2, 3, 4)
    if kind == "BoolStorage":
        values = drawn(2, 3, 4) > 0
    tree = mapping(weight=writer.tensor(values, kind))
    assert same(read(writer.write(tmp_path / "a", tree)), {"weight": values})


def test_bfloat16_becomes_float32_exactly(writer: Writer, tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16)
    file = writer.write(tmp_path / "a", writer.tensor(every, "BFloat16Storage"))
    values = read(file)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), every.astype(np.uint32) << 16)
    assert values[0x3FC0] == 1.5


def test_big_endian_numbers_are_turned(tmp_path: Path) -> None:
    writer = Writer("zip", order=">")
    tree = mapping(
        a=writer.tensor(drawn(3, 2).astype(np.float32)),
        b=writer.tensor(np.array([0x3FC0], np.uint16), "BFloat16Storage"),
        c=writer.tensor(np.array([1, -2]), "LongStorage"),
    )
    expected = {
        "a": drawn(3, 2).astype(np.float32),
        "b": np.array([1.5], np.float32),
        "c": np.array([1, -2]),
    }
    assert same(read(writer.write(tmp_path / "a", tree)), expected)


def test_tensors_share_a_storage_where_they_are_disjoint(
    writer: Writer, tmp_path: Path
) -> None:
    values = drawn(4, 6).astype(np.float32)
    storage = writer.storage(values, "FloatStorage", "s")
    top, bottom = (rebuilt(storage, at, (2, 6), (6, 1)) for at in (0, 12))
    tree = read(writer.write(tmp_path / "a", mapping(top=top, bottom=bottom)))
    assert same(tree, {"top": values[:2], "bottom": values[2:]})
    twice = read(writer.write(tmp_path / "b", mapping(one=top, two=top)))
    assert twice["one"] is twice["two"]


def test_old_storage_views_are_read(tmp_path: Path) -> None:
    writer = Writer("legacy")
    values = drawn(10).astype(np.float32)
    view = many(text("view"), number(4), number(6))
    storage = writer.storage(values, "FloatStorage", "s", view)
    file = writer.write(tmp_path / "a", rebuilt(storage, 1, (2, 2), (2, 1)))
    assert same(read(file), values[5:9].reshape(2, 2))


@pytest.mark.parametrize(
    ("start", "count"), [(4, 7), (-1, 3), (0, 2**62), (2**62, 1), (5, -2)]
)
def test_a_storage_view_outside_its_storage_is_refused(
    start: int, count: int, tmp_path: Path
) -> None:
    writer = Writer("legacy")
    view = many(text("view"), number(start), number(count))
    storage = writer.storage(np.zeros(10, np.float32), "FloatStorage", "s", view)
    file = writer.write(tmp_path / "a", rebuilt(storage, 0, (1,), (1,)))
    refused(file, "has a view outside its storage 's'")


@pytest.mark.parametrize(
    ("offset", "shape", "steps", "match"),
    [
        (0, (13,), (1,), "outside its storage 's' of 12 elements"),
        (1, (3, 4), (4, 1), "outside its storage"),
        (13, (0,), (1,), "outside its storage"),
        (0, (2, 2), (12, 1), "outside its storage"),
        (0, (3, 4), (4,), "outside its storage"),
        (2**47, (1,), (1,), "outside its storage"),
        (0, (2**47, 2**47), (1, 1), "outside its storage"),
        (0, (0, 2**47, 2**47), (1, 1, 1), "outside its storage"),
        (-1, (1,), (1,), "not a count of elements"),
        (0, (-1,), (1,), "not a count of elements"),
        (11, (12,), (-1,), "not a count of elements"),
        (0, (2**62,), (1,), "not a count of elements"),
        (0, (2**9999,), (1,), "not a count of elements"),
        (0, (1,) * 65, (1,) * 65, "not a list of sizes"),
        (0, (100,), (0,), "more than once"),
        (0, (3, 4), (0, 1), "more than once"),
        (0, (3, 4), (1, 1), "more than once"),
        (0, (3, 4), (3, 1), "more than once"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    writer: Writer, offset: int, shape: Any, steps: Any, match: str, tmp_path: Path
) -> None:
    storage = writer.storage(np.zeros(12, np.float32), "FloatStorage", "s")
    refused(writer.write(tmp_path / "a", rebuilt(storage, offset, shape, steps)), match)


def test_tensors_of_one_element_may_have_any_stride(
    writer: Writer, tmp_path: Path
) -> None:
    storage = writer.storage(np.arange(3, dtype=np.float32), "FloatStorage", "s")
    tree = many(rebuilt(storage, 2, (1, 1), (2**40, 0)), rebuilt(storage, 1, (), ()))
    one, none = read(writer.write(tmp_path / "a", tree))
    assert same(one, np.array([[2]], np.float32))
    assert same(none, np.array(1, np.float32))


def test_tensors_that_take_more_than_their_storage_are_refused(
    writer: Writer, tmp_path: Path
) -> None:
    storage = writer.storage(np.zeros(12, np.float32), "FloatStorage", "s")
    tree = many(*(rebuilt(storage, at, (5,), (1,)) for at in range(3)))
    refused(writer.write(tmp_path / "a", tree), "more elements than the 12 of their")


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (rebuilt(b"N", 0, (1,), (1,)), "of a kind that weights do not have"),
        (rebuilt(many(), 0, (1,), (1,)), "of a kind that weights do not have"),
    ],
)
def test_a_tensor_without_storage_is_refused(
    writer: Writer, program: bytes, match: str, tmp_path: Path
) -> None:
    refused(writer.write(tmp_path / "a", program), match)


def test_a_conjugate_or_negated_tensor_is_refused(
    writer: Writer, tmp_path: Path
) -> None:
    storage = writer.storage(np.zeros(1, np.float32), "FloatStorage")
    one, flags = many(number(1)), mapping(neg=b"\x88")
    arguments = (storage, number(0), one, one, b"\x89", b"N", flags)
    tree = call("torch._utils", "_rebuild_tensor_v2", *arguments)
    refused(writer.write(tmp_path / "a", tree), "of a kind that weights do not have")


def test_a_bare_storage_is_refused(writer: Writer, tmp_path: Path) -> None:
    tree = writer.storage(np.zeros(3, np.float32), "FloatStorage")
    refused(writer.write(tmp_path / "a", tree), "holds a StorageView where weights")


@pytest.mark.parametrize(("kind", "count"), [("DoubleStorage", 3), ("FloatStorage", 2)])
def test_one_storage_is_of_one_type_and_length(
    writer: Writer, kind: str, count: int, tmp_path: Path
) -> None:
    first = writer.storage(np.zeros(3, np.float32), "FloatStorage", "s")
    tree = many(
        rebuilt(first, 0, (1,), (1,)),
        rebuilt(writer.reference(kind, "s", count), 0, (1,), (1,)),
    )
    match = f"uses storage 's' of 3 elements, a FloatStorage, as a {kind} of {count}"
    refused(writer.write(tmp_path / "a", tree), match)


def test_truth_values_are_zero_or_one(writer: Writer, tmp_path: Path) -> None:
    tree = writer.tensor(np.array([0, 1, 2], np.uint8), "BoolStorage")
    refused(writer.write(tmp_path / "a", tree), "truth values other than 0 and 1")


@pytest.mark.parametrize("count", [4, 2, 0, -1, 2**40, 2**70])
def test_a_storage_has_as_many_elements_as_it_says(
    writer: Writer, count: int, tmp_path: Path
) -> None:
    writer.counts["0"] = count if -(2**63) <= count < 2**63 else 0
    tree = rebuilt(writer.reference("FloatStorage", "0", count), 0, (0,), (1,))
    writer.storages["0"] = np.zeros(3, np.float32).tobytes()
    refused(
        writer.write(tmp_path / "a", tree),
        r"12 bytes for the|claims .* elements|storage '0'|continues after",
    )


def test_an_ordered_dict_of_python_2_is_read(writer: Writer, tmp_path: Path) -> None:
    pairs = b"](](U\x01bK\x01e](U\x01aK\x02ee"
    tree = read(writer.write(tmp_path / "a", call("collections", "OrderedDict", pairs)))
    assert list(tree.items()) == [("b", 1), ("a", 2)]
