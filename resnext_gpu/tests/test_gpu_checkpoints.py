"""Files as training programs leave them: which weights are taken, what is left out, and what is refused and why."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from resnext_core.cli.main import main  # noqa: E402
from resnext_core.convert.pth import read_pth  # noqa: E402
from resnext_core.errors import DataError  # noqa: E402
from resnext_core.model.init import random_weights  # noqa: E402
from resnext_core.model.preprocess import PreprocessSpec  # noqa: E402
from resnext_core.model.spec import ModelSpec  # noqa: E402
from resnext_core.model.weights import Weights, load_weights  # noqa: E402

State = dict[str, Any]

SPEC = ModelSpec(
    variant="small",
    depths=(1, 1),
    groups=2,
    base_width=32,
    stem_width=8,
    num_classes=3,
    pool_padding="symmetric",
)


def tensors_of(seed: int) -> dict[str, np.ndarray]:
    return random_weights(SPEC, seed)


def state(seed: int = 1, prefix: str = "", counter: bool = True) -> State:
    """What torch's ``state_dict()`` of the network gives."""
    found: State = collections.OrderedDict()
    for name, array in tensors_of(seed).items():
        found[prefix + name] = torch.from_numpy(array.copy())
        if counter and name.endswith("running_var"):
            found[prefix + name.replace("running_var", "num_batches_tracked")] = torch.tensor(9)
    return found


def mmpretrain(seed: int = 1, prefix: str = "") -> State:
    def renamed(name: str) -> str:
        return prefix + (f"head.{name}" if name.startswith("fc.") else f"backbone.{name}")

    return {renamed(name): value for name, value in state(seed).items()}


def channels_last(tensor: Any) -> Any:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


class Colour(enum.Enum):
    RED = 1


class Config:
    """Of some training script."""

    def __init__(self) -> None:
        self.lr, self.nested = 0.1, {"a": [1, 2]}


def optimizer() -> dict[str, Any]:
    return {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 4)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
    }


def digest(seed: int) -> str:
    return Weights(
        spec=SPEC, preprocess=PreprocessSpec(), classes=("0", "1", "2"), tensors=tensors_of(seed)
    ).digest


def convert(path: Path, *words: str) -> tuple[int, Weights | None]:
    target = path.with_name("converted.safetensors")
    target.unlink(missing_ok=True)
    code = main(["convert", str(path), str(target), "--report", str(path.with_name("report")), *words])
    return code, load_weights(target) if code == 0 else None


