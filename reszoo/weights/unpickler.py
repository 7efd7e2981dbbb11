"""A restricted unpickler: plain containers only, nothing is imported or called."""

import pickletools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

MOST_BYTES = 16 << 20
# Some 40 instructions make a tensor: room for 7,000 of them. A ResNet-152 with its
# optimizer has 2,000. The dearest instruction, an empty set, takes 0.3 kB.
_MOST_STEPS = 300_000
_DEEPEST = 100
_SHOWN = 80
# A wider int can be made to share its hash with any number of others.
_WIDEST_KEY = 2**61 - 1
_PLAIN = (str, int, float, bytes, bytearray, type(None), np.ndarray)
_SIZED = (str, bytes, bytearray, list, tuple, dict, set)
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


class RefusalError(Exception):
    """What a file asks for and does not get; the text goes on after its name."""


@dataclass(frozen=True)
class Call:
    """A name that a pickle may call, and what is done instead."""

    name: str
    run: Callable[..., Any]


@runtime_checkable
class Buildable(Protocol):
    """What takes a state from a pickle."""

    def build(self, state: object) -> None:
        """Take the state, or raise RefusalError."""


class Unpickler:
    """A machine for one pickle.

    Args:
        known: What a module and a name stand for: a `Call` or a value.
        persistent: What stands for a persistent id.
    """

    def __init__(
        self,
        known: Mapping[tuple[str, str], object],
        persistent: Callable[[object], object],
    ) -> None:
        self._known = known
        self._persistent = persistent
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = self._position = self._frame_end = 0

    def load(self, stream: IO[bytes]) -> Any:
        """Return the tree of containers that the next pickle of a stream makes.

        Raises:
            RefusalError: The pickle wants something that weights do not need.
        """
        start = stream.tell()
        for opcode, argument, position in pickletools.genops(stream):
            self._position = position or 0
            self._spend(1)
            if self._position - start > MOST_BYTES:
                raise RefusalError(f"has a pickle of more than {MOST_BYTES:,} bytes.")
            self._follow(opcode.name, argument)
        return self._result()

    def _follow(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _EMPTY:
            self._push(_EMPTY[name]())
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        else:
            raise RefusalError(
                f"uses the pickle instruction {name}, which weights do not need. "
                "Nothing was executed."
            )

    def _result(self) -> Any:
        (tree,) = self._last(1)
        if self._stack or self._outer or self._frame_end > self._position + 1:
            raise RefusalError("has a pickle that stops before it is complete.")
        check_tree(tree)
        return tree

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise RefusalError(
                f"takes more than {_MOST_STEPS:,} steps to unpickle. The weights of a "
                "net take some thousands; save those alone."
            )

    def _frame(self, size: int) -> None:
        if self._position < self._frame_end:
            raise RefusalError("has a pickle frame that reaches into the next.")
        # The instruction itself is one byte and eight of length.
        self._frame_end = self._position + 9 + size

    def _push(self, item: Any) -> None:
        self._stack.append(item)

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise RefusalError("has a pickle that takes more than it made.")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _top(self) -> Any:
        (item,) = self._last(1)
        self._push(item)
        return item

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._outer:
            raise RefusalError("has a pickle that takes more than it made.")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise RefusalError(f"has a pickle that never stored its object {index}.")
        self._push(self._memo[index])

    def _extend(self, items: list[Any]) -> None:
        self._container(list).extend(items)

    def _fill(self, items: list[Any]) -> None:
        container = self._container(dict)
        if len(items) % 2:
            raise RefusalError("has a pickle with a key but no value.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            container[checked_key(key)] = value

    def _add(self, items: list[Any]) -> None:
        self._container(set).update(map(checked_key, items))

    def _container(self, kind: type) -> Any:
        item = self._top()
        if type(item) is not kind:
            raise RefusalError(
                f"has a pickle that fills a {type(item).__name__} like a "
                f"{kind.__name__}."
            )
        return item

    def _make_dict(self) -> None:
        items = self._since_mark()
        self._push({})
        self._fill(items)

    def _find(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusalError("has a pickle with a name that is no text.")
        if (module, name) not in self._known:
            raise RefusalError(
                f"wants to call {_shown(module)}.{_shown(name)}, which weights do not "
                "need. Nothing was executed. Ask for a file of weights alone; "
                "`torch.save(model.state_dict(), path)` makes one."
            )
        self._push(self._known[module, name])

    def _call(self) -> None:
        function, arguments = self._last(2)
        if not isinstance(function, Call) or type(arguments) is not tuple:
            raise RefusalError(
                f"wants to call a {type(function).__name__}. Nothing was executed."
            )
        for argument in arguments:
            # A call may copy what it gets; instructions alone never do.
            self._spend(len(argument) if isinstance(argument, _SIZED) else 0)
        try:
            self._push(function.run(*arguments))
        except TypeError as error:
            raise RefusalError(
                f"calls {function.name} with arguments that it does not take."
            ) from error

    def _instantiate(self, name: str) -> None:
        arguments = tuple(self._since_mark())
        self._find(*name.split(" ", 1))
        self._push(arguments)
        self._call()

    def _build(self) -> None:
        (state,) = self._last(1)
        target = self._top()
        if isinstance(target, Buildable):
            target.build(state)
        # The attribute of a state dict, its modules' versions, is no weight.
        elif type(target) is not dict or type(state) is not dict:
            raise RefusalError(
                f"wants to set the state of a {type(target).__name__}, which weights "
                "do not need. Nothing was executed."
            )


_INSTRUCTIONS: dict[str, Callable[[Unpickler, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": Unpickler._frame,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine._mark(),
    "POP": lambda machine, _: machine._last(1),
    "POP_MARK": lambda machine, _: machine._since_mark(),
    "DUP": lambda machine, _: machine._push(machine._top()),
    "PUT": Unpickler._remember,
    "BINPUT": Unpickler._remember,
    "LONG_BINPUT": Unpickler._remember,
    "MEMOIZE": lambda machine, _: machine._remember(len(machine._memo)),
    "GET": Unpickler._recall,
    "BINGET": Unpickler._recall,
    "LONG_BINGET": Unpickler._recall,
    "TUPLE": lambda machine, _: machine._push(tuple(machine._since_mark())),
    "TUPLE1": lambda machine, _: machine._push(tuple(machine._last(1))),
    "TUPLE2": lambda machine, _: machine._push(tuple(machine._last(2))),
    "TUPLE3": lambda machine, _: machine._push(tuple(machine._last(3))),
    "LIST": lambda machine, _: machine._push(machine._since_mark()),
    "DICT": lambda machine, _: machine._make_dict(),
    "APPEND": lambda machine, _: machine._extend(machine._last(1)),
    "APPENDS": lambda machine, _: machine._extend(machine._since_mark()),
    "SETITEM": lambda machine, _: machine._fill(machine._last(2)),
    "SETITEMS": lambda machine, _: machine._fill(machine._since_mark()),
    "ADDITEMS": lambda machine, _: machine._add(machine._since_mark()),
    "GLOBAL": lambda machine, name: machine._find(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._find(*machine._last(2)),
    "INST": Unpickler._instantiate,
    "REDUCE": lambda machine, _: machine._call(),
    "NEWOBJ": lambda machine, _: machine._call(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._push(
        machine._persistent(*machine._last(1))
    ),
}


def checked_key(key: object) -> Any:
    """Return what may be a key of a dict or an item of a set.

    Raises:
        RefusalError: Hashing or comparing such keys can be made to take years.
    """
    if isinstance(key, (str, bytes, type(None))):
        return key
    if isinstance(key, int) and abs(key) < _WIDEST_KEY:
        return key
    raise RefusalError(
        f"has a {type(key).__name__} as a key. Text and small numbers can be keys."
    )


def check_tree(tree: object) -> None:
    """Check that a tree is finite, shallow, small when walked, and of plain things.

    A list that holds itself, or two of a list that holds two of a list ... cost a
    file a few bytes and whoever walks the tree forever.

    Raises:
        RefusalError: It is not.
    """
    # Entries in all and levels of a container; None while they are being counted.
    counted: dict[int, tuple[int, int] | None] = {}
    pending = [tree]
    while pending:
        node = pending[-1]
        parts = [part for part in _children(node) if _children(part)]
        if counted.get(id(node)) is not None:
            pending.pop()
        elif id(node) in counted:
            below = [counted[id(part)] for part in parts]
            counted[id(node)] = _count(len(_children(node)), below)
        else:
            counted[id(node)] = None
            if any(counted.get(id(part), ()) is None for part in parts):
                raise RefusalError("has a container that holds itself.")
            pending += parts


def _children(node: object) -> Collection[object]:
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, (list, tuple, set)):
        return node
    if isinstance(node, _PLAIN):
        return ()
    raise RefusalError(
        f"holds a {type(node).__name__} where weights and numbers are expected."
    )


def _count(entries: int, below: list[Any]) -> tuple[int, int]:
    entries += sum(count for count, _ in below)
    levels = 1 + max((depth for _, depth in below), default=0)
    if levels > _DEEPEST:
        raise RefusalError(f"nests containers more than {_DEEPEST} levels deep.")
    if entries > _MOST_STEPS:
        raise RefusalError(
            "holds the same containers so often that they make more than "
            f"{_MOST_STEPS:,} entries."
        )
    return entries, levels


def _shown(name: str) -> str:
    short = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
    return short if short.isprintable() else ascii(short)
