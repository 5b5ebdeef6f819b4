"""What the ranks of the tests run: ``python -m gpu_rank <what> <folder>``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_cases import batches, part, tiny_weights, train_request, trainer_with
from gpu_ingredients import CASES, LRS, batches_of, request_of
from resnext_gpu.collectives import connect
from resnext_gpu.options import GpuOptions

from resnext_core.config import OptimizerConfig
from resnext_core.errors import ResnextError
from resnext_core.ranks.children import note_end
from resnext_core.ranks.info import rank_info

#: Of the test with sync-BN, which is compared after this many steps.
STEPS, IMAGES = 20, 12
#: Pixels a side and seed of the batches: with these no step comes near to a kink, see resnext_core.testing.kinks.
SYNC, OTHER = {"size": 4, "seed": 44}, {"size": 6, "seed": 28}


#: Where the ranks compute; with ``cuda`` each needs a GPU.
PLACE: Any = os.environ.get("RESNEXT_TEST_DEVICE", "cpu")


def sync_lrs() -> np.ndarray:
    """Return the learning rates of the test with sync-BN."""
    return np.full(STEPS, 0.02, np.float32)


def main(what: str, folder: Path) -> int:
    """Do `what` and return the exit code of this rank."""
    rank = rank_info()
    torch.set_num_threads(1)
    options = GpuOptions(
        device=PLACE, sync_bn=what == "sync", checkpointing=what == "train", timeout=60, bucket_mib=1
    )
    try:
        collectives = connect(rank, options)
        if what == "die" and rank.rank == 1:
            print("the last words of rank 1", flush=True)
            os._exit(9)
        images = IMAGES if what in ("sync", "die") else 6
        given = SYNC if what == "sync" else OTHER
        request = train_request(
            tiny_weights(given["size"], depths=(2, 1)),
            batch_size=images // rank.world,
            optimizer=OptimizerConfig(clip_norm=1.0),
            ema_decay=0.9,
            rank=rank,
            collectives=collectives,
        )
        steps = [part(b, rank) for b in batches(STEPS if what == "sync" else 4, images, **given)]
        if what == "ingredients":
            one = {
                "batch_size": images // rank.world,
                "accumulate": 1,
                "rank": rank,
                "collectives": collectives,
            }
            request, whole = request_of("everything", **one), request_of("everything", accumulate=rank.world)
            steps = [part(b, rank) for b in batches_of(whole, 3, seed=CASES["everything"][1])]
        trainer = trainer_with(options, request)
        if what == "die":
            while True:
                trainer.run_steps(steps, sync_lrs()[: len(steps)])
                time.sleep(0.01)
        if what == "sync":
            losses = trainer.run_steps(steps, sync_lrs())
        else:
            lrs = LRS if what == "ingredients" else np.array([0.1, 0.05, 0.1, 0.05], np.float32)
            losses = trainer.run_steps(steps[:2], lrs[:2])
            middle = trainer.state()
            losses = np.concatenate([losses, trainer.run_steps(steps[2:], lrs[2:])])
            other = trainer_with(options, request)
            other.load_state(middle)
            other.run_steps(steps[2:], lrs[2:])
            for name, array in trainer.state().tensors.items():
                assert other.state().tensors[name].tobytes() == array.tobytes(), f"{name} after resuming"
        np.savez(
            folder / f"rank-{rank.rank}.npz",
            losses=losses,
            integers=collectives.all_reduce_sum(np.array([[2**53 + rank.rank], [-7]])),
            floats=collectives.all_reduce_sum(np.array([0.1, 1e300])),
            singles=collectives.all_reduce_sum(np.array([0.1 * (rank.rank + 1)], np.float32)),
            empty=collectives.all_reduce_sum(np.zeros(0)),
            **trainer.state().tensors,
        )
        collectives.barrier()
        collectives.close()
        left = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        assert not [name for name in left if "gloo" in name], left
    except ResnextError as error:
        print(f"rank {rank.rank}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"rank {rank.rank} of {rank.world} by {rank.launcher}", flush=True)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1], Path(sys.argv[2]))
    note_end(code)  # as resnext-run does
    if code:  # Gloo's threads may abort a process that lost another one while it is torn down
        sys.stderr.flush()
        os._exit(code)
