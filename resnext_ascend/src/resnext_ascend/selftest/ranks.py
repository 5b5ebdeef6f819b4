"""Parts about two devices: an overflow on one is seen by both, as a dynamic cluster and from a rank table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_ascend import rank_table
from resnext_ascend.selftest import samples
from resnext_ascend.selftest.place import NotHere, Place, Refuted, relative
from resnext_core.config import PrecisionConfig
from resnext_core.console.program import run_program
from resnext_core.interfaces import LaunchRequest
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import rank_info
from resnext_core.training.trainer import create_trainer

_RANKS, _ROWS = 2, 6
#: Pixels of 0 and 1 over this standard deviation are 0 and 1000; those above 65 exceed float16's largest, 65504.
_STD = 1e-3
_LOSS_SCALE = 1024.0
_HCCN = Path("/etc/hccn.conf")


def two_devices(place: Place) -> dict[str, Any]:
    """Two ranks in float16: a step that both can take, one that overflows on rank 1 only, and one more."""
    _need_devices(place)
    return _run(place, None)


def by_rank_table(place: Place) -> dict[str, Any]:
    """The same, started from a rank table; in test mode of invented addresses, and without HCCL."""
    _need_devices(place)
    if place.device == "cpu":
        addresses = {0: "192.168.1.1", 1: "192.168.1.2"}
    elif not _HCCN.is_file():
        raise NotHere(f"a rank table is made from {_HCCN}, which is not here")
    else:
        addresses = rank_table.read_hccn(_HCCN)
    chosen = dict(list(addresses.items())[:_RANKS])
    if len(chosen) < _RANKS:
        raise NotHere(f"{_HCCN} has the address of one device only")
    table = place.folder / "table.json"
    table.write_text(rank_table.make({"127.0.0.1": chosen}), encoding="utf-8")
    return _run(place, table)


def _need_devices(place: Place) -> None:
    if place.device == "ascend":
        found = [p for p in Path("/dev").glob("davinci*") if p.name.removeprefix("davinci").isdecimal()]
        if len(found) < _RANKS:
            raise NotHere(f"needs two devices; here is {len(found)}")


def _run(place: Place, table: Path | None) -> dict[str, Any]:
    options = place.options(rank_table=None if table is None else str(table))
    backend = load_plugins().available("ascend")
    assert backend.launch is not None
    logs = place.folder / "ranks"
    request = LaunchRequest(
        module=__name__, argv=[place.device, str(place.folder)], devices=_RANKS, log_dir=logs, options=options
    )
    code = backend.launch(request)
    if code:
        raise Refuted(f"the ranks ended with {code}")
    found = []
    for rank in range(_RANKS):
        with np.load(place.folder / f"rank-{rank}.npz") as file:
            found.append(dict(file))
    return verdict(found)


def verdict(ranks: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Return what was measured from what each rank has written; Refuted where they disagree or a step went wrong."""
    skipped, moved = ([rank[name].tolist() for rank in ranks] for name in ("skipped", "moved"))
    names = [n for n in ranks[0] if n.startswith("weights/") and "running" not in n]
    apart = max(relative(rank[n], ranks[0][n]) for rank in ranks for n in names)
    measured = {"skipped_after_each_step": skipped, "moved": moved, "weights_apart": apart}
    if skipped != [[0, 1, 1]] * len(ranks):
        raise Refuted(
            f"steps skipped after each of three, by rank: {skipped}; each must have [0, 1, 1]", measured
        )
    if moved != [[True, False, True]] * len(ranks):
        raise Refuted(
            f"whether weights moved in each step, by rank: {moved}; only the second may not", measured
        )
    if apart:
        raise Refuted(f"the weights of two ranks differ by {apart:.2e}", measured)
    return measured


def main(device: Any, folder: Path) -> int:
    """Train as one of the ranks, write what became of each step, and return 0."""
    rank = rank_info()
    place = Place(device=device, folder=folder)
    backend = load_plugins().available("ascend")
    assert backend.connect is not None
    options = place.options()
    collectives = backend.connect(rank, options)
    weights = samples.small_weights(std=_STD)
    precision = PrecisionConfig(compute="float16", loss_scale="fixed", scale=_LOSS_SCALE)
    request = samples.request(
        weights, options, _ROWS, precision=precision, rank=rank, collectives=collectives
    )
    dark, bright = samples.noise(_ROWS, high=2), samples.noise(_ROWS)
    skipped, moved = [], []
    with closing(create_trainer(backend, request)) as trainer:
        for images in (dark, bright if rank.rank == _RANKS - 1 else dark, dark):
            before = trainer.state().tensors["weights/fc.bias"]
            trainer.run_steps([samples.batch(images)], np.array([0.05], np.float32))
            state = trainer.state()
            skipped.append(int(state.scalars["overflow_steps"]))
            moved.append(not np.array_equal(before, state.tensors["weights/fc.bias"]))
        np.savez(
            folder / f"rank-{rank.rank}.npz",
            skipped=np.array(skipped),
            moved=np.array(moved),
            **state.tensors,
        )
    collectives.barrier()
    return 0


if __name__ == "__main__":
    import sys

    code = run_program("selftest", lambda: main(sys.argv[1], Path(sys.argv[2])))
    sys.stderr.flush()
    os._exit(code)  # all is written; MindSpore's teardown may crash
