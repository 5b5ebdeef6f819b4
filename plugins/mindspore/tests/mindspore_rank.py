"""What the ranks of the launch tests run: ``python -m mindspore_rank <what> <folder>``."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import numpy as np
from mindspore_cases import batches, train_request, trainer_on
from resnext_mindspore.collectives import connect
from resnext_mindspore.device import Device, device_of
from resnext_mindspore.options import MindsporeOptions

from resnext_core.config import OptimizerConfig
from resnext_core.ranks.info import rank_info
from resnext_core.testing.tiny import rank_part


def main(what: str, folder: Path) -> int:
    """Do `what` and return the exit code of this rank."""
    rank = rank_info()
    if what == "fail" and rank.rank == 1:
        print("the last words of rank 1")
        return 9
    device: Device = device_of(MindsporeOptions(), rank)
    collectives = connect(rank, device)
    if what == "stop":
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        (folder / f"ready-{rank.rank}").touch()
        while not asked:
            time.sleep(0.05)
        collectives.barrier()
        time.sleep(rank.rank)  # the other rank is still saving when the first has exited
        (folder / f"saved-{rank.rank}").touch()
        return 75
    if what == "saturate":
        from mindspore_saturation import run

        run(rank, collectives, folder)
        collectives.barrier()
        return 0
    print("a line of rank", rank.rank)
    parts = [rank_part(batch, rank) for batch in batches(2)]
    request = train_request(
        batch_size=2, optimizer=OptimizerConfig(clip_norm=1.0), rank=rank, collectives=collectives, frozen=1
    )
    trainer = trainer_on(device, request)
    losses = trainer.run_steps(parts, np.array([0.13, 0.05], np.float32))
    np.savez(
        folder / f"rank-{rank.rank}.npz",
        losses=losses,
        integers=collectives.all_reduce_sum(np.array([[2**53 + rank.rank], [-7]])),
        floats=collectives.all_reduce_sum(np.array([0.1, 1e300])),
        singles=collectives.all_reduce_sum(np.array([0.1, 2.0], np.float32)),
        empty=collectives.all_reduce_sum(np.zeros(0)),
        **trainer.state().tensors,
    )
    collectives.barrier()
    collectives.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
