"""The trainer against the reference: every option of a step, overflow, resume, and its predictor."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore_cases import batches, relative, tiny_weights, train_request, trainer_on
from resnext_mindspore import soc
from resnext_mindspore.device import Device, Operators

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch, PredictRequest, TrainState
from resnext_core.ranks.info import RankInfo
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.kinks import away_from_kinks, exact_steps
from resnext_core.training.trainer import Trainer

pytest.importorskip("mindspore.nn")
from resnext_mindspore.network import Network, make_parameters
from resnext_mindspore.predictor import create_predictor

LRS = np.array([0.1, 0.05, 0.02], np.float32)


def _trainer(**changes: Any) -> Trainer:
    return trainer_on(Device(), train_request(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": OptimizerConfig(clip_norm=0.5, weight_decay=0.01), "ema_decay": 0.9, "accumulate": 2},
        {
            "precision": PrecisionConfig(loss_scale="fixed", scale=1000.0),
            "loss": LossConfig(smoothing_form="uniform"),
            "optimizer": OptimizerConfig(weight_decay=0.0, momentum=0.5),
        },
    ],
    ids=["accumulate-clip-ema", "scale-uniform"],
)
def test_steps_equal_the_reference(changes: dict[str, Any]) -> None:
    # One step, because later rounding may put an activation on the other side of a ReLU. Gradients
    # of the first layers are small differences of large sums: float32 leaves them fewer digits.
    request = train_request(**changes)
    exact = dataclasses.replace(request, precision=dataclasses.replace(request.precision, compute="float64"))
    ours, reference = trainer_on(Device(), request), oracle_trainer(exact)
    batch = batches(1)
    np.testing.assert_allclose(
        ours.run_steps(batch, LRS[:1]), exact_steps(reference, batch, LRS[:1]), rtol=1e-5
    )
    found, wanted = ours.state(), reference.state()
    assert found.tensors.keys() == wanted.tensors.keys()
    assert found.scalars == wanted.scalars
    for name, array in wanted.tensors.items():
        tolerance = 5e-5 if name.startswith("momentum/") else 1e-5
        assert relative(found.tensors[name], array) <= tolerance, name


def _with_dropped_blocks(made: list[Batch], seed: int) -> list[Batch]:
    """Return the batches with either of two blocks dropped from some rows."""
    rng = np.random.default_rng(seed)
    found = []
    for batch in made:
        keep = rng.random((len(batch), 2)) < 0.7
        found.append(dataclasses.replace(batch, branches=np.where(keep, 1 / 0.7, 0).astype(np.float32)))
    return found


def test_graphs_of_each_size_are_kept_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    """Two steps at unlike sizes, by LAMB with dropped blocks: what one leaves counts in the next."""
    request = train_request(
        tiny_weights(8, depths=(1, 1)), batch_size=8, drops=True, ema_decay=0.9,
        # eps is of the size of the gradients: else an update is the sign of one, which a rounding can turn
        optimizer=OptimizerConfig(kind="lamb", eps=1e-3, clip_norm=1.0, weight_decay=0.02),
        loss=LossConfig(kind="bce", smoothing=0.0), precision=PrecisionConfig(loss_scale="fixed", scale=64.0),
    )  # fmt: skip
    exact = dataclasses.replace(request, precision=dataclasses.replace(request.precision, compute="float64"))
    ours, reference = trainer_on(Device(), request), oracle_trainer(exact)
    steps = _with_dropped_blocks([*batches(1, 8, 8, seed=47), *batches(1, 6, 8, seed=48)], seed=47)
    lrs, decays = np.array([2e-3, 1e-3], np.float32), np.array([0.0, 0.75])
    with away_from_kinks():
        wanted = reference.run_steps(steps, lrs, decays)
    np.testing.assert_allclose(ours.run_steps(steps, lrs, decays), wanted, rtol=1e-5)
    state = ours.state().tensors
    assert state.keys() == reference.state().tensors.keys()
    for name, array in reference.state().tensors.items():
        tolerance = 1e-4 if name.startswith(("momentum/", "variance/")) else 1e-5
        assert relative(state[name], array) <= tolerance, name
    assert capfd.readouterr().err.count("compiling the training step for images of 6 x 6 pixels") == 1
    graphs = ours.engine._graphs
    assert [len(graphs[name].compile_cache) for name in ("whole", "average", "copy")] == [2, 1, 1]
    ours.run_steps(steps, lrs, decays)
    assert [len(graphs[name].compile_cache) for name in ("whole", "average", "copy")] == [2, 1, 1]
    assert "compiling" not in capfd.readouterr().err


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [20, 22])  # 10 and 11 pixels enter the pool: the two paddings of "same"
def test_pool_paddings(padding: str, size: int) -> None:
    """By the operator, and by what takes its place; ties go the same way, as the gradient of conv1 shows."""
    request = train_request(tiny_weights(size, stem="imagenet", pool_padding=padding))
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    reference, batch = oracle_trainer(exact), batches(1, size)
    exact_steps(reference, batch, LRS[:1])
    for slices in (False, True):
        ours = trainer_on(Device(operators=Operators(slice_pool=slices)), request)
        ours.run_steps(batch, LRS[:1])
        for name in ("weights/conv1.weight", "weights/bn1.running_var"):
            assert relative(ours.state().tensors[name], reference.state().tensors[name]) <= 1e-5
        images = batch[0].images
        assert relative(ours.predictor().logits(images), reference.predictor().logits(images)) <= 1e-5


def test_a_convolution_a_group_computes_the_same() -> None:
    (batch,) = batches(1)
    states, logits = [], []
    for split in (False, True):
        device = Device(operators=Operators(split_groups=split))
        trainer = trainer_on(device, train_request())
        trainer.run_steps([batch], LRS[:1])
        states.append(trainer.state().tensors)
        logits.append(trainer.predictor().logits(batch.images))
    for name, array in states[0].items():
        assert relative(states[1][name], array) <= 1e-6, name
    assert relative(*logits) <= 1e-6
    found = PredictRequest(weights=tiny_weights(), rank=RankInfo())
    served = [
        create_predictor(found, Device(operators=Operators(split_groups=split))).logits(batch.images)
        for split in (False, True)
    ]
    assert relative(*served) <= 1e-6


def test_a_network_of_split_groups_has_no_grouped_convolution() -> None:
    weights = tiny_weights()
    for split in (False, True):
        parameters = make_parameters(weights.spec, weights.tensors)
        network = Network(
            weights.spec, weights.preprocess, parameters, training=True, split_groups=split, slice_pool=split
        )
        groups = {c.conv.group for _, c in network.cells_and_names() if hasattr(c, "conv")}
        assert groups == ({1} if split else {1, weights.spec.groups})


def test_slices_take_the_place_of_the_pool_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For float32 on a 910A; what is asked for goes first."""
    for first in (False, True):
        monkeypatch.setattr(soc, "is_910a", lambda target, first=first: first)
        assert Operators().slices("Ascend", "float32") is first
        assert not Operators().slices("Ascend", "float16")
        assert Operators(slice_pool=True).slices("Ascend", "float16")
        assert not Operators(slice_pool=False).slices("Ascend", "float32")


