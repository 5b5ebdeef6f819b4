"""ModelSpec: the architecture as data. Depths, widths, tensor names and shapes, MACs, variants.

Sources: Xie et al., "Aggregated Residual Transformations for Deep Neural Networks"
(arXiv:1611.05431), tables 1 and 7; stride on the 3x3 convolution as in ResNet v1.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from resnext_core.errors import UsageError, quoted, shown, suggest

Stem = Literal["imagenet", "cifar"]
PoolPadding = Literal["same", "symmetric"]
Role = Literal["conv", "bn_weight", "bn_bias", "bn_mean", "bn_var", "fc_weight", "fc_bias"]

#: Added to the variance in every batch normalisation.
BN_EPS = 1e-5
#: Weight of the new statistics: running = (1 - BN_MOMENTUM) * running + BN_MOMENTUM * batch
#: (some frameworks give the name momentum to 1 minus this). The running variance takes the unbiased batch
#: variance (divided by n - 1).
BN_MOMENTUM = 0.1
#: Output channels of a block over its nominal planes.
EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of the network: its neutral name, shape and role."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def trainable(self) -> bool:
        """True for parameters, False for BN running statistics."""
        return self.role not in ("bn_mean", "bn_var")

    @property
    def decay(self) -> bool:
        """True where weight decay applies: convolution and dense weights, nothing else."""
        return self.role in ("conv", "fc_weight")


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One bottleneck block: 1x1 -> grouped 3x3 (stride here) -> 1x1, plus its shortcut."""

    name: str
    in_channels: int
    width: int
    out_channels: int
    stride: int

    @property
    def downsample(self) -> bool:
        """True where the shortcut is a 1x1 convolution with BN instead of the identity."""
        return self.stride != 1 or self.in_channels != self.out_channels


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A ResNeXt, completely described.

    `stem` is ``imagenet`` (7x7 stride 2, then 3x3 stride-2 max-pool) or ``cifar`` (3x3 stride 1, no
    pool). `pool_padding` is how that max-pool pads: ``same`` (on an even size 0 before and 1
    after) or ``symmetric`` (1 on every side). They are different
    functions, so the field travels with the weights.

    Raises UsageError on invalid values.
    """

    variant: str
    depths: tuple[int, ...]
    groups: int
    base_width: int
    stem: Stem = "imagenet"
    stem_width: int = 64
    pool_padding: PoolPadding = "same"
    num_classes: int = 1000
    image_size: int = 224

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))
        for field, allowed in (("stem", ("imagenet", "cifar")), ("pool_padding", ("same", "symmetric"))):
            if getattr(self, field) not in allowed:
                raise UsageError(
                    f"model {field} must be one of {', '.join(allowed)}, not {quoted(getattr(self, field))}"
                )
        if not 1 <= len(self.depths) <= 8 or any(
            type(d) is not int or not 1 <= d <= 512 for d in self.depths
        ):
            raise UsageError(
                f"model depths must be 1 to 8 integers between 1 and 512, not {shown(list(self.depths))}"
            )
        for field, low, high in (
            ("groups", 1, 4096),
            ("base_width", 1, 4096),
            ("stem_width", 1, 4096),
            ("num_classes", 1, 1_000_000),
            ("image_size", 1, 8192),
        ):
            value = getattr(self, field)
            if type(value) is not int or not low <= value <= high:
                raise UsageError(
                    f"model {field} must be an integer from {low} to {high}, not {quoted(value)}"
                )
        if self.stem_width * self.base_width < 64:
            raise UsageError(
                f"model base_width {self.base_width} gives an empty group at stem_width {self.stem_width}"
            )

    # -- structure ---------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """All blocks in order of computation."""
        return tuple(self._blocks())

    def _blocks(self) -> Iterator[BlockSpec]:
        channels = self.stem_width
        for stage, depth in enumerate(self.depths):
            planes = self.stem_width << stage
            width = planes * self.base_width // 64 * self.groups
            for index in range(depth):
                yield BlockSpec(
                    name=f"layer{stage + 1}.{index}",
                    in_channels=channels,
                    width=width,
                    out_channels=planes * EXPANSION,
                    stride=2 if stage > 0 and index == 0 else 1,
                )
                channels = planes * EXPANSION

    @property
    def features(self) -> int:
        """Channels that enter the classifier."""
        return self.blocks[-1].out_channels

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor in order of computation; names are torchvision's and timm's.

        Convolutions are (out, in / groups, k, k); dense is (classes, features).
        """
        return tuple(self._tensors())

    def _tensors(self) -> Iterator[TensorSpec]:
        kernel = 7 if self.stem == "imagenet" else 3
        yield TensorSpec(name="conv1.weight", shape=(self.stem_width, 3, kernel, kernel), role="conv")
        yield from _bn("bn1", self.stem_width)
        for block in self.blocks:
            name, width, out = block.name, block.width, block.out_channels
            yield TensorSpec(name=f"{name}.conv1.weight", shape=(width, block.in_channels, 1, 1), role="conv")
            yield from _bn(f"{name}.bn1", width)
            yield TensorSpec(
                name=f"{name}.conv2.weight", shape=(width, width // self.groups, 3, 3), role="conv"
            )
            yield from _bn(f"{name}.bn2", width)
            yield TensorSpec(name=f"{name}.conv3.weight", shape=(out, width, 1, 1), role="conv")
            yield from _bn(f"{name}.bn3", out)
            if block.downsample:
                shape = (out, block.in_channels, 1, 1)
                yield TensorSpec(name=f"{name}.downsample.0.weight", shape=shape, role="conv")
                yield from _bn(f"{name}.downsample.1", out)
        yield TensorSpec(name="fc.weight", shape=(self.num_classes, self.features), role="fc_weight")
        yield TensorSpec(name="fc.bias", shape=(self.num_classes,), role="fc_bias")

    def pool_pads(self, size: int) -> tuple[int, int]:
        """Padding (before, after) of the 3x3 stride-2 max-pool on an axis of `size` pixels."""
        if self.pool_padding == "symmetric":
            return 1, 1
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        return total // 2, total - total // 2

    # -- sizes -------------------------------------------------------------------------------

    @property
    def parameters(self) -> int:
        """Number of trainable scalars (BN statistics not counted), as papers count them."""
        return sum(t.size for t in self.tensors if t.trainable)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image at `image_size`: convolutions and the classifier."""
        return sum(n * t.size for t, n in self._convolutions()) + self.features * self.num_classes

    @property
    def activations(self) -> int:
        """Number of scalars in the outputs of the convolutions for one image at `image_size`."""
        return sum(n * t.shape[0] for t, n in self._convolutions())

    def _convolutions(self) -> Iterator[tuple[TensorSpec, int]]:
        """Yield the weight of each convolution and the number of its output pixels."""
        weight = {t.name: t for t in self.tensors}
        size = self.image_size
        if self.stem == "imagenet":
            size = (size - 1) // 2 + 1
        yield weight["conv1.weight"], size * size
        if self.stem == "imagenet":
            size = (size - 1) // 2 + 1
        for block in self.blocks:
            yield weight[f"{block.name}.conv1.weight"], size * size
            size = (size - 1) // block.stride + 1
            for name in ("conv2", "conv3", *(["downsample.0"] if block.downsample else [])):
                yield weight[f"{block.name}.{name}.weight"], size * size

    # -- making and storing ------------------------------------------------------------------

    def replace(self, **changes: Any) -> ModelSpec:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; :meth:`from_dict` takes them back."""
        return dataclasses.asdict(self) | {"depths": list(self.depths)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build from JSON types; every field is required and no other allowed (UsageError)."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or set(data) != fields:
            got = shown(sorted(map(str, data)), 200) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"a model spec has the fields {sorted(fields)}, got {got}")
        depths = data["depths"]
        if not isinstance(depths, (list, tuple)) or not isinstance(data["variant"], str):
            raise UsageError("model depths must be a list and model variant a string")
        return cls(**{**data, "depths": tuple(depths)})


def _bn(name: str, channels: int) -> Iterator[TensorSpec]:
    yield TensorSpec(name=f"{name}.weight", shape=(channels,), role="bn_weight")
    yield TensorSpec(name=f"{name}.bias", shape=(channels,), role="bn_bias")
    yield TensorSpec(name=f"{name}.running_mean", shape=(channels,), role="bn_mean")
    yield TensorSpec(name=f"{name}.running_var", shape=(channels,), role="bn_var")


_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _variants() -> Iterator[ModelSpec]:
    for depth, groups, width in (
        (50, 32, 4),
        (101, 32, 4),
        (101, 64, 4),
        (101, 32, 8),
        (152, 32, 4),
        (152, 64, 4),
    ):
        yield ModelSpec(
            variant=f"resnext{depth}_{groups}x{width}d",
            depths=_DEPTHS[depth],
            groups=groups,
            base_width=width,
        )
    for groups in (8, 16):  # the paper's CIFAR networks, section 5.3
        yield ModelSpec(
            variant=f"resnext29_{groups}x64d",
            depths=(3, 3, 3),
            groups=groups,
            base_width=64,
            stem="cifar",
            num_classes=10,
            image_size=32,
        )
    yield ModelSpec(
        variant="resnext29_32x4d",
        depths=(3, 3, 3),
        groups=32,
        base_width=4,
        stem="cifar",
        num_classes=10,
        image_size=32,
    )
    yield ModelSpec(  # 26 layers of a quarter of the usual work, for small photographs on small machines
        variant="resnext26_16x8d_half",
        depths=(2, 2, 2, 2),
        groups=16,
        base_width=8,
        stem_width=32,
        num_classes=10,
        image_size=96,
    )
    yield ModelSpec(  # 20 layers of a sixteenth of the usual work: the demo's
        variant="resnext20_4x16d_quarter",
        depths=(2, 2, 2),
        groups=4,
        base_width=16,
        stem="cifar",
        stem_width=16,
        num_classes=10,
        image_size=16,
    )
    yield ModelSpec(  # the smallest with every kind of layer: for tests
        variant="resnext_tiny",
        depths=(1, 1, 1),
        groups=4,
        base_width=16,
        stem="cifar",
        stem_width=16,
        num_classes=10,
        image_size=32,
    )


VARIANTS: Mapping[str, ModelSpec] = {spec.variant: spec for spec in _variants()}


def model_spec(variant: str, **changes: Any) -> ModelSpec:
    """Return the named variant, with some of its fields changed; unknown names raise UsageError."""
    check_variant(variant)
    return VARIANTS[variant].replace(**changes)


def check_variant(name: str) -> None:
    """Raise UsageError, listing the known variants, if `name` is not one."""
    if name not in VARIANTS:
        closest = suggest(name, VARIANTS)
        known = "" if "; known: " in closest else f" (known: {', '.join(sorted(VARIANTS))})"
        raise UsageError(f"unknown model variant '{shown(name)}'{closest}{known}")
