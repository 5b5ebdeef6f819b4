"""The backend's record, its options, and one line for every way in which there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resnext_gpu.options import GpuOptions

from resnext_core.config import Layer, load_config
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import PredictRequest
from resnext_core.jobs.recipes import read_recipe
from resnext_core.jobs.settings import stored_config
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder
from resnext_core.testing.processes import imported_by
from resnext_gpu import plugin

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import tiny_weights  # noqa: E402
from resnext_gpu.device import Device, _switch, channels_last, device_of, open_device  # noqa: E402
from resnext_gpu.predictor import create_predictor  # noqa: E402


def record() -> Any:
    return next(iter(plugin.resnext_backends()))


def test_record_imports_no_framework() -> None:
    code = (
        "from resnext_gpu import plugin\n"
        "found = next(iter(plugin.resnext_backends())); found.probe(); assert found.id == 'gpu'"
    )
    assert imported_by(code, ["torch", "numpy"]) == []


def test_probe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert record().probe().usable
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    missing = record().probe()
    assert (missing.state, missing.reason) == (
        "missing",
        "PyTorch is not installed: pip install 'resnext-core[gpu]'",
    )


@pytest.mark.parametrize(
    ("driver", "version", "first"),
    [
        (True, "2.13.0+cu130", True),
        (True, "2.13.0", True),
        (True, "2.13.0+cpu", False),
        (False, "2.13.0", False),
    ],
)
def test_it_is_the_first_choice_only_with_a_gpu(
    driver: bool, version: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin.os.path, "exists", lambda path: driver)
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert record().priority > 20
    assert record().probe().state == ("ready" if first else "test mode")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"device": "tpu"}, r"gpu\.device"),
        ({"threads": 0}, r"gpu\.threads"),
        ({"timeout": 0}, r"gpu\.timeout"),
        ({"bucket_mib": 0}, r"gpu\.bucket_mib"),
        ({"compile": True, "checkpointing": True}, r"gpu\.compile and gpu\.checkpointing"),
        ({"cuda_graphs": True, "sync_bn": True}, r"gpu\.cuda_graphs and gpu\.sync_bn"),
        ({"thread": 2}, "did you mean 'threads'"),
        ({"fused_bn": False}, r"unknown config key 'gpu\.fused_bn'"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load_config([Layer(source="test", values={"gpu": values})], {"gpu": GpuOptions})


def test_a_run_of_before_is_read_without_the_option_that_is_gone(tmp_path: Path) -> None:
    """Its stored configuration has every option; one that was at work is not left out in silence."""
    plugins = load_plugins()
    for line in ("", "  fused_bn: false\n"):
        (tmp_path / "config.yaml").write_text(f"gpu:\n  device: cpu\n{line}")
        found = stored_config(RunFolder(tmp_path), plugins).backends["gpu"]
        assert found == GpuOptions(device="cpu")
    for value in ("true", "0", "null"):
        (tmp_path / "config.yaml").write_text(f"gpu:\n  fused_bn: {value}\n")
        with pytest.raises(UsageError, match=r"run .*: unknown config key 'gpu\.fused_bn'"):
            stored_config(RunFolder(tmp_path), plugins)


def refusal(
    monkeypatch: pytest.MonkeyPatch, *, cuda: str | None, error: str | None = None, count: int = 0
) -> str:
    """Return the line of a machine whose PyTorch, driver and devices are as given."""

    def init() -> None:
        if error is not None:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(BackendUnavailable) as caught:
        open_device(device_of(GpuOptions(), RankInfo(rank=2, world=4, local_rank=2)))
    line = str(caught.value)
    assert "\n" not in line
    assert "--set gpu.device=cpu" in line
    return line


def test_every_way_in_which_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is built without CUDA" in refusal(monkeypatch, cuda=None)
    none = "Found no NVIDIA driver on your system. Please check that you\nhave an NVIDIA GPU"
    assert "Found no NVIDIA driver" in refusal(monkeypatch, cuda="12.8", error=none)
    old = "The NVIDIA driver on your system is too old (found version 11040). Please update"
    assert "too old (found version 11040)" in refusal(monkeypatch, cuda="12.8", error=old)
    assert "no device is visible" in refusal(monkeypatch, cuda="12.8")
    assert "GPU 2, but there are only 2: start at most 2 ranks" in refusal(monkeypatch, cuda="12.8", count=2)


def test_auto_says_that_it_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert open_device(Device(kind="auto")) == torch.device("cpu")
    assert "gpu.device is auto, so this computes on the CPU" in capsys.readouterr().err
    assert open_device(Device(kind="cpu")) == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_the_layout_follows_the_device_unless_it_is_set() -> None:
    for kind, layout in (("cuda", True), ("cpu", False)):
        assert channels_last(GpuOptions(), torch.device(kind)) is layout
        assert channels_last(GpuOptions(channels_last=not layout), torch.device(kind)) is not layout


def test_command_line_without_a_gpu_ends_with_4() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    words = ["--backend", "gpu", "bench", "train", "--set", "model.variant=resnext_tiny", "--batch-size", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "--set gpu.device=cpu" in done.stderr


def test_doctor_does_not_call_a_missing_gpu_wrong_numbers() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", "--backend", "gpu", "doctor"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("gpu "))
    assert "test mode" in row or "not here" in row  # the latter where a driver finds no GPU


def test_requests_that_cannot_be_served() -> None:
    options, weights = GpuOptions(device="cpu"), tiny_weights()
    with pytest.raises(UsageError, match="either weights or the path"):
        create_predictor(PredictRequest(rank=RankInfo()), options)
    predictor = create_predictor(PredictRequest(weights=weights, rank=RankInfo()), options)
    for wrong in (np.zeros((1, 3, 16, 16), np.uint8), np.zeros((0, 16, 16, 3), np.uint8)):
        with pytest.raises(UsageError, match="images must be uint8"):
            predictor.logits(wrong)
    with pytest.raises(UsageError, match="the tensor must be float32"):
        predictor.logits_from_tensor(np.zeros((1, 3, 16, 16), np.float64))


@pytest.fixture
def switches() -> Iterator[None]:
    """Put the switches of the process back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    names = ("allow_tf32", "deterministic", "benchmark")
    before = matmul.allow_tf32, [getattr(cudnn, name) for name in names]
    whole, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    yield
    matmul.allow_tf32 = before[0]
    for name, value in zip(names, before[1], strict=True):
        setattr(cudnn, name, value)
    torch.use_deterministic_algorithms(whole)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def test_deterministic_switches(switches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, "what the test found comes back")
    monkeypatch.delenv(name)
    _switch(torch, Device())
    assert name not in os.environ
    assert torch.backends.cudnn.benchmark
    _switch(torch, Device(deterministic=True))
    assert os.environ[name] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    _switch(torch, Device())
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(name, ":16:8")
    _switch(torch, Device(deterministic=True))
    assert os.environ[name] == ":16:8"
    monkeypatch.setenv(name, ":0:0")
    with pytest.raises(
        UsageError, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:8 or :16:8 in the environment, not :0:0"
    ):
        _switch(torch, Device(deterministic=True))


@pytest.mark.gpu
def test_switches_of_a_gpu(switches: None) -> None:
    open_device(Device(kind="cuda", tf32=True, deterministic=True))
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic
    open_device(Device(kind="cuda"))
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_required_is_not_skipped() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "--collect-only", "test_gpu_hardware.py"]
    done = subprocess.run(
        words, env={**os.environ, "RESNEXT_REQUIRE": "gpu"}, cwd=Path(__file__).parent, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "gpu is required here (RESNEXT_REQUIRE) but not available: needs an NVIDIA GPU" in done.stderr


@pytest.mark.parametrize(("old", "new"), [("imagenet-ancestor-gpu", "imagenet-modelzoo-gpu")])
def test_old_recipe_names_are_accepted(old: str, new: str) -> None:
    plugins = load_plugins()
    assert plugins.recipe(old) is plugins.recipe(new)
    assert old not in plugins.recipes
    assert read_recipe(new, plugins).values["model"]["variant"] == "resnext152_64x4d"
