"""Optimizer steps: losses, weights, optimizer state, statistics and EMA as the reference in float64 has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from resnext_core.config import PrecisionConfig
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import TrainState
from resnext_core.testing import cases
from resnext_core.testing.base import ContractBase
from resnext_core.testing.cases import TRAIN_CASES, StepResult, assert_tensors_close
from resnext_core.testing.updates import expected_weight
from resnext_core.training.rules import tensor_rules
from resnext_core.training.trainer import Trainer

every_case = pytest.mark.parametrize("case_name", TRAIN_CASES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A trainer that took the steps of its case one call at a time, and what it said after each."""

    trainer: Trainer
    results: tuple[StepResult, ...]
    initial: TrainState

    def close(self) -> None:
        """Release the trainer."""
        self.trainer.close()


class TrainingBase(ContractBase):
    """The runs that several parts of the kit look at."""

    def run(self, case_name: str) -> Run:
        """Return the run of a case, made once; skips one that asks for what the backend does not do."""
        self.require("engine")
        missing = TRAIN_CASES[case_name].asked - self.record.ingredients
        if missing:
            pytest.skip(f"{self.record.id} does not have {', '.join(sorted(missing))}")
        run: Run = self.keep(("run", case_name), lambda: self._make_run(case_name))
        return run

    def _make_run(self, case_name: str) -> Run:
        case = TRAIN_CASES[case_name]
        trainer = self.trainer(case.request())
        initial = trainer.state()
        results = []
        for step in range(len(case.lrs)):
            losses = case.take(trainer, slice(step, step + 1))
            assert losses.dtype == np.float32
            assert losses.shape == (1,)
            results.append(StepResult(loss=float(losses[0]), state=trainer.state()))
        return Run(trainer=trainer, results=tuple(results), initial=initial)

    def second(self, case_name: str) -> Trainer:
        """Return another trainer of the case, which has not taken its steps; for tests that load a state into it."""
        self.run(case_name)
        make = lambda: self.trainer(TRAIN_CASES[case_name].request())  # noqa: E731
        trainer: Trainer = self.keep(("second", case_name), make)
        return trainer


