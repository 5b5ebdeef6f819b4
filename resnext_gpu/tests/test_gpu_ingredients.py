"""Whole steps with today's ingredients: against the reference, and the same by every other way through a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import batches, differing, relative, tiny_weights, train_request, trainer_with  # noqa: E402
from gpu_ingredients import CASES, LRS, OFFSETS, TEACHER, batches_of, request_of  # noqa: E402
from resnext_gpu.gradients import Gradients  # noqa: E402
from resnext_gpu.inputs import StepTensors  # noqa: E402
from resnext_gpu.losses import smoothed_loss  # noqa: E402
from resnext_gpu.network import Arithmetic, Network  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.plugin import resnext_backends  # noqa: E402
from resnext_gpu.step import Step  # noqa: E402
from resnext_gpu.table import Table  # noqa: E402

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig  # noqa: E402
from resnext_core.interfaces import Batch, TrainRequest  # noqa: E402
from resnext_core.testing.cases import oracle_trainer  # noqa: E402
from resnext_core.testing.kinks import exact_steps  # noqa: E402
from resnext_core.training.inputs import step_inputs  # noqa: E402
from resnext_core.training.rules import UPDATES, frozen_tensors, tensor_rules  # noqa: E402
from resnext_core.training.trainer import Trainer  # noqa: E402
from resnext_gpu import feed, graphs  # noqa: E402


def trainer(request: TrainRequest, **options: Any) -> Trainer:
    return trainer_with(GpuOptions(**{"device": "cpu", **options}), request)


def exact(request: TrainRequest) -> TrainRequest:
    return dataclasses.replace(request, precision=dataclasses.replace(request.precision, compute="float64"))


def step_of(ours: Trainer) -> Step:
    step = ours.engine._own_step
    assert step is not None
    return step


def tolerance(name: str) -> float:
    return 1e-4 if name.startswith(("momentum/", "variance/")) else 1e-5


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_the_reference(case: str) -> None:
    """Three steps of each, in losses, weights, statistics, both moments, the number of updates, and the EMA."""
    request = request_of(case)
    ours, reference = trainer(request), oracle_trainer(exact(request))
    steps = batches_of(request, 3, seed=CASES[case][1])
    assert relative(ours.run_steps(steps, LRS), exact_steps(reference, steps, LRS)) <= 1e-5
    found, wanted = ours.state(), reference.state()
    assert found.scalars == wanted.scalars
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, array in wanted.tensors.items():
        assert relative(found.tensors[name], array) <= tolerance(name), name


class Again(graphs.Recorder):
    """Records as a graph does: the same memory, written anew by each call; warm steps before."""

    def __init__(self) -> None:
        self.recordings = 0

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        self.recordings += 1
        function()
        outputs = [t.clone() for t in function()]

        def replay() -> None:
            for own, new in zip(outputs, function(), strict=True):
                own.copy_(new)

        return replay, outputs


def as_recorded(ours: Trainer) -> Again:
    recorder, engine = Again(), ours.engine
    engine._step = graphs.Replayed(step_of(ours), list(engine._table.named().values()), recorder)
    return recorder


def with_views(ours: Trainer) -> None:
    step = step_of(ours)
    parameters = step.gradients._parameters
    step.gradients.close()
    step.gradients = Gradients(parameters, bucket_bytes=1 << 10, world=1, views=True)


@pytest.mark.parametrize("way", ["recorded", "views", "checkpointing"])
@pytest.mark.parametrize("case", ["everything", "adamw", "frozen stage", "scaled"])
def test_other_ways_give_the_same_bits(case: str, way: str) -> None:
    """A graph in which rates, branches and teacher are inputs; gradients in buckets; blocks computed again."""
    request = request_of(case)
    plain, other = trainer(request), trainer(request, checkpointing=way == "checkpointing")
    if way == "recorded":
        as_recorded(other)
    if way == "views":
        with_views(other)
    steps = batches_of(request, 3, seed=CASES[case][1])
    np.testing.assert_array_equal(other.run_steps(steps, LRS), plain.run_steps(steps, LRS))
    assert differing(plain.state(), other.state()) == []


@pytest.mark.parametrize("case", ["everything", "frozen stage", "agc", "lamb, all trusted"])
def test_channels_last_is_the_same_step(case: str) -> None:
    request = request_of(case)
    ours, reference = trainer(request, channels_last=True), oracle_trainer(exact(request))
    steps = batches_of(request, 1, seed=CASES[case][1])
    assert relative(ours.run_steps(steps, LRS[:1]), exact_steps(reference, steps, LRS[:1])) <= 1e-5
    for name, array in reference.state().tensors.items():
        assert relative(ours.state().tensors[name], array) <= tolerance(name), name


@pytest.mark.parametrize("case", ["everything", "adamw", "nesterov"])
def test_a_resumed_run_is_the_same_bits(case: str) -> None:
    request = request_of(case)
    steps = batches_of(request, 3, seed=CASES[case][1])
    whole, first, second = (trainer(request) for _ in range(3))
    whole.run_steps(steps, LRS)
    first.run_steps(steps[:1], LRS[:1])
    second.load_state(first.state())
    second.run_steps(steps[1:], LRS[1:])
    assert differing(whole.state(), second.state()) == []


@pytest.mark.parametrize("kind", ["lamb", "adamw", "sgd"])
def test_an_overflow_changes_weights_and_state_by_no_bit(kind: Any) -> None:
    """In a step between others; the number of updates does not count it, and the next step is unaffected."""
    request = train_request(
        tiny_weights(6), optimizer=OptimizerConfig(kind=kind, weight_decay=0.1, agc=0.05), skip_nonfinite=True
    )
    steps = batches(3, size=6)
    broken = trainer(request)
    loss = step_of(broken)._loss
    broken.run_steps(steps[:1], LRS[:1])
    before = broken.state()
    step_of(broken)._loss = lambda *given, **more: loss(*given, **more) * float("nan")
    broken.run_steps(steps[1:2], LRS[1:2])
    assert [n for n in differing(before, broken.state()) if n != "scalars"] == []
    step_of(broken)._loss = loss
    broken.run_steps(steps[2:], LRS[2:])
    other = trainer(request)
    other.run_steps([steps[0], steps[2]], LRS[[0, 2]])
    assert [n for n in differing(other.state(), broken.state()) if n != "scalars"] == []
    if kind != "sgd":
        assert broken.state().tensors[UPDATES].tolist() == [2.0]


# -- frozen parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_frozen_parts_have_no_gradient_and_keep_their_bits(frozen: int) -> None:
    """Also once a predictor has been made of the same tensors, and there is no pass back through them."""
    request = train_request(tiny_weights(6, depths=(1, 1)), frozen=frozen, ema_decay=0.9)
    ours = trainer(request)
    ours.predictor().logits(batches(1, size=6)[0].images)
    before = ours.state().tensors
    ours.run_steps(batches(2, size=6), LRS[:2])
    kept, after = frozen_tensors(request), ours.state().tensors
    assert any("running" in name for name in kept)
    for name in kept:
        assert after[f"weights/{name}"].tobytes() == before[f"weights/{name}"].tobytes(), name
        assert after[f"ema/{name}"].tobytes() == before[f"ema/{name}"].tobytes(), name
        assert f"momentum/{name}" not in after
    table, step = ours.engine._table, step_of(ours)
    learning = {n for n, t in table.weights.items() if t.requires_grad}
    assert learning == set(tensor_rules(request)) == set(table.momentum)
    assert len(step.gradients._parameters) == len(learning)
    with_views(ours)
    held = sum(flat.numel() for flat in step.gradients.flats)
    assert held < sum(table.weights[n].numel() for n in learning) + 64 * (2 * len(learning) + 1)
    network = step.forward
    assert isinstance(network, Network)
    seen: list[Any] = []
    for module in network.modules():
        module.register_forward_hook(lambda module, given, out: seen.append((module, out.requires_grad)))
    network(torch.from_numpy(batches(1, size=6)[0].images))
    names = {module: name for name, module in network.named_modules()}
    for module, tracked in seen:
        of_frozen = any(f"{names[module]}." in f"{name.rsplit('.', 1)[0]}." for name in kept if names[module])
        assert tracked is not of_frozen, names[module]


def test_a_network_knows_what_learns() -> None:
    """PyTorch makes every parameter learn when tensors are assigned to a module."""
    weights = tiny_weights(6)
    table = Table.create(train_request(weights, frozen=1), torch.device("cpu"), channels_last=False)
    how = Arithmetic(channels_last=False)
    network = Network(weights.spec, weights.preprocess, table.weights, how, frozen=1)
    assert not network.conv1.weight.requires_grad
    assert network.fc.weight.requires_grad
    network.train()
    assert (network.bn1.training, network.blocks[0].bn1.training) == (False, True)
    assert not network.eval().blocks[0].bn1.training


# -- the EMA ---------------------------------------------------------------------------------------


def test_each_step_has_its_own_decay() -> None:
    request = train_request(tiny_weights(6), ema_decay=0.9)
    steps, decays = batches(3, size=6, seed=5), np.array([0.5, 1.0, 0.25])
    ours, reference = trainer(request), oracle_trainer(exact(request))
    ours.run_steps(steps, LRS, decays)
    exact_steps_with(reference, steps, decays)
    for name, array in reference.state().tensors.items():
        assert relative(ours.state().tensors[name], array) <= tolerance(name), name


def exact_steps_with(reference: Trainer, steps: list[Batch], decays: np.ndarray) -> None:
    run = reference.run_steps
    reference.run_steps = lambda given, lrs: run(given, lrs, decays)  # type: ignore[method-assign]
    exact_steps(reference, steps, LRS)


@pytest.mark.parametrize("skip", [False, True])
def test_an_ema_that_does_not_move_costs_nothing(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel, and with skipped steps no wait; 1 keeps the bits and 0 copies them, whatever the weights are."""
    request = train_request(tiny_weights(6), ema_decay=0.9, skip_nonfinite=skip)
    ours, steps = trainer(request), batches(2, size=6)
    before = ours.state().tensors

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("an EMA that stays was computed")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "_foreach_lerp_", never)
        patched.setattr(torch, "_foreach_copy_", never)
        waits: list[Any] = []
        cpu = torch.Tensor.cpu
        patched.setattr(torch.Tensor, "cpu", lambda tensor: (waits.append(tensor), cpu(tensor))[1])
        queued = list(ours.engine.queue(step_inputs(request, steps, LRS[:2], [1.0, 1.0]), lambda: 1.0))
        assert waits == []
        assert len(queued) == 2
    table = ours.engine._table
    table.weights["fc.bias"].data[0] = float("inf")
    table.weights["bn1.running_mean"][1] = float("nan")
    table.average(1.0)
    for name, tensor in table.ema.items():
        assert tensor.numpy().tobytes() == before[f"ema/{name}"].tobytes(), name
    table.average(0.0)
    for name, tensor in table.ema.items():
        assert tensor.numpy().tobytes() == table.weights[name].detach().numpy().tobytes(), name


