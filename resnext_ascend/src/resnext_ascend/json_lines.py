"""JSON whose errors name the line: typed access to the nodes of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from resnext_core.errors import DataError, one_line


def compose(text: str, where: str) -> Any:
    """Return the root node of a JSON text; DataError with `where` and the line where it is none."""
    try:
        json.loads(text)
        return yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{where}: not readable JSON: {one_line(error)}") from error


def line_of(node: Any) -> int:
    """Return the line of a node, from 1."""
    return int(node.start_mark.line) + 1


class Reader:
    """Typed access to the nodes of a JSON text, which know their lines."""

    def __init__(self, where: str) -> None:
        self._where = where

    def error(self, node: Any, message: str) -> DataError:
        line = 1 if node is None else line_of(node)
        return DataError(f"{self._where}:{line}: {message}")

    def mapping(self, node: Any, what: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be an object {{...}}")
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.value in found:
                raise self.error(key, f"{key.value} appears twice in {what}")
            found[key.value] = value
        return found

    def need(self, node: Any, fields: Mapping[str, Any], key: str, what: str) -> Any:
        if key not in fields:
            raise self.error(node, f"{what} has no {key}")
        return fields[key]

    def items(self, node: Any, what: str) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what} must be a list [...]")
        if not node.value:
            raise self.error(node, f"{what} is empty")
        return list(node.value)

    def text(self, node: Any, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.style != '"':
            shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or an object"
            raise self.error(node, f"{what} must be text in quotes, not {shown}")
        if not node.value.strip():
            raise self.error(node, f"{what} is empty")
        return str(node.value)

    def number(self, node: Any, what: str) -> int:
        text = self.text(node, what)
        if not (text.isascii() and text.isdecimal()):
            raise self.error(node, f"{what} must be a number from 0 in quotes, not '{text}'")
        return int(text)
