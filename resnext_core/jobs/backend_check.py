"""Whether a backend computes the golden logits on this machine, for each format that it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnext_core.config import load_config
from resnext_core.errors import BackendUnavailable, ResnextError, one_line
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, ExportRequest
from resnext_core.model.spec import PoolPadding
from resnext_core.plugins import PluginSet, probe, probe_file, probe_format
from resnext_core.serving.golden import GOLDEN_LOGITS, check_backend, golden_weights
from resnext_core.serving.load import WEIGHTS_SUFFIX

#: Largest relative golden difference of float32 logits.
TOLERANCE = 1e-5

READY, NOT_HERE, NOT_CHECKED, FAILED, WRONG = "ready", "not here", "not checked", "FAILED", "WRONG"
TEST_MODE = "test mode"
_NO_EXPORTER = "no exporter for it is installed"


@dataclass(frozen=True, kw_only=True)
class FormatCheck:
    """What was found of one format (a file suffix); states as in :class:`BackendCheck`.

    `difference` is the largest one of the logits, relative to the largest golden logit; None where none were computed.
    """

    format: str
    state: str
    detail: str
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BackendCheck:
    """What was found of the backend `id`, in one word and in a line, and of each format that it serves.

    The states: ``ready`` (its numbers are right), ``WRONG`` (they are not), ``FAILED`` (it is installed and breaks),
    ``not here`` (something that it needs is missing), ``not checked`` (no exporter for its formats is installed),
    ``test mode`` (the device that it is made for is missing, so it is not checked either).
    """

    id: str
    state: str
    detail: str
    difference: float | None = None
    formats: tuple[FormatCheck, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {"formats": [found.to_dict() for found in self.formats]}


def check(backend: Backend, plugins: PluginSet) -> BackendCheck:
    """Compute the golden logits with `backend` in every format, written by whichever of `plugins` can."""
    answer = probe(backend)
    if answer.state != "ready":
        state = NOT_HERE if answer.state == "missing" else TEST_MODE
        return BackendCheck(id=backend.id, state=state, detail=answer.reason)
    if backend.predictor is None:
        return BackendCheck(id=backend.id, state=READY, detail="no self-check: it serves nothing")
    formats = tuple(_check_format(backend, suffix, plugins) for suffix in backend.formats)
    states = {found.state for found in formats}
    return BackendCheck(
        id=backend.id,
        state=next((s for s in (WRONG, FAILED, READY, NOT_HERE) if s in states), NOT_CHECKED),
        detail=_summary(formats),
        difference=max((f.difference for f in formats if f.difference is not None), default=None),
        formats=formats,
    )


def _check_format(backend: Backend, suffix: str, plugins: PluginSet) -> FormatCheck:
    def found(state: str, detail: str, difference: float | None = None) -> FormatCheck:
        return FormatCheck(format=suffix, state=state, detail=detail, difference=difference)

    answer = probe_format(backend, suffix)
    if not answer.usable:
        return found(NOT_HERE, answer.reason)
    options = load_config([], plugins.option_types())[0].backends
    try:
        if suffix == WEIGHTS_SUFFIX:
            difference = check_backend(backend, options.get(backend.id))
        else:
            with Scratch("doctor") as folder:
                made, why_not = _artefacts(folder, backend, suffix, plugins, options)
                if why_not is not None:
                    return found(NOT_CHECKED, why_not)
                difference = check_backend(backend, options.get(backend.id), made)
    except BackendUnavailable as error:  # known only once the device or the file is opened
        return found(NOT_HERE, str(error))
    except ResnextError as error:
        return found(FAILED, str(error))
    except Exception as error:  # of a plugin or framework: the other backends are still checked
        return found(FAILED, f"{type(error).__name__}: {one_line(error)}")
    detail = f"golden logits within {difference:.1e} of the largest (allowed {TOLERANCE:.0e})"
    return found(READY if difference <= TOLERANCE else WRONG, detail, difference)


def _artefacts(
    folder: Path, server: Backend, suffix: str, plugins: PluginSet, options: Mapping[str, Any]
) -> tuple[dict[PoolPadding, Path], str | None]:
    """Write the golden networks as files with `suffix` that `server` reads; return them by pool padding, or why not."""
    reasons = []
    origin = {b.id: plugins.origins.get(("backend", b.id)) for b in plugins.backends.values()}
    for maker in sorted(plugins.ranked(server.id), key=lambda b: origin[b.id] != origin.get(server.id)):
        for name, exporter in maker.exporters.items():
            if maker.ending(name) != suffix:
                continue
            if not (answer := probe(maker)).usable:
                reasons.append(f"{maker.id} cannot write one here: {answer.reason}")
                continue
            request = ExportRequest(options=options.get(maker.id))
            made = {padding: folder / f"{maker.id}-{name}-{padding}{suffix}" for padding in GOLDEN_LOGITS}
            try:
                for padding, path in made.items():
                    exporter(golden_weights(padding), path, request)
            except ResnextError as error:
                reasons.append(f"{maker.id} cannot write one here: {error}")
                continue
            unread = {answer.reason for path in made.values()
                      if not (answer := probe_file(server, path, options.get(server.id))).usable}  # fmt: skip
            if not unread:
                return made, None
            reasons.append(f"that of {maker.id}: {'; '.join(sorted(unread))}")
    return {}, "; ".join(reasons) or _NO_EXPORTER


def _summary(formats: Sequence[FormatCheck]) -> str:
    """Return the details of all formats in one line; formats with the same one together."""
    if all(f.detail == _NO_EXPORTER for f in formats):
        return f"no exporter for its formats ({', '.join(f.format for f in formats)}) is installed"
    groups: dict[tuple[str, str], list[str]] = {}
    for f in formats:
        groups.setdefault((f.state, f.detail), []).append(f.format)
    if len(groups) == 1:
        return formats[0].detail
    return "; ".join(
        f"{' '.join(suffixes)}: {'' if state == READY else state + ': '}{detail}"
        for (state, detail), suffixes in groups.items()
    )
