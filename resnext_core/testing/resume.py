"""State: complete, neutral, a copy; and a run that stops and goes on is the run that never stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from resnext_core.errors import DataError
from resnext_core.interfaces import TrainState
from resnext_core.testing import cases
from resnext_core.testing.cases import TRAIN_CASES, assert_states_identical
from resnext_core.testing.optimizer import TrainingBase
from resnext_core.training.trainer import Trainer

SCALARS = {"step", "overflow_steps", "loss_scale", "good_steps"}
resumed_case = pytest.mark.parametrize(
    "case_name", ["everything", "bare", "mixed", "nesterov", "lamb", "adamw"]
)


def _without(state: TrainState, name: str) -> TrainState:
    return replace(state, tensors={n: a for n, a in state.tensors.items() if n != name})


def _with(state: TrainState, name: str, array: Any) -> TrainState:
    return replace(state, tensors={**state.tensors, name: array})


#: How a state can be unfit, by what is wrong with it.
UNFIT: dict[str, Callable[[TrainState], TrainState]] = {
    "missing weights": lambda s: _without(s, "weights/layer1.0.conv2.weight"),
    "missing momentum": lambda s: _without(s, "momentum/fc.weight"),
    "missing ema": lambda s: _without(s, "ema/fc.weight"),
    "misshapen": lambda s: _with(s, "weights/fc.weight", s.tensors["weights/fc.weight"][:-1]),
    "unexpected": lambda s: _with(s, "weights/layer9.0.conv1.weight", np.zeros(3, np.float32)),
}


class ResumeContract(TrainingBase):
    """Bit for bit: the same seed, chunks of any size, a restart at any step."""

    @pytest.mark.parametrize("case_name", TRAIN_CASES)
    def test_state_is_complete_and_neutral(self, case_name: str) -> None:
        case, state = TRAIN_CASES[case_name], self.run(case_name).results[-1].state
        spec = cases.SPECS[case.network]
        tensors = {t.name: t.shape for t in spec.tensors}
        shapes = {f"weights/{name}": shape for name, shape in tensors.items()}
        if case.ema_decay is not None:
            shapes |= {f"ema/{name}": shape for name, shape in tensors.items()}
        for key in cases.optimizer_state(case):
            shapes[key] = tensors.get(key.split("/", 1)[1], (1,))
        assert {n: a.shape for n, a in state.tensors.items()} == shapes
        assert {a.dtype for a in state.tensors.values()} == {np.dtype(np.float32)}
        assert set(state.scalars) >= SCALARS
        assert all(type(v) in (int, float) for v in state.scalars.values()), "scalars are JSON numbers"

    def test_state_is_a_copy(self) -> None:
        trainer = self.second("everything")
        self._restart(trainer, "everything", after=1)
        state = trainer.state()
        kept = {name: array.copy() for name, array in state.tensors.items()}
        case = TRAIN_CASES["everything"]
        trainer.run_steps(case.batches()[1:2], case.lr_array()[1:2])
        assert all(np.array_equal(state.tensors[name], kept[name]) for name in kept)

    def test_chunks_do_not_matter_and_runs_repeat(self) -> None:
        """All steps in one call of another trainer are the same bits as one call a step."""
        case, run = TRAIN_CASES["everything"], self.run("everything")
        trainer = self.trainer(case.request())
        losses = trainer.run_steps(case.batches(), case.lr_array())
        state = trainer.state()
        trainer.close()
        assert [float(loss) for loss in losses] == [result.loss for result in run.results]
        assert_states_identical(state, run.results[-1].state, "all steps in one call")

    @resumed_case
    def test_resumed_run_is_the_uninterrupted_run(self, case_name: str) -> None:
        trainer = self.second(case_name)
        self._finish(trainer, case_name, "a resumed run")

    def test_evaluation_between_steps_changes_nothing(self) -> None:
        trainer, network = self.second("everything"), TRAIN_CASES["everything"].network

        def evaluate() -> None:
            trainer.predictor().logits(cases.images(network, 3))
            trainer.predictor(ema=True).logits(cases.images(network, 3))

        self._finish(trainer, "everything", "a run evaluated between steps", between=evaluate)

    def test_counters_go_on_from_a_state(self) -> None:
        """Every one, of a run of any length: the scale grows after the good steps that were still to come."""
        case, trainer = TRAIN_CASES["everything"], self.second("everything")
        state = self.run("everything").results[0].state
        long = {"step": 2**31 + 5, "overflow_steps": 2**24 + 1, "loss_scale": 512.0, "good_steps": 1}
        trainer.load_state(replace(state, scalars=long))
        assert dict(trainer.state().scalars) == long, "the state just loaded"
        trainer.run_steps(case.batches()[1:2], case.lr_array()[1:2])
        expected = long | {"step": 2**31 + 6, "loss_scale": 1024.0, "good_steps": 0}
        assert dict(trainer.counters()) == expected, "after one step more"

    @pytest.mark.parametrize("ema", [False, True])
    def test_predictor_follows_a_loaded_state(self, ema: bool) -> None:
        """Also one that has answered before."""
        case, trainer = TRAIN_CASES["everything"], self.second("everything")
        network, group = cases.weights(case.network), "ema" if ema else "weights"
        pixels = cases.images(case.network, 5)
        results = self.run("everything").results
        for state in (results[0].state, results[-1].state):
            trainer.load_state(state)
            served = network.replace(tensors={n: state.tensors[f"{group}/{n}"] for n in network.tensors})
            expected = cases.oracle_predictor(served).logits(pixels)
            logits = trainer.predictor(ema=ema).logits(pixels)
            cases.assert_close(logits, expected, cases.TOLERANCE, f"logits of the loaded {group}")

    def test_a_batch_may_be_overwritten_after_the_call(self) -> None:
        """The loader uses its memory again once `run_steps` has returned."""
        case, trainer = TRAIN_CASES["everything"], self.second("everything")
        self._restart(trainer, "everything", after=1)
        batch = case.batches()[1]
        own = replace(batch, images=batch.images.copy(), labels=batch.labels.copy(), valid=batch.valid.copy())
        trainer.run_steps([own], case.lr_array()[1:2])
        own.images[...], own.labels[...], own.valid[...] = 255, 0, False
        expected = self.run("everything").results[1].state
        assert_states_identical(trainer.state(), expected, "the batch was overwritten after its step")

    @pytest.mark.parametrize("problem", UNFIT)
    def test_unfit_state_is_refused(self, problem: str) -> None:
        trainer = self.second("everything")
        good = self.run("everything").results[0].state
        with pytest.raises(DataError):
            trainer.load_state(UNFIT[problem](good))

    def _restart(self, trainer: Trainer, case_name: str, after: int) -> None:
        trainer.load_state(self.run(case_name).results[after - 1].state)
        assert trainer.counters()["step"] == after

    def _finish(
        self, trainer: Trainer, case_name: str, what: str, between: Callable[[], None] | None = None
    ) -> None:
        """Load the state after the first step, take the others, and compare with the kept run."""
        case, results = TRAIN_CASES[case_name], self.run(case_name).results
        self._restart(trainer, case_name, after=1)
        assert_states_identical(trainer.state(), results[0].state, f"{what}: the state just loaded")
        for step in range(1, len(results)):
            if between is not None:
                between()
            loss = case.take(trainer, slice(step, step + 1))
            assert float(loss[0]) == results[step].loss, f"{what}: the loss of step {step + 1}"
        assert_states_identical(trainer.state(), results[-1].state, what)
