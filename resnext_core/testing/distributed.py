"""Several ranks: exact sums, N ranks equal to one that accumulates, a failing rank that fails the launch."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.interfaces import LaunchRequest, TrainState
from resnext_core.ranks.collectives import Collectives, GatheringCollectives
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.launch import launch_local
from resnext_core.testing import cases
from resnext_core.testing.base import ContractBase
from resnext_core.testing.cases import TRAIN_CASES, assert_tensors_close
from resnext_core.testing.rank_worker import CASE, OTHERS, rank_batches, sums_of

#: Seconds within which a launch must have noticed that a rank has failed, its start-up included.
FAIL_S = 90.0


@dataclass(frozen=True, kw_only=True, eq=False)
class RankReport:
    """What one rank of a launch wrote down; `others` are losses and tensors of the other cases, by name."""

    losses: list[float]
    sums: dict[str, Any]
    state: TrainState | None
    alone: dict[str, Any]
    others: dict[str, tuple[list[float], TrainState]]


class DistributedContract(ContractBase):
    """Processes started by the backend's launcher, or by core's where it has none; `ranks` of them."""

    def test_sums_over_ranks_are_exact(self) -> None:
        """Integers beyond 2**31 and beyond what a float64 can hold, float64 to the last bit, float32 as float32."""
        expected = sums_of(range(self.ranks))
        for rank, report in enumerate(self._reports()):
            assert report.sums == expected, f"rank {rank}"

    def test_ranks_end_with_the_same_parameters(self) -> None:
        first, *others = self._trained()
        names = [f"{g}/{n}" for g in ("weights", "momentum") for n in cases.trainable(TRAIN_CASES[CASE])]
        for other in others:
            differ = [n for n in names if first.tensors[n].tobytes() != other.tensors[n].tobytes()]
            assert not differ, f"{len(differ)} tensors differ between ranks, e.g. {differ[:3]}"
            assert dict(first.scalars) == dict(other.scalars)

    def test_ranks_equal_one_that_accumulates(self) -> None:
        """Parameters and momentum are those of one process that splits the same batch, whoever has the bad rows."""
        case, expected = TRAIN_CASES[CASE], cases.oracle_run(CASE)[-1].state
        for rank, state in enumerate(self._trained()):
            for group, tolerance in (("weights", cases.TOLERANCE), ("momentum", cases.GRADIENT_TOLERANCE)):
                names = [f"{group}/{n}" for n in cases.trainable(case)]
                assert_tensors_close(state, expected, names, tolerance, f"{group} of rank {rank}")

    def test_losses_are_averaged_over_ranks(self) -> None:
        self._trained()
        expected = np.array([r.loss for r in cases.oracle_run(CASE)], np.float32)
        for rank, report in enumerate(self._reports()):
            actual = np.array(report.losses, np.float32)
            cases.assert_close(actual, expected, cases.TOLERANCE, f"losses of rank {rank}")

    @pytest.mark.parametrize("case_name", OTHERS)
    def test_other_steps_of_ranks_equal_one_that_accumulates(self, case_name: str) -> None:
        """Each rank has its own part of what one process draws for all: mixes, dropped branches. All end alike."""
        self._trained()
        case, expected = TRAIN_CASES[case_name], cases.oracle_run(case_name)
        missing = case.asked - self.record.ingredients
        if missing:
            pytest.skip(f"{self.record.id} does not have {', '.join(sorted(missing))}")
        names = [f"weights/{n}" for n in cases.trainable(case)]
        for rank, report in enumerate(self._reports()):
            losses, state = report.others[case_name]
            wanted, what = np.array([r.loss for r in expected], np.float32), f"{case_name} on rank {rank}"
            cases.assert_close(np.array(losses, np.float32), wanted, cases.TOLERANCE, f"losses of {what}")
            assert_tensors_close(state, expected[-1].state, names, cases.TOLERANCE, f"weights of {what}")
            keys = cases.optimizer_state(case)
            when = f"optimizer state of {what}"
            assert_tensors_close(state, expected[-1].state, keys, cases.GRADIENT_TOLERANCE, when)
            first = self._reports()[0].others[case_name][1].tensors
            differ = [n for n in (*names, *keys) if first[n].tobytes() != state.tensors[n].tobytes()]
            assert not differ, (
                f"{case_name}: {len(differ)} tensors of rank {rank} differ from rank 0's: {differ[:3]}"
            )

    def test_an_overflow_on_one_rank_is_skipped_by_all(self) -> None:
        """Only the last rank has a valid row, whose gradients no float32 can hold; the others have none at all."""
        self._trained()
        for rank, report in enumerate(self._reports()):
            found = report.alone["overflow"]
            assert found["skipped"] == 1, f"rank {rank} took the step that overflowed on the last rank"
            assert not found["moved"], f"rank {rank} skipped it and {found['moved']} moved"

    def test_a_loss_on_one_rank_that_is_no_number_is_skipped_by_all(self) -> None:
        """Only the last rank has a loss, above what float32 holds; its gradients are sound."""
        self._trained()
        for rank, report in enumerate(self._reports()):
            found = report.alone["loss"]
            finite = bool(np.isfinite(found["loss"]))
            assert found["skipped"] == (not finite), (
                f"rank {rank}: loss {found['loss']}, skipped {found['skipped']}"
            )
            assert finite or not found["moved"], f"rank {rank} skipped it and {found['moved']} moved"
        assert len({report.alone["loss"]["skipped"] for report in self._reports()}) == 1

    def test_running_statistics_are_a_ranks_own(self) -> None:
        """Those of its micro-batches, along the parameters that all ranks share; their EMA too."""
        case = TRAIN_CASES[CASE]
        names = [f"{group}/{n}" for group in ("weights", "ema") for n in cases.running(case)]
        for rank, (state, expected) in enumerate(
            zip(self._trained(), _oracle_ranks(self.ranks), strict=True)
        ):
            assert_tensors_close(state, expected, names, cases.TOLERANCE, f"statistics of rank {rank}")

    def test_every_rank_has_a_log(self) -> None:
        self._reports()
        folder = self.keep("ranks folder", tempfile.TemporaryDirectory)
        texts = [p.read_text(errors="replace") for p in Path(folder.name, "logs").rglob("*") if p.is_file()]
        for rank in range(self.ranks):
            assert any(f"rank {rank} is done" in text for text in texts), f"no log holds rank {rank}'s output"

    def test_a_failing_rank_fails_the_launch(self, tmp_path: Path) -> None:
        self._needs_ranks()
        start = time.monotonic()
        assert self._launch(tmp_path, "--fail", "1") != 0
        assert time.monotonic() - start < FAIL_S

    # -- launching -------------------------------------------------------------------------------

    def _needs_ranks(self) -> None:
        backend = self.record
        if not (backend.engine or backend.connect or backend.launch):
            pytest.skip(f"{backend.id} offers no engine, connect or launch")
        self.require("probe")
        if self.backend is not None and self.worker is None:
            pytest.skip("a record given directly needs `worker` to reach other processes")

    def _launch(self, folder: Path, *extra: str) -> int:
        backend = self.record
        found = ["--factory", self.worker] if self.worker else ["--backend", backend.id]
        request = LaunchRequest(
            module="resnext_core.testing.rank_worker",
            argv=[*found, "--options", json.dumps(dict(self.options)), "--out", str(folder), *extra],
            devices=self.ranks,
            log_dir=folder / "logs",
            options=self.backend_options,
        )
        return (backend.launch or launch_local)(request)

    def _reports(self) -> list[RankReport]:
        self._needs_ranks()
        reports: list[RankReport] = self.keep("ranks", self._make_reports)
        return reports

    def _make_reports(self) -> list[RankReport]:
        folder = Path(self.keep("ranks folder", tempfile.TemporaryDirectory).name)
        code = self._launch(folder)
        assert code == 0, f"the launch ended with exit code {code}; see the output above"
        return [_read(folder, rank) for rank in range(self.ranks)]

    def _trained(self) -> list[TrainState]:
        self.require("engine")
        states = [report.state for report in self._reports()]
        assert None not in states
        return [state for state in states if state is not None]


def _read(folder: Path, rank: int) -> RankReport:
    data = json.loads((folder / f"rank-{rank}.json").read_text())
    state = None
    if data["scalars"] is not None:
        with np.load(folder / f"rank-{rank}.npz") as arrays:
            state = TrainState(tensors={name: arrays[name] for name in arrays.files}, scalars=data["scalars"])
    others = {}
    for name, losses in data["others"].items():
        with np.load(folder / f"rank-{rank}-{name}.npz") as arrays:
            tensors = {key: arrays[key] for key in arrays.files}
        others[name] = losses, TrainState(tensors=tensors, scalars={})
    return RankReport(
        losses=data["losses"], sums=data["sums"], state=state, alone=data["alone"], others=others
    )


class ThreadGroup:
    """Ranks as threads of this process, for the oracle; `of` gives each rank its collectives."""

    def __init__(self, world: int) -> None:
        self._barrier = threading.Barrier(world, timeout=60)
        self._parts: dict[int, NDArray[np.uint8]] = {}

    def of(self, rank: int) -> Collectives:
        """Return the collectives of one rank."""
        return GatheringCollectives(_ThreadRank(self, rank))

    def gather(self, rank: int, own: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Return what each rank gave, once all have called."""
        self._parts[rank] = own
        self._barrier.wait()
        parts = [self._parts[r] for r in sorted(self._parts)]
        self._barrier.wait()
        return parts

    def abort(self) -> None:
        """Have the other ranks fail where they wait."""
        self._barrier.abort()


class _ThreadRank:
    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self._group, self._rank = group, rank

    def gather(self, own: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        return self._group.gather(self._rank, own)

    def close(self) -> None:
        pass


def _oracle_ranks(world: int) -> list[TrainState]:
    """Return the final state of each of the oracle's ranks, run as threads in float64."""
    case, group = TRAIN_CASES[CASE], ThreadGroup(world)
    states: dict[int, TrainState] = {}

    def work(info: RankInfo) -> None:
        request = case.request(
            precision=cases.oracle_precision(case), rank=info, collectives=group.of(info.rank)
        )
        trainer = cases.oracle_trainer(request)
        trainer.run_steps(rank_batches(info), case.lr_array())
        states[info.rank] = trainer.state()
        trainer.close()

    threads = [threading.Thread(target=work, args=(RankInfo(rank=r, world=world),)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [states[rank] for rank in range(world)]
