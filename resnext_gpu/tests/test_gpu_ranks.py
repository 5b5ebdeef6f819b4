"""Several ranks over gloo: as one rank that accumulates, with sync-BN as one with the whole batch; every launcher."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch.distributed", reason="PyTorch is not installed")

import torch
from gpu_cases import batches, relative, tiny_weights, train_request, trainer_with
from gpu_ingredients import CASES, LRS, batches_of, request_of
from gpu_rank import IMAGES, OTHER, STEPS, SYNC, sync_lrs
from resnext_gpu.collectives import connect, meeting_point, watch_over_nccl
from resnext_gpu.gradients import lost, reaching_others
from resnext_gpu.options import GpuOptions

from resnext_core.config import OptimizerConfig, PrecisionConfig
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import LaunchRequest
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.launch import launch_local
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.kinks import exact_steps
from resnext_core.training.rules import frozen_tensors
from resnext_core.training.trainer import Trainer
from resnext_gpu import engine

TESTS = Path(__file__).parent
CPU = GpuOptions(device="cpu")
Ranks = list[dict[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))


def launch(what: str, folder: Path, devices: int) -> int:
    return launch_local(
        LaunchRequest(module="gpu_rank", argv=[what, str(folder)], devices=devices, log_dir=folder / "logs")
    )


def reports(folder: Path, world: int) -> Ranks:
    return [dict(np.load(folder / f"rank-{r}.npz")) for r in range(world)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def accumulated() -> dict[int, Trainer]:
    """The reference in float64, after the steps of ``gpu_rank train``, by how many micro-batches it accumulated."""
    trainers = {}
    for world in (2, 3):
        request = train_request(
            tiny_weights(OTHER["size"], depths=(2, 1)), accumulate=world, optimizer=OptimizerConfig(clip_norm=1.0),
            ema_decay=0.9, precision=PrecisionConfig(compute="float64"),
        )  # fmt: skip
        trainers[world] = oracle_trainer(request)
        trainers[world].losses = exact_steps(
            trainers[world], batches(4, **OTHER), np.array([0.1, 0.05, 0.1, 0.05], np.float32)
        )
    return trainers


def check_equal_accumulation(ranks: Ranks, reference: Trainer) -> None:
    world = len(ranks)
    for found in ranks:
        assert relative(found["losses"], reference.losses) <= 1e-5
        np.testing.assert_array_equal(found["integers"], [[world * 2**53 + sum(range(world))], [-7 * world]])
        np.testing.assert_array_equal(found["floats"], [sum([0.1] * world), world * 1e300])
        assert found["singles"].dtype == np.float32
        assert found["empty"].shape == (0,)
    for name, array in reference.state().tensors.items():
        if "running" in name:  # a rank's own
            assert ranks[0][name].tobytes() != ranks[1][name].tobytes(), name
            continue
        for found in ranks:
            if not name.startswith("ema/"):
                assert ranks[0][name].tobytes() == found[name].tobytes(), name
            assert relative(found[name], array) <= (1e-4 if name.startswith("momentum/") else 1e-5), name


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_that_accumulates(
    world: int, tmp_path: Path, accumulated: dict[int, Trainer]
) -> None:
    """And a rank that resumes is, bit for bit, the one that went on: ``gpu_rank`` asserts that."""
    assert launch("train", tmp_path, world) == 0
    check_equal_accumulation(reports(tmp_path, world), accumulated[world])


def test_ranks_with_every_ingredient_equal_one_that_accumulates(tmp_path: Path) -> None:
    """LAMB, binary cross-entropy, mixes, branches, a teacher, frozen parts; and a rank that resumes."""
    assert launch("ingredients", tmp_path, 2) == 0
    request = request_of("everything", precision=PrecisionConfig(compute="float64"))
    reference = oracle_trainer(request)
    steps = batches_of(request, 3, seed=CASES["everything"][1])
    losses = exact_steps(reference, steps, LRS)
    ranks, kept = reports(tmp_path, 2), frozen_tensors(request)
    for name, array in reference.state().tensors.items():
        if "running" in name and name.split("/", 1)[1] not in kept:  # a rank's own
            continue
        for found in ranks:
            assert relative(found["losses"], losses) <= 1e-5
            if "running" not in name:
                assert found[name].tobytes() == ranks[0][name].tobytes(), name
            state = name.startswith(("momentum/", "variance/"))
            assert relative(found[name], array) <= (1e-4 if state else 1e-5), name


@pytest.mark.parametrize("world", [2, 3])
def test_with_sync_bn_ranks_equal_one_with_the_whole_batch(world: int, tmp_path: Path) -> None:
    """After 20 steps, on this engine and in the oracle's float64; statistics and EMA too."""
    assert launch("sync", tmp_path, world) == 0
    request = train_request(
        tiny_weights(SYNC["size"], depths=(2, 1)),
        batch_size=IMAGES,
        optimizer=OptimizerConfig(clip_norm=1.0),
        ema_decay=0.9,
    )
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    ours, reference = trainer_with(CPU, request), oracle_trainer(exact)
    steps = batches(STEPS, IMAGES, **SYNC)
    for whole, losses in (
        (ours, ours.run_steps(steps, sync_lrs())),
        (reference, exact_steps(reference, steps, sync_lrs())),
    ):
        state = whole.state()
        for found in reports(tmp_path, world):
            assert relative(found["losses"], losses) <= 1e-5
            for name, array in state.tensors.items():
                assert relative(found[name], array) <= (1e-4 if name.startswith("momentum/") else 1e-5), name


