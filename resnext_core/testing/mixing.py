"""Mixup and cutmix on the device: what the case "mixed" does not show by its steps alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from resnext_core.config import PrecisionConfig
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.testing import cases
from resnext_core.testing.cases import TRAIN_CASES, assert_states_identical
from resnext_core.testing.optimizer import TrainingBase

CASE = "mixed"


class MixContract(TrainingBase):
    """Every draw takes effect in its own step, in any arithmetic. Skipped for a backend that does not mix."""

    def test_mixes_of_one_call_are_their_own(self) -> None:
        """All steps in one call, each mixed in another way, are the same bits as one call a step."""
        case, run = TRAIN_CASES[CASE], self.run(CASE)
        trainer = self.second(CASE)
        trainer.load_state(run.initial)
        losses = trainer.run_steps(case.batches(), case.lr_array())
        assert [float(loss) for loss in losses] == [result.loss for result in run.results]
        assert_states_identical(trainer.state(), run.results[-1].state, "mixed steps in one call")

    def test_mixing_in_low_precision_is_close_or_refused(self) -> None:
        """Mixed in float32, then computed in float16: loss and gradient of the classifier to 2e-2, or a refusal."""
        self.run(CASE)  # skips where there is nothing to test
        case = replace(TRAIN_CASES[CASE], precision=PrecisionConfig(compute="float16"))
        refusal, trainer = "", None
        try:
            trainer = self.trainer(case.request())
        except (UsageError, BackendUnavailable) as error:
            refusal = str(error)
        if trainer is None:
            assert "float16" in refusal, "the refusal names what is refused"
            return
        losses = trainer.run_steps(case.batches()[:1], case.lr_array()[:1])
        state, expected = trainer.state(), cases.oracle_run(CASE)[0]
        trainer.close()
        loss = np.array([expected.loss], np.float32)
        cases.assert_close(losses, loss, cases.LOW_TOLERANCE, "float16 loss of mixed images")
        keys, when = ["momentum/fc.weight"], "float16 and mixed images"
        cases.assert_tensors_close(state, expected.state, keys, cases.LOW_TOLERANCE, when)