class OptimizerContract(TrainingBase):
    """One step, and the steps after it, in which momentum and statistics count."""

    @every_case
    def test_losses_equal_the_reference(self, case_name: str) -> None:
        actual = np.array([r.loss for r in self.run(case_name).results], np.float32)
        expected = np.array([r.loss for r in cases.oracle_run(case_name)], np.float32)
        cases.assert_close(actual, expected, cases.TOLERANCE, f"losses of {case_name}")

    @every_case
    def test_weights_equal_the_reference(self, case_name: str) -> None:
        self._compare(case_name, "weights", cases.trainable(TRAIN_CASES[case_name]), cases.TOLERANCE)

    @every_case
    def test_momentum_equals_the_reference(self, case_name: str) -> None:
        names = cases.trainable(TRAIN_CASES[case_name])
        self._compare(case_name, "momentum", names, cases.GRADIENT_TOLERANCE)

    @every_case
    def test_optimizer_state_equals_the_reference(self, case_name: str) -> None:
        """Second moments and the number of steps taken, where the optimizer has them, and nothing more."""
        case = TRAIN_CASES[case_name]
        keys = [key for key in cases.optimizer_state(case) if not key.startswith("momentum/")]
        for step, (result, wanted) in enumerate(
            zip(self.run(case_name).results, cases.oracle_run(case_name), strict=True)
        ):
            found = {k for k in result.state.tensors if k.startswith(("variance/", "optimizer/"))}
            assert found == set(keys), f"{case_name} keeps {found}"
            when = f"optimizer state of {case_name} after step {step + 1}"
            assert_tensors_close(result.state, wanted.state, keys, cases.GRADIENT_TOLERANCE, when)

    @every_case
    def test_update_follows_from_the_optimizer_state(self, case_name: str) -> None:
        """For SGD p - lr · v to the last bits, for rates of any size: 0 moves nothing; the formulas of the others."""
        run, case = self.run(case_name), TRAIN_CASES[case_name]
        states = [run.initial, *(result.state for result in run.results)]
        for step, lr in enumerate(case.lr_array()):
            before, after = states[step].tensors, states[step + 1].tensors
            for name, rule in tensor_rules(case.request()).items():
                new, allowed = expected_weight(name, case.optimizer, rule, lr, before, after)
                assert (np.abs(after[f"weights/{name}"] - new) <= allowed).all(), (
                    f"{name} of {case_name} moved by another rate than {lr:g} in step {step + 1}"
                )

    @every_case
    def test_running_statistics_equal_the_reference(self, case_name: str) -> None:
        """Moved by 0.1 on every micro-batch, with the unbiased variance."""
        self._compare(case_name, "weights", cases.running(TRAIN_CASES[case_name]), cases.TOLERANCE)

    @every_case
    def test_ema_equals_the_reference(self, case_name: str) -> None:
        case = TRAIN_CASES[case_name]
        if case.ema_decay is None:
            state = self.run(case_name).results[-1].state
            assert not [n for n in state.tensors if n.startswith("ema/")], "an EMA that nobody asked for"
        else:
            names = [t.name for t in cases.SPECS[case.network].tensors]
            self._compare(case_name, "ema", names, cases.TOLERANCE)

    @every_case
    def test_counters_equal_the_reference(self, case_name: str) -> None:
        for result, expected in zip(self.run(case_name).results, cases.oracle_run(case_name), strict=True):
            for name, value in expected.state.scalars.items():
                assert result.state.scalars[name] == value, name
        run = self.run(case_name)
        counters = run.trainer.counters()
        last = run.trainer.state().scalars
        assert {name: counters[name] for name in expected.state.scalars} == {
            name: last[name] for name in expected.state.scalars
        }

    @every_case
    def test_training_starts_from_the_weights_given(self, case_name: str) -> None:
        case, run = TRAIN_CASES[case_name], self.run(case_name)
        for name, array in cases.weights(case.network).tensors.items():
            assert run.initial.tensors[f"weights/{name}"].tobytes() == array.tobytes(), name
            if case.ema_decay is not None:
                average = run.initial.tensors[f"ema/{name}"]
                assert average.tobytes() == array.tobytes(), f"the EMA of {name}"

    def test_the_request_is_not_modified(self) -> None:
        """Training moves the trainer's own copy of the weights."""
        case = TRAIN_CASES["plain"]
        network = cases.weights(case.network)
        own = network.replace(tensors={name: array.copy() for name, array in network.tensors.items()})
        trainer = self.trainer(case.request(network=own))
        trainer.run_steps(case.batches()[:1], case.lr_array()[:1])
        trainer.close()
        assert own.digest == network.digest, "training wrote into the weights of the request"

    def test_loss_falls(self) -> None:
        """One small batch is learnt by heart."""
        trainer, batch = self.run("plain").trainer, TRAIN_CASES["plain"].batches()[0]
        losses = trainer.run_steps([batch] * 20, np.full(20, 0.05, np.float32))
        assert losses.shape == (20,)
        assert np.isfinite(losses).all()
        assert losses[-1] < 0.7 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"

    @pytest.mark.parametrize("ema", [False, True])
    def test_predictor_follows_the_weights(self, ema: bool) -> None:
        """One that is asked for after a step has the weights, or their EMA, of after it; asked again, the same bits."""
        case = TRAIN_CASES["everything"]
        trainer, group = self.run("everything").trainer, "ema" if ema else "weights"
        pixels = cases.images(case.network, 5)
        seen = []
        for _ in range(2):
            tensors = trainer.state().tensors
            network = cases.weights(case.network)
            current = network.replace(tensors={n: tensors[f"{group}/{n}"] for n in network.tensors})
            seen.append(trainer.predictor(ema=ema).logits(pixels))
            again = trainer.predictor(ema=ema).logits(pixels)
            assert np.array_equal(again, seen[-1]), (
                "the trainer's predictor answered otherwise the second time"
            )
            expected = cases.oracle_predictor(current).logits(pixels)
            cases.assert_close(seen[-1], expected, cases.TOLERANCE, f"logits of the trainer's {group}")
            trainer.run_steps(case.batches()[:1], np.array([0.1], np.float32))
        assert cases.relative_error(seen[0], seen[1]) > cases.TOLERANCE, "training did not change the logits"

    @pytest.mark.parametrize("size", [25, 30])
    def test_predictor_takes_images_of_another_size(self, size: int) -> None:
        """``eval.size``: what is evaluated need not have the size of the training images; odd and even planes."""
        case = TRAIN_CASES["bare"]
        trainer, network = self.run("bare").trainer, cases.weights(case.network)
        pixels = np.random.default_rng(size).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
        logits = trainer.predictor(ema=False).logits(pixels)
        tensors = trainer.state().tensors
        current = network.replace(tensors={n: tensors[f"weights/{n}"] for n in network.tensors})
        expected = cases.oracle_predictor(current.evaluated_at(size)).logits(pixels)
        what = f"logits of images of {size} pixels, trained on {network.spec.image_size}"
        cases.assert_close(logits, expected, cases.TOLERANCE, what)

    @pytest.mark.parametrize("compute", ["float16", "bfloat16"])
    def test_low_precision_is_close_or_refused(self, compute: str) -> None:
        """The loss to 2e-2, weights and momentum kept in float32; or an error that says it cannot."""
        case = TRAIN_CASES["plain"]
        precision = PrecisionConfig(compute=compute)  # type: ignore[arg-type]
        refusal, trainer = "", None
        try:
            trainer = self.trainer(replace(case, precision=precision).request())
        except (UsageError, BackendUnavailable) as error:
            refusal = str(error)
        if trainer is None:
            assert compute in refusal, "the refusal names what is refused"
            return
        losses = trainer.run_steps(case.batches()[:1], case.lr_array()[:1])
        state = trainer.state()
        trainer.close()
        expected = cases.oracle_run("plain")[0]
        cases.assert_close(
            losses, np.array([expected.loss], np.float32), cases.LOW_TOLERANCE, f"{compute} loss"
        )
        names = [f"weights/{n}" for n in cases.trainable(case)]
        assert_tensors_close(state, expected.state, names, cases.LOW_TOLERANCE, f"a step in {compute}")
        rounded = [n for n in names if np.array_equal(state.tensors[n], state.tensors[n].astype(np.float16))]
        assert len(rounded) < len(names) / 2, f"weights are kept in {compute}: they must be float32"

    def _compare(self, case_name: str, group: str, names: list[str], tolerance: float) -> None:
        expected = cases.oracle_run(case_name)
        for step, (result, wanted) in enumerate(zip(self.run(case_name).results, expected, strict=True)):
            keys = [f"{group}/{name}" for name in names]
            when = f"{group} of {case_name} after step {step + 1}"
            assert_tensors_close(result.state, wanted.state, keys, tolerance, when)
