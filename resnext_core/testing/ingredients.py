"""What an engine can do beyond SGD on cross-entropy: what the steps of its cases alone do not show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resnext_core.config import PrecisionConfig
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.testing import cases
from resnext_core.testing.cases import TRAIN_CASES, assert_states_identical
from resnext_core.testing.optimizer import TrainingBase
from resnext_core.training.rules import frozen_tensors

#: Of these every step has something of its own: mixes, dropped branches and decays of the EMA, a teacher, a size.
VARYING = ("mixed", "lamb", "agc", "sizes")


class IngredientContract(TrainingBase):
    """Every draw takes effect in its own step, in any arithmetic. Skipped for what a backend does not do."""

    @pytest.mark.parametrize("case_name", VARYING)
    def test_steps_of_one_call_are_their_own(self, case_name: str) -> None:
        """All steps in one call, each with other draws, are the same bits as one call a step."""
        case, run = TRAIN_CASES[case_name], self.run(case_name)
        trainer = self.second(case_name)
        trainer.load_state(run.initial)
        losses = case.take(trainer)
        assert [float(loss) for loss in losses] == [result.loss for result in run.results]
        assert_states_identical(trainer.state(), run.results[-1].state, f"steps of {case_name} in one call")

    @pytest.mark.parametrize("case_name", ["mixed", "lamb", "adamw", "agc"])
    def test_ingredients_in_low_precision_are_close_or_refused(self, case_name: str) -> None:
        """In float16: loss and gradient of the classifier to 2e-2, or a refusal."""
        self.run(case_name)  # skips where there is nothing to test
        case = replace(TRAIN_CASES[case_name], precision=PrecisionConfig(compute="float16"))
        refusal, trainer = "", None
        try:
            trainer = self.trainer(case.request())
        except (UsageError, BackendUnavailable) as error:
            refusal = str(error)
        if trainer is None:
            assert "float16" in refusal, "the refusal names what is refused"
            return
        losses = case.take(trainer, slice(0, 1))
        state, expected = trainer.state(), cases.oracle_run(case_name)[0]
        trainer.close()
        loss = np.array([expected.loss], np.float32)
        cases.assert_close(losses, loss, cases.LOW_TOLERANCE, f"float16 loss of {case_name}")
        keys, when = ["momentum/fc.weight"], f"float16 and {case_name}"
        cases.assert_tensors_close(state, expected.state, keys, cases.LOW_TOLERANCE, when)

    @pytest.mark.parametrize("case_name", ["nesterov", "head"])
    def test_frozen_parts_stay(self, case_name: str) -> None:
        """To the bit, batch statistics too."""
        run, case = self.run(case_name), TRAIN_CASES[case_name]
        before, after = run.initial.tensors, run.results[-1].state.tensors
        keys = [f"weights/{name}" for name in frozen_tensors(case.request())]
        moved = [key for key in keys if before[key].tobytes() != after[key].tobytes()]
        assert not moved, f"{len(moved)} of {len(keys)} frozen tensors moved, e.g. {moved[:3]}"

    def test_decays_of_zero_and_one_are_exact(self) -> None:
        """A decay of 0 copies weights and statistics into the EMA, one of 1 leaves it, both to the bit."""
        case, results = TRAIN_CASES["lamb"], self.run("lamb").results
        for name in cases.weights(case.network).tensors:
            copied, kept = (result.state.tensors[f"ema/{name}"] for result in results[:2])
            assert copied.tobytes() == results[0].state.tensors[f"weights/{name}"].tobytes(), f"copied {name}"
            assert kept.tobytes() == copied.tobytes(), f"kept {name}"

    def test_binary_cross_entropy_of_large_logits(self) -> None:
        """Logits whose exponentials no float32 can hold have a loss and a gradient."""
        case, trainer = TRAIN_CASES["head"], self.second("head")
        state = self.run("head").initial
        large = {"weights/fc.weight": state.tensors["weights/fc.weight"] * np.float32(300)}
        state = replace(state, tensors={**state.tensors, **large})
        oracle = cases.oracle_trainer(case.request(precision=cases.oracle_precision(case)))
        for one in (trainer, oracle):
            one.load_state(state)
        loss, expected = (case.take(one, slice(0, 1)) for one in (trainer, oracle))
        pixels = case.batches()[0].images
        most = np.abs(oracle.predictor().logits(pixels)).max()
        assert most > 100, f"the largest logit is {most:.3g}: nothing was tested"
        cases.assert_close(loss, expected, cases.TOLERANCE, "loss of large logits")
        keys = cases.optimizer_state(case)
        when = "gradients of large logits"
        cases.assert_tensors_close(trainer.state(), oracle.state(), keys, cases.GRADIENT_TOLERANCE, when)
        oracle.close()
