"""What `exits` runs in processes of its own: a group of one rank, and a card whose memory is too small."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import torch
from resnext_gpu.collectives import TorchGroup
from resnext_gpu.device import device_of, open_device
from resnext_gpu.engine import GpuEngine
from resnext_gpu.options import GpuOptions
from torch import distributed

from resnext_core.config import OptimizerConfig
from resnext_core.ranks.collectives import GatheringCollectives
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.launch import free_port
from resnext_core.testing.tiny import noise_batches, train_request
from resnext_core.training.trainer import Trainer

#: Of a card, for a process that shall run out of it.
SHARE = 0.02


def one_rank(smoke: bool) -> None:
    """Compute a step whose gradients go over NCCL in a group of one, told that there are two.

    Rows are counted over the group, that is once, so that a rank's share of the mean is twice as large, and the mean
    over two is the rank's own gradient, to the bit.
    """
    options = GpuOptions(device="cpu" if smoke else "cuda", deterministic=True)
    device = open_device(device_of(options, RankInfo()))
    distributed.init_process_group(
        "gloo" if smoke else "cpu:gloo,cuda:nccl",
        init_method=f"tcp://127.0.0.1:{free_port()}",
        rank=0,
        world_size=1,
    )
    group = GatheringCollectives(TorchGroup(1))
    assert group.all_reduce_sum(np.array([1.5, 2.5])).tolist() == [1.5, 2.5]
    values = torch.arange(1000.0, device=device)
    distributed.all_reduce(values)
    assert torch.equal(values.cpu(), torch.arange(1000.0))
    alone, told_two = _momentum(options, 1), _momentum(options, 2)
    group.close()
    different = [name for name, array in alone.items() if not np.array_equal(array, told_two[name])]
    if different or not alone:
        sys.exit(f"gradients that went over the group are not those that did not: {different[:3]}")
    print("the same gradients")


def _momentum(options: GpuOptions, world: int) -> dict[str, Any]:
    """Return the momentum after a first step without decay: the gradients."""
    request = train_request(batch_size=6, optimizer=OptimizerConfig(weight_decay=0.0))
    request = dataclasses.replace(request, rank=RankInfo(world=world))
    trainer = Trainer(request, GpuEngine(request, options))
    trainer.run_steps(noise_batches(1, images=6), np.array([0.01], np.float32))
    found = {name: array for name, array in trainer.state().tensors.items() if name.startswith("momentum/")}
    trainer.close()
    return found


def memory(smoke: bool) -> None:
    """Time steps of a batch that does not fit, as ``resnext-run bench train`` does; exits with its code."""
    from resnext_core.cli.main import main

    words = ["--backend", "gpu", "bench", "train", "--steps", "1", "--set", "model.image_size=224"]
    if smoke:
        _small()
        words = [
            *words,
            "--set",
            "gpu.device=cpu",
            "--set",
            "model.variant=resnext_tiny",
            "--batch-size",
            "4",
        ]
        words += ["--set", "model.image_size=16"]
    else:
        torch.cuda.set_per_process_memory_fraction(SHARE)
        words += ["--set", "model.variant=resnext50_32x4d", "--batch-size", "512"]
    sys.exit(main(words))


def _small() -> None:
    """Let the forward pass of more than two images fail as on a full card."""
    from resnext_gpu.network import Network

    forward = Network.forward

    def limited(self: Any, images: Any) -> Any:
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, images)

    Network.forward = limited  # type: ignore[method-assign]
