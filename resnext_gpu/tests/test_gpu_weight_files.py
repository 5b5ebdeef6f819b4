"""torch's files through convert: both formats, wrappers, and nothing that would have to be executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from resnext_gpu.weight_files import read_pth, write_pth  # noqa: E402

from resnext_core.cli.main import main  # noqa: E402
from resnext_core.errors import DataError  # noqa: E402
from resnext_core.preprocess import PreprocessSpec  # noqa: E402
from resnext_core.spec import model_spec  # noqa: E402
from resnext_core.weights import Weights, load_weights, random_weights, save_weights  # noqa: E402


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
    assert read_pth(tmp_path / "t.pth")["a"].tolist() == [1, 1]


def test_neutral_becomes_what_torch_loads(weights: Weights, tmp_path: Path) -> None:
    save_weights(weights, tmp_path / "n.safetensors")
    assert main(["convert", str(tmp_path / "n.safetensors"), str(tmp_path / "t.pth")]) == 0
    loaded = torch.load(tmp_path / "t.pth", weights_only=True)
    assert list(loaded) == list(weights.tensors)
    for name, array in weights.tensors.items():
        assert loaded[name].numpy().tobytes() == array.tobytes()


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "t.pth")
    array = read_pth(tmp_path / "t.pth")["a"]
    assert (array.dtype, array.tolist()) == (np.float32, [1.5, -2.0])


class Harmful:
    """Executed when unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "executed")}, tmp_path / "t.pth")
    with pytest.raises(DataError, match="would execute it; save its state_dict alone") as caught:
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
        with pytest.raises(DataError, match="is no state dict"):
            read_pth(tmp_path / "t.pth")


def test_a_truncated_file_is_refused_at_every_tenth(weights: Weights, tmp_path: Path) -> None:
    write_pth(tmp_path / "t.pth", {"a": np.arange(500, dtype=np.float32)})
    whole = (tmp_path / "t.pth").read_bytes()
    for tenth in range(10):
        (tmp_path / "t.pth").write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(DataError):
            read_pth(tmp_path / "t.pth")
