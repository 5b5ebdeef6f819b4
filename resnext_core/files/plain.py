"""Small text files of the user, YAML and JSON: read with bounds, so that no file takes memory or time without end."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from resnext_core.errors import DataError, UsageError, one_line, quoted, reason, shown

#: Bytes of a configuration file. The longest recipe has 2 KB.
MOST_YAML = 1 << 20
#: Bytes of a manifest. That of a network of a million classes has 200 MB, that of one of 20,000 classes 4 MB.
MOST_JSON = 256 << 20
#: Values in a YAML file, where one that is referred to counts each time.
_MOST_NODES = 10_000
#: Values inside values.
_DEEPEST = 32
_DEEPEST_JSON = 64
#: Surrogates that stand for no byte of a file name.
_BAD_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
#: Characters of a number.
_LONGEST_NUMBER = 400


def read_text(path: Path, most: int = MOST_YAML) -> str:
    """Return the UTF-8 text of `path`; DataError, with the reason alone, on other files and above `most` bytes."""
    try:
        data = bytearray()
        with path.open("rb") as stream:
            while len(data) <= most and (block := stream.read(1 << 16)):
                data += block
    except OSError as error:
        raise DataError(reason(error)) from error
    except ValueError as error:  # a null character in the name
        raise DataError(str(error)) from error
    if len(data) > most:
        raise DataError(f"it is larger than {most >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError("not a text file") from error


def parse_yaml(text: str, where: str, *, first: bool = False) -> Any:
    """Return the only document of `text` as plain types (None when empty), with `first` the first of several.

    Raises UsageError beginning with `where` when it is no YAML, holds other types, or would grow beyond bounds: by
    aliases of values that have aliases themselves, by depth, or by numbers of hundreds of digits.
    """
    if len(text) > MOST_YAML:
        raise UsageError(f"{where} not valid YAML: it has more than {MOST_YAML >> 20} MiB")
    loader = _Loader(text)
    try:
        if first:
            return next(_documents(loader), None)
        return loader.get_single_data()
    except RecursionError as error:
        raise UsageError(f"{where} not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date like 2026-99-99
        raise UsageError(f"{where} not valid YAML: {shown(one_line(error), 300)}") from error
    finally:
        loader.dispose()


def parse_strict_json(text: str) -> Any:
    """Return the value of JSON `text`; ValueError, with one line, on anything else.

    No constant is NaN or infinity, no key is duplicate, numbers fit float64, and nothing is nested deeper than 64.
    Lone surrogates are those of file names (:func:`os.fsdecode`) alone. The C++ program reads JSON by the same rules.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    left: list[tuple[Any, int]] = [([value], -1)]
    while left:
        holder, depth = left.pop()
        for one in [*holder, *holder.values()] if isinstance(holder, dict) else holder:
            if isinstance(one, (dict, list)):
                if depth + 1 >= _DEEPEST_JSON + (not one):
                    raise ValueError("it is nested too deeply")
                left.append((one, depth + 1))
            elif isinstance(one, str):
                if not one.isascii() and _BAD_SURROGATE.search(one):
                    raise ValueError("text with half a pair of surrogates")
            elif isinstance(one, (int, float)) and not _fits_float(one):
                raise ValueError("a number out of range")
    return value


def _fits_float(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _documents(loader: Any) -> Iterator[Any]:
    while loader.check_data():
        yield loader.get_data()


class _Loader(yaml.SafeLoader):
    """Counts values as they are composed, those behind an alias each time; refuses duplicate keys in a mapping.

    YAML 1.2, section 3.2.1.3, requires unique keys; PyYAML takes the last one.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        anchor: str | None = getattr(event, "anchor", None)
        alias, before = isinstance(event, yaml.AliasEvent), self._nodes
        self._nodes += self._sizes.get(anchor or "", 1) if alias else 1
        if self._nodes > _MOST_NODES:
            raise yaml.YAMLError(f"it has more than {_MOST_NODES} values, counting those that it repeats")
        if self._depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not alias:
            self._sizes[anchor] = self._nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = dict[str, int]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise yaml.YAMLError(
                        f"line {line}: duplicate key {quoted(key.value)}, first in line {seen[key.value]}"
                    )
                seen[key.value] = line
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        kind = str(node.tag).rpartition(":")[2]
        if kind in ("int", "float", "timestamp") and len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        return node
