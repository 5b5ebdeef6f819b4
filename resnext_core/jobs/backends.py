"""List the installed backends: what each can do, and what it lacks on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnext_core.interfaces import Backend, Readiness
from resnext_core.plugins import load_plugins, probe, probe_format


@dataclass(frozen=True, kw_only=True)
class BackendEntry:
    """A backend, the distribution that brings it, its probe's answer, and why it cannot serve some of its formats."""

    backend: Backend
    distribution: str
    readiness: Readiness
    formats_missing: Mapping[str, str]

    @property
    def abilities(self) -> list[str]:
        """What it can do: ``train``, ``serve .a .b``, ``export c``."""
        backend, found = self.backend, []
        if backend.engine is not None:
            found.append("train")
        if backend.predictor is not None:
            found.append("serve " + " ".join(backend.formats))
        if backend.exporters:
            found.append("export " + " ".join(backend.exporters))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        backend, readiness = self.backend, self.readiness
        return {
            "id": backend.id, "distribution": self.distribution, "summary": backend.summary,
            "priority": backend.priority, "api_version": backend.api_version, "abilities": self.abilities,
            "formats": list(backend.formats), "available": readiness.usable, "state": readiness.state,
            "reason": readiness.reason or None, "formats_not_here": dict(self.formats_missing),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BackendList:
    """The backends, in the order in which they are tried where none is named; and plugins that do not load."""

    backends: tuple[BackendEntry, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"backends": [entry.to_dict() for entry in self.backends], "problems": list(self.problems)}


def list_backends() -> BackendList:
    """Return every installed backend with its probe's answer; no framework is imported."""
    plugins = load_plugins()
    entries = []
    for backend in plugins.ranked():
        readiness = probe(backend)
        answers = {suffix: probe_format(backend, suffix) for suffix in backend.formats if readiness.usable}
        missing = {suffix: answer.reason for suffix, answer in answers.items() if not answer.usable}
        entries.append(
            BackendEntry(
                backend=backend, distribution=plugins.origins["backend", backend.id], readiness=readiness,
                formats_missing=missing,
            )
        )  # fmt: skip
    return BackendList(backends=tuple(entries), problems=tuple(plugins.problems))
