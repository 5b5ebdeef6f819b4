"""Loss scale: a step that overflows is skipped and counted, a dynamic scale follows its rule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.config import OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import TrainState
from resnext_core.model.weights import Weights
from resnext_core.testing import cases
from resnext_core.testing.cases import TRAIN_CASES, TrainCase
from resnext_core.testing.optimizer import TrainingBase

#: The largest power of two of float32: gradients above 2 overflow when multiplied by it.
HUGE = 2.0**127
GROWTH = 2
#: Of the smallest network: many steps are compared, and each could come near to a kink.
BASE = "bare"
EMA_DECAY = 0.9
#: Enough for a good step, an overflow and a good step again, wherever an arithmetic overflows first.
STEPS = 14


def overflow_case(precision: PrecisionConfig) -> TrainCase:
    """Return the set-up of these tests; see :func:`overflow_weights` for its network."""
    return replace(
        TRAIN_CASES[BASE],
        lrs=(1e-4,) * STEPS,
        valid=(),
        batch_size=2,
        seed=45,  # good steps keep away from kinks, see `kinks.py`; which are good is the arithmetic's choice
        optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.01),
        precision=precision,
    )


def overflow_weights() -> Weights:
    """Return a network so sure of itself that its gradients are well above 2, and below 100."""
    network = cases.weights(TRAIN_CASES[BASE].network)
    return network.replace(tensors={**network.tensors, "fc.weight": network.tensors["fc.weight"] * 40})


def oracle_state(steps: Sequence[int]) -> tuple[NDArray[np.float32], TrainState]:
    """Return losses and final state of the oracle after the numbered batches, in float64 without a scale."""
    case = overflow_case(PrecisionConfig(compute="float64"))
    batches = case.batches()
    trainer = cases.oracle_trainer(case.request(network=overflow_weights()))
    losses = trainer.run_steps([batches[i] for i in steps], case.lr_array()[list(steps)])
    return losses, trainer.state()


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """States before the first and after every step, and the losses."""

    states: tuple[TrainState, ...]
    losses: tuple[float, ...]

    @property
    def overflowed(self) -> list[bool]:
        """Whether each step was counted as an overflow."""
        counts = [int(state.scalars["overflow_steps"]) for state in self.states]
        return [after > before for before, after in itertools.pairwise(counts)]


class OverflowContract(TrainingBase):
    """Overflow is an outcome, not an error."""

    @pytest.mark.parametrize("loss_scale", ["dynamic", "fixed"])
    def test_overflow_leaves_parameters_and_momentum(self, loss_scale: str) -> None:
        trace = self._trace(loss_scale)  # "fixed" also clips: the norm of what overflowed is no number
        before, after = trace.states[:2]
        assert after.scalars["step"] == 1
        assert after.scalars["overflow_steps"] == 1, "gradients beyond float32 were not noticed"
        for name in cases.trainable(TRAIN_CASES[BASE]):
            for key in (f"weights/{name}", f"momentum/{name}"):
                assert after.tensors[key].tobytes() == before.tensors[key].tobytes(), f"{key} moved"

    @pytest.mark.parametrize("loss_scale", ["dynamic", "fixed"])
    def test_overflow_keeps_the_loss_and_the_statistics(self, loss_scale: str) -> None:
        """The loss is returned without the scale; running statistics move as on any step."""
        trace = self._trace(loss_scale)
        expected_losses, expected = oracle_state([0])
        losses = np.array(trace.losses[:1], np.float32)
        cases.assert_close(losses, expected_losses, cases.TOLERANCE, "loss of a skipped step")
        names = [f"weights/{n}" for n in cases.running(TRAIN_CASES[BASE])]
        when = "statistics of a skipped step"
        cases.assert_tensors_close(trace.states[1], expected, names, cases.TOLERANCE, when)

    def test_overflow_moves_the_ema(self) -> None:
        """Over weights that stayed and statistics that moved; with `skip_nonfinite` it stays, see below."""
        trace, decay = self._trace("dynamic"), EMA_DECAY
        for step, overflow in enumerate(trace.overflowed):
            before, after = trace.states[step].tensors, trace.states[step + 1].tensors
            for name in cases.weights(TRAIN_CASES[BASE].network).tensors:
                average = after[f"ema/{name}"]
                expected = decay * before[f"ema/{name}"] + (1 - decay) * after[f"weights/{name}"]
                what = f"EMA of {name} on a step that is {'skipped' if overflow else 'taken'}"
                cases.assert_close(average, expected, cases.TOLERANCE, what)

    def test_fixed_scale_stays(self) -> None:
        assert {float(s.scalars["loss_scale"]) for s in self._trace("fixed").states} == {HUGE}

    def test_dynamic_scale_follows_its_rule(self) -> None:
        """Half after an overflow, twice after `growth_interval` good steps, both counted from there on."""
        trace = self._trace("dynamic")
        assert trace.states[0].scalars["loss_scale"] == HUGE
        for step, overflow in enumerate(trace.overflowed):
            before, after = trace.states[step].scalars, trace.states[step + 1].scalars
            scale, good = _next(before, overflow)
            assert (after["loss_scale"], after["good_steps"]) == (scale, good), f"after step {step + 1}"
        grew = any(
            b.scalars["loss_scale"] > a.scalars["loss_scale"] for a, b in itertools.pairwise(trace.states)
        )
        assert grew, f"in {STEPS} steps from {HUGE:g} down the scale never found {GROWTH} good steps"

    def test_good_steps_between_overflows_are_ordinary_steps(self) -> None:
        """The parameters are those of a run that never saw the skipped batches."""
        trace = self._trace("dynamic")
        good = [index for index, overflow in enumerate(trace.overflowed) if not overflow]
        assert good, "every step overflowed"
        assert any(trace.overflowed[good[0] : good[-1]]), "no overflow between good steps: nothing was tested"
        _, expected = oracle_state(good)
        names = [f"weights/{n}" for n in cases.trainable(TRAIN_CASES[BASE])]
        when = f"after {len(good)} good and {STEPS - len(good)} skipped steps"
        cases.assert_tensors_close(trace.states[-1], expected, names, cases.TOLERANCE, when)

    @pytest.mark.parametrize("case", ["plain", "everything", "nesterov", "lamb", "adamw"])
    def test_a_step_that_is_no_number_changes_nothing_when_skipped(self, case: str) -> None:
        """With `skip_nonfinite` not even the statistics and the EMA move: what is no number would stay in them."""
        self.run(case)  # skips where the backend cannot do it
        given = TRAIN_CASES[case]
        trainer = self.trainer(replace(given.request(precision=PrecisionConfig()), skip_nonfinite=True))
        given.take(trainer, slice(0, 1))
        state = trainer.state()
        broken = {**state.tensors, "weights/fc.weight": _overflowing(state.tensors["weights/fc.weight"])}
        trainer.load_state(replace(state, tensors=broken))
        losses = given.take(trainer, slice(1, 3))
        after = trainer.state()
        trainer.close()
        assert not np.isfinite(losses).any(), f"losses {losses} of logits beyond float32"
        for key, array in broken.items():
            assert after.tensors[key].tobytes() == array.tobytes(), f"{key} moved on a skipped step"
        skipped = {k: after.scalars[k] - state.scalars[k] for k in ("step", "overflow_steps", "good_steps")}
        assert skipped == {"step": 2, "overflow_steps": 2, "good_steps": 0}

    def test_skipping_what_is_no_number_leaves_other_steps_alone(self) -> None:
        """A run without such steps is the same, asked to skip them or not."""
        states = []
        for skip in (False, True):
            given = TRAIN_CASES["everything"]
            trainer = self.trainer(replace(given.request(precision=PrecisionConfig()), skip_nonfinite=skip))
            trainer.run_steps(given.batches(), given.lr_array())
            states.append(trainer.state())
            trainer.close()
        keys = list(states[0].tensors)
        cases.assert_tensors_close(states[1], states[0], keys, cases.TOLERANCE, "with skip_nonfinite")

    @pytest.mark.parametrize("case_name", ["everything", "lamb"])
    def test_an_overflow_in_one_micro_batch_skips_the_step(self, case_name: str) -> None:
        """Whichever it is: the others have no valid row, and so no gradient that could overflow."""
        run, case, trainer = self.run(case_name), TRAIN_CASES[case_name], self.second(case_name)
        before = cases.on_the_verge(run.results[0].state, loss_scale=HUGE)
        keys = [f"weights/{n}" for n in cases.trainable(case)] + cases.optimizer_state(case)
        size = case.batch_size // case.accumulate
        for micro in (0, case.accumulate - 1):
            trainer.load_state(before)
            trainer.run_steps([cases.wrong_rows(case, micro * size, size)], np.array([0.1], np.float32))
            after = trainer.state()
            counted = after.scalars["overflow_steps"] - before.scalars["overflow_steps"]
            assert counted == 1, f"the overflow of micro-batch {micro} was not noticed"
            moved = [n for n in keys if after.tensors[n].tobytes() != before.tensors[n].tobytes()]
            assert not moved, f"micro-batch {micro} overflowed and {moved[:3]} moved"

    def _trace(self, loss_scale: str) -> Trace:
        trace: Trace = self.keep(("overflow", loss_scale), lambda: self._make_trace(loss_scale))
        return trace

    def _make_trace(self, loss_scale: str) -> Trace:
        case = overflow_case(
            PrecisionConfig(loss_scale=loss_scale, scale=HUGE, growth_interval=GROWTH)  # type: ignore[arg-type]
        )
        steps = STEPS if loss_scale == "dynamic" else 2
        if loss_scale == "fixed":
            case = replace(case, optimizer=replace(case.optimizer, clip_norm=1.0))
        else:
            case = replace(case, ema_decay=EMA_DECAY)
        trainer = self.trainer(case.request(network=overflow_weights()))
        states, losses = [trainer.state()], []
        for batch, lr in list(zip(case.batches(), case.lr_array(), strict=True))[:steps]:
            losses.append(float(trainer.run_steps([batch], np.array([lr], np.float32))[0]))
            states.append(trainer.state())
        trainer.close()
        return Trace(states=tuple(states), losses=tuple(losses))


def _overflowing(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return finite classifier weights whose logits are not: infinities of both signs."""
    signs = np.where(np.arange(weight.shape[0]) % 2 == 0, 1, -1).astype(np.float32)[:, None]
    return np.broadcast_to(signs * np.float32(3e38), weight.shape).copy()


def _next(scalars: Mapping[str, float | int], overflow: bool) -> tuple[float, int]:
    scale, good = float(scalars["loss_scale"]), int(scalars["good_steps"])
    if overflow:
        return scale / 2, 0
    return (scale * 2, 0) if good + 1 == GROWTH else (scale, good + 1)
