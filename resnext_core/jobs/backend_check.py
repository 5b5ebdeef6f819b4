"""What ``resnext-run doctor`` says of a backend: whether it computes the golden logits, for each format it serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.config import load_config
from resnext_core.errors import BackendUnavailable, ResnextError
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, ExportRequest, PredictRequest
from resnext_core.plugins import PluginSet, probe, probe_format
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.golden import GOLDEN_LOGITS, check_backend, golden_images, golden_weights
from resnext_core.serving.load import WEIGHTS_SUFFIX

#: Largest relative golden difference of float32 logits.
TOLERANCE = 1e-5

READY, NOT_HERE, NOT_CHECKED, FAILED, WRONG = "ready", "not here", "not checked", "FAILED", "WRONG"
TEST_MODE = "test mode"


def check(backend: Backend, plugins: PluginSet) -> dict[str, Any]:
    """Return what was found of `backend`: its `state`, a `detail` in words, and one entry a format.

    The states: ``ready`` (its numbers are right), ``WRONG`` (they are not), ``FAILED`` (it is here and breaks),
    ``not here`` (something that it needs is missing), ``not checked`` (nothing to check it with is installed),
    ``test mode`` (the device that it is made for is missing, so it is not checked either).
    """
    result: dict[str, Any] = {"id": backend.id, "difference": None, "formats": []}
    answer = probe(backend)
    if answer.state != "ready":
        return result | {
            "state": NOT_HERE if answer.state == "missing" else TEST_MODE,
            "detail": answer.reason,
        }
    if backend.predictor is None:
        return result | {"state": READY, "detail": "no self-check: it serves nothing"}
    formats = [_format(backend, suffix, plugins) for suffix in backend.formats]
    differences = [f["difference"] for f in formats if f["difference"] is not None]
    states = {f["state"] for f in formats}
    return result | {
        "state": next((s for s in (WRONG, FAILED, READY, NOT_HERE) if s in states), NOT_CHECKED),
        "detail": _words(formats),
        "difference": max(differences, default=None),
        "formats": formats,
    }


def _format(backend: Backend, suffix: str, plugins: PluginSet) -> dict[str, Any]:
    result: dict[str, Any] = {"format": suffix, "difference": None}
    answer = probe_format(backend, suffix)
    if not answer.usable:
        return result | {"state": NOT_HERE, "detail": answer.reason}
    options = load_config([], plugins.option_types())[0].backends
    try:
        if suffix == WEIGHTS_SUFFIX:
            difference = check_backend(backend, options.get(backend.id))
        else:
            with Scratch("doctor") as folder:
                made, why_not = _artefacts(folder, suffix, plugins, options)
                if why_not is not None:
                    return result | {"state": NOT_CHECKED, "detail": why_not}
                difference = _served_difference(backend, made, options.get(backend.id))
    except BackendUnavailable as error:  # what only opening the device or the file could tell
        return result | {"state": NOT_HERE, "detail": str(error)}
    except ResnextError as error:
        return result | {"state": FAILED, "detail": str(error)}
    except Exception as error:  # a plugin's or framework's own: the other backends are still to be looked at
        return result | {"state": FAILED, "detail": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return result | {
        "state": READY if difference <= TOLERANCE else WRONG, "difference": difference,
        "detail": f"golden logits within {difference:.1e} of the largest (allowed {TOLERANCE:.0e})",
    }  # fmt: skip


def _artefacts(
    folder: Path, suffix: str, plugins: PluginSet, options: Mapping[str, Any]
) -> tuple[dict[str, Path], str | None]:
    """Write the golden networks in the format of `suffix`; return them by pool padding, or why nobody here can."""
    reasons = []
    for maker in plugins.ranked():
        exporter = maker.exporters.get(suffix.removeprefix("."))
        if exporter is None:
            continue
        answer = probe(maker)
        reason = answer.reason
        if answer.usable:
            request = ExportRequest(options=options.get(maker.id))
            made = {str(p): folder / f"{maker.id}-{p}{suffix}" for p in GOLDEN_LOGITS}
            try:
                for padding in GOLDEN_LOGITS:
                    exporter(golden_weights(padding), made[padding], request)
                return made, None
            except ResnextError as error:
                reason = str(error)
        reasons.append(f"{maker.id} cannot write one here: {reason}")
    return {}, "; ".join(reasons) or "no exporter for it is installed"


def _served_difference(backend: Backend, made: Mapping[str, Path], options: Any) -> float:
    """Return the larger relative golden difference of the artefacts; NaN logits give infinity."""
    assert backend.predictor is not None
    worst = 0.0
    for padding, golden in GOLDEN_LOGITS.items():
        predictor = backend.predictor(
            PredictRequest(path=made[padding], batch_size=3, rank=RankInfo(), options=options)
        )
        try:
            difference = np.abs(predictor.logits(golden_images()) - golden).max() / np.abs(golden).max()
        finally:
            predictor.close()
        worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst


def _words(formats: list[dict[str, Any]]) -> str:
    """Return what is said of all formats, on one line."""
    if all(f["detail"] == "no exporter for it is installed" for f in formats):
        return f"no exporter for its formats ({', '.join(f['format'] for f in formats)}) is installed"
    groups: dict[tuple[str, str], list[str]] = {}
    for f in formats:
        groups.setdefault((f["state"], f["detail"]), []).append(f["format"])
    if len(groups) == 1:
        return str(formats[0]["detail"])
    return "; ".join(
        f"{' '.join(suffixes)}: {'' if state == READY else state + ': '}{detail}"
        for (state, detail), suffixes in groups.items()
    )
