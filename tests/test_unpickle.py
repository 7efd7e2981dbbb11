import re
import struct
from pathlib import Path

import pytest
from torch_writer import (
    LAYOUTS,
    Writer,
    call,
    many,
    mapping,
    memory_below,
    name,
    number,
    refused,
    text,
)

from reszoo.weights.torch_file import read


@pytest.fixture(params=LAYOUTS)
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(request.param)


COMMAND = text("touch marker")
DANGERS = {
    "os.system": call("os", "system", COMMAND),
    "posix.system": b"(S'touch marker'\niposix\nsystem\n",
    "nt.system": text("nt") + text("system") + b"\x93" + many(COMMAND) + b"R",
    "os.path.join": text("os") + text("path.join") + b"\x93",
    "torch.nn.parameter.Parameter": text("torch.nn")
    + text("parameter.Parameter")
    + b"\x93",
    "collections.OrderedDict.__init__": name("collections", "OrderedDict.__init__"),
    "builtins.eval": call("builtins", "eval", text("open('marker', 'w')")),
    "builtins.getattr": call("builtins", "getattr", text("a"), text("join")),
    "torch.storage._load_from_bytes": name("torch.storage", "_load_from_bytes"),
    "torch.load": name("torch", "load"),
    "torch.FloatTensor": name("torch", "FloatTensor"),
    "numpy.core.multiarray._reconstruct": name("numpy.core.multiarray", "_reconstruct"),
    "subprocess.Popen": name("subprocess", "Popen") + many(COMMAND) + b"\x81",
    "__main__.Net": name("__main__", "Net"),
    r"'\\x1b\[31mred'.x": text("\x1b[31mred") + text("x") + b"\x93",
    "a{80}...": text("a" * 90_000) + text("b") + b"\x93",
}


