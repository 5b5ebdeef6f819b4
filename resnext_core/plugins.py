"""The plugin manager: finds backends and commands through entry points and keeps the dictionary of them."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

import pluggy

from resnext_core import API_VERSION, hookspecs
from resnext_core.config import SECTIONS
from resnext_core.errors import BackendUnavailable, UsageError, shown, suggest
from resnext_core.interfaces import READY, Backend, Command, Readiness, WeightFile, ask

CORE = "resnext-core"
#: Weight files that core reads itself; no plugin can take them away.
CORE_ENDINGS = (".safetensors", ".ckpt")
_T = TypeVar("_T")
#: Sections of the configuration that no backend may be named after.
_RESERVED = frozenset([*SECTIONS, "backends"])


@dataclass(frozen=True, kw_only=True)
class PluginSet:
    """What the installed plugins offer.

    `weight_files` maps a file ending to its kind. `origins` maps an id, name or ending to its distribution,
    `problems` are one line each about plugins that could not be used, `clashes` maps an id that several
    distributions claim to their names.
    """

    backends: Mapping[str, Backend]
    commands: Mapping[str, Command]
    origins: Mapping[str, str]
    problems: tuple[str, ...]
    clashes: Mapping[str, tuple[str, ...]]
    weight_files: Mapping[str, WeightFile] = field(default_factory=dict)

    def option_types(self) -> dict[str, type]:
        """Return the option dataclass of every backend that has one, by id."""
        return {b.id: b.options for b in self.backends.values() if b.options is not None}

    def extras(self) -> set[str]:
        """Return the names of the extras of resnext-core: what could be installed."""
        return _extras()

    def get(self, backend_id: str) -> Backend:
        """Return the backend named `backend_id`; UsageError that says what is known or how to install it."""
        if backend_id in self.backends:
            return self.backends[backend_id]
        if backend_id in self.clashes:
            raise UsageError(
                f"backend '{backend_id}' is claimed by {' and '.join(self.clashes[backend_id])}; uninstall one"
            )
        broken = [p for p in self.problems if f"'{backend_id}'" in p]
        if broken:
            raise BackendUnavailable(broken[0])
        if backend_id in _extras():
            raise UsageError(
                f"backend '{backend_id}' is not installed: pip install 'resnext-core[{backend_id}]'"
            )
        raise UsageError(f"unknown backend '{shown(backend_id)}'{suggest(backend_id, self.backends)}")

    def available(self, backend_id: str) -> Backend:
        """Return the backend if it can run here, if only in test mode; BackendUnavailable with its reason otherwise."""
        backend = self.get(backend_id)
        answer = probe(backend)
        if not answer.usable:
            raise BackendUnavailable(f"backend '{backend_id}' is not available: {answer.reason}")
        return backend

    def choose(
        self,
        backend_id: str | None,
        task: str,
        able: Callable[[Backend], bool],
        *,
        prefer: str | None = None,
        here: Callable[[Backend], Readiness] = lambda backend: READY,
    ) -> Backend:
        """Return the named backend, or the ready one of highest priority, that is `able` to do `task`.

        Without a `backend_id`, the one called `prefer` comes before all others. One in test mode is only taken where
        either names it. `here` says whether a backend that can run here can also do this task.
        Raises UsageError when the named one lacks the capability, BackendUnavailable when none is left.
        """
        if backend_id is not None:
            backend = self.available(backend_id)
            if not able(backend):
                others = [b.id for b in self._ranked() if able(b)]
                raise UsageError(
                    f"backend '{backend_id}' cannot {task}; these can: {', '.join(others) or 'none'}"
                )
            if not (answer := here(backend)).usable:
                raise BackendUnavailable(f"backend '{backend_id}' cannot {task} here: {answer.reason}")
            return backend
        reasons = []
        for backend in self._ranked(prefer):
            if not able(backend):
                continue
            answers = (probe(backend), here(backend))
            if all(a.usable if backend.id == prefer else a == READY for a in answers):
                return backend
            reasons.append(f"{backend.id}: {next(a for a in answers if a != READY)}")
        detail = "; ".join(reasons) or "no installed backend has that capability"
        raise BackendUnavailable(f"no backend here can {task}: {detail}")

    def _ranked(self, prefer: str | None = None) -> list[Backend]:
        return sorted(self.backends.values(), key=lambda b: (b.id != prefer, -b.priority, b.id))


def probe(backend: Backend) -> Readiness:
    """Return whether `backend` can run here; see :func:`resnext_core.interfaces.ask`."""
    return ask(backend.probe)


def probe_format(backend: Backend, suffix: str) -> Readiness:
    """Return whether `backend`, where it can run, can serve files that end with `suffix` here."""
    if backend.format_probe is None:
        return READY
    return ask(functools.partial(backend.format_probe, suffix))


@functools.cache
def load_plugins() -> PluginSet:
    """Load every plugin once; a broken one becomes a line in `problems`, never an exception."""
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
                f"plugin '{entry.name}' of {_distribution(entry)} failed to load: {_one_line(error)}"
            )
    return collect(found, problems)


def collect(found: Iterable[tuple[str, str, Any]], problems: Iterable[str] = ()) -> PluginSet:
    """Register (distribution, name, module) triples one by one and gather what they yield."""
    lines = list(problems)
    backends: dict[str, list[tuple[str, Backend]]] = {}
    commands: dict[str, list[tuple[str, Command]]] = {}
    weight_files: dict[str, list[tuple[str, WeightFile]]] = {}
    for distribution, name, module in found:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module, name=name)
            manager.check_pending()
            for backend in _flat(manager.hook.resnext_backends()):
                _check(backend)
                backends.setdefault(backend.id, []).append((distribution, backend))
            for command in _flat(manager.hook.resnext_commands()):
                commands.setdefault(command.name, []).append((distribution, command))
            for kind in _flat(manager.hook.resnext_weight_files()):
                if not isinstance(kind, WeightFile):
                    raise TypeError(
                        f"resnext_weight_files must yield WeightFile records, not {type(kind).__name__}"
                    )
                if set(kind.suffixes) & set(CORE_ENDINGS):
                    raise ValueError(f"weight files {', '.join(CORE_ENDINGS)} are resnext-core's own")
                for suffix in kind.suffixes:
                    weight_files.setdefault(suffix, []).append((distribution, kind))
        except Exception as error:
            lines.append(f"plugin '{name}' of {distribution} cannot be used: {_one_line(error)}")
    clashes: dict[str, tuple[str, ...]] = {}
    backend_of = _settle("backend", backends, lines, clashes)
    command_of = _settle("command", commands, lines, clashes)
    weight_file_of = _settle("weight file", weight_files, lines, clashes)
    return PluginSet(
        backends={key: backend for key, (_, backend) in backend_of.items()},
        commands={key: command for key, (_, command) in command_of.items()},
        weight_files={key: kind for key, (_, kind) in weight_file_of.items()},
        origins={
            key: owner for t in (weight_file_of, command_of, backend_of) for key, (owner, _) in t.items()
        },
        problems=tuple(lines),
        clashes=clashes,
    )


def _settle(
    kind: str,
    table: Mapping[str, list[tuple[str, _T]]],
    lines: list[str],
    clashes: dict[str, tuple[str, ...]],
) -> dict[str, tuple[str, _T]]:
    """Return the one owner of each name; of several only core may keep it, and a line says so."""
    settled = {}
    for key, owners in table.items():
        names = tuple(owner for owner, _ in owners)
        if len(owners) == 1:
            settled[key] = owners[0]
        elif names.count(CORE) == 1:
            settled[key] = owners[names.index(CORE)]
            others = " and ".join(name for name in names if name != CORE)
            lines.append(f"{kind} '{key}' of {others} is not used: {CORE} has one of that name")
        else:
            clashes[key] = names
            lines.append(f"{kind} '{key}' is claimed by {' and '.join(names)}; none of them is used")
    return settled


def get_backend(backend_id: str) -> Backend:
    """Return an installed backend by id, available or not; UsageError when unknown."""
    return load_plugins().get(backend_id)


def _check(backend: Any) -> None:
    if not isinstance(backend, Backend):
        raise TypeError(f"resnext_backends must yield Backend records, not {type(backend).__name__}")
    if backend.api_version != API_VERSION:
        raise ValueError(
            f"backend '{backend.id}' is written for API {backend.api_version}, this resnext-core has {API_VERSION}"
        )
    if not backend.id.replace("-", "").isalnum() or backend.id != backend.id.lower():
        raise ValueError(f"backend id '{backend.id}' must be lower-case letters, digits and dashes")
    if backend.id in _RESERVED:
        raise ValueError(f"backend id '{backend.id}' is the name of a config section")
    if backend.options is None:
        return
    if not isinstance(backend.options, type) or not dataclasses.is_dataclass(backend.options):
        raise TypeError(f"backend '{backend.id}': options must be a dataclass")
    try:  # as every start of the program will
        typing.get_type_hints(backend.options)
        backend.options()
    except Exception as error:
        raise TypeError(
            f"backend '{backend.id}': its options cannot be made without arguments: {_one_line(error)}"
        ) from error


def _flat(results: Iterable[Iterable[Any] | None]) -> Iterable[Any]:
    for result in results:
        yield from result or ()


def _distribution(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def _extras() -> set[str]:
    try:
        return set(metadata.metadata(CORE).get_all("Provides-Extra") or ())
    except metadata.PackageNotFoundError:
        return set()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
