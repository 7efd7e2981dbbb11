import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.make_torch_files import FOLDER, drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import LAYOUTS, Writer, mapping, memory_below, refused, same

from reszoo.errors import CheckpointError
from reszoo.weights.torch_file import looks_like_torch, read


@pytest.fixture(params=LAYOUTS)
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(request.param)


def test_a_storage_longer_than_one_piece_is_read_in_full(
    writer: Writer, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).normal(size=400_000)
    file = writer.write(tmp_path / "a", writer.tensor(values, "DoubleStorage"))
    assert same(read(file), values)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_of_plain_values_is_read(protocol: int, tmp_path: Path) -> None:
    # From protocol 2 on; torch's tuples as ids cannot be written with protocol 0.
    tree = {
        "text": "Ünicode ✓" * 99,
        "numbers": [0, -1, 255, 65536, -(2**40), 0x1950A86A20F9469CFC6C, 0.5],
        "nothing": (None, True, False, (), [], {}, (1, 2), (1, 2, 3, 4)),
        7: {"set": {1, 2}, b"raw": b"\x00\xff" * 200},
    }
    if protocol == 1:
        del tree[7]
    file = tmp_path / "a"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(tree, protocol))
    assert same(read(file), tree)


@pytest.mark.parametrize("layout", ["", "_legacy"])
def test_what_torch_wrote_is_what_was_drawn(layout: str) -> None:
    def case(of: str) -> Any:
        return read(FOLDER / f"{of}{layout}.pth")

    def f32(*shape: int) -> Any:
        return drawn(*shape).astype(np.float32)

    batch_norm = ("weight", "bias", "running_mean", "running_var")
    weights = {"0.weight": f32(4, 3, 3, 3), "0.bias": f32(4)}
    weights |= {f"1.{kind}": f32(4) for kind in batch_norm}
    weights["1.num_batches_tracked"] = np.array(-6)
    assert same(case("state_dict"), weights)
    parallel = {f"module.{key}": value for key, value in weights.items()}
    whole = {"state_dict": parallel, "best_prec1": 91.25, "epoch": 3}
    assert same(case("parallel"), whole)
    reference = {
        "model": weights,
        "args": {"lr": 0.1, "milestones": [30, 60], "device": "cuda"},
        "scheduler": {"milestones": {30: 1, 60: 2}},
        "device": "cuda:1",
        "type": "torch.bfloat16",
        "size": (2, 3),
        "classes": {1, 2},
    }
    assert same(case("reference"), reference)
    views = {
        "parameter": f32(2, 3),
        "transposed": f32(4, 6).T,
        "every_second": f32(4, 6)[:, ::2],
        "top": f32(4, 6)[:2],
        "bottom": f32(4, 6)[2:],
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert same(case("views"), views)
    types = {"float16": drawn(3, 5).astype(np.float16), "bfloat16": f32(3, 5)}
    for kind in ("float32", "float64", "int8", "int16", "int32", "int64"):
        types[kind] = drawn(3, 5).astype(kind)
    types |= {"uint8": np.arange(15, dtype=np.uint8), "bool": drawn(3, 5) > 0}
    assert same(case("types"), types)


def test_torch_itself_reads_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}
    for new in (True, False):
        file = tmp_path / str(new)
        torch.save(weights, file, _use_new_zipfile_serialization=new)
        assert same(read(file), {"w": weights["w"].numpy()})


def test_torch_files_are_known_by_content(tmp_path: Path) -> None:
    files = sorted(FOLDER.iterdir())
    assert len(files) == 11
    assert all(looks_like_torch(file) for file in files)
    strange = tmp_path / "model.pth"
    for content in (b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", pickle.dumps({"a": 1})):
        strange.write_bytes(content)
        assert not looks_like_torch(strange)
        refused(strange, r"model.pth is (damaged or )?not a torch checkpoint")
    with zipfile.ZipFile(strange, "w") as archive:
        archive.writestr("config.json", "{}")
    assert not looks_like_torch(strange)
    refused(strange, r"zip archive without torch's data.pkl")
    assert not looks_like_torch(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        read(tmp_path / "none.pth")


def test_a_torchscript_program_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*torch.jit.load"):
        read(FOLDER / "script.pt")


def small(layout: str, path: Path) -> Path:
    writer = Writer(layout)
    tree = mapping(
        weight=writer.tensor(drawn(3, 2).astype(np.float32)),
        bias=writer.tensor(drawn(4).astype(np.float16), "HalfStorage"),
        seen=writer.tensor(np.array(7), "LongStorage"),
    )
    return writer.write(path, tree)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        content = small(layout, tmp_path / "a").read_bytes()
        for kept in range(0, len(content), 3):
            (tmp_path / "a").write_bytes(content[:kept])
            refused(tmp_path / "a", r"damaged|not a torch|ends within|they belong")
        (tmp_path / "a").write_bytes(content + b"\x00" * (layout == "legacy"))
    refused(tmp_path / "a", "continues after its last tensor")


def test_the_older_layout_lists_the_storages_of_its_tensors(tmp_path: Path) -> None:
    writer = Writer("legacy")
    tree = writer.tensor(np.zeros(3, np.float32))
    file = writer.write(tmp_path / "a", tree)
    content = file.read_bytes()
    for keys in ([], ["1"], ["0", "0"], ["0", 1], {"0": 1}, "0", 7):
        changed = content.replace(pickle.dumps(["0"], 2), pickle.dumps(keys, 2))
        assert changed != content
        file.write_bytes(changed)
        refused(file, "lists other storages|damaged")
    file.write_bytes(content.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)))
    refused(file, "unknown version of torch's older layout")