def test_overflow_is_skipped_counted_and_recovered_from() -> None:
    precision = PrecisionConfig(compute="float16", loss_scale="dynamic", scale=2.0**30, growth_interval=3)
    trainer = _trainer(precision=precision, ema_decay=0.5)
    before = trainer.state()
    (batch,) = batches(1)
    losses = trainer.run_steps([batch], LRS[:1])
    after = trainer.state()
    assert np.isfinite(losses).all()
    assert trainer.counters() == {"step": 1, "overflow_steps": 1, "loss_scale": 2.0**29, "good_steps": 0}
    for name, array in before.tensors.items():
        moved = not np.array_equal(array, after.tensors[name])
        # Running statistics move on a skipped step too, and the EMA follows them.
        assert moved is ("running" in name), name

    for _ in range(29):  # float16 ends at 65504, so it recovers when the scale is far below 2**29
        trainer.run_steps([batch], LRS[:1])
        if trainer.counters()["good_steps"] == 1:
            break
    skipped, scale = trainer.counters()["overflow_steps"], trainer.counters()["loss_scale"]
    assert trainer.counters()["good_steps"] == 1
    assert scale == 2.0 ** (30 - skipped)
    assert 2.0**8 <= scale <= 2.0**20
    trainer.run_steps([batch] * 2, LRS[:2])
    assert trainer.counters() == {
        "step": skipped + 3,
        "overflow_steps": skipped,
        "loss_scale": 2 * scale,
        "good_steps": 0,
    }
    assert not np.array_equal(
        before.tensors["weights/fc.weight"], trainer.state().tensors["weights/fc.weight"]
    )


