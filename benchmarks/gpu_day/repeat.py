"""A part: with gpu.deterministic the same seed gives the same bits, and so does a run that was stopped and resumed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import gpu_vs_timm as against
import numpy as np

from gpu_day.child import arguments, write
from resnext_core.errors import ResnextError
from resnext_core.interfaces import Batch, TrainState
from resnext_core.model.init import random_weights
from resnext_core.model.spec import model_spec

MODEL, BATCH, STEPS = "resnext50_32x4d", 32, 4


def main() -> int:
    """Train the same steps twice, and with a stop in between, with either kind of grouped convolutions."""
    args = arguments()
    spec = against.SMOKE if args.smoke else model_spec(MODEL, pool_padding="symmetric")
    weights, first = against.noise(spec, 2 if args.smoke else BATCH, random_weights)
    batches = [first, *(_other(first, seed) for seed in range(1, STEPS))]
    how = argparse.Namespace(compute="bfloat16", smoke=args.smoke)
    table, data, right, code = [], {}, True, 0
    for kind in ("cudnn",) if args.smoke else ("cudnn", "triton"):
        options = {"grouped_conv": kind, "deterministic": True}
        try:
            whole = _trained(how, weights, options, batches, stop=False)
            found = {
                "same seed": _differing(whole, _trained(how, weights, options, batches, stop=False)),
                "resumed": _differing(whole, _trained(how, weights, options, batches, stop=True)),
            }
        except ResnextError as error:
            found = {"steps": [str(error)]}
        data[kind] = found
        right = right and not any(found.values())
        for what, names in found.items():
            other = f"{len(names)} tensors differ: {', '.join(names[:3])}" if names else "the same bits"
            table.append(f"{kind}, {what}: {other}")
        code = write(args.into, right=right, said="; ".join(table), differing=data, model=spec.variant)
    return code


def _other(batch: Batch, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, batch.images.shape, dtype=np.uint8)
    return dataclasses.replace(batch, images=images, labels=rng.permutation(batch.labels))


def _trained(
    how: Any, weights: Any, options: dict[str, Any], batches: list[Batch], *, stop: bool
) -> TrainState:
    """Return the state after all steps; with `stop`, a new trainer takes the second half of them."""
    lrs = np.full(len(batches), 0.01, np.float32)
    half = len(batches) // 2 if stop else len(batches)
    trainer = against.trainer(how, weights, batches[0], **options)
    trainer.run_steps(batches[:half], lrs[:half])
    state = trainer.state()
    trainer.close()
    if stop:
        trainer = against.trainer(how, weights, batches[0], **options)
        trainer.load_state(state)
        trainer.run_steps(batches[half:], lrs[half:])
        state = trainer.state()
        trainer.close()
    return state


def _differing(one: TrainState, other: TrainState) -> list[str]:
    names = [name for name, array in one.tensors.items() if array.tobytes() != other.tensors[name].tobytes()]
    return names + ([] if dict(one.scalars) == dict(other.scalars) else ["scalars"])


if __name__ == "__main__":
    sys.exit(main())