@pytest.fixture
def members(tmp_path: Path) -> Iterator[dict[str, bytes]]:
    with zipfile.ZipFile(small("zip", tmp_path / "a")) as archive:
        yield {member: archive.read(member) for member in archive.namelist()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"net/data/0": None}, "lacks the data of storage '0'"),
        (
            {"net/data/0": b"\x00" * 23},
            "has 23 bytes for the 6 elements of storage '0'",
        ),
        ({"net/data/0": b"\x00" * 25}, "has 25 bytes for the 6 elements"),
        ({"net/byteorder": b"middle"}, "unknown byte order, b'middle'"),
        ({"net/data.pkl": None}, "without torch's data.pkl"),
        ({"other/data.pkl": b"N."}, "without torch's data.pkl"),
        ({"net/constants.pkl": b"N."}, "TorchScript archive"),
        ({"net/code/a.py": b""}, "TorchScript archive"),
        ({"net/data.pkl": b"\x80\x02" + b"N0" * (9 << 20) + b"N."}, "data.pkl of more"),
    ],
)
def test_an_archive_holds_what_torch_puts_there(
    members: dict[str, bytes], change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for member, content in {**members, **change}.items():
            if content is not None:
                archive.writestr(member, content)
    refused(tmp_path / "a", match)


def test_a_zip_bomb_is_refused_unopened(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    file = tmp_path / "a"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr("net/data/9", b"\x00" * 50_000_000)
    assert file.stat().st_size < 100_000
    with memory_below(2e6):
        refused(file, "has a compressed or encrypted member.*Nothing was unpacked")


def test_an_archive_that_claims_more_than_its_own_size_is_refused(
    tmp_path: Path,
) -> None:
    file = small("zip", tmp_path / "a")
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    file.write_bytes(content)
    refused(file, "claims to hold more than its own")


def test_a_directory_of_a_million_names_is_not_taken_in(tmp_path: Path) -> None:
    file = small("zip", tmp_path / "a")
    content = file.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entry = content[start : content.index(b"PK\x01\x02", start + 4)]
    directory = entry * 300_000
    tail = content[end : end + 12] + struct.pack("<IIH", len(directory), start, 0)
    file.write_bytes(content[:start] + directory + tail)
    with memory_below(file.stat().st_size):
        refused(file, "damaged")


def test_a_changed_byte_in_an_archive_is_noticed(tmp_path: Path) -> None:
    file = small("zip", tmp_path / "a")
    content = file.read_bytes()
    raw = drawn(3, 2).astype(np.float32).tobytes()
    file.write_bytes(content.replace(raw, raw[:-1] + b"\x00"))
    refused(file, "Bad CRC-32")


@pytest.mark.parametrize(
    ("kind", "code", "times"), [("FloatStorage", "f4", 1), ("BFloat16Storage", "u2", 2)]
)
def test_reading_takes_at_most_twice_the_file(
    writer: Writer, kind: str, code: str, times: int, tmp_path: Path
) -> None:
    tree = writer.tensor(np.zeros(8_000_000, code), kind)
    file = writer.write(tmp_path / "a", tree)
    with memory_below(times * file.stat().st_size + 8e6):
        read(file)


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "erase")),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, added in mutations:
        at = int(where * len(content))
        head, tail = content[:at], content[at:]
        content = {
            "flip": head + bytes(b ^ added[0] for b in tail[:1]) + tail[1:],
            "cut": head,
            "insert": head + added + tail,
            "erase": head + tail[len(added) :],
        }[kind]
    return content


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a"


FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow],
)


@FUZZ
@given(mutations=MUTATIONS)
@pytest.mark.parametrize("source", ["views.pth", "reference.pth"])
def test_a_damaged_archive_is_read_as_it_was_or_refused(
    scratch: Path, source: str, mutations: list[tuple[str, float, bytes]]
) -> None:
    scratch.write_bytes(mutated((FOLDER / source).read_bytes(), mutations))
    looks_like_torch(scratch)
    try:
        tree = read(scratch)
    except CheckpointError:
        return
    # Checksums cover everything that is read.
    assert same(tree, read(FOLDER / source))


@FUZZ
@given(mutations=MUTATIONS)
@pytest.mark.parametrize("source", ["views_legacy.pth", "reference_legacy.pth"])
def test_a_damaged_older_file_gives_plain_things_or_is_refused(
    scratch: Path, source: str, mutations: list[tuple[str, float, bytes]]
) -> None:
    scratch.write_bytes(mutated((FOLDER / source).read_bytes(), mutations))
    try:
        tree = read(scratch)
    except CheckpointError:
        return
    # Without checksums a name or number may be another one, but nothing else.
    assert sum(map(taken, leaves(tree))) <= scratch.stat().st_size


@FUZZ
@given(st.integers(0, 2**32), st.integers(0, 255))
def test_damage_among_the_numbers_of_an_older_file_changes_numbers_only(
    scratch: Path, position: int, value: int
) -> None:
    content = bytearray((FOLDER / "views_legacy.pth").read_bytes())
    numbers = len(content) - content.rindex(b"e.") - 2
    content[-1 - position % numbers] = value
    scratch.write_bytes(content)
    try:
        tree = read(scratch)
    except CheckpointError:
        return
    whole = read(FOLDER / "views_legacy.pth")
    assert {k: (v.shape, v.dtype) for k, v in tree.items()} == {
        k: (v.shape, v.dtype) for k, v in whole.items()
    }


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from tree
        tree = tree.values()
    elif not isinstance(tree, (list, tuple, set)):
        yield tree
        return
    for part in tree:
        yield from leaves(part)


def taken(leaf: Any) -> int:
    if isinstance(leaf, np.ndarray):
        assert leaf.dtype.kind in "fiub"
        return leaf.nbytes
    assert isinstance(leaf, (str, int, float, bytes, bytearray, type(None)))
    return 0
