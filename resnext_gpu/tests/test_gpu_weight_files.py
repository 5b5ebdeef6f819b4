"""torch's files through convert: both formats, wrappers, and nothing that would have to be executed."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from resnext_gpu.weight_files import read_pth, write_pth  # noqa: E402

from resnext_core.cli.main import main  # noqa: E402
from resnext_core.errors import DataError  # noqa: E402
from resnext_core.model.init import random_weights  # noqa: E402
from resnext_core.model.preprocess import PreprocessSpec  # noqa: E402
from resnext_core.model.spec import model_spec  # noqa: E402
from resnext_core.model.weights import Weights, load_weights, save_weights  # noqa: E402


@pytest.fixture
def weights() -> Weights:
    spec = model_spec("resnext50_32x4d", num_classes=3, pool_padding="symmetric")
    return Weights(
        spec=spec, preprocess=PreprocessSpec(), classes=("0", "1", "2"), tensors=random_weights(spec, 2)
    )


def state_dict(weights: Weights) -> dict[str, Any]:
    """What torchvision saves: the weights, and a counter beside every running mean."""
    state = {}
    for name, array in weights.tensors.items():
        state[name] = torch.from_numpy(array.copy())
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(9)
    return state


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_torch_files_become_neutral_to_the_bit(
    weights: Weights, tmp_path: Path, zipped: bool, wrapper: str | None
) -> None:
    state = state_dict(weights)
    saved = state if wrapper is None else {wrapper: {f"module.{n}": t for n, t in state.items()}, "epoch": 7}
    torch.save(saved, tmp_path / "t.pth", _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(tmp_path / "t.pth"), str(tmp_path / "n.safetensors")]) == 0
    made = load_weights(tmp_path / "n.safetensors")
    assert made.digest == weights.digest
    assert made.spec == weights.spec
    assert (made.preprocess.mode, made.preprocess.filter) == ("shorter-side", "antialias")


def test_the_average_is_taken_where_there_is_one(weights: Weights, tmp_path: Path) -> None:
    plain, average = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    torch.save({"state_dict": plain, "state_dict_ema": average}, tmp_path / "t.pth")
    stored = read_pth(tmp_path / "t.pth")
    assert stored.tensors["a"].tolist() == [1, 1]
    assert stored.others == {"state_dict": "other weights of the checkpoint; 'state_dict_ema' was taken"}


def test_neutral_becomes_what_torch_loads(weights: Weights, tmp_path: Path) -> None:
    save_weights(weights, tmp_path / "n.safetensors")
    assert main(["convert", str(tmp_path / "n.safetensors"), str(tmp_path / "t.pth")]) == 0
    loaded = torch.load(tmp_path / "t.pth", weights_only=True)
    assert list(loaded) == list(weights.tensors)
    for name, array in weights.tensors.items():
        assert loaded[name].numpy().tobytes() == array.tobytes()


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "t.pth")
    array = read_pth(tmp_path / "t.pth").tensors["a"]
    assert (array.dtype, array.tolist()) == (np.float32, [1.5, -2.0])


class Harmful:
    """Executed when unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "executed")}, tmp_path / "t.pth")
    with pytest.raises(
        DataError,
        match=r"it contains \w+\.mkdir, and reading that would execute",
    ) as caught:
        read_pth(tmp_path / "t.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x02}q\x00."])
def test_what_is_no_torch_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.pth").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_pth(tmp_path / "t.pth")
    assert "\n" not in str(caught.value)


def test_other_things_than_tensors_are_refused(tmp_path: Path) -> None:
    for value in (3, [torch.zeros(1)], {"epoch": 3}):
        torch.save(value, tmp_path / "t.pth")
        with pytest.raises(DataError, match="is not a state dict"):
            read_pth(tmp_path / "t.pth")


def test_a_truncated_file_is_refused_at_every_tenth(weights: Weights, tmp_path: Path) -> None:
    write_pth(tmp_path / "t.pth", {"a": np.arange(500, dtype=np.float32)}, "pt")
    whole = (tmp_path / "t.pth").read_bytes()
    for tenth in range(10):
        (tmp_path / "t.pth").write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(DataError):
            read_pth(tmp_path / "t.pth")


def test_checkpoints_of_timm_and_torchvision_are_looked_into(weights: Weights, tmp_path: Path) -> None:
    """With the flags that timm trained with, and torchvision's counter of the moving average."""
    state = state_dict(weights)
    timm = {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1, opt="sgd"),
        "metric": 0.5,
        "optimizer": {"state": {}},
    }
    average = {f"module.{n}": t for n, t in state.items()} | {"n_averaged": torch.tensor(9)}
    for name, content in (("m.pth.tar", timm), ("v.bin", {"model_ema": average, "model": {}, "epoch": 3})):
        torch.save(content, tmp_path / name)
        words = ["convert", str(tmp_path / name), str(tmp_path / f"{name}.safetensors")]
        assert main([*words, "--report", str(tmp_path / "report")]) == 0
        assert load_weights(tmp_path / f"{name}.safetensors").digest == weights.digest
        changes = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
        dropped = {c["source"][0]: c["reason"] for c in changes if c["kind"] == "dropped"}
        dropped = {n: why for n, why in dropped.items() if "batches" not in n}
        if content is timm:
            assert dropped == {
                "args": "not weights: Namespace", "metric": "not weights: float",
                "optimizer": "state of torch's optimizer"
            }  # fmt: skip
        else:
            assert dropped == {
                "model": "other weights of the checkpoint; 'model_ema' was taken", "epoch": "not weights: int",
                "n_averaged": "number of updates of the moving average",
            }  # fmt: skip


def test_there_and_back_gives_the_same_bytes(weights: Weights, tmp_path: Path) -> None:
    """The files too, not only the tensors."""
    save_weights(weights, tmp_path / "n.safetensors")
    for name in ("a.pth", "b.pth"):
        assert main(["convert", str(tmp_path / "n.safetensors"), str(tmp_path / name)]) == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()


def test_quantised_and_sparse_tensors_are_refused(tmp_path: Path) -> None:
    for tensor in (torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)):
        torch.save({"conv1.weight": tensor}, tmp_path / "t.pth")
        with pytest.raises(DataError, match=r"t\.pth"):
            read_pth(tmp_path / "t.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused_or_readable(tmp_path: Path, zipped: bool) -> None:
    spec = model_spec("resnext_tiny")
    state = {n: torch.from_numpy(a) for n, a in random_weights(spec, 1).items()}
    path = tmp_path / "t.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for trial in range(200):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(data))) if trial % 2 else int(rng.integers(min(len(data), 3000)))
            if trial % 5 == 4:
                del data[at + 1 :]
            else:
                data[at] = int(rng.integers(256))
        path.write_bytes(data)
        line = ""
        try:
            read_pth(path)
        except DataError as error:
            line = str(error)
            refused += 1
        assert "\n" not in line
        assert len(line) < 1000
    assert refused > 60
