"""What only a GPU can show: copies, graphs, the compiler, float16, memory, several ranks; skipped elsewhere."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gpu_ingredients  # noqa: E402
from gpu_cases import (  # noqa: E402
    FAR_FROM_KINKS,
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
from gpu_ingredients import CASES, batches_of, request_of  # noqa: E402
from resnext_gpu.device import Device, open_device  # noqa: E402
from resnext_gpu.feed import Feed  # noqa: E402
from resnext_gpu.gradients import Gradients  # noqa: E402
from resnext_gpu.grouped_conv import op  # noqa: E402
from resnext_gpu.network import Arithmetic, make_tensors  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.plugin import resnext_backends  # noqa: E402
from resnext_gpu.predictor import GpuPredictor  # noqa: E402

from resnext_core.config import MixConfig, OptimizerConfig, PrecisionConfig  # noqa: E402
from resnext_core.data.mix import draw_mixes  # noqa: E402
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
PLACE: Any = "cuda"
EXACT, IMAGES = HARDWARE, 2


def trainer(options: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    how = {"device": PLACE, "deterministic": True, **(options or {})}
    return trainer_with(GpuOptions(**how), train_request(**changes))


def test_the_feed_delivers_while_the_gpu_is_busy() -> None:
    device = torch.device(PLACE)
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


def test_a_cuda_graph_takes_every_draw_of_mixed_images(capfd: pytest.CaptureFixture[str]) -> None:
    """Recorded once: how images are mixed is an input of the graph."""
    changes: dict[str, Any] = {"mixes": True, "accumulate": 2}
    plain, graphed = trainer(**changes), trainer({"cuda_graphs": True}, **changes)
    drawn = MixConfig(mixup=1.0, cutmix=1.0)
    steps = [
        dataclasses.replace(
            b, mix=draw_mixes(drawn, (16, 16), seed=1, step=i, epoch=1, micro_batches=range(2))
        )
        for i, b in enumerate(with_bad_rows(batches(5)))
    ]
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
@pytest.mark.parametrize(("stem", "size", "seed"), FAR_FROM_KINKS)
def test_a_step_equals_the_reference(options: dict[str, Any], stem: str, size: int, seed: int) -> None:
    """In the layout of GPUs and in the plain one; the message tells the two apart. The batches are far from kinks.

    cuDNN's batch normalisation for channels_last may be less exact than the plain one, as PyTorch's own tests found.
    """
    request = train_request(tiny_weights(size, stem=stem), ema_decay=0.9)
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    reference, steps = oracle_trainer(exact), batches(1, size=size, seed=seed)
    loss = exact_steps(reference, steps, LRS[:1])

    def error(**how: Any) -> float:
        ours = trainer_with(GpuOptions(**{"device": PLACE, **options, **how}), request)
        found = [relative(ours.run_steps(steps, LRS[:1]), loss)]
        for name, array in reference.state().tensors.items():
            if not name.startswith("momentum/"):
                found.append(relative(ours.state().tensors[name], array))
        return max(found)

    tolerance, own = 2e-2 if options.get("tf32") else 1e-5, error()
    if own > tolerance and "channels_last" not in options:
        plain = error(channels_last=False)
        verdict = "the layout is the cause, not the engine" if plain <= tolerance else "not the layout"
        pytest.fail(
            f"error {own:.1e}, with gpu.channels_last=false {plain:.1e}, tolerance {tolerance}: {verdict}"
        )
    assert own <= tolerance


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_batch_that_does_not_fit_is_answered_with_one_that_does(deterministic: bool) -> None:
    """Not deterministic, cuDNN searches for its algorithms, and may find none for want of memory."""
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        images = 4096
        ours = trainer({"deterministic": deterministic}, weights=tiny_weights(64), batch_size=images)
        with pytest.raises(
            UsageError, match=r"does not fit into the GPU's memory; \d+ do: set train\.accumulate=\d+"
        ):
            ours.run_steps(batches(1, images=images, size=64), LRS[:1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


# -- the same bits ---------------------------------------------------------------------------------

#: Ways through a step, which with gpu.deterministic give the same bits each time.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "contiguous": {"channels_last": False},
    "graph": {"cuda_graphs": True},
    "graph-checkpointing": {"cuda_graphs": True, "checkpointing": True},
    "compiled": {"compile": True},
    "kernels": {"grouped_conv": "triton"},
    "kernels-graph-compiled": {"grouped_conv": "triton", "cuda_graphs": True, "compile": True},
}


def repeatable(options: dict[str, Any]) -> Trainer:
    """Return a trainer in bfloat16 with the stem that has a max-pool, groups that our kernels know, and an EMA."""
    if options.get("grouped_conv") == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    weights = tiny_weights(32, stem="imagenet", groups=4, base_width=32)
    return trainer(options, weights=weights, precision=PrecisionConfig(compute="bfloat16"), ema_decay=0.9)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_bits(way: str) -> None:
    one, other = repeatable(WAYS[way]), repeatable(WAYS[way])
    steps = batches(5, size=32)
    np.testing.assert_array_equal(one.run_steps(steps, LRS), other.run_steps(steps, LRS))
    assert differing(one.state(), other.state()) == []


@pytest.mark.parametrize("way", [way for way in WAYS if "compiled" not in way])
def test_a_run_that_was_resumed_has_the_same_bits(way: str) -> None:
    whole, first, second = (repeatable(WAYS[way]) for _ in range(3))
    steps = batches(5, size=32)
    losses = whole.run_steps(steps, LRS)
    first.run_steps(steps[:3], LRS[:3])
    second.load_state(first.state())
    np.testing.assert_array_equal(second.run_steps(steps[3:], LRS[3:]), losses[3:])
    assert differing(whole.state(), second.state()) == []


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": OptimizerConfig(clip_norm=0.05)}], ids=["plain", "clip"]
)
def test_gradients_of_autograd_and_in_buffers_give_the_same_bits(changes: dict[str, Any]) -> None:
    own, buffered = trainer(accumulate=2, **changes), trainer(accumulate=2, **changes)
    step = buffered.engine._own_step
    assert step is not None
    parameters = step.gradients._parameters
    step.gradients.close()
    step.gradients = Gradients(parameters, bucket_bytes=1 << 12, world=1, views=True)
    steps = batches(3)
    np.testing.assert_array_equal(own.run_steps(steps, LRS[:3]), buffered.run_steps(steps, LRS[:3]))
    assert differing(own.state(), buffered.state()) == []


# -- graphs and memory -----------------------------------------------------------------------------


def test_a_capture_that_fails_is_an_error_and_leaves_no_trace() -> None:
    """A step that waits for the GPU cannot be recorded. The state can be read, and the next trainer records its own."""
    ours = trainer({"cuda_graphs": True})
    step = ours.engine._own_step
    assert step is not None
    forward, before = step.forward, ours.state()

    def waits(images: Any) -> Any:
        logits = forward(images)
        logits.sum().item()
        return logits

    step.forward = waits
    stream = torch.cuda.current_stream()
    with pytest.raises(UsageError, match=r"cannot be recorded as a CUDA graph .* set gpu\.cuda_graphs=false"):
        ours.run_steps(batches(1), LRS[:1])
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    assert [name for name in differing(before, ours.state()) if name != "scalars"] == []
    ours.close()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.rand(2, device=PLACE).max() < 1, "random numbers are to be had again"
    plain, graphed = trainer(), trainer({"cuda_graphs": True})
    steps = batches(2)
    np.testing.assert_array_equal(graphed.run_steps(steps, LRS[:2]), plain.run_steps(steps, LRS[:2]))


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}, {"checkpointing": True}], ids=str)
def test_the_end_gives_all_memory_back(options: dict[str, Any]) -> None:
    """But for what libraries keep, which the first trainer has made them allocate."""
    left = []
    for _ in range(2):
        ours = trainer(options, weights=tiny_weights(32), ema_decay=0.9)
        ours.run_steps(batches(2, size=32), LRS[:2])
        ours.predictor().logits(batches(1, size=32)[0].images)
        held = torch.cuda.memory_allocated()
        ours.close()
        gc.collect()
        torch.cuda.synchronize()
        left.append(torch.cuda.memory_allocated())
        assert left[-1] < held
    assert left[1] <= left[0]


def test_the_peak_of_memory_is_of_one_trainer() -> None:
    big = torch.empty(2**28, dtype=torch.uint8, device=PLACE)
    del big
    ours = trainer()
    ours.run_steps(batches(1), LRS[:1])
    first, second = ours.usage().peak_bytes, ours.usage().peak_bytes
    assert first is not None
    assert second is not None
    assert 0 < second <= first < torch.cuda.memory_allocated() + 2**28


@pytest.mark.parametrize("count", [1, 5, 64, 165])
def test_a_batch_in_parts_has_the_same_logits(count: int) -> None:
    """Copied beside the computation, from memory that is written again at once."""
    weights = tiny_weights(32, stem="imagenet")
    device = open_device(Device(kind=PLACE, deterministic=True))
    tensors = make_tensors(weights.spec, weights.tensors, device, channels_last=True)
    parts = GpuPredictor(weights, tensors, Arithmetic())
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    wanted = np.concatenate([parts.logits(images[i : i + 1]) for i in range(count)])
    for _ in range(3):
        given = images.copy()
        found = parts.logits(given)
        given[:] = 0
        assert relative(found, wanted) <= 1e-5


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
        ours = ALL_WIDTHS.trainer("bfloat16", device=PLACE, grouped_conv="auto", cuda_graphs=True)
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


def test_a_batch_is_tried_on_the_card_and_its_memory_comes_back() -> None:
    """Images of which a step keeps more than any card has, and of which it keeps little."""
    (record,) = resnext_backends()
    assert record.batch_fits is not None
    options = GpuOptions(device=PLACE)
    request = dataclasses.replace(train_request(tiny_weights(512), ema_decay=0.9), options=options)
    before = torch.cuda.memory_allocated()
    assert record.batch_fits(request) is True
    assert record.batch_fits(dataclasses.replace(request, batch_size=1 << 14)) is False
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
    assert record.batch_fits(request) is True, "as before"


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("case", ["everything", "adamw", "frozen stage", "nesterov", "agc"])
def test_steps_with_ingredients_equal_the_reference(case: str, recorded: bool) -> None:
    """The fused updates, and rates, branches and teachers that a recorded graph takes as inputs."""
    request = request_of(case)
    exact = dataclasses.replace(request, precision=dataclasses.replace(request.precision, compute="float64"))
    how = GpuOptions(device=PLACE, deterministic=True, channels_last=False, cuda_graphs=recorded)
    ours, reference = trainer_with(how, request), oracle_trainer(exact)
    steps = batches_of(request, 3, seed=CASES[case][1])
    assert (
        relative(
            ours.run_steps(steps, gpu_ingredients.LRS), exact_steps(reference, steps, gpu_ingredients.LRS)
        )
        <= 1e-5
    )
    found, wanted = ours.state(), reference.state()
    for name, array in wanted.tensors.items():
        moment = name.startswith(("momentum/", "variance/"))
        assert relative(found.tensors[name], array) <= (1e-4 if moment else 1e-5), name


@pytest.mark.parametrize("recorded", [False, True])
def test_a_call_in_which_only_some_steps_move_the_ema(recorded: bool) -> None:
    """With skipped steps the GPU is waited for where the EMA moves: outcomes of both kinds are fetched together."""
    changes: dict[str, Any] = {"ema_decay": 0.9, "skip_nonfinite": True}
    one, other = trainer({"cuda_graphs": recorded}, **changes), trainer({"cuda_graphs": recorded}, **changes)
    steps, decays = batches(3), np.array([0.5, 1.0, 0.0])
    losses = one.run_steps(steps, LRS[:3], decays)
    each = [float(other.run_steps(steps[i : i + 1], LRS[i : i + 1], decays[i : i + 1])[0]) for i in range(3)]
    assert losses.tolist() == each
    assert differing(one.state(), other.state()) == []


def test_a_graph_is_recorded_for_each_size(capfd: pytest.CaptureFixture[str]) -> None:
    request = request_of("everything")
    plain, recorded = (
        trainer_with(GpuOptions(device=PLACE, deterministic=True, cuda_graphs=graphs), request)
        for graphs in (False, True)
    )
    steps = [batches_of(request, 1, seed=size, size=size)[0] for size in (6, 8, 8, 6)]
    np.testing.assert_allclose(recorded.run_steps(steps, LRS[:4]), plain.run_steps(steps, LRS[:4]), rtol=1e-4)
    assert capfd.readouterr().err.count("recorded again as a CUDA graph") == 2
