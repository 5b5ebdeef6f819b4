"""The configuration section ``gpu``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from resnext_core.bounds import AtLeast, check_bounds
from resnext_core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """Options of the backend ``gpu``.

    `engine` ``mindspore`` computes with MindSpore's GPU plugin, which wants CUDA 11, where resnext-mindspore is
    installed; the other options are then PyTorch's and mean nothing.

    `device` ``cuda`` is an NVIDIA GPU, ``cpu`` a test mode that computes the same over gloo, ``auto`` the first where
    there is one and else the second, with a line that says so. `channels_last` None lays images and weights out so on
    a GPU, and plainly on the CPU. `compile` runs the network through ``torch.compile``, which falls back with a line;
    `cuda_graphs` replays a whole step as one CUDA graph. `checkpointing` computes the activations of a block again in
    the backward pass instead of keeping them. `sync_bn` takes batch statistics over all ranks. `tf32` lets float32
    products round their factors to 10 bits. `deterministic` takes the same algorithms every time, and makes an
    operation that cannot an error. `grouped_conv` computes the grouped convolutions of training in 16 bits by our
    Triton kernels or by cuDNN, and `batch_norm` batch normalisation of training in 16 bits, with the ReLU and the
    addition after it, by our Triton kernels or by PyTorch. ``auto`` takes ours with `cuda_graphs` on cards that they
    were measured on: for `grouped_conv` where they are faster, for `batch_norm` not with `compile` nor in the plain
    layout. Without a graph the processor launches ours slower than PyTorch's. `balanced_loss_scale` false divides
    gradients by a loss scale that the loss was not multiplied by: the ModelZoo's mistake on GPUs, for those who must
    repeat its numbers. `threads` are the CPU threads of a process, None leaves them to PyTorch. Gradients travel in
    buckets of `bucket_mib` MiB. `timeout` are the seconds that ranks wait for each other.

    Raises UsageError on sizes that cannot be and on settings that exclude each other.
    """

    engine: Literal["torch", "mindspore"] = "torch"
    device: Literal["cuda", "auto", "cpu"] = "cuda"
    channels_last: bool | None = None
    compile: bool = False
    cuda_graphs: bool = False
    checkpointing: bool = False
    sync_bn: bool = False
    tf32: bool = False
    deterministic: bool = False
    grouped_conv: Literal["auto", "triton", "cudnn"] = "auto"
    batch_norm: Literal["auto", "triton", "torch"] = "auto"
    balanced_loss_scale: bool = True
    threads: Annotated[int | None, AtLeast(1)] = None
    bucket_mib: Annotated[int, AtLeast(1)] = 25
    timeout: Annotated[int, AtLeast(1)] = 600

    def __post_init__(self) -> None:
        if self.engine == "mindspore" and replace(self, engine="torch") != GpuOptions():
            raise UsageError(
                "gpu.engine=mindspore cannot be combined with other gpu options, which are PyTorch's"
            )
        check_bounds("gpu", self)
        for one, other in (("compile", "checkpointing"), ("compile", "sync_bn"), ("cuda_graphs", "sync_bn")):
            if getattr(self, one) and getattr(self, other):
                raise UsageError(f"gpu.{one} and gpu.{other} cannot be combined; set one of them to false")
        if self.batch_norm == "triton" and self.sync_bn:
            raise UsageError(
                "gpu.batch_norm=triton and gpu.sync_bn cannot be combined; set one of them to auto or false"
            )
