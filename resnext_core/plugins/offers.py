"""What the installed plugins offer, by kind and name, and the choice of a backend among them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.errors import BackendUnavailable, UsageError, shown, suggest
from resnext_core.extras import install_hint
from resnext_core.interfaces import (
    READY,
    Backend,
    Command,
    Decoder,
    Readiness,
    Recipe,
    SourceKind,
    WeightFile,
    ask,
)

#: The value of ``data.decoder`` that takes the best one here.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class PluginSet:
    """What the installed plugins offer.

    `weight_files` maps a file ending to its kind; the others are by id or name. `origins` maps a kind (``backend``,
    ``command``, ``weight file``, ``recipe``, ``decoder``, ``source``) and a name to its distribution, `clashes` the
    same to the distributions that all claim it. `problems` are one line each about plugins that could not be used.
    """

    backends: Mapping[str, Backend]
    commands: Mapping[str, Command]
    origins: Mapping[tuple[str, str], str]
    problems: tuple[str, ...]
    clashes: Mapping[tuple[str, str], tuple[str, ...]]
    weight_files: Mapping[str, WeightFile] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    decoders: Mapping[str, Decoder] = field(default_factory=dict)
    sources: Mapping[str, SourceKind] = field(default_factory=dict)

    def option_types(self) -> dict[str, type]:
        """Return the option dataclass of every backend that has one, by id."""
        return {b.id: b.options for b in self.backends.values() if b.options is not None}

    def ranked(self, prefer: str | None = None) -> list[Backend]:
        """Return the backends as they are tried where none is named: `prefer` first, then by priority."""
        return sorted(self.backends.values(), key=lambda b: (b.id != prefer, -b.priority, b.id))

    def get(self, backend_id: str) -> Backend:
        """Return the backend named `backend_id`; UsageError that says what is known or how to install it."""
        if backend_id in self.backends:
            return self.backends[backend_id]
        self._refuse_clash("backend", backend_id)
        broken = [p for p in self.problems if f"'{backend_id}'" in p]
        if broken:
            raise BackendUnavailable(broken[0])
        if hint := install_hint(backend_id):
            raise UsageError(f"backend '{backend_id}' is not installed: {hint}")
        raise UsageError(f"unknown backend '{shown(backend_id)}'{suggest(backend_id, self.backends)}")

    def recipe(self, name: str) -> Recipe:
        """Return the recipe with this name, or that once had it; UsageError with a suggestion when unknown."""
        if name in self.recipes:
            return self.recipes[name]
        self._refuse_clash("recipe", name)
        for recipe in self.recipes.values():
            if name in recipe.former_names:
                return recipe
        raise UsageError(f"unknown recipe '{shown(name)}'{suggest(name, self.recipes)}")

    def decoder(self, name: str) -> Decoder:
        """Return the decoder named `name`; for ``auto`` the ready one of highest priority.

        UsageError for a name that is not known, BackendUnavailable for a decoder that is not ready here.
        """
        if name == AUTO:
            ready = [d for d in self.decoders.values() if ask(d.probe) == READY]
            return min(ready, key=lambda d: (-d.priority, d.name))
        self._refuse_clash("decoder", name)
        if name not in self.decoders:
            raise UsageError(f"unknown data.decoder '{shown(name)}'{suggest(name, [AUTO, *self.decoders])}")
        answer = ask(self.decoders[name].probe)
        if not answer.usable:
            raise BackendUnavailable(f"data.decoder '{name}' is not available: {answer.reason}")
        return self.decoders[name]

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
                others = [b.id for b in self.ranked() if able(b)]
                raise UsageError(
                    f"backend '{backend_id}' cannot {task}; these can: {', '.join(others) or 'none'}"
                )
            if not (answer := here(backend)).usable:
                raise BackendUnavailable(f"backend '{backend_id}' cannot {task} here: {answer.reason}")
            return backend
        reasons = []
        for backend in self.ranked(prefer):
            if not able(backend):
                continue
            answers = (probe(backend), here(backend))
            if all(a.usable if backend.id == prefer else a == READY for a in answers):
                return backend
            reasons.append(f"{backend.id}: {next(a for a in answers if a != READY)}")
        detail = "; ".join(reasons) or "no installed backend has that capability"
        raise BackendUnavailable(f"no backend here can {task}: {detail}")

    def _refuse_clash(self, kind: str, name: str) -> None:
        if owners := self.clashes.get((kind, name)):
            raise UsageError(f"{kind} '{name}' is claimed by {' and '.join(owners)}; uninstall one")


def probe(backend: Backend) -> Readiness:
    """Return whether `backend` can run here; see :func:`resnext_core.interfaces.ask`."""
    return ask(backend.probe)


def probe_format(backend: Backend, suffix: str) -> Readiness:
    """Return whether `backend`, where it can run, can serve files that end with `suffix` here."""
    if backend.format_probe is None:
        return READY
    return ask(functools.partial(backend.format_probe, suffix))


def probe_file(backend: Backend, path: Path, options: Any) -> Readiness:
    """Return whether `backend`, where it can run, can serve the file at `path` here with its `options`."""
    answer = probe_format(backend, path.suffix)
    if not answer.usable or backend.file_probe is None:
        return answer
    return ask(functools.partial(backend.file_probe, path, options))