def test_two_nodes_under_torchrun(tmp_path: Path, accumulated: dict[int, Trainer]) -> None:
    """Two agents on one machine, as on two: the same flags, the same numbers."""
    port = free_port()
    flags = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", *flags, f"--node-rank={node}", "-m", "gpu_rank",
                "train", str(tmp_path),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "rank 1 of 2 by torchrun" in outputs[1]
    check_equal_accumulation(reports(tmp_path, 2), accumulated[2])


@pytest.mark.parametrize(
    ("launcher", "names"),
    [
        ("mpirun", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")),
        ("slurm", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")),
    ],
)
def test_ranks_of_other_launchers(
    launcher: str, names: tuple[str, str, str], tmp_path: Path, accumulated: dict[int, Trainer]
) -> None:
    """With the variables that these set (they themselves are not installed), and a meeting point from the user."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "gpu_rank", "train", str(tmp_path)],
            env={**os.environ, **meeting, **dict(zip(names, (str(r), "2", "0"), strict=True))},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in (0, 1)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert f"rank 0 of 2 by {launcher}" in outputs[0]
    check_equal_accumulation(reports(tmp_path, 2), accumulated[2])


def test_a_rank_that_dies_ends_the_job_and_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    assert launch("die", tmp_path, 3) == 9
    assert time.monotonic() - start < 300, "the others go on for ever, and three PyTorch have to start"
    error = capfd.readouterr().err
    assert "rank 1 of 3 ended with exit code 9; the others were stopped" in error
    assert "the last words of rank 1" in error


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_a_rank_that_dies_ends_the_job_under_nccl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other rank waits for the GPU and hears no signal; the launcher ends it all the same."""
    monkeypatch.setenv("RESNEXT_TEST_DEVICE", "cuda")
    assert launch("die", tmp_path, 2) == 9
    assert "rank 1 of 2 ended with exit code 9; the others were stopped" in capfd.readouterr().err


def test_a_rank_that_lost_another_says_so(tmp_path: Path) -> None:
    """Without a launcher that ends it first: exit code 4 and one line."""
    meeting = {"RESNEXT_WORLD_SIZE": "2", "RESNEXT_MASTER": f"127.0.0.1:{free_port()}"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "gpu_rank", "die", str(tmp_path)],
            env={**os.environ, **meeting, "RESNEXT_RANK": str(r)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in (0, 1)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [4, 9], outputs
    lines = [line for line in outputs[0][1].splitlines() if line.startswith("rank 0: ")]
    assert len(lines) == 1
    assert "lost another rank" in lines[0]


def test_ranks_that_do_not_come_are_not_waited_for(tmp_path: Path) -> None:
    code = (
        "from resnext_core.ranks.info import RankInfo\nfrom resnext_core.errors import BackendUnavailable\n"
        "from resnext_gpu.collectives import connect\nfrom resnext_gpu.options import GpuOptions\n"
        "try:\n    connect(RankInfo(rank=0, world=2, launcher='resnext'), GpuOptions(device='cpu', timeout=2))\n"
        "except BackendUnavailable as error:\n    print(error)"
    )
    env = {**os.environ, "RESNEXT_MASTER": f"127.0.0.1:{free_port()}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.startswith("rank 0 could not join 2 ranks: ")
    assert len(done.stdout.splitlines()) == 1


def test_a_lost_rank_is_recognised_where_the_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's collectives are queued; that one failed shows when results are fetched. With stand-ins for its errors."""
    (batch,), lrs = batches(1), np.array([0.1], np.float32)
    ours = trainer_with(CPU, train_request())
    for error, kind in (
        (
            torch.distributed.DistBackendError("NCCL error in: x.cpp:1, remote error"),
            BackendUnavailable,
        ),
        (RuntimeError("[Rank 1] Watchdog caught collective operation timeout: ..."), BackendUnavailable),
        (RuntimeError("NCCL communicator was aborted on rank 1."), BackendUnavailable),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
    ):

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(engine, "_fetch", fail)
            with pytest.raises(
                kind, match="lost another rank" if kind is BackendUnavailable else "illegal memory"
            ):
                ours.run_steps([batch], lrs)


def test_memory_that_a_collective_lacks_is_no_lost_rank() -> None:
    full = torch.distributed.DistBackendError("NCCL error ... Last error:\nCuda failure 2 'out of memory'")
    assert lost(full) is full
    with pytest.raises(torch.distributed.DistBackendError), reaching_others():
        raise full


def test_nccl_is_watched_unless_the_user_says_otherwise() -> None:
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    for given, wanted in (({}, "3"), ({name: "1"}, "1"), ({"NCCL_ASYNC_ERROR_HANDLING": "1"}, None)):
        environ: dict[str, str] = dict(given)
        watch_over_nccl(environ)
        assert environ.get(name) == wanted


def test_meeting_points() -> None:
    rank, torchrun = RankInfo(world=2, launcher="slurm"), RankInfo(world=2, launcher="torchrun")
    two = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert meeting_point(torchrun, two) == "env://"
    assert meeting_point(rank, two) == "tcp://10.0.0.1:29500"
    assert meeting_point(torchrun, {**two, "RESNEXT_MASTER": "node0:1234"}) == "tcp://node0:1234"
    assert meeting_point(rank, {"RESNEXT_MASTER": "[fd00::1]:1234"}) == "tcp://[fd00::1]:1234"
    with pytest.raises(UsageError, match="RESNEXT_MASTER=host:port"):
        meeting_point(rank, {})


def test_a_single_process_needs_no_group() -> None:
    assert isinstance(connect(RankInfo(), CPU), SingleProcess)
    with pytest.raises(UsageError, match="call its connect first"):
        trainer_with(CPU, train_request(rank=RankInfo(world=2)))