#: Name of the file, what is saved, and the entry that is taken; weights of seed 1 are the right ones.
LAYOUTS: dict[str, tuple[str, Any, str]] = {
    "torchvision": ("resnext50_32x4d.pth", lambda: state(), ""),
    "torchvision, old": ("old.pth", lambda: state(counter=False), ""),
    "torchvision's references": (
        "checkpoint.pth",
        lambda: {
            "model": state(2), "optimizer": optimizer(), "lr_scheduler": {"_schedulers": [{"T_max": 3}]}, "epoch": 7,
            "args": argparse.Namespace(lr=0.1, data_path="/data"), "scaler": {"scale": 65536.0},
            "model_ema": {**state(1, "module."), "n_averaged": torch.tensor(9)},
        },
        "model_ema",
    ),
    "timm": (
        "model_best.pth.tar",
        lambda: {
            "epoch": 3, "arch": "resnext50_32x4d", "state_dict": state(2), "state_dict_ema": state(1),
            "optimizer": optimizer(), "version": 2, "args": argparse.Namespace(opt="sgd"), "amp_scaler": {},
            "metric": np.float64(81.5),
        },
        "state_dict_ema",
    ),
    "PyTorch's tutorial": (
        "t.pt",
        lambda: {
            "epoch": 1, "model_state_dict": state(1), "optimizer_state_dict": optimizer(), "loss": torch.tensor(1.0),
        },
        "model_state_dict",
    ),
    "a tutorial": ("net.pth", lambda: {"net": state(1), "acc": 91.2, "epoch": 1}, "net"),
    "DistributedDataParallel": ("ddp.pth", lambda: {"state_dict": state(1, "module.")}, "state_dict"),
    "torch.compile": ("compiled.pth", lambda: state(1, "_orig_mod."), ""),
    "Lightning": (
        "epoch=3-step=77.ckpt",
        lambda: {
            "epoch": 3, "global_step": 77, "pytorch-lightning_version": "2.4.0", "state_dict": {
                **state(1, "model."), "train_acc.tp": torch.tensor(3), "criterion.weight": torch.ones(3),
            },
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {
                "best_model_score": torch.tensor(0.5), "dirpath": pathlib.Path("/tmp/x"), "best_model_path": "a.ckpt",
            }},
            "optimizer_states": [optimizer()], "lr_schedulers": [], "hparams_name": "config",
            "hyper_parameters": {"colour": Colour.RED, "config": Config(), "lr": np.float32(1), "kind": Config},
        },
        "state_dict",
    ),
    "Lightning, compiled": ("c.ckpt", lambda: {"state_dict": state(1, "net._orig_mod.")}, "state_dict"),
    "Lightning with an average": (
        "ema.ckpt", lambda: {"state_dict": {**state(2, "model."), **state(1, "ema_model.module.")}}, "state_dict",
    ),
    "mmpretrain": (
        "resnext50-32x4d_8xb32_in1k.pth",
        lambda: {"meta": {"mmcls_version": "0.15", "config": "x"}, "state_dict": mmpretrain(1)},
        "state_dict",
    ),
    "mmengine with EMAHook": (
        "epoch_100.pth",
        lambda: {
            "meta": {"mmengine_version": "0.10", "epoch": 100}, "state_dict": {
                **mmpretrain(1), "data_preprocessor.mean": torch.ones(3, 1, 1),
            },
            "ema_state_dict": mmpretrain(2, "module."), "message_hub": {}, "optimizer": optimizer(),
        },
        "state_dict",
    ),
    "mmcv with EMAHook": (
        "latest.pth",
        lambda: {"meta": {}, "state_dict": {
            **mmpretrain(1), **{f"ema_{n.replace('.', '_')}": t for n, t in mmpretrain(2).items()},
        }},
        "state_dict",
    ),
    "DeepSpeed": (
        "mp_rank_00_model_states.pt",
        lambda: {
            "module": state(1), "buffer_names": [], "optimizer": None, "ds_version": "0.14", "dp_world_size": 8,
            "param_shapes": [collections.OrderedDict(a=torch.Size([2, 3]))], "ds_config": {"train_batch_size": 8},
        },
        "module",
    ),
    "DeepSpeed in Lightning": ("ds.ckpt", lambda: {"state_dict": state(1, "_forward_module.model.")}, "state_dict"),
    "fastai's learn.save": ("fastai.pth", lambda: {"model": state(1), "opt": optimizer()}, "model"),
    "a wrapper in a wrapper": (
        "ema.pth", lambda: {"ema": {"module": state(1), "updates": 3}, "model": state(2)}, "ema.module",
    ),
    "one network under a name of its own": ("mine.pth", lambda: {"resnext": state(1), "optim": optimizer()}, "resnext"),
    "parameters": (
        "p.pth", lambda: {n: torch.nn.Parameter(t) for n, t in state(1, counter=False).items()}, "",
    ),
    "channels last": (
        "cl.pth", lambda: {n: channels_last(t) for n, t in state(1).items()}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_training_programs_are_understood(
    tmp_path: Path, layout: str, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, entry = LAYOUTS[layout]
    torch.save(content(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    code, weights = convert(tmp_path / name)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert weights is not None
    assert weights.digest == digest(1)
    assert weights.origin.get("entry", "") == entry
    assert (f"weights of its entry '{entry}'" in shown.err + shown.out) == bool(entry)
    # every entry and tensor of the file is accounted for
    changes = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    told = {source for change in changes for source in change["source"]}
    saved = content()
    if entry:
        assert {str(key) for key in saved} - {entry.split(".")[0]} <= told
        for part in entry.split("."):
            saved = saved[part]
    assert set(saved) <= told


def test_the_average_is_said_to_be_one(tmp_path: Path) -> None:
    for name in ("timm", "mmengine with EMAHook", "mmcv with EMAHook", "Lightning with an average"):
        torch.save(LAYOUTS[name][1](), tmp_path / "w.pth")
        assert convert(tmp_path / "w.pth")[0] == 0
        changes = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
        reasons = " ".join({c["reason"] for c in changes if c["kind"] == "dropped"})
        assert "was taken" in reasons or "before averaging" in reasons, name


class UltralyticsModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 7, bias=False)


def refusals() -> dict[str, tuple[Any, str]]:
    whole = UltralyticsModel()
    return {
        "whole model": (whole, "it is a whole .*UltralyticsModel; load it with the program that made it"),
        "Ultralytics": (
            {"epoch": -1, "model": whole, "ema": None, "train_args": {"lr0": 0.1}, "date": datetime.datetime.now()},
            "its entry 'model' is a whole .*UltralyticsModel",
        ),
        "DeepSpeed's optimizer": (
            {"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(3)]}},
            "is not a state dict",
        ),
        "ZeRO-3": ({"module": {n: torch.empty(0) for n in state()}}, "one part of a DeepSpeed ZeRO-3 checkpoint"),
        "torch_ema": ({"ema": {"decay": 0.9, "shadow_params": [torch.ones(3)]}}, "is not a state dict"),
        "GAN": ({"g": state(1), "d": state(2)}, "holds several networks .'g', 'd'.; save the state_dict of only one"),
        "MoCo": (
            {"state_dict": {**state(1, "module.encoder_q."), **state(2, "module.encoder_k.")}},
            r"holds several networks \(encoder_k\., encoder_q\.\)",
        ),
        "Sequential": ({f"0.{i}.weight": torch.ones(2) for i in range(9)}, "are numbered, as by nn.Sequential"),
        "list of parameters": ({"ema": [torch.ones(3)]}, "'ema' is a list of tensors without names"),
        "backbone": (
            {n: t for n, t in state().items() if not n.startswith("fc.")},
            "has no classifier: it is a backbone",
        ),
        "another head": (
            {n.replace("fc.", "fc.1."): t for n, t in state().items()},
            "has no classifier named fc.weight, but fc.1",
        ),
        "meta": ({"conv1.weight": torch.empty(3, device="meta")}, "'conv1.weight' is not a plain tensor"),
        "sparse": ({"conv1.weight": torch.eye(3).to_sparse()}, "'conv1.weight' is not a plain tensor"),
        "float8": (
            {"conv1.weight": torch.zeros(3).to(torch.float8_e4m3fn)},
            "'conv1.weight' is not a plain tensor: it is",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", refusals())
def test_what_is_not_understood_is_refused_with_its_reason(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = refusals()[kind]
    torch.save(content, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth")[0] == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line


def test_a_torchscript_program_says_so(tmp_path: Path) -> None:
    module = torch.jit.trace(UltralyticsModel().conv1, torch.zeros(1, 3, 9, 9))
    torch.jit.save(module, str(tmp_path / "w.pt"))
    with pytest.raises(DataError, match="a TorchScript program, not a state dict"):
        read_pth(tmp_path / "w.pt")


def test_a_zip_archive_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    (tmp_path / "w.npz").rename(tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"a zip archive without PyTorch's data.pkl; it holds 'a.npy'"):
        read_pth(tmp_path / "w.pth")


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_type_and_protocol_is_read_as_torch_reads_it(
    tmp_path: Path, protocol: int, zipped: bool
) -> None:
    kinds = [
        torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.bool, torch.complex64, torch.uint16, torch.uint32,
    ]  # fmt: skip
    base = torch.arange(24).reshape(2, 3, 4)
    saved = {str(kind): base.to(kind) for kind in kinds}
    saved |= {
        "view.weight": base.float()[:, 1:, ::2], "transposed": base.float().permute(2, 0, 1),
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "same.weight": saved["torch.float32"],
        "size one": torch.ones(5)[2:3].reshape(1, 1), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    path = tmp_path / "t.pth"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    stored = read_pth(path)
    assert list(stored.tensors) == list(saved)
    for name, tensor in saved.items():
        found = stored.tensors[name]
        expected = tensor.detach().numpy()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        assert np.array_equal(found, expected), name
        assert found.flags["C_CONTIGUOUS"], name
        assert found.flags["ALIGNED"], name


# -- a backbone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "mmseg", "detectron", "another head", "MindSpore"])
def test_a_backbone_starts_a_training_with_a_new_head(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from resnext_core.convert.ckpt import write_ckpt
    from resnext_core.convert.names import NAMINGS
    from resnext_core.convert.writing import to_tensors
    from resnext_core.model.spec import model_spec

    spec = model_spec("resnext_tiny", num_classes=7)
    arrays = random_weights(spec, 1)
    body = {n: torch.from_numpy(a) for n, a in arrays.items() if not n.startswith("fc.")}
    path = tmp_path / ("w.ckpt" if kind == "MindSpore" else "w.pth")
    if kind == "plain":
        torch.save(body, path)
    elif kind == "mmseg":
        head = {"decode_head.conv_seg.weight": torch.ones(3, 8, 1, 1)}
        torch.save({"state_dict": {f"backbone.{n}": t for n, t in body.items()} | head}, path)
    elif kind == "detectron":
        head = {"rpn.head.conv.weight": torch.ones(2)}
        torch.save({"model": {f"backbone.body.{n}": t for n, t in body.items()} | head}, path)
    elif kind == "another head":
        torch.save({**body, "fc.1.weight": torch.ones(5, 9), "fc.1.bias": torch.ones(5)}, path)
    else:
        weights = Weights(
            spec=spec, preprocess=PreprocessSpec(size=32, resize=32), classes=tuple("0123456"), tensors=arrays
        )
        named = to_tensors(weights, NAMINGS["modelzoo"])[0]
        write_ckpt(path, {n: a for n, a in named.items() if not n.startswith("head.")})
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (i * 9, 80, 99)).save(tmp_path / "d" / part / name / f"{i}.png")
    words = [
        "--backend", "reference", "train", "--set", "model.variant=resnext_tiny", "--data", str(tmp_path / "d"),
        "--epochs", "1", "--batch-size", "8", "--output", str(tmp_path), "--name", "run", "--pretrained", str(path),
        "--set", "optimizer.lr=0", "--set", "data.workers=0",
    ]  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "it has no classifier: a new one of 2 classes is initialised" in shown.out + shown.err
    trained = load_weights(next((tmp_path / "run" / "checkpoints").glob("step-*")) / "weights.safetensors")
    for tensor in trained.spec.tensors:
        if tensor.trainable and not tensor.role.startswith("fc_"):
            assert np.array_equal(trained.tensors[tensor.name], arrays[tensor.name]), tensor.name
    assert trained.tensors["fc.weight"].shape[0] == 2
    assert np.abs(trained.tensors["fc.weight"]).max() > 0
    for command in (["eval", "--data", str(tmp_path / "d")], ["infer", str(tmp_path / "d")]):
        assert main([command[0], "--weights", str(path), *command[1:]]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "has no classifier" in line


# -- nothing is executed, little is allocated ------------------------------------------------------------


class Calls:
    """Executed when unpickled."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call = call, args

    def __reduce__(self) -> Any:
        return self.call


def test_callables_are_refused_by_name_wherever_they_stand(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for harmful in (
        Calls(os.mkdir, str(marker)),
        Calls(eval, "1"),
        Calls(getattr, "x", "upper"),
        Calls(exec, "x = 1"),
    ):
        for content in (
            {**state(), "x": harmful},
            {"state_dict": state(), "extra": [{"a": (harmful,)}]},
            harmful,
        ):
            for zipped in (True, False):
                torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
                with pytest.raises(DataError, match=", and reading that would execute it"):
                    read_pth(tmp_path / "w.pth")
    assert not marker.exists()


def expanded() -> Any:
    return {"conv1.weight": torch.zeros(1).expand(40_000, 40_000)}


def rewritten(path: Path, kind: str) -> None:
    """Write a small zip of PyTorch's that declares or inflates to 100 MB."""
    count = 25_000_001
    big = torch.zeros(count)
    torch.save({"conv1.weight": big}, path)
    with zipfile.ZipFile(path) as source:
        entries = {e.filename: source.read(e) for e in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    if kind == "lies":  # the directory says that a storage is small
        data = bytearray(path.read_bytes())
        size = (4 * count).to_bytes(4, "little")
        while (at := data.find(size)) >= 0:
            data[at : at + 4] = (1 << 19).to_bytes(4, "little")
        path.write_bytes(data)


MEASURE = """
import resource, sys
from pathlib import Path
from resnext_core.convert.pth import read_pth
from resnext_core.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_pth(Path(sys.argv[1]))
    said = "read"
except DataError as error:
    said = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, said)
"""


@pytest.mark.parametrize("kind", ["expanded", "expanded, legacy", "shared", "deflated", "lies", "memo"])
def test_a_small_file_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """1.6 kB took 6 GB, and 0.3 MB took 600 MB."""
    path = tmp_path / "w.pth"
    if kind.startswith("expanded"):
        torch.save(expanded(), path, _use_new_zipfile_serialization=kind == "expanded")
    elif kind == "shared":
        one = torch.zeros(1 << 18)
        torch.save({f"layer{i}.weight": one for i in range(500)}, path)
    elif kind == "memo":  # the pickle names a place of 4 thousand millions
        torch.save({"a": torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as source:
            entries = {e.filename: source.read(e) for e in source.infolist()}
        with zipfile.ZipFile(path, "w") as target:
            for name, data in entries.items():
                if name.endswith("data.pkl"):
                    data = data[:-1] + b"r\\xff\\xff\\xff\\xff.".decode("unicode_escape").encode("latin-1")
                target.writestr(name, data)
    else:
        rewritten(path, kind)
    assert path.stat().st_size < 2 << 20
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    grown, said = done.stdout.split(maxsplit=1)
    assert ("is not a readable torch file" in said) == (kind != "memo"), said
    assert "\n" not in said.strip()
    assert int(grown) < 40, f"{grown} MiB, {said}"
