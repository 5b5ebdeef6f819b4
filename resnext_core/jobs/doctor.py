"""Check this machine and every backend on it, or a training before it is started."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.errors import BackendUnavailable, DataError, ResnextError
from resnext_core.extras import missing_plugins
from resnext_core.interfaces import Backend, ask
from resnext_core.jobs.backend_check import FAILED, WRONG, BackendCheck, check
from resnext_core.jobs.environment import environment
from resnext_core.jobs.plan import faults, plan_job, training_backend
from resnext_core.jobs.preflight import Finding, machine_memory, preflight
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Resolved, Settings, resolve, stored_layer
from resnext_core.plugins import AUTO, PluginSet, load_plugins, probe
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Note


@dataclass(frozen=True, kw_only=True)
class DoctorJob:
    """Check every installed backend, or only the one named `backend`."""

    backend: str | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderCheck:
    """A decoder of images: whether it is ready here, or why not; `taken` by ``data.decoder: auto``."""

    name: str
    state: str
    detail: str
    taken: bool


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    """Versions, machine, the check of each backend and decoder, extras that are not installed, and broken plugins."""

    environment: Mapping[str, Any]
    backends: tuple[BackendCheck, ...]
    decoders: tuple[DecoderCheck, ...]
    not_installed: tuple[str, ...]
    problems: tuple[str, ...]

    def error(self) -> ResnextError | None:
        """Return what speaks against using this machine: wrong numbers, or a backend that fails; None when nothing."""
        wrong, failed = ([b.id for b in self.backends if b.state == state] for state in (WRONG, FAILED))
        if wrong:
            return DataError(
                f"wrong numbers from {', '.join(wrong)}: do not use it on this machine until this is fixed"
            )
        if failed:
            return DataError(f"{', '.join(failed)} cannot compute here; see the table for the reason")
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "environment": dict(self.environment), "backends": [b.to_dict() for b in self.backends],
            "decoders": [dataclasses.asdict(d) for d in self.decoders],
            "not_installed": list(self.not_installed), "problems": list(self.problems),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CheckTrainingJob:
    """Check a training before it is started: `training` is a recipe, a YAML file, or a run folder to continue."""

    training: str
    settings: Settings = field(default_factory=Settings)
    backend: str | None = None
    devices: int = 1


@dataclass(frozen=True, kw_only=True)
class CheckTrainingResult:
    """What the training will need and what is wrong with it; `faults` are the errors that would end it."""

    training: str
    devices: int
    findings: tuple[Finding, ...]
    faults: tuple[ResnextError, ...]

    def error(self) -> ResnextError | None:
        """Return why the training cannot work, None when it can.

        BackendUnavailable where installing something would help, DataError otherwise.
        """
        if not self.faults:
            return None
        missing = all(isinstance(fault, BackendUnavailable) for fault in self.faults)
        kind = BackendUnavailable if missing else DataError
        return kind(f"this training cannot work: {self.faults[0]}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        notes = [dataclasses.asdict(finding) for finding in self.findings]
        return {"run": self.training, "devices": self.devices, "notes": notes}


def doctor(job: DoctorJob, listen: Listener = ignore) -> DoctorResult:
    """Check; `listen` gets the facts about the machine first. Raises BackendUnavailable where `backend` is not here."""
    plugins = load_plugins()
    memory = machine_memory()
    facts = environment() | {
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "unknown",
        "disk_free_here": f"{shutil.disk_usage('.').free / 1e9:.0f} GB",
    }
    del facts["command"]
    for key, value in facts.items():
        listen(Note(text=f"{key:<15} {value}"))
    backends = [plugins.available(job.backend)] if job.backend is not None else plugins.ranked()
    return DoctorResult(
        environment=facts,
        backends=tuple(check(backend, plugins) for backend in backends),
        decoders=tuple(_decoders(plugins)),
        not_installed=tuple(missing_plugins()),
        problems=tuple(plugins.problems),
    )


def _decoders(plugins: PluginSet) -> Iterator[DecoderCheck]:
    taken = plugins.decoder(AUTO)
    for decoder in sorted(plugins.decoders.values(), key=lambda d: (-d.priority, d.name)):
        answer = ask(decoder.probe)
        yield DecoderCheck(
            name=decoder.name,
            state=answer.state,
            detail=answer.reason or decoder.summary,
            taken=decoder is taken,
        )


def check_training(job: CheckTrainingJob) -> CheckTrainingResult:
    """Look at data, network, learning rate, memory, disk and formats of a training; nothing is written.

    Raises UsageError where the configuration cannot be read; what is wrong with the training is in the result.
    """
    plugins = load_plugins()
    resolved, run = resolve_check(job, plugins)
    backend, first = _training_backend(job.backend, plugins)
    plan = plan_job(
        resolved.config,
        plugins,
        backend,
        world=job.devices,
        resumed=run,
        whole=True,
        sources=resolved.sources,
    )
    found = list(faults(plan))
    wrong = [error for _, error in found if backend or not isinstance(error, BackendUnavailable)]
    return CheckTrainingResult(
        training=job.training,
        devices=job.devices,
        findings=(first, *preflight(plan, found)),
        faults=tuple(wrong),
    )


def resolve_check(job: CheckTrainingJob, plugins: PluginSet) -> tuple[Resolved, RunFolder | None]:
    """Return the configuration of the training, and its run where it is one; UsageError or DataError."""
    if not (Path(job.training) / "config.yaml").is_file():
        return resolve(dataclasses.replace(job.settings, recipe=job.training), plugins), None
    run = RunFolder.open(Path(job.training))
    return resolve(job.settings, plugins, base=stored_layer(run, plugins)), run


def _training_backend(backend_id: str | None, plugins: PluginSet) -> tuple[Backend | None, Finding]:
    """Return the backend that would train; one that is not available here (None) may be so elsewhere."""
    try:
        backend = training_backend(plugins, backend_id)
    except BackendUnavailable as error:
        return None, Finding(topic="backend", level="warning", text=f"not on this machine: {error}")
    here = probe(backend)
    text = f"{backend.id}, {backend.summary if here.state == 'ready' else here}"
    return backend, Finding(topic="backend", level="ok", text=text)
