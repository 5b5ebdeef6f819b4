"""Naming schemes: what other programs call the tensors of a ResNeXt, and how their networks differ.

A :class:`Naming` maps every tensor of a ModelSpec to its name in the scheme, or to the names of its pieces: the
ModelZoo on Ascend and CPU stores a grouped convolution as one convolution per group, the slices of the grouped
weight along axis 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resnext_core.config import PreprocessConfig
from resnext_core.model.spec import ModelSpec, PoolPadding

#: MindSpore's names in batch normalisation.
_MINDSPORE_BN = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Naming:
    """One naming scheme: `id` on the command line, `rename` from a neutral name to the scheme's.

    `split` stores conv2 as one tensor per group. `pool_padding` and `preprocess` are what its networks are trained
    with. `prefixes` may precede every name and are stripped; `extras` are patterns of tensors that are not
    weights, with the reason why they are left out. `containers` are the file endings that it uses, `tag` is the
    ``format`` in the header of its safetensors files.
    """

    id: str
    summary: str
    rename: Callable[[str], str]
    pool_padding: PoolPadding
    preprocess: PreprocessConfig
    containers: tuple[str, ...]
    split: bool = False
    prefixes: tuple[str, ...] = ()
    extras: Mapping[str, str] = field(default_factory=dict)
    moments: str | None = None
    tag: str = "pt"

    def pieces(self, spec: ModelSpec) -> dict[str, tuple[str, ...]]:
        """Return the scheme's names of every tensor of `spec`: one, or one for each group."""
        found = {}
        for tensor in spec.tensors:
            name = self.rename(tensor.name)
            if self.split and tensor.name.endswith(".conv2.weight"):
                stem = name.removesuffix("weight")
                found[tensor.name] = tuple(f"{stem}convs.{g}.weight" for g in range(spec.groups))
            else:
                found[tensor.name] = (name,)
        return found

    def strip(self, name: str) -> str:
        """Return `name` without the prefixes of wrappers."""
        stripped = True
        while stripped:
            stripped = False
            for prefix in self.prefixes:
                if name.startswith(prefix):
                    name, stripped = name[len(prefix) :], True
        return name

    def extra(self, name: str) -> str | None:
        """Return why a tensor of this name is not a weight, or None."""
        return next((reason for pattern, reason in self.extras.items() if re.fullmatch(pattern, name)), None)


def _torch(name: str) -> str:
    return name


def _mindspore_bn(name: str) -> str:
    head, _, last = name.rpartition(".")
    is_bn = re.search(r"(^|\.)(bn\d?|downsample\.1)$", head) is not None
    return f"{head}.{_MINDSPORE_BN[last]}" if is_bn else name


def _modelzoo(name: str) -> str:
    name = _mindspore_bn(name)
    if name.startswith("fc."):
        return f"head.{name}"
    name = name.replace("downsample.0", "down_sample.conv").replace("downsample.1", "down_sample.bn")
    name = re.sub(r"^conv1\.", "conv.", re.sub(r"^bn1\.", "bn.", name))
    return f"backbone.{name}"


def _mmpretrain(name: str) -> str:
    return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"


def _mindcv(name: str) -> str:
    name = _mindspore_bn(name).replace("downsample", "down_sample")
    return f"classifier.{name[3:]}" if name.startswith("fc.") else name


_OPTIMIZER = "state of MindSpore's optimizer or callbacks"
#: What the MindSpore schemes have in common; `moments.` is the prefix that nn.Momentum adds to a weight's name.
_MINDSPORE: Any = {
    "pool_padding": "same",
    "tag": "ms",
    "containers": (".ckpt", ".safetensors"),
    "prefixes": ("network.",),
    "moments": "moments.",
    "extras": {
        r"(global_step|learning_rate|momentum|loss_scale|scale_sense|epoch_num|step_num|lr)": _OPTIMIZER,
        r"(current_iterator_step|last_overflow_iterator_step|good_step|train_network_factor)": _OPTIMIZER,
        r"(accum|stat)\..*": _OPTIMIZER,
    },
}
_SQUASH = PreprocessConfig(mode="squash", filter="plain")

