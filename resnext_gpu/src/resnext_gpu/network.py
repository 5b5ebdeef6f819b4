"""The network in plain PyTorch, built from a ModelSpec; its parameters have the neutral names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resnext_core.errors import UsageError
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM, BlockSpec, ModelSpec
from resnext_core.training.rules import part_of
from resnext_gpu.grouped_conv.norm import CHANNELS, Norm
from resnext_gpu.grouped_conv.op import GroupedConv
from resnext_gpu.mixing import mixed_pixels


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a network computes.

    Convolutions and the classifier compute in `compute`, on casts of the float32 parameters. Batch normalisation takes
    and gives `compute`, and inside it is float32 unless `bn_float32` is False. `sync` replaces batch normalisation in
    training (see :mod:`resnext_gpu.sync_bn`), `grouped` the grouped convolutions (see
    :mod:`resnext_gpu.grouped_conv.op`), and `norm`, in training, batch normalisation with what follows it (see
    :mod:`resnext_gpu.grouped_conv.norm`).
    """

    compute: torch.dtype = torch.float32
    bn_float32: bool = True
    channels_last: bool = True
    checkpointing: bool = False
    sync: Callable[..., Tensor] | None = None
    grouped: GroupedConv | None = None
    norm: Norm | None = None


class Network(nn.Module):
    """A ResNeXt around tensors that are given, so that training and serving share them.

    Maps uint8 (N, H, W, 3) to float32 logits (N, classes); :meth:`from_tensor` takes what is normalised already. The
    first `frozen` parts are in evaluation mode in training too.
    """

    def __init__(
        self, spec: ModelSpec, preprocess: PreprocessSpec, tensors: Mapping[str, Tensor], how: Arithmetic, *,
        frozen: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if how.grouped is not None:  # it keeps something of the weights, which are those of this network
            how = replace(how, grouped=how.grouped.fresh())
        self.spec, self.how = spec, how
        device = next(iter(tensors.values())).device
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), dtype=torch.float32, device=device)
            self.register_buffer(name, values.view(1, 3, 1, 1), persistent=False)
        with torch.device("meta"):  # every tensor is given below
            kernel, stride = (7, 2) if spec.stem == "imagenet" else (3, 1)
            self.conv1 = Conv(3, spec.stem_width, kernel, stride=stride)
            self.bn1 = BatchNorm(spec.stem_width, how)
            stages: dict[str, list[Block]] = {}
            for block in spec.blocks:
                stages.setdefault(block.name.split(".")[0], []).append(Block(block, spec.groups, how))
            for name, blocks in stages.items():
                self.add_module(name, nn.Sequential(*blocks))
            self.fc = nn.Linear(spec.features, spec.num_classes)
        self.blocks = [block for name in stages for block in self.get_submodule(name)]
        learning = {name: tensor.requires_grad for name, tensor in tensors.items()}
        self.load_state_dict(dict(tensors), assign=True)
        for name, parameter in self.named_parameters():  # which that has made learn, all of them
            parameter.requires_grad_(learning[name])
        self._frozen = [module for name, module in self.named_children() if part_of(name) < frozen]

    def train(self, mode: bool = True) -> Network:
        """Set the mode of training or evaluation; what is frozen stays in the latter."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, *mix: Tensor, branches: Tensor | None = None) -> Tensor:
        """Map uint8 (N, H, W, 3) to float32 logits; the view as NCHW is in channels-last order as it is.

        `mix` are the tensors of :mod:`resnext_gpu.mixing` in a training that mixes images, else there are none.
        `branches` float32 (N, blocks) are what the residual branches are multiplied by, in the type of computation.
        """
        pixels = mixed_pixels(images, *mix) if mix else images
        return self.from_tensor((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std, branches)

    def prepare(self) -> None:
        """Derive from the weights what the grouped convolutions use in their place; before each forward pass."""
        if self.how.grouped is not None:
            self.how.grouped.prepare()

    def from_tensor(self, x: Tensor, branches: Tensor | None = None) -> Tensor:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes); `branches` as in :meth:`forward`."""
        if not torch.compiler.is_compiling():  # who compiles this calls it before
            self.prepare()
        layout = torch.channels_last if self.how.channels_last else torch.contiguous_format
        x = x.to(self.how.compute).contiguous(memory_format=layout)
        x = self.bn1(self.conv1(x), relu=True)
        if self.spec.stem == "imagenet":
            x = max_pool(x, self.spec)
        shares = None if branches is None else branches.to(x.dtype)
        for i, block in enumerate(self.blocks):
            given = (x,) if shares is None else (x, shares[:, i])
            if self.how.checkpointing and torch.is_grad_enabled() and block.training:
                again = lambda block=block: (nullcontext(), block.again())  # noqa: E731
                x = checkpoint(block, *given, use_reentrant=False, context_fn=again, preserve_rng_state=False)
            else:
                x = block(*given)
        features = x.float().mean((2, 3)).to(self.how.compute)
        return F.linear(features, self.fc.weight.to(features.dtype)).float() + self.fc.bias


