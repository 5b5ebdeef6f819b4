"""Checkpoints that MindSpore itself wrote are read without it, and it reads ours: bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from resnext_core.convert.ckpt import read_stored, write_ckpt  # noqa: E402
from resnext_core.convert.names import NAMINGS  # noqa: E402
from resnext_core.convert.reading import from_tensors  # noqa: E402
from resnext_core.errors import DataError  # noqa: E402
from resnext_core.interfaces import PredictRequest  # noqa: E402
from resnext_core.model.init import random_weights  # noqa: E402
from resnext_core.model.spec import ModelSpec, model_spec  # noqa: E402
from resnext_core.plugins import get_backend  # noqa: E402
from resnext_core.ranks.info import RankInfo  # noqa: E402


def old_network(spec: ModelSpec, split: bool) -> Any:
    """Return a Cell with the ModelZoo's structure and names, written out here with MindSpore's own layers."""
    from mindspore import nn, ops

    def conv(inside: int, outside: int, kernel: int, stride: int = 1, group: int = 1) -> Any:
        return nn.Conv2d(
            inside, outside, kernel, stride, pad_mode="pad", padding=kernel // 2, group=group, has_bias=False
        )

    class GroupConv(nn.Cell):
        def __init__(self, width: int, stride: int, groups: int) -> None:
            super().__init__()
            self.groups = groups
            self.convs = nn.CellList(
                [conv(width // groups, width // groups, 3, stride) for _ in range(groups)]
            )

        def construct(self, x: Any) -> Any:
            parts = ops.split(x, x.shape[1] // self.groups, axis=1)
            return ops.concat([c(p) for c, p in zip(self.convs, parts)], axis=1)  # noqa: B905 (graph mode)

    class Down(nn.Cell):
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.conv, self.bn = conv(inside, outside, 1, stride), nn.BatchNorm2d(outside)

        def construct(self, x: Any) -> Any:
            return self.bn(self.conv(x))

    class Block(nn.Cell):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(block.in_channels, block.width, 1), nn.BatchNorm2d(block.width)
            if split:
                self.conv2: Any = GroupConv(block.width, block.stride, spec.groups)
            else:
                self.conv2 = conv(block.width, block.width, 3, block.stride, spec.groups)
            self.bn2 = nn.BatchNorm2d(block.width)
            self.conv3, self.bn3 = (
                conv(block.width, block.out_channels, 1),
                nn.BatchNorm2d(block.out_channels),
            )
            self.relu = nn.ReLU()
            self.has_down = block.downsample
            if block.downsample:
                self.down_sample = Down(block.in_channels, block.out_channels, block.stride)

        def construct(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            return self.relu(self.bn3(self.conv3(y)) + (self.down_sample(x) if self.has_down else x))

    class Backbone(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(3, spec.stem_width, 7, 2), nn.BatchNorm2d(spec.stem_width)
            self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2, pad_mode="same")
            for stage in range(len(spec.depths)):
                blocks = [Block(b) for b in spec.blocks if b.name.startswith(f"layer{stage + 1}.")]
                setattr(self, f"layer{stage + 1}", nn.SequentialCell(blocks))

        def construct(self, x: Any) -> Any:
            x = self.pool(self.relu(self.bn(self.conv(x))))
            return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))

    class Head(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Dense(spec.features, spec.num_classes)

        def construct(self, x: Any) -> Any:
            return self.fc(x)

    class Network(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = Backbone(), Head()

        def construct(self, x: Any) -> Any:
            return self.head(self.backbone(x))

    return Network()


def fill(network: Any, spec: ModelSpec, tensors: dict[str, Any], naming: str) -> None:
    """Give every Parameter of an old network its value; each must have one."""
    parameters = {p.name: p for p in network.get_parameters()}
    for name, pieces in NAMINGS[naming].pieces(spec).items():
        for piece, array in zip(pieces, np.split(tensors[name], len(pieces)), strict=True):
            parameters.pop(piece).set_data(ms.Tensor(array))
    assert not parameters, "the old network has tensors that the names do not know"


@pytest.fixture(scope="module")
def device() -> None:
    """MindSpore set up by our engine, before its first convolution."""
    from resnext_mindspore.device import Device, open_device

    open_device(Device())


def test_the_old_split_convolution_is_the_grouped_one(device: None) -> None:
    """What merging its pieces along axis 0 rests on, at the size of a small network."""
    spec = ModelSpec(
        variant="small", depths=(1, 1, 1, 1), groups=4, base_width=16, stem_width=8, num_classes=3
    )
    tensors = random_weights(spec, 4)
    image = ms.Tensor(np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32))
    logits = []
    for naming in ("modelzoo", "modelzoo-split"):
        network = old_network(spec, split=naming == "modelzoo-split").set_train(False)
        fill(network, spec, tensors, naming)
        logits.append(network(image).asnumpy())
    assert np.abs(logits[0] - logits[1]).max() <= 1e-6 * np.abs(logits[0]).max()


@pytest.mark.parametrize("naming", ["modelzoo", "modelzoo-split"])
def test_a_resnext50_saved_by_the_old_network_gives_its_logits(
    device: None, naming: str, tmp_path: Path
) -> None:
    """The old network saves and computes logits; ours reads the file and the reference computes them again.

    The logits come from its grouped form (see the test above): the split one takes minutes to compile.
    """
    spec = model_spec("resnext50_32x4d", num_classes=7)
    ours = random_weights(spec, 11)
    network = old_network(spec, split=naming == "modelzoo-split")
    fill(network, spec, ours, naming)
    optimizer = ms.nn.Momentum(network.trainable_params(), 0.1, 0.9)
    saved = [{"name": p.name, "data": p} for p in [*network.get_parameters(), *optimizer.moments]]
    path = tmp_path / "old.ckpt"
    ms.save_checkpoint(saved, str(path))
    computing = old_network(spec, split=False).set_train(False)
    fill(computing, spec, ours, "modelzoo")
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    expected = computing(ms.Tensor(image)).asnumpy()

    found = from_tensors(read_stored(path), path, moments=True)
    assert found.naming.id == naming
    assert set(found.momentum) == {t.name for t in spec.tensors if t.trainable}
    for name, array in ours.items():
        assert found.weights.tensors[name].tobytes() == array.tobytes(), name
    reference = get_backend("reference")
    assert reference.predictor is not None
    predictor = reference.predictor(PredictRequest(weights=found.weights, rank=RankInfo()))
    logits = predictor.logits_from_tensor(image)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("crc", [False, True])
def test_files_of_mindspore_are_read_to_the_bit(crc: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "step": np.array(7, np.int32),
        "one": np.ones(1, np.float32),
    }
    path = tmp_path / "m.ckpt"
    items = [{"name": n, "data": ms.Tensor(a)} for n, a in arrays.items()]
    extra = {} if crc else {"append_dict": {"epoch_num": 3, "note": "text", "flag": True}}
    ms.save_checkpoint(items, str(path), crc_check=crc, **extra)
    found = read_stored(path).tensors
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    assert set(found) - set(arrays) == (set() if crc else {"epoch_num", "flag"})
    if crc:
        whole = bytearray(path.read_bytes())
        whole[30] ^= 1
        (tmp_path / "bad.ckpt").write_bytes(whole)
        with pytest.raises(DataError, match="not a readable MindSpore checkpoint"):
            read_stored(tmp_path / "bad.ckpt")


def test_bfloat16_is_read_as_the_float32_it_means(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)  # exact in bfloat16
    ms.save_checkpoint(
        [{"name": "b", "data": ms.Tensor(values).astype(ms.bfloat16)}], str(tmp_path / "b.ckpt")
    )
    assert np.array_equal(read_stored(tmp_path / "b.ckpt").tensors["b"], values)


def test_mindspore_reads_our_files_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "a.weight": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "step": np.array(7, np.int32),
    }
    write_ckpt(tmp_path / "ours.ckpt", arrays)
    loaded = ms.load_checkpoint(str(tmp_path / "ours.ckpt"))
    assert list(loaded) == list(arrays)
    for name, parameter in loaded.items():
        assert parameter.asnumpy().tobytes() == arrays[name].tobytes()
        assert parameter.shape == arrays[name].shape
