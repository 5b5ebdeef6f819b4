"""The plugin manager: loads plugins through entry points, one by one, and gathers the records that they yield."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from resnext_core import API_VERSION, hookspecs
from resnext_core.config import SECTIONS
from resnext_core.data.sources.registry import install
from resnext_core.errors import one_line
from resnext_core.extras import CORE
from resnext_core.interfaces import Backend, Command, Decoder, Recipe, SourceKind, WeightFile
from resnext_core.plugins.offers import AUTO, PluginSet

#: Weight files that core reads itself; no plugin can take them away.
CORE_ENDINGS = (".safetensors", ".ckpt")
#: Sections of the configuration that no backend may be named after.
_RESERVED = frozenset([*SECTIONS, "backends"])


@functools.cache
def load_plugins() -> PluginSet:
    """Load every plugin once; a broken one becomes a line in `problems`, never an exception.

    Their sources are known to :func:`resnext_core.data.index.open_index` from then on.
    """
    found: list[tuple[str, str, Any]] = []
    problems: list[str] = []
    for entry in sorted(
        metadata.entry_points(group=hookspecs.PROJECT),
        key=lambda e: (_distribution(e) != CORE, _distribution(e), e.name),  # core's own first
    ):
        try:
            found.append((_distribution(entry), entry.name, entry.load()))
        except Exception as error:
            problems.append(
                f"plugin '{entry.name}' of {_distribution(entry)} failed to load: {_named(error)}"
            )
    plugins = collect(found, problems)
    install(plugins.sources.values())
    return plugins


def get_backend(backend_id: str) -> Backend:
    """Return an installed backend by id, available or not; UsageError when unknown."""
    return load_plugins().get(backend_id)


def collect(found: Iterable[tuple[str, str, Any]], problems: Iterable[str] = ()) -> PluginSet:
    """Register (distribution, name, module) triples one by one and gather what they yield.

    A plugin of which any record cannot be used is left out as a whole.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    gathered = _Gathered(lines=list(problems))
    for distribution, name, module in found:
        before = [plugin for _, plugin in manager.list_name_plugin()]
        try:
            if module in before:
                raise ValueError(f"its module is already registered by {manager.get_name(module)}")
            manager.register(module, name=f"{name} of {distribution}")
            manager.check_pending()
            records = [
                (kind, key, record)
                for kind in _KINDS
                for record in _flat(manager.subset_hook_caller(kind.hook, remove_plugins=before)())
                for key in kind.keys(record)
            ]
        except Exception as error:
            if module not in before and manager.is_registered(module):
                manager.unregister(module)
            gathered.lines.append(f"plugin '{name}' of {distribution} cannot be used: {_named(error)}")
        else:
            for kind, key, record in records:
                gathered.claims.setdefault((kind.name, key), []).append((distribution, record))
    return gathered.settled()


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of record: its name in messages, the hook that yields it, and its names after a check of the record."""

    name: str
    hook: str
    keys: Callable[[Any], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """What plugins claim, by kind and name, and lines about what cannot be used."""

    lines: list[str]
    claims: dict[tuple[str, str], list[tuple[str, Any]]] = field(default_factory=dict)

    def settled(self) -> PluginSet:
        """Return the set in which each name has one owner; of several only core may keep it, and a line says so."""
        owned: dict[tuple[str, str], tuple[str, Any]] = {}
        clashes: dict[tuple[str, str], tuple[str, ...]] = {}
        order = [kind.name for kind in _KINDS]
        for (kind, key), owners in sorted(self.claims.items(), key=lambda claim: order.index(claim[0][0])):
            names = tuple(owner for owner, _ in owners)
            if len(owners) == 1:
                owned[kind, key] = owners[0]
            elif names.count(CORE) == 1:
                owned[kind, key] = owners[names.index(CORE)]
                others = " and ".join(name for name in names if name != CORE)
                self.lines.append(f"{kind} '{key}' of {others} is not used: {CORE} has one of that name")
            else:
                clashes[kind, key] = names
                self.lines.append(f"{kind} '{key}' is claimed by {' and '.join(names)}; none of them is used")

        def of(wanted: str) -> Mapping[str, Any]:
            return {key: record for (kind, key), (_, record) in owned.items() if kind == wanted}

        return PluginSet(
            backends=of("backend"), commands=of("command"), weight_files=of("weight file"), recipes=of("recipe"),
            decoders=of("decoder"), sources=of("source"),
            origins={key: owner for key, (owner, _) in owned.items()}, problems=tuple(self.lines), clashes=clashes,
        )  # fmt: skip


def _backend(record: Any) -> Iterable[str]:
    backend: Backend = _typed(record, Backend, "resnext_backends")
    if backend.api_version != API_VERSION:
        raise ValueError(
            f"backend '{backend.id}' is written for API {backend.api_version}, this resnext-core has {API_VERSION}"
        )
    if not backend.id.replace("-", "").isalnum() or backend.id != backend.id.lower():
        raise ValueError(f"backend id '{backend.id}' must be lower-case letters, digits and dashes")
    if backend.id in _RESERVED:
        raise ValueError(f"backend id '{backend.id}' is the name of a config section")
    if backend.options is not None:
        _check_options(backend)
    yield backend.id


def _check_options(backend: Backend) -> None:
    if not isinstance(backend.options, type) or not dataclasses.is_dataclass(backend.options):
        raise TypeError(f"backend '{backend.id}': options must be a dataclass")
    try:  # as every start of the program will
        typing.get_type_hints(backend.options)
        backend.options()
    except Exception as error:
        raise TypeError(
            f"backend '{backend.id}': its options cannot be made without arguments: {_named(error)}"
        ) from error


def _command(record: Any) -> Iterable[str]:
    command: Command = _typed(record, Command, "resnext_commands")
    yield command.name


def _weight_file(record: Any) -> Iterable[str]:
    kind: WeightFile = _typed(record, WeightFile, "resnext_weight_files")
    if set(kind.suffixes) & set(CORE_ENDINGS):
        raise ValueError(f"weight files {', '.join(CORE_ENDINGS)} are resnext-core's own")
    yield from kind.suffixes


def _recipe(record: Any) -> Iterable[str]:
    recipe: Recipe = _typed(record, Recipe, "resnext_recipes")
    if not recipe.name or "/" in recipe.name or recipe.name.endswith((".yaml", ".yml")):
        raise ValueError(f"recipe '{recipe.name}' must be a plain name: a path is a user's own file")
    yield recipe.name


def _decoder(record: Any) -> Iterable[str]:
    decoder: Decoder = _typed(record, Decoder, "resnext_decoders")
    if decoder.name == AUTO or not decoder.name.replace("-", "").isalnum():
        raise ValueError(
            f"decoder '{decoder.name}' must be a name of letters, digits and dashes other than {AUTO}"
        )
    function = decoder.open
    while isinstance(function, functools.partial):
        function = function.func
    if "<" in getattr(function, "__qualname__", "<"):  # it is found by name in another process
        raise ValueError(f"decoder '{decoder.name}': open must be a function or class of a module")
    yield decoder.name


def _source(record: Any) -> Iterable[str]:
    kind: SourceKind = _typed(record, SourceKind, "resnext_sources")
    if not kind.name.replace("-", "").isalnum():
        raise ValueError(f"source '{kind.name}' must be a name of letters, digits and dashes")
    if not isinstance(kind.parts, tuple) or not all("{}" in part for part in kind.parts):
        raise ValueError(f"source '{kind.name}': parts must be a tuple of names with {{}} for the part")
    yield kind.name


_KINDS = (
    _Kind(name="backend", hook="resnext_backends", keys=_backend),
    _Kind(name="command", hook="resnext_commands", keys=_command),
    _Kind(name="weight file", hook="resnext_weight_files", keys=_weight_file),
    _Kind(name="recipe", hook="resnext_recipes", keys=_recipe),
    _Kind(name="decoder", hook="resnext_decoders", keys=_decoder),
    _Kind(name="source", hook="resnext_sources", keys=_source),
)


def _typed(record: Any, wanted: type, hook: str) -> Any:
    if not isinstance(record, wanted):
        raise TypeError(f"{hook} must yield {wanted.__name__} records, not {type(record).__name__}")
    return record


def _flat(results: Iterable[Iterable[Any] | None]) -> Iterable[Any]:
    for result in results:
        yield from result or ()


def _distribution(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
