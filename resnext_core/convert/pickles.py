"""Read pickles as data: imports and calls are recorded, and nothing is imported or called.

Format: CPython's ``pickletools``. Only the types that PyTorch's files need (dicts, lists, tuples, text, numbers) are
built; every other object becomes an :class:`Object` with its name. Time and memory are bounded by the number of steps.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from typing import Any

from resnext_core.errors import shown

#: Steps that any pickle may take, in addition to one for a number of bytes of its file.
_STEPS, _BYTES_A_STEP = 1_000_000, 16
#: Names of Python's standard library that training programs store beside weights. Nothing is ever called; but a pickle
#: that would call anything else of that library, such as ``os.system``, is not a weights file and is refused.
_DATA = re.compile(
    r"(collections|pathlib|argparse|datetime|decimal|fractions|uuid|types|enum|copyreg|copy_reg)\..*"
    r"|_codecs\.encode|functools\.partial|_io\.BytesIO|(builtins|__builtin__)\."
    r"(set|frozenset|bytearray|complex|slice|range|xrange|list|dict|tuple|int|float|str|bool|object|bytes)"
)
_LIBRARY = {*sys.stdlib_module_names, "__builtin__", "copy_reg", "commands"}
_DICTS = {"collections.OrderedDict", "collections.Counter", "builtins.dict", "__builtin__.dict"}


class Broken(ValueError):
    """The bytes are not a valid pickle; the message says what is wrong."""


class Executes(ValueError):
    """The pickle calls something that is not data; the message is its name."""


class Name:
    """A class or function that the pickle refers to, as `text`: ``module.name``."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Object:
    """The result that calling `name` with `args` would have."""

    __slots__ = ("args", "name")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args = name, args


class Persistent:
    """A reference to something outside of the pickle: a storage."""

    __slots__ = ("id",)

    def __init__(self, id: Any) -> None:
        self.id = id


_MARK = object()


def read_pickle(data: memoryview, position: int = 0) -> tuple[Any, int]:
    """Return the value of the pickle at `position`, and its end; Broken or Executes on anything else."""
    machine = _Machine(data, position)
    return machine.run(), machine.position


class _Machine:
    def __init__(self, data: memoryview, position: int) -> None:
        self.data, self.position = data, position
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        steps = _STEPS + len(self.data) // _BYTES_A_STEP
        try:
            for _ in range(steps):
                code = self.data[self.position]
                self.position += 1
                if code == 0x2E:  # STOP
                    return self._pop()
                step = _STEPS_OF.get(code)
                if step is None:
                    raise Broken(f"byte {self.position - 1} is not a pickle opcode")
                step(self)
        except (IndexError, struct.error) as error:
            raise Broken("it is truncated") from error
        raise Broken(f"its pickle takes more than {steps} steps")

    # -- reading ---------------------------------------------------------------------------------

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.position:
            raise Broken("it is truncated")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        rest = bytes(self.data[self.position : self.position + 4096])
        end = rest.find(b"\n")
        if end < 0:
            raise Broken("it is truncated")
        self.position += end + 1
        return rest[:end].decode("utf-8", "replace")

    def text(self, count: int) -> str:
        return bytes(self.take(count)).decode("utf-8", "backslashreplace")

    # -- the stack -------------------------------------------------------------------------------

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Broken("it has a mark instead of a value")
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise Broken("a mark is missing")

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Broken("it refers to a missing value")
        self.push(self.memo[index])

    # -- objects ---------------------------------------------------------------------------------

    def make(self, callee: Any, args: Any, *, built: bool = False) -> None:
        """Push what `callee` would return; `built` for a class whose ``__new__`` alone is called."""
        name = callee.text if isinstance(callee, Name) else f"a {type(callee).__name__}"
        args = args if isinstance(args, tuple) else ()
        if not isinstance(callee, Name):
            raise Executes(name)
        if name.partition(".")[0] in _LIBRARY and not built and not _DATA.fullmatch(name):
            raise Executes(name)
        if name in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__") and args:
            name = args[0].text if isinstance(args[0], Name) else name
        if name in _DICTS or name == "collections.defaultdict":
            first = args[-1] if args else {}
            if isinstance(first, list) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in first):
                first = {_key(k): v for k, v in first}
            self.push(dict(first) if isinstance(first, dict) else {})
        else:
            self.push(Object(name, args))

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise Broken("it has a key without a value")
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)


def _key(key: Any) -> Any:
    """Return a dict's key: text and numbers as they are; what Python would hash by its content, as an object."""
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return key if key is None or isinstance(key, (str, int, float)) else Object(type(key).__name__)


