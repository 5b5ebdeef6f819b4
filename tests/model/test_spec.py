"""ModelSpec: sizes against published counts, the tensor table, pooling pads, and refusal of nonsense."""

from __future__ import annotations

import json

import pytest

from resnext_core.errors import UsageError
from resnext_core.model.spec import VARIANTS, ModelSpec, model_spec

#: Parameters and MACs (at 224, in units of 10^7) from the table of parity facts.
PUBLISHED = {
    "resnext50_32x4d": (25_028_904, 423),
    "resnext101_32x4d": (44_177_704, 797),
    "resnext101_64x4d": (83_455_272, 1546),
    "resnext101_32x8d": (88_791_336, 1641),
    "resnext152_32x4d": (59_951_400, 1171),
    "resnext152_64x4d": (114_971_944, 2294),
}
TINY = model_spec("resnext_tiny")


@pytest.mark.parametrize("variant", sorted(PUBLISHED))
def test_parameters_and_macs_are_the_published_ones(variant: str) -> None:
    spec = VARIANTS[variant]
    assert (spec.parameters, round(spec.macs / 1e7)) == PUBLISHED[variant]


@pytest.mark.parametrize(("variant", "millions"), [("resnext29_8x64d", 34.4), ("resnext29_16x64d", 68.1)])
def test_cifar_networks_have_the_papers_parameters(variant: str, millions: float) -> None:
    """Table 7 of arXiv:1611.05431, which rounds 68.155 down."""
    assert int(VARIANTS[variant].parameters / 1e5) / 10 == millions


def test_resnext152_with_statistics() -> None:
    assert sum(t.size for t in VARIANTS["resnext152_64x4d"].tensors) == 115_266_984


def test_widths_of_152_64x4d() -> None:
    spec = VARIANTS["resnext152_64x4d"]
    assert sorted({b.width for b in spec.blocks}) == [256, 512, 1024, 2048]
    assert len(spec.blocks) == 3 + 8 + 36 + 3


def test_tensor_table_of_resnext50() -> None:
    table = {t.name: t for t in VARIANTS["resnext50_32x4d"].tensors}
    assert len(table) == 53 * 5 + 2  # 53 convolutions with BN, one dense layer
    assert table["conv1.weight"].shape == (64, 3, 7, 7)
    assert table["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert table["layer4.2.conv2.weight"].shape == (1024, 32, 3, 3)
    assert table["fc.weight"].shape == (1000, 2048)
    assert {t.role for t in table.values() if t.decay} == {"conv", "fc_weight"}
    assert {t.role for t in table.values() if not t.trainable} == {"bn_mean", "bn_var"}
    assert "layer1.1.downsample.0.weight" not in table


def test_only_the_first_block_of_later_stages_has_a_stride() -> None:
    strides = {b.name: b.stride for b in VARIANTS["resnext50_32x4d"].blocks}
    assert {n for n, s in strides.items() if s == 2} == {"layer2.0", "layer3.0", "layer4.0"}


@pytest.mark.parametrize("size", range(1, 40))
def test_pool_pads_give_half_the_size_rounded_up(size: int) -> None:
    for padding in ("same", "symmetric"):
        before, after = TINY.replace(pool_padding=padding).pool_pads(size)
        assert (size + before + after - 3) // 2 + 1 == (size + 1) // 2


@pytest.mark.parametrize(
    ("size", "pads"), [(112, (0, 1)), (16, (0, 1)), (17, (1, 1)), (1, (1, 1)), (2, (0, 1))]
)
def test_same_pool_pads_after_on_even_sizes(size: int, pads: tuple[int, int]) -> None:
    assert TINY.replace(pool_padding="same").pool_pads(size) == pads
    assert TINY.replace(pool_padding="symmetric").pool_pads(size) == (1, 1)


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=list(VARIANTS))
def test_json_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stem": "vgg"}, "stem"),
        ({"pool_padding": "valid"}, "pool_padding"),
        ({"depths": []}, "depths"),
        ({"depths": [1, 0]}, "depths"),
        ({"depths": [1.0]}, "depths"),
        ({"depths": 3}, "depths"),
        ({"groups": 0}, "groups"),
        ({"groups": True}, "groups"),
        ({"num_classes": "10"}, "num_classes"),
        ({"image_size": 0}, "image_size"),
        ({"stem_width": 2, "base_width": 4}, "empty group"),
        ({"variant": 5}, "variant"),
    ],
)
def test_from_dict_refuses_what_is_no_network(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ModelSpec.from_dict(TINY.to_dict() | changes)


def test_from_dict_wants_every_field_and_no_other() -> None:
    data = TINY.to_dict()
    with pytest.raises(UsageError, match="extra"):
        ModelSpec.from_dict(data | {"extra": 1})
    del data["groups"]
    with pytest.raises(UsageError, match="fields"):
        ModelSpec.from_dict(data)
    with pytest.raises(UsageError, match="list"):
        ModelSpec.from_dict([1])  # type: ignore[arg-type]


def test_unknown_variant_is_one_line_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'resnext50_32x4d'") as caught:
        model_spec("resnext50_32x4")
    assert "\n" not in str(caught.value)