@pytest.mark.parametrize("bn_float32", [True, False], ids=["bn-float32", "bn-float16"])
def test_float16_stays_near_float32(bn_float32: bool) -> None:
    precision = PrecisionConfig(compute="float16", bn_float32=bn_float32, loss_scale="fixed")
    half, full = _trainer(precision=precision), oracle_trainer(train_request())
    (batch,) = batches(1)
    assert relative(half.run_steps([batch], LRS[:1]), full.run_steps([batch], LRS[:1])) <= 2e-2
    logits = half.predictor().logits(batch.images)
    assert logits.dtype == np.float32
    assert relative(logits, full.predictor().logits(batch.images)) <= 2e-2
    weights = half.state().tensors["weights/layer1.0.conv2.weight"]
    assert weights.dtype == np.float32
    assert not np.array_equal(weights, weights.astype(np.float16))  # the master weights are not rounded


def test_float16_keeps_half_of_what_float32_keeps(tmp_path: Path) -> None:
    """Between the passes, with batch normalisation in float32 too: as the compiled graphs have it."""
    command = [sys.executable, "-m", "mindspore_kept", str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout.splitlines()[-1])
    assert kept["float32"]["types"] == ["Conv2D Float32", "ReLU Float32", "Transpose Float32"]
    assert kept["float16"]["types"] == ["Cast Float16", "Conv2D Float16", "ReLU Float16"], (
        "a cast: the images"
    )
    assert 2 * kept["float16"]["bytes"] == kept["float32"]["bytes"] > 0


def test_resume_is_exact_and_the_predictor_follows() -> None:
    steps = batches(3)
    changes = {"ema_decay": 0.9, "accumulate": 2}
    straight, resumed = _trainer(**changes), _trainer(**changes)
    losses = straight.run_steps(steps, LRS)
    middle = straight.state()
    first = straight.predictor().logits(steps[0].images)

    resumed.run_steps(steps[:1], LRS[:1])
    saved = resumed.state()
    resumed.run_steps(steps[1:], LRS[:2])  # another future, which load_state must undo completely
    resumed.load_state(saved)
    np.testing.assert_array_equal(resumed.run_steps(steps[1:], LRS[1:]), losses[1:])
    for name, array in middle.tensors.items():
        np.testing.assert_array_equal(resumed.state().tensors[name], array, err_msg=name)
    assert resumed.counters() == straight.counters()

    np.testing.assert_array_equal(resumed.predictor().logits(steps[0].images), first)
    straight.run_steps(steps[:1], LRS[:1])
    assert straight.predictor() is straight.predictor()
    assert not np.array_equal(straight.predictor().logits(steps[0].images), first)
    average = straight.predictor(ema=True).logits(steps[0].images)
    assert not np.array_equal(average, straight.predictor().logits(steps[0].images))
    assert not np.array_equal(middle.tensors["weights/fc.bias"], straight.state().tensors["weights/fc.bias"])


def test_state_that_does_not_fit_is_refused() -> None:
    trainer = _trainer()
    state = trainer.state()
    tensors = {n: a for n, a in state.tensors.items() if n != "momentum/fc.bias"}
    with pytest.raises(DataError, match=r"missing momentum/fc\.bias"):
        trainer.load_state(TrainState(tensors=tensors, scalars=state.scalars))
    with pytest.raises(DataError, match=r"unexpected ema/fc\.bias"):
        trainer.load_state(
            TrainState(
                tensors={**state.tensors, "ema/fc.bias": state.tensors["weights/fc.bias"]},
                scalars=state.scalars,
            )
        )
    with pytest.raises(DataError, match="missing step"):
        trainer.load_state(TrainState(tensors=state.tensors, scalars={}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"precision": PrecisionConfig(compute="bfloat16")}, "bfloat16"),
        ({"precision": PrecisionConfig(compute="float64")}, "float64"),
        ({"accumulate": 3}, "equal micro-batches"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        _trainer(**changes)


def test_impossible_batches_are_refused() -> None:
    trainer = _trainer()
    with pytest.raises(UsageError, match="takes 4 images"):
        trainer.run_steps(batches(1, images=3), LRS[:1])
    (batch,) = batches(1)
    batch.labels[0] = -1
    with pytest.raises(DataError, match="labels must be 0 to 4"):
        trainer.run_steps([batch], LRS[:1])
    with pytest.raises(UsageError, match="EMA"):
        trainer.predictor(ema=True)
    trainer.close()
    with pytest.raises(UsageError, match="closed"):
        trainer.run_steps(batches(1), LRS[:1])