class Conv(nn.Conv2d):
    """A convolution without bias, in the type of its input; computed by `way` where that is given."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1,
        way: GroupedConv | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self._way = way

    def forward(self, x: Tensor) -> Tensor:
        if self._way is not None:
            return self._way(x, self.weight, self.stride[0])
        return F.conv2d(x, self.weight.to(x.dtype), None, self.stride, self.padding, 1, self.groups)


class BatchNorm(nn.Module):
    """Batch normalisation, and what follows it: an addition and relu. In training it moves its running statistics.

    To the unbiased variance.
    """

    def __init__(self, channels: int, how: Arithmetic) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.how, self.moves = how, True

    def forward(self, x: Tensor, other: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """Return the normalised `x`, plus `other` if that is given, and of that relu if `relu`."""
        if self.training and self.how.norm is not None and x.shape[1] % CHANNELS == 0:
            return self.how.norm(x, self, other, relu)
        y = self._alone(x)
        if other is not None:
            y += other
        return F.relu(y, inplace=True) if relu else y

    def _alone(self, x: Tensor) -> Tensor:
        low = not self.how.bn_float32 and x.dtype != torch.float32
        tensors = [self.running_mean, self.running_var, self.weight, self.bias]
        mean, var, weight, bias = [t.to(x.dtype) for t in tensors] if low else tensors
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, BN_EPS)
        if self.how.sync is None:
            self.need_several(x.numel() // x.shape[1])
        if not self.moves:  # copies move instead, so that the same operations save the same tensors
            mean, var = mean.clone(), var.clone()
        if self.how.sync is not None:
            return self.how.sync(x, mean, var, weight, bias)
        y = F.batch_norm(x, mean, var, weight, bias, True, BN_MOMENTUM, BN_EPS)
        if low and self.moves:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return y

    def need_several(self, count: int) -> None:
        """Raise UsageError where a channel has one value, and so no variance."""
        if count == 1:
            raise UsageError(
                "a batch normalisation has only one value per channel, and so no variance; raise train.batch_size"
            )


class Block(nn.Module):
    """1x1 -> grouped 3x3 (stride here) -> 1x1, added to the shortcut."""

    def __init__(self, spec: BlockSpec, groups: int, how: Arithmetic) -> None:
        super().__init__()
        self.conv1 = Conv(spec.in_channels, spec.width, 1)
        self.bn1 = BatchNorm(spec.width, how)
        self.conv2 = Conv(spec.width, spec.width, 3, stride=spec.stride, groups=groups, way=how.grouped)
        self.bn2 = BatchNorm(spec.width, how)
        self.conv3 = Conv(spec.width, spec.out_channels, 1)
        self.bn3 = BatchNorm(spec.out_channels, how)
        self.downsample = None
        if spec.downsample:
            shortcut = Conv(spec.in_channels, spec.out_channels, 1, stride=spec.stride)
            self.downsample = nn.Sequential(shortcut, BatchNorm(spec.out_channels, how))

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the output; `share` (N,), in the type of x, is what the branch of each row is multiplied by."""
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        y = self.conv3(y)
        shortcut = x if self.downsample is None else self.downsample(x)
        if share is None:
            return self.bn3(y, shortcut, relu=True)
        return F.relu(torch.addcmul(shortcut, self.bn3(y), share[:, None, None, None]), inplace=True)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Compute the block once more without moving its running statistics: they have moved in the forward pass."""
        norms = [m for m in self.modules() if isinstance(m, BatchNorm)]
        for norm in norms:
            norm.moves = False
        try:
            yield
        finally:
            for norm in norms:
                norm.moves = True


def max_pool(x: Tensor, spec: ModelSpec) -> Tensor:
    """The stem's 3x3 stride-2 max-pool over (N, C, H, W), with the padding of the spec."""
    rows, columns = spec.pool_pads(x.shape[2]), spec.pool_pads(x.shape[3])
    if rows == columns == (1, 1):
        return F.max_pool2d(x, 3, 2, padding=1)
    if rows == columns == (0, 1):  # a last window that hangs over, which is what ceil_mode is
        return F.max_pool2d(x, 3, 2, ceil_mode=True)
    return F.max_pool2d(F.pad(x, (*columns, *rows), value=float("-inf")), 3, 2)


def make_tensors(
    spec: ModelSpec, arrays: Mapping[str, Any], device: Any, *, channels_last: bool
) -> dict[str, Tensor]:
    """Return a float32 copy of every array of `spec` on `device`, a Parameter where it is trainable."""
    made = {}
    for t in spec.tensors:
        tensor = torch.tensor(arrays[t.name], dtype=torch.float32, device=device)
        if t.role == "conv" and channels_last:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        made[t.name] = nn.Parameter(tensor) if t.trainable else tensor
    return made
