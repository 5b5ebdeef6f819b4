"""Parts about optimizer steps: against another backend, and those that overflow."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from resnext_ascend.selftest import samples
from resnext_ascend.selftest.place import Place, Refuted, relative, within
from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.errors import BackendUnavailable
from resnext_core.interfaces import Backend, Mix
from resnext_core.plugins import load_plugins
from resnext_core.training.trainer import create_trainer

Kind: TypeAlias = Literal["plain", "mixed", "lamb"]
_RATES = np.array([0.1, 0.05], np.float32)
_ROWS = 6
_MIXES = (
    Mix(kind="mixup", lam=0.3, partner="rolled"),
    Mix(kind="cutmix", lam=1 - 7 * 9 / samples.SIDE**2, box=(2, 5, 9, 14)),
)
#: What each row's residual branch is multiplied by.
_BRANCHES = np.array([1, 0, 2, 1, 0, 2], np.float32)[:, None]
_LIMITS = {"losses": 1e-5, "weights": 1e-4, "ema": 1e-4, "momentum": 1e-3, "variance": 1e-3, "optimizer": 0.0}
#: A loss scale at which float16 overflows on the way back whatever the loss is: 2^40, above the largest, 65504.
_TOO_MUCH = 2.0**40


def two_steps(place: Place, kind: Kind = "plain") -> dict[str, Any]:
    """Two steps in float32 on this device and, in another process, by the backend `mindspore` on the CPU."""
    expected = place.folder / "mindspore.npz"
    place.python(__name__, expected, kind)  # a process has one device
    ours = run(load_plugins().available("ascend"), place.options(), kind)
    with np.load(expected) as file:
        theirs = dict(file)
    groups: dict[str, list[float]] = {}
    for name, value in theirs.items():
        groups.setdefault(name.split("/")[0], []).append(relative(ours[name], value))
    measured: dict[str, Any] = {f"{name}_difference": max(values) for name, values in groups.items()}
    measured["loss"] = [float(x) for x in ours["losses"]]
    limits = {name: limit for name, limit in _LIMITS.items() if name in groups}
    within(measured, {f"{name}_difference": limit for name, limit in limits.items()})
    return measured


def run(backend: Backend, options: Any, kind: Kind = "plain") -> dict[str, NDArray[Any]]:
    """Return losses and the state after two steps in float32: ``plain``, on ``mixed`` images, or by ``lamb``.

    The last has binary cross-entropy, dropped blocks and an EMA besides.
    """
    request = samples.request(samples.small_weights(), options, _ROWS, mixes=kind == "mixed")
    batches = [samples.batch(samples.noise(_ROWS, seed=s)) for s in (27, 28)]
    if kind == "mixed":
        batches = [replace(batch, mix=(mix,)) for batch, mix in zip(batches, _MIXES, strict=True)]
    rates = _RATES
    if kind == "lamb":
        # An epsilon far above float32's noise in the gradients, which LAMB would divide by itself.
        lamb = OptimizerConfig(kind="lamb", eps=1e-3, weight_decay=0.02, clip_norm=1.0)
        request = replace(request, optimizer=lamb, loss=LossConfig(kind="bce"), drops=True, ema_decay=0.9)
        batches = [replace(batch, branches=_BRANCHES) for batch in batches]
        rates = _RATES / 50
    with closing(create_trainer(backend, request)) as trainer:
        losses = trainer.run_steps(batches, rates)
        return {"losses": losses, **trainer.state().tensors}


def overflow(place: Place) -> dict[str, Any]:
    """Three steps in float16: with a fixed loss scale that fits none is skipped, with one that is too large all are."""
    backend = load_plugins().available("ascend")
    measured: dict[str, Any] = {}
    for name, scale, skipped in (
        ("fitting", 1024.0, 0),
        ("too_large", _TOO_MUCH, 3),
        ("fitting_again", 1024.0, 0),
    ):
        precision = PrecisionConfig(compute="float16", loss_scale="fixed", scale=scale)
        weights = samples.small_weights()
        learned = [t.name for t in weights.spec.tensors if t.trainable]
        request = samples.request(weights, place.options(), _ROWS, precision=precision)
        with closing(create_trainer(backend, request)) as trainer:
            losses = trainer.run_steps(
                [samples.batch(samples.noise(_ROWS))] * 3, np.full(3, 0.05, np.float32)
            )
            state = trainer.state()
        found = int(state.scalars["overflow_steps"])
        moved = [n for n in learned if not np.array_equal(state.tensors[f"weights/{n}"], weights.tensors[n])]
        measured |= {
            f"{name}_skipped": found,
            f"{name}_losses": [float(x) for x in losses],
            f"{name}_moved": len(moved),
        }
        if found != skipped:
            raise Refuted(
                f"with a loss scale of {scale:g} {found} of 3 steps were skipped, not {skipped}", measured
            )
        if bool(moved) == bool(skipped):
            raise Refuted(
                f"with a loss scale of {scale:g} {len(moved)} tensors moved, and {found} steps were skipped"
            )
        if not np.isfinite(losses).all():
            raise Refuted(f"losses are {losses.tolist()}", measured)
    return measured


def main(path: Path, kind: Kind) -> None:
    """Write what the backend `mindspore` computes in steps of a kind."""
    backend = load_plugins().available("mindspore")
    if backend.options is None:
        raise BackendUnavailable("the backend mindspore has no options")
    np.savez(path, **run(backend, backend.options(device="cpu"), kind))


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]), cast("Kind", sys.argv[2]))
