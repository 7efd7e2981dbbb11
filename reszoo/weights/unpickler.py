"""A restricted unpickler: it makes plain containers and imports nothing."""

import pickletools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

MAX_BYTES = 16 << 20
# Some 40 instructions make a tensor: room for 7,000 of them. A ResNet-152 with its
# optimizer has 2,000. The costliest instruction, an empty set, takes 0.3 kB.
_MAX_STEPS = 300_000
_MAX_DEPTH = 100
_MAX_NAME = 80
# Larger integers can be chosen so that any number of them share one hash.
_MAX_KEY = 2**61 - 1
_PLAIN = (str, int, float, bytes, bytearray, type(None), np.ndarray)
_SIZED = (str, bytes, bytearray, list, tuple, dict, set)
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


class RefusalError(Exception):
    """A file is refused; the message is a sentence whose subject is the file."""


@dataclass(frozen=True)
class Call:
    """A function that a pickle may call by its name, and what runs in its place."""

    name: str
    run: Callable[..., Any]


@dataclass(frozen=True)
class Unread:
    """Stands for an object of a class that weights do not need; it is never made."""

    name: str


class UnreadError(RefusalError):
    """A container has such an object."""


# What may hold the weights, and what is loaded in their place: the first is passed over
# only where other weights are left, the second never.
_HOLDS = re.compile("model|module|net|weight|dict|^params")
_NEEDED = re.compile(r"\.|(^|_)ema(_|$)|teacher")
# Of each container: entries and levels, None while it is walked, or why it is unread.
_Known = dict[int, tuple[int, int] | str | None]
# What a pickle may name, by module and name: a `Call` or a value.
Allowed = Mapping[tuple[str, str], object]


@runtime_checkable
class Buildable(Protocol):
    """An object whose state a pickle may set."""

    def build(self, state: object) -> None:
        """Set the state, or raise RefusalError."""