NAMINGS: Mapping[str, Naming] = {
    naming.id: naming
    for naming in (
        Naming(
            id="torch", summary="torchvision and timm", rename=_torch, pool_padding="symmetric",
            preprocess=PreprocessConfig(mode="shorter-side", filter="antialias"),
            containers=(".pth", ".pt", ".bin", ".safetensors"), prefixes=("module.", "_orig_mod."),
            extras={
                r".*\.num_batches_tracked": "an unused counter",
                "n_averaged": "number of updates of the moving average",
            },
        ),
        Naming(
            id="modelzoo", summary="the ModelZoo scripts on GPU: one grouped conv2", rename=_modelzoo,
            preprocess=_SQUASH, **_MINDSPORE,
        ),
        Naming(
            id="modelzoo-split", summary="the ModelZoo scripts on Ascend and CPU: one convolution per group",
            rename=_modelzoo, split=True, preprocess=_SQUASH, **_MINDSPORE,
        ),
        Naming(
            id="mindcv", summary="mindcv's ResNeXt", rename=_mindcv,
            preprocess=PreprocessConfig(mode="shorter-side", filter="plain"), **_MINDSPORE,
        ),
        Naming(
            id="mmpretrain", summary="mmpretrain and mmcls", rename=_mmpretrain, pool_padding="symmetric",
            preprocess=PreprocessConfig(mode="shorter-side", filter="plain"),
            containers=(".pth", ".pt", ".bin", ".safetensors"), prefixes=("module.", "_orig_mod.", "model."),
            extras={
                r".*\.num_batches_tracked": "an unused counter",
                r"data_preprocessor\..*": "mean and standard deviation of the images",
                r"ema_\w+": "the weights before averaging, as mmcv keeps them",
            },
        ),
    )
}  # fmt: skip


#: Schemes that were renamed after 0.1, old to new. Old spellings are accepted on the command line; remove with 0.3.
OLD_NAMES: Mapping[str, str] = {"ancestor": "modelzoo", "ancestor-split": "modelzoo-split"}


def current_name(name: str) -> str:
    """Return the id of a naming scheme by its present or its old spelling."""
    return OLD_NAMES.get(name, name)


#: Names that occur in only one scheme, without prefixes: of the network, and of its classifier, which may be missing.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("modelzoo", ("backbone.conv.weight", "backbone.bn.gamma")),
    ("mindcv", ("conv1.weight", "bn1.gamma")),
    ("mmpretrain", ("backbone.conv1.weight", "backbone.bn1.running_mean", "head.fc.weight")),
    ("torch", ("conv1.weight", "bn1.running_mean")),
)


def detect(names: Iterable[str]) -> Naming | None:
    """Return the naming scheme, by tensor names that occur in only one scheme; None if none matches."""
    found = set(names)
    for naming, marks in _MARKS:
        stripped = {NAMINGS[naming].strip(name) for name in found}
        fits = bool(network_prefixes(stripped)) if naming == "torch" else stripped.issuperset(marks)
        if fits:
            if naming == "modelzoo" and any(".conv2.convs." in name for name in stripped):
                naming = "modelzoo-split"
            return NAMINGS[naming]
    return None


def network_prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes of torch's names: '' in a plain file, ``model.`` in Lightning's, one for each network.

    A prefix counts if the tensors of the stem and of the first block have it.
    """
    found = set(names)
    heads = (name.removesuffix("conv1.weight") for name in found if name.endswith("conv1.weight"))
    return sorted(
        head for head in heads if {f"{head}bn1.running_mean", f"{head}layer1.0.conv1.weight"} <= found and
        (not head or head.endswith("."))
    )  # fmt: skip
