"""What the ranks of the launch tests run: ``python -m ascend_rank WHAT FOLDER [--resume]``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from ascend_cases import batches, share, tiny_weights, train_request, trainer_with
from resnext_ascend.device import connect
from resnext_ascend.options import AscendOptions

from resnext_core.errors import ResnextError
from resnext_core.ranks.children import note_end
from resnext_core.ranks.info import rank_info
from resnext_core.ranks.signals import StopRequest

LR = np.array([0.1, 0.05, 0.02], np.float32)
#: The rank that misbehaves.
CULPRIT = 1


def main(what: str, folder: Path) -> int:
    """Do `what` and return the exit code of this rank."""
    rank = rank_info()
    mine = rank.rank == CULPRIT
    print(f"rank {rank.rank} begins to {what}", flush=True)
    if what == "environment":
        names = (
            "RANK_ID",
            "RANK_SIZE",
            "DEVICE_ID",
            "RANK_TABLE_FILE",
            "MINDSPORE_HCCL_CONFIG_PATH",
            "MS_ROLE",
            "MS_SCHED_HOST",
            "MS_SCHED_PORT",
            "MS_NODE_ID",
            "HCCL_IF_IP",
            "RESNEXT_CORES",
        )
        found = {name: os.environ[name] for name in names if name in os.environ}
        found["cores"] = sorted(os.sched_getaffinity(0))
        (folder / f"rank-{rank.rank}.json").write_text(json.dumps(found))
        return 0
    if what == "never" and mine:
        time.sleep(600)
    if what == "early" and mine:
        print("the last words of rank 1", flush=True)
        return 9
    if what == "once" and mine and not (folder / "failed").exists():
        (folder / "failed").touch()
        return 9
    statistics = "averaged" if what == "averaged" else "local"
    options = AscendOptions(device="cpu", bn_statistics=statistics)
    collectives = connect(rank, options)
    weights = tiny_weights(seed=3 + rank.rank if what == "seeds" else 3)
    request = train_request(weights=weights, batch_size=6 // rank.world, rank=rank, collectives=collectives)
    trainer = trainer_with(options, request)
    parts = [share(batch, rank) for batch in batches(3)]
    if what == "apart" and mine:
        state = trainer.state()
        trainer.load_state(type(state)(tensors=state.tensors, scalars={**state.scalars, "step": 7}))
    losses = [trainer.run_steps(parts[:2], LR[:2])]
    if what == "exit" and mine:
        print("the last words of rank 1", flush=True)
        return 9
    if what == "kill" and mine:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang" and mine:
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "stop":
        with StopRequest() as stop:
            (folder / f"ready-{rank.rank}").touch()
            while not collectives.all_reduce_sum(np.array([int(stop.requested)]))[0]:
                time.sleep(0.05)
        (folder / f"saved-{rank.rank}").touch()
        return 75
    losses.append(trainer.run_steps(parts[2:], LR[2:]))
    np.savez(
        folder / f"rank-{rank.rank}.npz",
        losses=np.concatenate(losses),
        integers=collectives.all_reduce_sum(np.array([2**53 + rank.rank])),
        **trainer.state().tensors,
    )
    collectives.barrier()
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1], Path(sys.argv[2]))
    except ResnextError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    note_end(code)  # as resnext-run does: MindSpore may crash while it is torn down
    sys.exit(code)