def _integer(text: str) -> int | bool:
    if text in ("00", "01"):
        return text == "01"
    try:
        return int(text.rstrip("L"))
    except ValueError as error:
        raise Broken(f"'{shown(text)}' is not a number") from error


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Broken(f"'{shown(text)}' is not a number") from error


def _class_call(machine: _Machine) -> None:  # OBJ
    items = machine.marked()
    if not items:
        raise Broken("it has an object without a class")
    machine.make(items[0], tuple(items[1:]))


def _new(machine: _Machine, keywords: bool = False) -> None:  # NEWOBJ, NEWOBJ_EX
    if keywords:
        machine._pop()
    args = machine._pop()
    machine.make(machine._pop(), args, built=True)


def _reduce(machine: _Machine) -> None:
    args = machine._pop()
    machine.make(machine._pop(), args)


def _global(machine: _Machine) -> None:
    module = machine.line()
    machine.push(Name(f"{module}.{machine.line()}"))


def _instance(machine: _Machine) -> None:
    module = machine.line()
    name = Name(f"{module}.{machine.line()}")
    machine.make(name, tuple(machine.marked()))


def _stack_global(machine: _Machine) -> None:
    name, module = machine._pop(), machine._pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Broken("it has a name that is not text")
    machine.push(Name(f"{module}.{name}"))


def _set_one(machine: _Machine) -> None:
    value, key = machine._pop(), machine._pop()
    machine.set_items([key, value])


def _append_one(machine: _Machine) -> None:
    value = machine._pop()
    machine.append([value])


def _dictionary(machine: _Machine) -> None:
    items = machine.marked()
    machine.push({})
    machine.set_items(items)


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        items = [machine._pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return step


def _integer_of(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.push(
            int.from_bytes(machine.take(machine.number("<B" if count == 1 else "<I")), "little", signed=True)
        )

    return step


def _text_of(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.text(m.number(form)))


def _bytes_of(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(bytes(m.take(m.number(form))))


def _skip(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.take(count)

    return step


def _drop(machine: _Machine) -> None:  # POP_MARK, and ADDITEMS to a set
    machine.marked()


def _frozenset(machine: _Machine) -> None:
    machine.push(Object("builtins.frozenset", tuple(machine.marked())))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.push(value)


_STEPS_OF: dict[int, Callable[[_Machine], None]] = {
    0x80: _skip(1), 0x95: _skip(8),
    ord("("): _constant(_MARK), ord("0"): lambda m: m.stack.pop() and None, ord("1"): _drop,
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): _constant(None), 0x88: _constant(True), 0x89: _constant(False),
    ord("I"): lambda m: m.push(_integer(m.line())), ord("L"): lambda m: m.push(_integer(m.line())),
    ord("J"): lambda m: m.push(m.number("<i")), ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")), 0x8A: _integer_of(1), 0x8B: _integer_of(4),
    ord("F"): lambda m: m.push(_float(m.line())), ord("G"): lambda m: m.push(m.number(">d")),
    ord("S"): lambda m: m.push(m.line().strip("'\"")), ord("V"): lambda m: m.push(m.line()),
    ord("T"): _text_of("<I"), ord("U"): _text_of("<B"), ord("X"): _text_of("<I"), 0x8C: _text_of("<B"),
    0x8D: _text_of("<Q"), ord("B"): _bytes_of("<I"), ord("C"): _bytes_of("<B"), 0x8E: _bytes_of("<Q"),
    0x96: _bytes_of("<Q"),
    ord("}"): lambda m: m.push({}), ord("]"): lambda m: m.push([]), ord(")"): _constant(()),
    0x8F: lambda m: m.push(Object("builtins.set")), 0x91: _frozenset,
    ord("d"): _dictionary, ord("l"): lambda m: m.push(m.marked()), ord("t"): lambda m: m.push(tuple(m.marked())),
    0x85: _tuple(1), 0x86: _tuple(2), 0x87: _tuple(3),
    ord("a"): _append_one, ord("e"): lambda m: m.append(m.marked()), 0x90: _drop,
    ord("s"): _set_one, ord("u"): lambda m: m.set_items(m.marked()),
    ord("p"): lambda m: m.remember(_integer(m.line())), ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")), 0x94: lambda m: m.remember(len(m.memo)),
    ord("g"): lambda m: m.recall(_integer(m.line())), ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    ord("c"): _global, 0x93: _stack_global, ord("R"): _reduce, ord("b"): lambda m: m._pop() and None,
    0x81: _new, 0x92: lambda m: _new(m, keywords=True), ord("i"): _instance, ord("o"): _class_call,
    ord("P"): lambda m: m.push(Persistent(m.line())), ord("Q"): lambda m: m.push(Persistent(m._pop())),
}  # fmt: skip