def test_what_a_step_yields_is_on_the_device_whether_the_ema_moves_or_not() -> None:
    """`settle` joins the outcomes of a call in one tensor, which those of two devices cannot be."""
    request = train_request(tiny_weights(6), ema_decay=0.9, skip_nonfinite=True)
    ours, steps, made = trainer(request), batches(3, size=6), []
    step = ours.engine._step

    def taken(given: StepTensors) -> Any:
        made.append(step(given))
        return made[-1]

    ours.engine._step = taken
    queued = list(ours.engine.queue(step_inputs(request, steps, LRS, [0.5, 1.0, 0.0]), lambda: 1.0))
    assert all(a is b for pair in zip(queued, made, strict=True) for a, b in zip(*pair, strict=True))
    assert np.isfinite(ours.engine.settle(queued).losses).all()


# -- sizes -----------------------------------------------------------------------------------------


def grown(request: TrainRequest) -> list[Batch]:
    """Return four batches of two sizes, which change in the midst of a call."""
    return [
        *batches_of(request, 1, seed=4, size=6), *batches_of(request, 2, seed=7, size=8),
        *batches_of(request, 1, seed=9, size=6),
    ]  # fmt: skip


FOUR = np.array([0.02, 0.01, 0.02, 0.005], np.float32)


def test_sizes_change_between_steps_and_a_graph_is_recorded_for_each(
    capfd: pytest.CaptureFixture[str],
) -> None:
    request = request_of("everything")
    plain, recorded = trainer(request), trainer(request)
    recorder, steps = as_recorded(recorded), grown(request)
    np.testing.assert_array_equal(recorded.run_steps(steps, FOUR), plain.run_steps(steps, FOUR))
    assert differing(plain.state(), recorded.state()) == []
    assert recorder.recordings == 3, "the graph of the size before gives its memory back"
    said = [line for line in capfd.readouterr().err.splitlines() if "CUDA graph" in line]
    assert said == [
        "gpu: images of 8 x 8 pixels now: the step is recorded again as a CUDA graph",
        "gpu: images of 6 x 6 pixels now: the step is recorded again as a CUDA graph",
    ]


