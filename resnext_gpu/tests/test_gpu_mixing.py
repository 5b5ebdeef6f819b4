"""Mixed images on PyTorch: pixels and loss against NumPy, and one step for every draw, recorded, compiled or fed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import batches, differing, relative, tiny_weights, train_request, trainer_with  # noqa: E402
from resnext_gpu.inputs import StepTensors  # noqa: E402
from resnext_gpu.losses import smoothed_loss  # noqa: E402
from resnext_gpu.mixing import mixed_pixels, packed, unmixed  # noqa: E402
from resnext_gpu.network import Arithmetic, Network  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.step import Step  # noqa: E402
from resnext_gpu.table import Table  # noqa: E402

from resnext_core.config import LossConfig, MixConfig  # noqa: E402
from resnext_core.data import mix as core  # noqa: E402
from resnext_core.errors import UsageError  # noqa: E402
from resnext_core.interfaces import Batch, Mix, MixedRows  # noqa: E402
from resnext_core.reference import ops  # noqa: E402
from resnext_core.testing.cases import oracle_trainer  # noqa: E402
from resnext_core.testing.kinks import exact_steps  # noqa: E402
from resnext_core.training.inputs import step_inputs  # noqa: E402
from resnext_core.training.trainer import Trainer  # noqa: E402
from resnext_gpu import feed, graphs  # noqa: E402

LRS = np.array([0.05, 0.02, 0.01, 0.03], np.float32)
BOTH = MixConfig(mixup=1.0, cutmix=1.0, prob=0.9, partner="rolled")


def mixed_batches(count: int, *, micro_batches: int = 1, size: int = 16, seed: int = 0) -> list[Batch]:
    """Batches of noise, each mixed in its own way, the last not at all."""
    made = []
    for step, batch in enumerate(batches(count, size=size, seed=seed)):
        drawn = core.draw_mixes(
            BOTH, (size, size), seed=seed, step=step, epoch=1, micro_batches=range(micro_batches)
        )
        made.append(dataclasses.replace(batch, mix=drawn if step < count - 1 else ()))
    return made


def trainer(options: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    chosen = GpuOptions(**{"device": "cpu", **(options or {})})
    return trainer_with(chosen, train_request(**{"mixes": True, **changes}))


def tensors(rows: MixedRows) -> list[Any]:
    return [torch.from_numpy(array) for array in packed(rows)]


ROWS = {
    "mixup": Mix(kind="mixup", lam=0.3),
    "cutmix": Mix(kind="cutmix", lam=1 - 12 / 63, box=(1, 3, 5, 6), partner="rolled"),
    "none": Mix(),
}


@pytest.mark.parametrize("kind", ROWS)
def test_pixels_are_those_of_core(kind: str) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 7, 9, 3), dtype=np.uint8)
    valid = np.array([True, True, False, True, True])
    rows = core.mixed_rows([ROWS[kind]], np.zeros(5, np.int32), valid, (7, 9))
    found = mixed_pixels(torch.from_numpy(images), *tensors(rows)).numpy()
    expected = core.mixed_pixels(images.astype(np.float64), rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    alone = rows.share == 1
    assert np.array_equal(found[alone], images[alone]), "a row that is not mixed is the same bits"
    if kind == "cutmix":
        assert np.array_equal(found, expected), "cutmix moves pixels and computes nothing"


@pytest.mark.parametrize("form", ["others", "uniform"])
def test_the_loss_is_that_of_mixed_targets(form: Any) -> None:
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((6, 5)).astype(np.float32), rng.integers(0, 5, 6).astype(np.int32)
    config, weights = LossConfig(smoothing=0.1, smoothing_form=form), np.arange(6, dtype=np.float32)
    rows = core.mixed_rows([ROWS["mixup"]], labels, np.ones(6, bool), (7, 9))
    share = rows.share[:, None]
    targets = sum(
        part * ops.smoothed_targets(own, 5, 0.1, form) for part, own in ((share, labels), (1 - share, rows.labels))
    )  # fmt: skip
    expected, _ = ops.cross_entropy(logits.astype(np.float64), targets, weights)
    given = torch.from_numpy(logits), torch.from_numpy(labels).long(), torch.from_numpy(weights)
    found = smoothed_loss(config, 5)(*given, *tensors(rows))
    assert abs(float(found) - expected) < 1e-5
    plain = smoothed_loss(config, 5)(*given)
    assert torch.equal(smoothed_loss(config, 5)(*given, *unmixed(given[1])), plain)


class Again(graphs.Recorder):
    """Records as a graph does: the same memory, written anew by each call."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        outputs = [t.clone() for t in function()]

        def replay() -> None:
            for own, new in zip(outputs, function(), strict=True):
                own.copy_(new)

        return replay, outputs


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_recorded_step_takes_every_draw(accumulate: int) -> None:
    """As a CUDA graph it is recorded once; what is drawn are inputs that each replay reads anew."""
    plain, recorded = trainer(accumulate=accumulate), trainer(accumulate=accumulate)
    step = recorded.engine._own_step
    assert step is not None
    recorded.engine._step = graphs.Replayed(step, list(recorded.engine._table.named().values()), Again())
    steps = mixed_batches(4, micro_batches=accumulate)
    assert len({batch.mix for batch in steps}) == 4
    np.testing.assert_array_equal(recorded.run_steps(steps, LRS), plain.run_steps(steps, LRS))
    assert differing(plain.state(), recorded.state()) == []


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_step_takes_every_draw(
    backend: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A draw that made torch.compile compile again would be an error here; ``inductor`` needs a C++ compiler."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **how: compile_(network, backend=backend, **how))
    request = train_request(tiny_weights(6), mixes=True)
    plain, compiled = (
        trainer_with(GpuOptions(device="cpu", compile=compile), request) for compile in (False, True)
    )
    steps = mixed_batches(4, size=6, seed=2)
    exact = dataclasses.replace(request, precision=dataclasses.replace(request.precision, compute="float64"))
    exact_steps(oracle_trainer(exact), steps, LRS)
    losses = [compiled.run_steps(steps[:1], LRS[:1])]
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    losses.append(compiled.run_steps(steps[1:], LRS[1:]))
    said = capfd.readouterr().err
    if "torch.compile failed" in said:
        pytest.skip(said)
    assert relative(np.concatenate(losses), plain.run_steps(steps, LRS)) <= 1e-5
    for name, array in plain.state().tensors.items():
        tolerance = 1e-4 if name.startswith("momentum/") else 1e-5
        assert relative(compiled.state().tensors[name], array) <= tolerance, name


@pytest.mark.parametrize("fits", [3, 1])
def test_out_of_memory_names_what_fits_of_a_mixed_batch(monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    """Parts of a micro-batch are tried without mixing: partners of its rows are outside the part."""
    ours = trainer()
    step = ours.engine._own_step
    assert step is not None
    forward = step.forward

    def limited(images: Any, *mix: Any) -> Any:
        if len(images) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(images, *mix)

    monkeypatch.setattr(step, "forward", limited)
    with pytest.raises(
        UsageError, match=rf"does not fit into the GPU's memory; {fits} do: set train\.accumulate"
    ):
        ours.run_steps(mixed_batches(2)[:1], LRS[:1])


def test_the_feed_brings_draws_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, and through the page-locked slots of a GPU, with the parts of CUDA replaced."""
    from test_gpu_trainer import fake_cuda

    given = mixed_batches(5)
    steps = step_inputs(train_request(mixes=True), given, [0.1] * 5)
    fake_cuda(monkeypatch)
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        feeding = feed.Feed(device)
        seen = [[tensor.clone().numpy() for tensor in batch] for batch in feeding(steps)]
        for (images, _, _, *mix), step in zip(seen, steps, strict=True):
            assert step.mix is not None
            np.testing.assert_array_equal(images, step.images)
            for array, expected in zip(mix, packed(step.mix), strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)


def test_a_mixed_step_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's device without memory, where a tensor of the CPU in between, or a look at a value, is an error."""
    device, weights = torch.device("meta"), tiny_weights(16)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *_, **__: None)
    request = train_request(weights, mixes=True, accumulate=2)
    table = Table.create(request, device, channels_last=True)
    network = Network(weights.spec, weights.preprocess, table.weights, Arithmetic(channels_last=True)).train()
    step = Step(request, table, network, balanced=True, bucket_bytes=1 << 20, views=False)
    images = torch.empty((6, 16, 16, 3), dtype=torch.uint8, device=device)
    labels, scalar = torch.zeros(6, dtype=torch.int64, device=device), torch.full((), 1.0, device=device)
    given = StepTensors(
        images=images, labels=labels, weights=torch.ones(6, device=device), lr=scalar, scale=scalar,
        mix=unmixed(labels),
    )  # fmt: skip
    loss, found = step(given)
    assert loss.device == found.device == device
