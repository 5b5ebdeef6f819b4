"""One rank of the kit's distributed tests: adds up, trains a few steps, writes down what it has."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.errors import EXIT_DATA, ResnextError
from resnext_core.interfaces import Backend, Batch, TrainState
from resnext_core.plugins import get_backend
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.connect import connect_tcp
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.testing.cases import TRAIN_CASES, on_the_verge, wrong_rows
from resnext_core.testing.tiny import rank_part
from resnext_core.training.trainer import Trainer, create_trainer

#: The training set-up: accumulates six micro-batches, of which each rank takes its share.
CASE = "everything"
#: Others of as many micro-batches, each for backends that can do what it asks for.
OTHERS = ("mixed", "lamb")

#: Steps that must be skipped for what one rank finds: its gradients are beyond float32, or its loss is.
ALONE: dict[str, dict[str, float]] = {
    "overflow": {"loss_scale": 2.0**127},
    "loss": {"loss_scale": 1024.0, "logit": 1.5e38},
}


def rank_batches(info: RankInfo, case: str = CASE) -> list[Batch]:
    """Return the part of every batch of a case that a rank takes: its contiguous share."""
    return [rank_part(b, info) for b in TRAIN_CASES[case].batches()]


def integers(rank: int) -> list[int]:
    """Return what a rank adds: sums beyond int32, beyond float32 and beyond float64's exact integers."""
    return [rank + 1, 2**31 - 1 + rank, 2**24 + 1, 2**53 + 1 + 2 * rank, -(2**40) - rank]


def floats(rank: int) -> list[float]:
    """Return floats that need all bits of a float64."""
    return [0.1 * (rank + 1), 1 / 3, 1e300, 2.0**53 + rank]


def singles(rank: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return float32 values, as running statistics are: their sum must be a tensor that a state can hold."""
    return np.array([0.5 + rank, 2.0**-20], np.float32)


def sums_of(ranks: Iterable[int]) -> dict[str, Any]:
    """Return the sums that every rank must get."""
    ranks = list(ranks)
    total = np.array(floats(ranks[0]))
    for rank in ranks[1:]:
        total = total + np.array(floats(rank))
    columns = zip(*(integers(rank) for rank in ranks), strict=True)
    return {
        "integers": [sum(column) for column in columns],
        "floats": [float(v).hex() for v in total],
        "singles": ["float32", *(float(v) for v in np.sum([singles(rank) for rank in ranks], axis=0))],
    }


def main(argv: list[str]) -> int:
    """Run one rank; the exit code is that of the error it ended with."""
    parser = argparse.ArgumentParser(prog="rank_worker")
    parser.add_argument("--backend", default=None)
    parser.add_argument("--factory", default=None, help="module:name of a Backend record")
    parser.add_argument("--options", default="{}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fail", type=int, default=None, help="rank that fails after joining")
    args = parser.parse_args(argv)
    backend = _load(args.factory) if args.factory else get_backend(args.backend)
    options = backend.options(**json.loads(args.options)) if backend.options else None
    info = rank_info()
    try:
        connect = backend.connect
        collectives = connect(info, options) if connect is not None else connect_tcp(info, os.environ)
        if args.fail is not None:
            if info.rank == args.fail:
                print(f"rank {info.rank} fails as asked", flush=True)
                return EXIT_DATA
            collectives.barrier()
            return 0
        _work(backend, options, info, collectives, args.out)
        collectives.close()
    except ResnextError as error:
        print(f"rank {info.rank}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"rank {info.rank} is done", flush=True)
    return 0


def _load(factory: str) -> Backend:
    module, _, name = factory.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, Backend):
        raise TypeError(f"{factory} is no Backend")
    return found


def _work(backend: Backend, options: Any, info: RankInfo, collectives: Collectives, out: Path) -> None:
    total = collectives.all_reduce_sum(np.array(integers(info.rank), np.int64))
    real = collectives.all_reduce_sum(np.array(floats(info.rank), np.float64))
    single = collectives.all_reduce_sum(singles(info.rank))
    report: dict[str, Any] = {
        "sums": {
            "integers": [int(v) for v in total],
            "floats": [float(v).hex() for v in real],
            "singles": [single.dtype.name, *(float(v) for v in single)],
        },
        "losses": [],
        "scalars": None,
        "alone": {},
        "others": {},
    }
    if backend.engine is not None:
        case = TRAIN_CASES[CASE]
        request = case.request(rank=info, collectives=collectives)
        trainer = create_trainer(backend, replace(request, options=options, skip_nonfinite=True))
        losses = trainer.run_steps(rank_batches(info), case.lr_array())
        state = trainer.state()
        report["losses"] = [float(loss) for loss in losses]
        report["scalars"] = dict(state.scalars)
        np.savez(out / f"rank-{info.rank}.npz", **dict(state.tensors))
        report["alone"] = {name: _alone(trainer, state, info, **ALONE[name]) for name in ALONE}
        trainer.close()
        for name in OTHERS:
            if TRAIN_CASES[name].asked <= backend.ingredients:
                path = out / f"rank-{info.rank}-{name}.npz"
                report["others"][name] = _other(name, backend, options, info, collectives, path)
    (out / f"rank-{info.rank}.json").write_text(json.dumps(report))
    collectives.barrier()


def _other(
    name: str, backend: Backend, options: Any, info: RankInfo, collectives: Collectives, out: Path
) -> list[float]:
    """Train another case; returns the losses and writes the state to `out`."""
    case = TRAIN_CASES[name]
    request = replace(case.request(rank=info, collectives=collectives), options=options)
    trainer = create_trainer(backend, request)
    losses = case.take(trainer, batches=rank_batches(info, name))
    np.savez(out, **dict(trainer.state().tensors))
    trainer.close()
    return [float(loss) for loss in losses]


def _alone(trainer: Trainer, state: TrainState, info: RankInfo, **verge: float) -> dict[str, Any]:
    """Take a step in which the last rank alone has valid rows, and say whether it was skipped and what it moved."""
    case = TRAIN_CASES[CASE]
    share = case.batch_size // info.world
    before = on_the_verge(state, **verge)
    trainer.load_state(before)
    part = rank_part(wrong_rows(case, case.batch_size - share, share), info)
    (loss,) = trainer.run_steps([part], np.array([0.1], np.float32))
    after = trainer.state()
    return {
        "loss": float(loss),
        "skipped": after.scalars["overflow_steps"] - before.scalars["overflow_steps"],
        "moved": [n for n, a in before.tensors.items() if a.tobytes() != after.tensors[n].tobytes()][:3],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