class Unpickler:
    """Interprets the instructions of one pickle, within limits of size and depth.

    Globals that are not allowed are refused.
    """

    def __init__(
        self, allowed: Allowed, persistent_load: Callable[[object], object]
    ) -> None:
        self._allowed, self._persistent_load = allowed, persistent_load
        self._stack: list[Any] = []
        self._metastack: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = self._position = self._frame_end = 0

    def load(self, stream: IO[bytes]) -> Any:
        """Return the containers that the next pickle of a stream makes.

        A RefusalError if the pickle is damaged, too large, or needs more than weights
        do.
        """
        start = stream.tell()
        for opcode, argument, position in pickletools.genops(stream):
            self._position = position or 0
            self._count_steps(1)
            if self._position - start > MAX_BYTES:
                raise RefusalError(f"has a pickle of more than {MAX_BYTES:,} bytes.")
            if opcode.name not in _INSTRUCTIONS:
                raise RefusalError(
                    f"uses the pickle instruction {opcode.name}, which weights do not "
                    "need. Nothing was executed."
                )
            _INSTRUCTIONS[opcode.name](self, argument)
        (tree,) = self._pop(1)
        if self._stack or self._metastack or self._frame_end > self._position + 1:
            raise RefusalError("has a pickle that stops before it is complete.")
        if type(tree) is dict:
            _pass_over(tree, {}, set())
        check_tree(tree)
        return tree

    def _count_steps(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise RefusalError(
                f"takes more than {_MAX_STEPS:,} steps to unpickle. The weights of a "
                "model take some thousands; save only those."
            )

    def _frame(self, size: int) -> None:
        if self._position < self._frame_end:
            raise RefusalError("has overlapping pickle frames.")
        # The instruction itself is one byte and eight of length.
        self._frame_end = self._position + 9 + size

    def _push(self, item: Any) -> None:
        self._stack.append(item)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise RefusalError("has a pickle that pops from an empty stack.")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _peek(self) -> Any:
        (item,) = self._pop(1)
        self._push(item)
        return item

    def _mark(self) -> None:
        self._metastack.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        if not self._metastack:
            raise RefusalError("has a pickle that pops from an empty stack.")
        items, self._stack = self._stack, self._metastack.pop()
        return items

    def _put(self, index: int) -> None:
        self._memo[index] = self._peek()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise RefusalError(f"has a pickle that never stored memo entry {index}.")
        self._push(self._memo[index])

    def _fill(self, kind: type, items: list[Any]) -> None:
        container = self._peek()
        if isinstance(container, Unread):
            return
        found = type(container)
        if found is not kind:
            raise RefusalError(
                f"has a pickle that fills a {found.__name__} like a {kind.__name__}."
            )
        if isinstance(container, list):
            container.extend(items)
        elif isinstance(container, set):
            container.update(map(checked_key, items))
        elif len(items) % 2:
            raise RefusalError("has a pickle with a key but no value.")
        else:
            for key, value in zip(items[::2], items[1::2], strict=True):
                container[checked_key(key)] = value

    def _dict(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._fill(dict, items)

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusalError("has a pickle with a name that is not text.")
        unread = Unread(f"{_shown(module)}.{_shown(name)}")
        self._push(self._allowed.get((module, name), unread))

    def _reduce(self) -> None:
        function, arguments = self._pop(2)
        if isinstance(function, Unread):
            self._push(function)
            return
        if not isinstance(function, Call) or type(arguments) is not tuple:
            raise RefusalError(
                f"wants to call a {type(function).__name__}. Nothing was executed."
            )
        for argument in arguments:
            # A call may copy its arguments; no instruction does.
            self._count_steps(len(argument) if isinstance(argument, _SIZED) else 0)
        try:
            self._push(function.run(*arguments))
        except TypeError as error:
            text = f"calls {function.name} with wrong arguments."
            raise RefusalError(text) from error

    def _inst(self, name: str) -> None:
        arguments = tuple(self._pop_mark())
        self._global(*name.split(" ", 1))
        self._push(arguments)
        self._reduce()

    def _build(self) -> None:
        (state,) = self._pop(1)
        target = self._peek()
        if isinstance(target, Unread):
            return
        if isinstance(target, Buildable):
            target.build(state)
        # A state dict's only attribute, the versions of its modules, is not needed.
        elif type(target) is not dict or type(state) is not dict:
            raise RefusalError(
                f"wants to set the state of a {type(target).__name__}, which weights "
                "do not need. Nothing was executed."
            )


_INSTRUCTIONS: dict[str, Callable[[Unpickler, Any], object]] = {
    **dict.fromkeys(("PROTO", "STOP"), lambda u, _: None),
    **dict.fromkeys(_LITERALS, Unpickler._push), "NONE": lambda u, _: u._push(None),
    "NEWTRUE": lambda u, _: u._push(True), "NEWFALSE": lambda u, _: u._push(False),
    "EMPTY_LIST": lambda u, _: u._push([]), "EMPTY_DICT": lambda u, _: u._push({}),
    "EMPTY_TUPLE": lambda u, _: u._push(()), "EMPTY_SET": lambda u, _: u._push(set()),
    "FRAME": Unpickler._frame, "MARK": lambda u, _: u._mark(),
    "POP": lambda u, _: u._pop(1), "POP_MARK": lambda u, _: u._pop_mark(),
    "DUP": lambda u, _: u._push(u._peek()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Unpickler._put),
    "MEMOIZE": lambda u, _: u._put(len(u._memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Unpickler._get),
    "TUPLE": lambda u, _: u._push(tuple(u._pop_mark())),
    "TUPLE1": lambda u, _: u._push(tuple(u._pop(1))),
    "TUPLE2": lambda u, _: u._push(tuple(u._pop(2))),
    "TUPLE3": lambda u, _: u._push(tuple(u._pop(3))),
    "LIST": lambda u, _: u._push(u._pop_mark()), "DICT": lambda u, _: u._dict(),
    "APPEND": lambda u, _: u._fill(list, u._pop(1)),
    "APPENDS": lambda u, _: u._fill(list, u._pop_mark()),
    "SETITEM": lambda u, _: u._fill(dict, u._pop(2)),
    "SETITEMS": lambda u, _: u._fill(dict, u._pop_mark()),
    "ADDITEMS": lambda u, _: u._fill(set, u._pop_mark()),
    "GLOBAL": lambda u, name: u._global(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda u, _: u._global(*u._pop(2)), "INST": Unpickler._inst,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda u, _: u._reduce()),
    "BUILD": lambda u, _: u._build(),
    "BINPERSID": lambda u, _: u._push(u._persistent_load(*u._pop(1))),
}  # fmt: skip


def checked_key(key: object) -> Any:
    """Return a key of a dict or an item of a set if it is safe to hash.

    A RefusalError if keys of this type can be made to take years to hash or compare.
    """
    if isinstance(key, (str, bytes, type(None))):
        return key
    if isinstance(key, int) and abs(key) < _MAX_KEY:
        return key
    raise RefusalError(
        f"has a {type(key).__name__} as a key. Expected text or a small integer."
    )


def _pass_over(
    tree: dict[Any, Any], known: _Known, holders: set[int], level: int = 1
) -> None:
    """Delete entries that have objects of other classes, if weights need none of them.

    Training scripts keep settings, tools and NumPy arrays beside the weights, at any
    depth of dicts. The ids of dicts with weights are added to `holders`.
    """
    # What was seen, contains itself or nests too deep, measuring tells.
    if id(tree) in known or level > _MAX_DEPTH:
        return
    known[id(tree)] = None
    unread: dict[Any, str] = {}
    for key, value in tree.items():
        try:
            if isinstance(value, dict):
                _pass_over(value, known, holders, level + 1)
            _measure(value, level, known)
        except UnreadError as error:
            unread[key] = str(error)
    kept = [(str(k), value) for k, value in tree.items() if k not in unread]
    weights = any(
        id(x) in holders or ("." in k and isinstance(x, np.ndarray)) for k, x in kept
    )
    if weights:
        holders.add(id(tree))
    for key, reason in unread.items():
        holds = level > 1 or _HOLDS.search(str(key))
        if not kept or _NEEDED.search(str(key)) or (holds and not weights):
            known[id(tree)] = reason
            raise UnreadError(reason)
        del tree[key]
    del known[id(tree)]


def check_tree(tree: object) -> None:
    """Check that nested containers hold only plain values and are quick to walk.

    A list that contains itself, or a list of two references to a list of two references
    and so on, takes a few bytes of a file and forever to walk. A RefusalError for
    these, and for what nests too deep or holds other objects.
    """
    _measure(tree, 1, {})


def _measure(node: object, level: int, known: _Known) -> tuple[int, int]:
    """Return the entries and levels of a container."""
    if id(node) in known:
        if (measured := known[id(node)]) is None:
            raise RefusalError("has a container that contains itself.")
        if isinstance(measured, str):
            raise UnreadError(measured)
        return measured
    known[id(node)] = None
    try:
        children = _children(node)
        nested = [each for each in children if _children(each) and level <= _MAX_DEPTH]
        below = [_measure(each, level + 1, known) for each in nested]
    except UnreadError as error:
        known[id(node)] = str(error)
        raise
    entries = len(children) + sum(count for count, _ in below)
    levels = 1 + max((depth for _, depth in below), default=0)
    if max(level, levels) > _MAX_DEPTH:
        raise RefusalError(f"nests containers more than {_MAX_DEPTH} levels deep.")
    if entries > _MAX_STEPS:
        raise RefusalError(
            "repeats the same containers so often that they have more than "
            f"{_MAX_STEPS:,} entries."
        )
    known[id(node)] = entries, levels
    return entries, levels


def _children(node: object) -> Collection[object]:
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, (list, tuple, set)):
        return node
    if isinstance(node, _PLAIN):
        return ()
    if isinstance(node, Unread):
        raise UnreadError(
            f"wants to call {node.name}, which weights do not need. Nothing was "
            "executed. Ask for a file with only weights; "
            "`torch.save(model.state_dict(), path)` makes one."
        )
    raise RefusalError(
        f"holds a {type(node).__name__} where weights and numbers are expected."
    )


def _shown(name: str) -> str:
    short = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "..."
    return short if short.isprintable() else ascii(short)
