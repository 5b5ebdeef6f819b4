"""Two CPU ranks on this machine: the same numbers as one, exact sums, orderly ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mindspore_cases import batches, relative, train_request

from resnext_core.config import OptimizerConfig, PrecisionConfig
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import LaunchRequest
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.kinks import exact_steps
from resnext_core.testing.processes import stop_when_ready
from resnext_core.training.rules import frozen_tensors

pytest.importorskip("mindspore.nn")
from resnext_mindspore import collectives
from resnext_mindspore.collectives import connect
from resnext_mindspore.device import Device
from resnext_mindspore.launch import launch

TESTS = Path(__file__).parent
TIMEOUT = 60


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))


def _request(what: str, folder: Path, devices: int = 2) -> LaunchRequest:
    return LaunchRequest(
        module="mindspore_rank", argv=[what, str(folder)], devices=devices, log_dir=folder / "logs"
    )


def test_two_ranks_equal_one_that_accumulates(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The stem is frozen: it has no gradient that ranks could wait for."""
    assert launch(_request("train", tmp_path), cluster_timeout=TIMEOUT) == 0
    ranks = [np.load(tmp_path / f"rank-{r}.npz") for r in (0, 1)]
    exact = PrecisionConfig(compute="float64")
    request = train_request(optimizer=OptimizerConfig(clip_norm=1.0), accumulate=2, precision=exact, frozen=1)
    reference = oracle_trainer(request)
    losses = exact_steps(reference, batches(2), np.array([0.13, 0.05], np.float32))
    for found in ranks:
        np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
        np.testing.assert_array_equal(found["integers"], [[2**54 + 1], [-14]])
        np.testing.assert_array_equal(found["floats"], [0.2, 2e300])
        assert found["singles"].dtype == np.float32, "what the loop shares is what a state must hold"
        np.testing.assert_array_equal(found["singles"], np.array([0.2, 4.0], np.float32))
        assert found["empty"].shape == (0,)
    for name, array in reference.state().tensors.items():
        if "running" in name and name.split("/", 1)[1] not in frozen_tensors(request):  # local to a rank
            assert not np.array_equal(ranks[0][name], ranks[1][name]), name
        else:
            np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)
            assert relative(ranks[0][name], array) <= 1e-4, name
    assert "a line of rank 0" in (tmp_path / "logs/rank-0.log").read_text()
    assert "a line of rank 1" in (tmp_path / "logs/rank-1.log").read_text()


def test_an_overflow_that_only_one_card_knows_is_skipped_by_all(tmp_path: Path) -> None:
    """On a 910A, which saturates: see mindspore_saturation.py. Without the sum over ranks weights part ways."""
    assert launch(_request("saturate", tmp_path), cluster_timeout=TIMEOUT) == 0
    for case in ("whole", "accumulated"):
        _assert_skipped_by_all(tmp_path, case, 2)
    told, tensors = _saturated(tmp_path, "no sum", 2)
    assert [rank["skipped"][1:3] for rank in told] == [[1, 0], [0, 1]]
    assert "weights/fc.weight" in _differing(tensors)
    told, _ = _saturated(tmp_path, "no clearing", 2)
    assert [rank["skipped"] for rank in told] == [[0, 1, 1, 1, 0]] * 2, "the evaluation's overflow"


def test_three_cards_too(tmp_path: Path) -> None:
    assert launch(_request("saturate", tmp_path, 3), cluster_timeout=TIMEOUT) == 0
    _assert_skipped_by_all(tmp_path, "accumulated", 3)


def _assert_skipped_by_all(folder: Path, case: str, world: int) -> None:
    told, tensors = _saturated(folder, case, world)
    expected = {"skipped": [0, 1, 1, 0, 0], "kept": [False, True, True, False, False], "scale": 16.0}
    assert told == [expected] * world
    assert _differing(tensors) == []


def _saturated(folder: Path, case: str, world: int) -> tuple[list[Any], list[dict[str, np.ndarray]]]:
    """Return what each rank says of its steps, and its weights and momenta."""
    ranks = [dict(np.load(folder / f"{case}-{rank}.npz")) for rank in range(world)]
    return [json.loads(str(rank.pop("found"))) for rank in ranks], ranks


def _differing(ranks: list[dict[str, np.ndarray]]) -> list[str]:
    return [n for n, a in ranks[0].items() if not all(np.array_equal(a, rank[n]) for rank in ranks[1:])]


def test_a_failing_rank_ends_the_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert launch(_request("fail", tmp_path), cluster_timeout=600) == 9
    assert time.monotonic() - start < 300, "nobody waits for the cluster timeout"
    error = capfd.readouterr().err
    assert "rank 1 of 2 ended with exit code 9" in error
    assert "the last words of rank 1" in error


def test_an_orderly_stop_lets_every_rank_save(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from resnext_core.interfaces import LaunchRequest\n"
        "from resnext_mindspore.launch import launch\n"
        "folder = Path(sys.argv[1])\n"
        "request = LaunchRequest(module='mindspore_rank', argv=['stop', sys.argv[1]], devices=2, log_dir=folder)\n"
        f"sys.exit(launch(request, cluster_timeout={TIMEOUT}))"
    )
    stop_when_ready(code, tmp_path, ranks=2)


def test_ranks_of_another_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MS_SCHED_HOST", raising=False)
    with pytest.raises(UsageError, match="torchrun started 2 ranks"):
        connect(RankInfo(rank=0, world=2, launcher="torchrun"), Device())
    assert isinstance(connect(RankInfo(), Device()), SingleProcess)


def test_devices_that_do_not_reach_each_other_have_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """HCCL says so at the first collective. No core is bound meanwhile, which CANN's children would keep."""
    cores: list[set[int]] = []

    def unreachable(tensor: object) -> None:
        raise RuntimeError("Call HcclAllGather failed, EI0006: getting socket times out")

    communication = SimpleNamespace(init=lambda: cores.append(os.sched_getaffinity(0)))
    ops = SimpleNamespace(AllGather=lambda: unreachable)
    fake = SimpleNamespace(communication=communication, ops=ops, Tensor=lambda array: array)
    monkeypatch.setattr(collectives, "open_device", lambda device, alone: fake)
    monkeypatch.setenv("MS_SCHED_HOST", "127.0.0.1")
    monkeypatch.delenv("MS_ROLE", raising=False)
    with pytest.raises(
        BackendUnavailable, match="rank 1 could not join 2 ranks: Call HcclAllGather failed, EI"
    ):
        connect(RankInfo(rank=1, world=2, launcher="msrun"), Device(target="Ascend"))
    assert cores == [os.sched_getaffinity(0)]