def test_steps_of_another_size_equal_the_reference() -> None:
    request = train_request(tiny_weights(6))
    steps = [*batches(1, size=6, seed=36), *batches(1, size=8, seed=5)]
    ours, reference = trainer(request), oracle_trainer(exact(request))
    assert relative(ours.run_steps(steps, LRS[:2]), exact_steps(reference, steps, LRS[:2])) <= 1e-5


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_step_takes_everything_and_each_size(
    backend: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Compiled once a size, with a line for each after the first: never for a draw."""
    compiled_for: list[Any] = []
    compile_ = torch.compile

    def compiling(network: Any, **how: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        def noted(module: Any, given: Any) -> Any:
            compiled_for.append(len(given))
            return lookup_backend(backend)(module, given)

        return compile_(network, backend=noted, **how)

    monkeypatch.setattr(torch, "compile", compiling)
    request = request_of("everything", weights=tiny_weights(6), frozen=1)
    plain, compiled = trainer(request), trainer(request, compile=True)
    steps = grown(request)
    losses = compiled.run_steps(steps, FOUR)
    said = capfd.readouterr().err
    if "torch.compile failed" in said:
        pytest.skip(said)
    assert relative(losses, plain.run_steps(steps, FOUR)) <= 1e-4
    assert len(compiled_for) == 2
    assert said.count("the network is compiled for them") == 1


# -- tensors of a step -----------------------------------------------------------------------------


def test_the_feed_brings_branches_and_teachers_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, and through slots that change with the size, with the parts of CUDA replaced."""
    from test_gpu_trainer import fake_cuda

    request = request_of("everything")
    given = grown(request)
    steps = step_inputs(request, given, [0.1] * 4)
    fake_cuda(monkeypatch)
    one = torch.ones(())
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        for batch, step in zip(feed.Feed(device)(steps), steps, strict=True):
            found = StepTensors.of_feed(request, tuple(t.clone() for t in batch), one, one)
            np.testing.assert_array_equal(found.images, step.images)
            np.testing.assert_array_equal(found.branches, step.branches)
            np.testing.assert_array_equal(found.teacher, step.teacher)
            assert len(found.mix) == 2
            assert len(found.all()) == 9
            trial = StepTensors.trial(request, found.images, found.labels)
            assert [(t.shape, t.dtype) for t in trial.all()] == [(t.shape, t.dtype) for t in found.all()]


@pytest.mark.parametrize("case", ["everything", "agc", "adamw", "frozen stage"])
def test_a_step_stays_on_its_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's device without memory, where a tensor of the CPU in between, or a look at a value, is an error."""
    device, request = torch.device("meta"), request_of(case)

    def there(*given: Any, **more: Any) -> None:
        for value in (*given, *more.values()):
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                assert not isinstance(tensor, torch.Tensor) or tensor.device == device

    for name in (
        "_fused_sgd_",
        "_fused_adam_",
        "_fused_adamw_",
        "_amp_foreach_non_finite_check_and_unscale_",
    ):
        monkeypatch.setattr(torch, name, there)
    table = Table.create(request, device, channels_last=True)
    weights = request.weights
    how = Arithmetic(compute=torch.bfloat16, channels_last=True)
    network = Network(weights.spec, weights.preprocess, table.weights, how, frozen=request.frozen).train()
    step = Step(request, table, network, balanced=True, bucket_bytes=1 << 20, views=False)
    images = torch.empty((6, 6, 6, 3), dtype=torch.uint8, device=device)
    given = StepTensors.trial(request, images, torch.zeros(6, dtype=torch.int64, device=device))
    loss, found = step(given)
    assert loss.device == found.device == device
    table.average(0.5)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_low_precision_drops_branches_and_keeps_the_loss_exact(compute: Any) -> None:
    """A branch that is dropped adds nothing, whatever it is; loss and masters are float32."""
    precision = PrecisionConfig(compute=compute, loss_scale="fixed", scale=64.0)
    request = request_of("everything", precision=precision, frozen=0)
    ours, full = trainer(request), oracle_trainer(exact(request_of("everything", frozen=0)))
    steps = batches_of(request, 1, seed=0)
    assert relative(ours.run_steps(steps, LRS[:1]), full.run_steps(steps, LRS[:1])) <= 2e-2


def test_binary_cross_entropy_neither_overflows_nor_loses_its_gradient_at_zero() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [300.0, -300.0, 40.0]], requires_grad=True)
    config = LossConfig(kind="bce", smoothing=0.0, bce_sum=True)
    loss = smoothed_loss(config, 3)(logits, torch.tensor([1, 0]), torch.ones(2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((3 * np.log(2) + 40) / 2, rel=1e-6)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.tensor([[0.25, -0.25, 0.25], [0.0, 0.0, 0.5]]), atol=1e-7)


def test_a_teacher_sees_logits_without_offsets() -> None:
    """Its gradient is 0 where the softmax is the teacher's, and offsets do not count there."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    whole = dataclasses.replace(TEACHER, weight=1.0)
    loss = smoothed_loss(LossConfig(), 5, offsets=torch.from_numpy(OFFSETS), distillation=whole)
    teacher = torch.softmax(logits.detach() / TEACHER.temperature, 1)
    loss(logits, torch.zeros(4, dtype=torch.int64), torch.ones(4), teacher=teacher).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6


def test_the_record_says_what_the_engine_does() -> None:
    from typing import get_args

    from resnext_core.interfaces import Ingredient

    (record,) = resnext_backends()
    assert record.ingredients == frozenset(get_args(Ingredient))


@pytest.fixture(autouse=True)
def _deterministic_compiler() -> Iterator[None]:
    """Forget what was compiled: a cache of one test must not serve another."""
    yield
    torch._dynamo.reset()
