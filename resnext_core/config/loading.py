"""Merging layers of values into a :class:`Config`: types, bounds, and where each value came from."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnext_core.bounds import broken_rule
from resnext_core.config.sections import DEFAULT, SECTIONS, Config
from resnext_core.errors import DataError, UsageError, quoted, shown, suggest
from resnext_core.files.plain import parse_yaml, read_text


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One source of values: a nested mapping and the words that tell where it came from."""

    source: str
    values: Mapping[str, Any]


def load_config(
    layers: Iterable[Layer], backend_options: Mapping[str, type] | None = None
) -> tuple[Config, dict[str, str]]:
    """Merge `layers`, the later over the earlier, into a Config and the source of every dotted key.

    `backend_options` maps backend ids to their option dataclasses. Unknown sections and keys, and values
    of the wrong type or out of bounds, raise UsageError naming the source.
    """
    sections = {**SECTIONS, **(backend_options or {})}
    merged: dict[str, dict[str, Any]] = {name: {} for name in sections}
    sources: dict[str, str] = {}
    for layer in layers:
        for section, values in layer.values.items():
            if section not in sections:
                raise UsageError(
                    f"{layer.source}: unknown config section '{shown(section)}'{suggest(shown(section), sections)}"
                )
            if values is None:
                continue
            if not isinstance(values, Mapping):
                raise UsageError(
                    f"{layer.source}: section '{section}' must be a mapping, not {quoted(values)}"
                )
            hints = typing.get_type_hints(sections[section])
            for key, value in values.items():
                if key not in hints:
                    raise UsageError(
                        f"{layer.source}: unknown config key '{section}.{shown(key)}'{suggest(shown(key), hints)}"
                    )
                where = f"{layer.source}: {section}.{key}"
                merged[section][key] = _coerce(value, hints[key], where)
                sources[f"{section}.{key}"] = layer.source
    built = {}
    for name, cls in sections.items():
        for f in dataclasses.fields(cls):
            sources.setdefault(f"{name}.{f.name}", DEFAULT)
        hints = typing.get_type_hints(cls, include_extras=True)
        for key, value in merged[name].items():
            rule = broken_rule(hints[key], value)
            if rule is not None:
                where = f"{name}.{key}"
                raise UsageError(f"{sources[where]}: {where} must be {rule}, not {quoted(value)}")
        try:
            built[name] = cls(**merged[name])
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"config section '{name}': {error}") from error
    config = Config(
        **{name: built[name] for name in SECTIONS},
        backends={name: built[name] for name in sections if name not in SECTIONS},
    )
    return config, sources


def read_layer(path: Path) -> Layer:
    """Read a YAML file as a layer; UsageError when it is missing or not a mapping of sections."""
    try:
        values = parse_yaml(read_text(path), f"{path}:")
    except DataError as error:
        raise UsageError(f"cannot read config {path}: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise UsageError(f"{path}: a config file is a mapping of sections, not {type(values).__name__}")
    return Layer(source=str(path), values=values)


def parse_set(assignments: Iterable[str]) -> list[Layer]:
    """Turn ``section.key=value`` arguments of ``--set`` into layers; the value is YAML."""
    layers = []
    for text in assignments:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise UsageError(f"--set takes section.key=value, got '{shown(text)}'")
        source = f"--set {shown(text)}"
        layers.append(
            Layer(source=source, values={section: {key: parse_yaml(value, f"{source}: the value is")}})
        )
    return layers


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint`; only int → float, numeric text → float and list → tuple are converted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        if len(rest) == 1:
            return _coerce(value, rest[0], where)
        for option in rest:
            try:
                return _coerce(value, option, where)
            except UsageError:
                continue
        raise UsageError(f"{where}: must be {' or '.join(map(_kind, rest))}, not {quoted(value)}")
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        hinted = suggest(shown(value), map(str, args))
        raise UsageError(f"{where}: must be {_kind(hint)}, not {quoted(value)}{hinted}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not ... and len(value) != len(args)):
            count = "" if args[-1] is ... else f" of {len(args)}"
            raise UsageError(f"{where}: must be a list{count}, not {quoted(value)}")
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_coerce(v, k, where) for v, k in zip(value, kinds, strict=True))
    if hint is float and not isinstance(value, bool):
        if isinstance(value, (int, float, str)):  # YAML 1.1 reads 1e-4 as text
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
    elif hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise UsageError(f"{where}: must be {_kind(hint)}, not {quoted(value)}")


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    names = {"str": "text", "int": "an integer", "float": "a number", "bool": "true or false"}
    return names.get(getattr(hint, "__name__", ""), str(hint))
