"""What only a GPU can show: copies, graphs, the compiler, float16, memory, several ranks; skipped elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import batches, differing, relative, tiny_weights, train_request  # noqa: E402
from resnext_gpu.feed import Feed  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.trainer import GpuTrainer  # noqa: E402

from resnext_core.config import PrecisionConfig  # noqa: E402
from resnext_core.distributed import launch_local  # noqa: E402
from resnext_core.errors import UsageError  # noqa: E402
from resnext_core.interfaces import LaunchRequest  # noqa: E402
from resnext_core.reference.trainer import ReferenceTrainer  # noqa: E402

pytestmark = pytest.mark.gpu
LRS = np.array([0.05, 0.02, 0.01, 0.01, 0.01], np.float32)


def trainer(options: dict[str, Any] | None = None, **changes: Any) -> GpuTrainer:
    return GpuTrainer(train_request(**changes), GpuOptions(**{"deterministic": True, **(options or {})}))


def test_the_feed_delivers_while_the_gpu_is_busy() -> None:
    device = torch.device("cuda", 0)
    given, feeding = batches(9, images=32, size=64), Feed(device)
    busy = torch.randn(2048, 2048, device=device)
    for _ in range(2):
        found = []
        for images, labels in feeding(given):
            for _ in range(20):
                busy = busy @ busy / 2048
            found.append((images.clone(), labels.clone()))
        for (images, labels), batch in zip(found, given, strict=True):
            np.testing.assert_array_equal(images.cpu().numpy(), batch.images)
            np.testing.assert_array_equal(labels.cpu().numpy(), batch.labels)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_a_cuda_graph_is_the_step(compute: Any, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {
        "precision": PrecisionConfig(compute=compute, loss_scale="dynamic", scale=2.0**20),
        "ema_decay": 0.9,
    }
    plain, graphed = trainer(**changes), trainer({"cuda_graphs": True}, **changes)
    steps = batches(5)
    losses = plain.run_steps(steps, LRS)
    np.testing.assert_array_equal(graphed.run_steps(steps, LRS), losses)
    assert differing(plain.state(), graphed.state()) == []
    assert "no CUDA graph" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"compile": True}, {"compile": True, "cuda_graphs": True}])
def test_compiled_is_the_same_network(options: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    plain, compiled = trainer(), trainer(options)
    steps = batches(2)
    assert relative(compiled.run_steps(steps, LRS[:2]), plain.run_steps(steps, LRS[:2])) <= 1e-5
    for name, array in plain.state().tensors.items():
        assert relative(compiled.state().tensors[name], array) <= 1e-4, name
    assert "gave up" not in capfd.readouterr().err


@pytest.mark.parametrize("options", [{}, {"channels_last": False}, {"checkpointing": True}, {"tf32": True}])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_step_equals_the_reference(options: dict[str, Any], stem: str) -> None:
    request = train_request(tiny_weights(32, stem=stem), ema_decay=0.9)
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    ours, reference = GpuTrainer(request, GpuOptions(**options)), ReferenceTrainer(exact)
    steps = batches(1, size=32)
    tolerance = 2e-2 if options.get("tf32") else 1e-5
    assert relative(ours.run_steps(steps, LRS[:1]), reference.run_steps(steps, LRS[:1])) <= tolerance
    for name, array in reference.state().tensors.items():
        if not name.startswith("momentum/"):
            assert relative(ours.state().tensors[name], array) <= tolerance, name


def test_a_batch_that_does_not_fit_is_answered_with_one_that_does() -> None:
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        images = 4096
        ours = trainer(weights=tiny_weights(64), batch_size=images)
        with pytest.raises(
            UsageError, match=r"does not fit into the GPU's memory; \d+ do: set train\.accumulate=\d+"
        ):
            ours.run_steps(batches(1, images=images, size=64), LRS[:1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_ranks_without_a_gpu_of_their_own_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    count = torch.cuda.device_count() + 1
    words = ["--backend", "gpu", "--options", "{}", "--out", str(tmp_path)]
    request = LaunchRequest(
        module="resnext_core.testing.rank_worker", argv=words, devices=count, log_dir=tmp_path / "logs"
    )
    assert launch_local(request) == 4
    assert f"start at most {count - 1} ranks on a machine" in capfd.readouterr().err