@pytest.mark.parametrize("named", DANGERS)
def test_nothing_is_called_that_weights_do_not_need(
    writer: Writer, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pattern = named if "{" in named or "\\" in named else re.escape(named)
    file = writer.write(tmp_path / "a", mapping(w=DANGERS[named]), protocol=4)
    refused(file, rf"a wants to call {pattern}.*which weights.*Nothing was executed")


@pytest.mark.parametrize("named", ["os.system", "subprocess.Popen", "__main__.Net"])
def test_settings_of_any_class_are_passed_over_without_being_made(
    writer: Writer, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = DANGERS[named] + mapping(a=number(1)) + b"b(K\x01e"
    tree = mapping(hyper_parameters=mapping(x=state), epoch=number(3))
    assert read(writer.write(tmp_path / "a", tree, protocol=4)) == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("tool", ["scheduler", "optimizer", "criterion", "transform"])
def test_tools_of_a_training_are_passed_over(
    writer: Writer, tool: str, tmp_path: Path
) -> None:
    state = DANGERS["__main__.Net"] + mapping(a=number(1)) + b"b"
    tree = mapping(state_dict=mapping(a=number(2)), **{tool: state})
    file = writer.write(tmp_path / "a", tree, protocol=4)
    assert read(file) == {"state_dict": {"a": 2}}


PARAMETER = name("torch._utils", "_rebuild_parameter")
LIST_LAUGHS = (
    b"]q\x000"
    + b"".join(b"](h%ch%ceq%c0" % (i, i, i + 1) for i in range(60))
    + b"h\x3c"
)
TUPLE_LAUGHS = (
    b")q\x000"
    + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60))
    + b"h\x3c"
)
NET = name("__main__", "Net")
DICT_LAUGHS = (
    b"}q\x00("
    + text("x")
    + NET
    + text("n")
    + number(1)
    + b"u0"
    + b"".join(
        b"}(%sh%c%sh%cuq%c0" % (text("a"), i, text("b"), i, i + 1) for i in range(60)
    )
    + b"h\x3c"
)
BAD_PICKLES = {
    "a function as text": (text("os.system") + many(COMMAND) + b"R", "call a str"),
    "a function as data": (b"]" + many() + b"R", "call a list"),
    "a storage as function": (call("torch", "FloatStorage"), "call a StorageType"),
    "arguments as a list": (PARAMETER + b"]R", "wants to call"),
    "wrong arguments": (PARAMETER + b")R", "_parameter with wrong arguments"),
    "keyword arguments": (PARAMETER + b")}\x92", "instruction NEWOBJ_EX"),
    "an object": (b"(" + PARAMETER + b"o", "instruction OBJ"),
    "an extension": (b"\x82\x01", "instruction EXT1"),
    "an id as text": (b"Pid\n", "instruction PERSID"),
    "a buffer": (b"\x97", "instruction NEXT_BUFFER"),
    "an unknown id": (text("storage") + b"Q", "refers to data in a way"),
    "an id that is a list": (b"]Q", "refers to data in a way"),
    "the state of a list": (b"]}b", "set the state of a list"),
    "the state of a function": (
        PARAMETER + mapping(run=b"N") + b"b",
        "state of a Call",
    ),
    "a state that is no dict": (b"}" + many(b"N", b"}") + b"b", "state of a dict"),
    "a namespace of numbers": (
        call("argparse", "Namespace") + b"}K\x01K\x01sb",
        "Namespace without named values",
    ),
    "a bare function": (PARAMETER, "holds a Call where weights"),
    "a bare type of storage": (
        name("torch", "FloatStorage"),
        "holds a StorageType",
    ),
    "lists of lists": (LIST_LAUGHS, "same containers so often"),
    "tuples of tuples": (TUPLE_LAUGHS, "same containers so often"),
    "a tuple as key": (b"}" + TUPLE_LAUGHS + b"Ns", "has a tuple as a key"),
    "a tuple in a set": (b"\x8f(" + TUPLE_LAUGHS + b"\x90", "has a tuple as a key"),
    "numbers of one hash": (b"}" + number(2**61 - 1) + b"Ns", "has a int as a key"),
    "dicts of dicts": (mapping(a=DICT_LAUGHS), "wants to call __main__.Net"),
    "a dict in itself": (b"}q\x00" + text("a") + b"h\x00s", "contains itself"),
    "a dict in its entry": (
        b"}q\x00(" + text("a") + mapping(n=NET, b=b"h\x00") + b"u",
        "contains itself",
    ),
    "depth of dicts": (
        (b"}" + text("a")) * 5000 + NET + b"s" * 5000,
        "more than 100 levels deep|wants to call __main__.Net",
    ),
    "itself": (b"]q\x00h\x00a", "contains itself"),
    "depth": (b"]" * 5000 + b"a" * 4999, "more than 100 levels deep"),
    "depth of tuples": (b"N" + b"\x85" * 50_000, "more than 100 levels deep"),
    "steps": (b"(" + b"}" * 400_000 + b"t", "more than 300,000 steps"),
    "sets": (b"(" + b"\x8f" * 400_000 + b"t", "more than 300,000 steps"),
    "copies of text": (
        text("a" * 9000)
        + b"q\x00"
        + call("_codecs", "encode", b"h\x00", text("latin1")) * 900,
        "more than 300,000 steps",
    ),
    "copies of a list": (
        b"]q\x00("
        + b"K\x01N\x86" * 9000
        + b"e"
        + call("collections", "OrderedDict", b"h\x00") * 900,
        "more than 300,000 steps",
    ),
    "a long number": (b"\x8b\xff\xff\xff\x7f\x00", "damaged"),
    "a negative length": (b"\x8b\xff\xff\xff\xff\x00", "damaged"),
    "a long text": (b"\x8d" + b"\xff" * 7 + b"\x3fa", "damaged"),
    "long bytes": (b"\x8e" + struct.pack("<Q", 2**40) + b"a", "damaged"),
    "a long array": (b"\x96" + struct.pack("<Q", 2**40) + b"a", "damaged"),
    "digits": (b"I" + b"9" * 50_000 + b"\n", "damaged"),
    "half a character": (b"X\x01\x00\x00\x00\xff", "damaged"),
    "a long frame": (b"\x95" + struct.pack("<Q", 2**40) + b"N", "stops before it is"),
    "frames in frames": (
        b"\x95" + struct.pack("<Q", 40) + b"\x95" + struct.pack("<Q", 1) + b"N",
        "overlapping pickle frames",
    ),
    "an empty stack": (b"a", "pops from an empty stack"),
    "no mark": (b"t", "pops from an empty stack"),
    "an open mark": (b"(N", "stops before"),
    "two results": (b"NN", "stops before"),
    "a hole in the memo": (b"h\x07", "never stored memo entry 7"),
    "half an entry": (b"}(Nu", "a key but no value"),
    "items of text": (text("a") + b"Na", "fills a str like a list"),
    "entries of a list": (b"]NNs", "fills a list like a dict"),
    "a name of bytes": (b"C\x02os" + text("system") + b"\x93", "name that is not text"),
    "a number of objects": (
        call("numpy", "dtype", text("O8"), b"\x89", b"\x88"),
        "not a plain number",
    ),
    "a number without type": (
        call("numpy.core.multiarray", "scalar", b"N", b"C\x08" + b"a" * 8),
        "not a plain number",
    ),
    "a number of three bytes": (
        call(
            "numpy.core.multiarray",
            "scalar",
            call("numpy", "dtype", text("f8")),
            b"C\x03abc",
        ),
        "number of 3 bytes",
    ),
    "an encoding": (call("_codecs", "encode", text("a"), text("rot13")), "latin1"),
    "a device": (call("torch", "device", text("a" * 99)), "without a name"),
    "a size": (
        call("torch", "Size", many(b"J\xff\xff\xff\xff")),
        "not a count of",
    ),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_a_hostile_or_broken_pickle_is_refused_in_little_memory(
    case: str, tmp_path: Path
) -> None:
    program, match = BAD_PICKLES[case]
    file = Writer("zip").write(tmp_path / "a", program, protocol=4)
    with memory_below(100e6):
        refused(file, match)


def test_attributes_of_a_state_dict_are_data_that_nobody_runs(
    writer: Writer, tmp_path: Path
) -> None:
    state = mapping(__class__=text("x"), __setstate__=text("y"), items=b"N")
    plain = call("collections", "OrderedDict") + text("a") + b"K\x01s" + state + b"b"
    args = name("argparse", "Namespace") + b")\x81" + state + b"b"
    tree = read(writer.write(tmp_path / "a", mapping(plain=plain, args=args)))
    assert tree["plain"] == {"a": 1}
    assert tree["args"] == {"__class__": "x", "__setstate__": "y", "items": None}
    assert type(tree["plain"]) is dict
