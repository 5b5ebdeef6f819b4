"""What only a GPU can show: copies, graphs, the compiler, float16, memory, several ranks; skipped elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import (  # noqa: E402
    batches,
    differing,
    inputs_of,
    relative,
    tiny_weights,
    train_request,
    trainer_with,
    with_bad_rows,
)
from gpu_convolutions import (  # noqa: E402
    ALL_WIDTHS,
    BF16,
    HALF,
    HARDWARE,
    NARROW,
    check_every_plan,
    check_training,
    make_case,
    shapes_of,
)
from resnext_gpu.feed import Feed  # noqa: E402
from resnext_gpu.grouped_conv import op  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402

from resnext_core.config import PrecisionConfig  # noqa: E402
from resnext_core.errors import UsageError  # noqa: E402
from resnext_core.interfaces import LaunchRequest  # noqa: E402
from resnext_core.model.spec import model_spec  # noqa: E402
from resnext_core.ranks.launch import launch_local  # noqa: E402
from resnext_core.testing.cases import oracle_trainer  # noqa: E402
from resnext_core.testing.kinks import exact_steps  # noqa: E402
from resnext_core.training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.gpu
LRS = np.array([0.05, 0.02, 0.01, 0.01, 0.01], np.float32)
SHAPES = shapes_of(model_spec("resnext152_64x4d"), model_spec("resnext50_32x4d"))
#: Where the tests of the kernels compute, and how exact that is; without a GPU the interpreter can stand in.
PLACE, EXACT, IMAGES = "cuda", HARDWARE, 2


def trainer(options: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    return trainer_with(GpuOptions(**{"deterministic": True, **(options or {})}), train_request(**changes))


def test_the_feed_delivers_while_the_gpu_is_busy() -> None:
    device = torch.device("cuda", 0)
    given, feeding = batches(9, images=32, size=64), Feed(device)
    busy = torch.randn(2048, 2048, device=device)
    for _ in range(2):
        found = []
        for tensors in feeding(inputs_of(given)):
            for _ in range(20):
                busy = busy @ busy / 2048
            found.append([tensor.clone() for tensor in tensors])
        for (images, labels, weights), batch, rows in zip(found, given, inputs_of(given), strict=True):
            np.testing.assert_array_equal(images.cpu().numpy(), batch.images)
            np.testing.assert_array_equal(labels.cpu().numpy(), batch.labels)
            np.testing.assert_array_equal(weights.cpu().numpy(), rows.weights.astype(np.float32))


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_a_cuda_graph_is_the_step(compute: Any, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {
        "precision": PrecisionConfig(compute=compute, loss_scale="dynamic", scale=2.0**20),
        "ema_decay": 0.9,
    }
    plain, graphed = trainer(**changes), trainer({"cuda_graphs": True}, **changes)
    steps = with_bad_rows(batches(5))
    losses = plain.run_steps(steps, LRS)
    np.testing.assert_array_equal(graphed.run_steps(steps, LRS), losses)
    assert differing(plain.state(), graphed.state()) == []
    assert "continuing without" not in capfd.readouterr().err


@pytest.mark.parametrize("options", [{"compile": True}, {"compile": True, "cuda_graphs": True}])
def test_compiled_is_the_same_network(options: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    weights, steps = tiny_weights(6), batches(2, size=6, seed=14)
    plain, compiled = trainer(weights=weights), trainer(options, weights=weights)
    exact = train_request(weights, precision=PrecisionConfig(compute="float64"))
    exact_steps(oracle_trainer(exact), steps, LRS[:2])
    assert relative(compiled.run_steps(steps, LRS[:2]), plain.run_steps(steps, LRS[:2])) <= 1e-5
    for name, array in plain.state().tensors.items():
        assert relative(compiled.state().tensors[name], array) <= 1e-4, name
    assert "continuing without" not in capfd.readouterr().err


@pytest.mark.parametrize("options", [{}, {"channels_last": False}, {"checkpointing": True}, {"tf32": True}])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_step_equals_the_reference(options: dict[str, Any], stem: str) -> None:
    request = train_request(tiny_weights(32, stem=stem), ema_decay=0.9)
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    ours, reference = trainer_with(GpuOptions(**options), request), oracle_trainer(exact)
    steps = batches(1, size=32, seed=16)
    tolerance = 2e-2 if options.get("tf32") else 1e-5
    assert relative(ours.run_steps(steps, LRS[:1]), exact_steps(reference, steps, LRS[:1])) <= tolerance
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


# -- the kernels of the grouped convolution -------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty folder in which timings are remembered."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    op._timings.cache_clear()
    yield tmp_path / "resnext/grouped-conv"
    op._timings.cache_clear()


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s)))
def test_a_kernel_is_right_by_every_plan(shape: tuple[int, int, int, int], dtype: Any, fresh: Path) -> None:
    from resnext_gpu.grouped_conv import launch, plans

    channels, group_width, size, stride = shape
    case = make_case(IMAGES, channels, group_width, size, size, stride, dtype, device=torch.device(PLACE))
    check_every_plan(launch, plans, case, EXACT)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_training_with_the_kernels_is_the_same(compute: str, deterministic: bool, fresh: Path) -> None:
    """The same as with cuDNN; not deterministic, each shape's plan is the fastest."""
    check_training(ALL_WIDTHS, compute, device=PLACE, deterministic=deterministic)
    assert fresh.exists() == (not deterministic)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_a_cuda_graph_of_the_kernels_is_the_step(
    compute: str, fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    how = {"device": PLACE, "deterministic": True}
    plain, graphed = (ALL_WIDTHS.trainer(compute, cuda_graphs=graph, **how) for graph in (False, True))
    for _ in range(2):
        losses = [trainer.run_steps(ALL_WIDTHS.steps, LRS[:2]) for trainer in (graphed, plain)]
        np.testing.assert_array_equal(*losses)
    assert differing(plain.state(), graphed.state()) == []
    assert "continuing without" not in capfd.readouterr().err


def test_a_cuda_graph_of_timed_kernels_is_near_the_step(
    fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The warm steps before the capture time the plans; the graph holds the fastest."""
    plain, graphed = (NARROW.trainer("bfloat16", device=PLACE, cuda_graphs=graph) for graph in (False, True))
    losses = [trainer.run_steps(NARROW.steps, LRS[:2]) for trainer in (graphed, plain)]
    assert relative(*losses) <= 2e-2
    assert "continuing without" not in capfd.readouterr().err


@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_training_keeps_the_kernels(
    graphs: bool, fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    how = {"device": PLACE, "deterministic": True}
    plain = NARROW.trainer("bfloat16", **how)
    compiled = NARROW.trainer("bfloat16", compile=True, cuda_graphs=graphs, **how)
    losses = [trainer.run_steps(NARROW.steps, LRS[:2]) for trainer in (compiled, plain)]
    assert relative(*losses) <= 2e-2
    told = capfd.readouterr().err
    assert "continuing without" not in told


def test_auto_measures_on_a_measured_card_and_remembers(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(op, "MEASURED", frozenset({torch.cuda.get_device_capability()}))
    step, lr = ALL_WIDTHS.steps[:1], LRS[:1]
    losses = []
    for told in (True, False):
        ours = ALL_WIDTHS.trainer("bfloat16", device=PLACE, grouped_conv="auto")
        losses.append(ours.run_steps(step, lr))
        assert ("grouped 3x3, weight gradient: " in capfd.readouterr().err) is told
        op._timings.cache_clear()  # as another process
    plain = ALL_WIDTHS.trainer("bfloat16", device=PLACE, grouped_conv="cudnn")
    wanted = plain.run_steps(step, lr)
    assert max(relative(loss, wanted) for loss in losses) <= 2e-2
    (file,) = fresh.iterdir()
    rows = json.loads(file.read_text())["timings"]
    assert len(rows) == 3 * len(ALL_WIDTHS.depths)
    assert all(row["ours_ms"] > 0 and row["library_ms"] > 0 for row in rows.values())
