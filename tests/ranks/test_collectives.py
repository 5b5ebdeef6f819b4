"""Who am I, and adding up over TCP: exact sums, and an error that names the rank that was lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.ranks.collectives import GatheringCollectives, SingleProcess
from resnext_core.ranks.connect import connect_tcp, master_address
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.ranks.launch import free_port
from resnext_core.ranks.tcp import TcpCollectives


def on_ranks(world: int, work: Callable[[TcpCollectives, int], Any]) -> list[Any]:
    """Run `work(collectives, rank)` of each rank in a thread; return results or exceptions by rank."""
    port = free_port()
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        try:
            info = RankInfo(rank=rank, world=world)
            collectives = TcpCollectives(info, "127.0.0.1", port)
            try:
                results[rank] = work(collectives, rank)
            finally:
                collectives.close()
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a rank hangs"
    return results


# -- who am I ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1, 0, "single")),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1, "torchrun")),
        ({"RANK_ID": "1", "RANK_SIZE": "2", "DEVICE_ID": "5"}, (1, 2, 5, "msrun")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2, 1, "mpirun")),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}, (0, 4, 0, "slurm")),
        (
            {"RESNEXT_RANK": "1", "RESNEXT_WORLD_SIZE": "2", "RANK": "0", "WORLD_SIZE": "1"},
            (1, 2, 1, "resnext"),
        ),
    ],
)
def test_rank_info_reads_each_launcher(environ: dict[str, str], expected: tuple[Any, ...]) -> None:
    info = rank_info(environ)
    assert (info.rank, info.world, info.local_rank, info.launcher) == expected


@pytest.mark.parametrize("environ", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_rank_info_refuses_contradictions(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="RANK"):
        rank_info(environ)


def test_master_address() -> None:
    assert master_address({"RESNEXT_MASTER": "node1:1234"}) == ("node1", 1234)
    assert master_address({"RESNEXT_MASTER": "[::1]:1234"}) == ("::1", 1234)
    assert master_address({"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}) == ("node1", 29501)
    assert master_address({"MS_SCHED_HOST": "10.0.0.1", "MS_SCHED_PORT": "8118"}) == ("10.0.0.1", 8119)
    for bad in ("node1", "node1:", ":1", "node1:x", "node1:70000"):
        with pytest.raises(UsageError, match="host:port"):
            master_address({"RESNEXT_MASTER": bad})
    with pytest.raises(UsageError, match="RESNEXT_MASTER"):
        master_address({})


# -- adding up -----------------------------------------------------------------------------------


def test_a_world_of_one_needs_no_address() -> None:
    collectives = connect_tcp(RankInfo(), {})
    assert isinstance(collectives, SingleProcess)
    values = np.arange(3)
    total = collectives.all_reduce_sum(values)
    total[0] = 7
    assert values[0] == 0


@pytest.mark.parametrize("world", [2, 3])
def test_sums_are_exact_and_the_same_everywhere(world: int) -> None:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((world, 1000))
    big = np.array([[2**31 + 1, 2**53 + 1, -(2**40), 3]] * world) + np.arange(world)[:, None]

    def work(collectives: TcpCollectives, rank: int) -> list[np.ndarray]:
        return [
            collectives.all_reduce_sum(big[rank]),
            collectives.all_reduce_sum(floats[rank]),
            collectives.all_reduce_sum(floats[rank].astype(np.float32).reshape(10, 100)),
            collectives.all_reduce_sum(np.array(rank, np.int64)),
            collectives.all_reduce_sum(np.zeros((0, 3))),
        ]

    results = on_ranks(world, work)
    for result in results:
        assert result[0].dtype == np.int64
        assert result[0].tolist() == [sum(int(v) for v in column) for column in big.T]
        assert result[1].dtype == np.float64
        assert np.allclose(result[1], floats.sum(axis=0), rtol=1e-14)
        assert result[2].dtype == np.float32
        assert result[2].shape == (10, 100)
        assert result[3].shape == ()
        assert result[3] == sum(range(world))
        assert result[4].shape == (0, 3)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(result, results[0], strict=True))
        assert result[0].flags.writeable


def test_floats_are_added_in_rank_order() -> None:
    values = [1e16, 1.0, -1e16, 1.0]  # every other order gives another sum
    expected = ((values[0] + values[1]) + values[2]) + values[3]
    port = free_port()
    totals: dict[int, float] = {}

    def run(rank: int) -> None:
        collectives = TcpCollectives(RankInfo(rank=rank, world=4), "127.0.0.1", port)
        time.sleep(0.05 * (3 - rank))  # the last arrives first
        totals[rank] = float(collectives.all_reduce_sum(np.array([values[rank]]))[0])
        collectives.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert totals == dict.fromkeys(range(4), expected)


def test_large_arrays_pass() -> None:
    values = np.arange(3_000_000, dtype=np.float64)
    results = on_ranks(2, lambda c, rank: c.all_reduce_sum(values))
    assert all(np.array_equal(r, values * 2) for r in results)


def test_barrier_waits_for_the_slowest() -> None:
    comes = threading.Event()

    def work(collectives: TcpCollectives, rank: int) -> bool:
        if rank:
            time.sleep(0.2)  # in which the other would go on, if it did not wait
            comes.set()
        collectives.barrier()
        return comes.is_set()

    assert on_ranks(2, work) == [True, True]


def test_other_dtypes_are_refused() -> None:
    for result in on_ranks(2, lambda c, rank: c.all_reduce_sum(np.zeros(2, np.complex64))):
        assert isinstance(result, UsageError)
        assert "complex64" in str(result)


def test_the_type_of_a_sum_is_wide_enough() -> None:
    types = {"int32": "int64", "bool": "int64", "uint8": "int64", "float16": "float64", "float32": "float32"}
    for given, found in types.items():
        for result in on_ranks(2, lambda c, rank, t=given: c.all_reduce_sum(np.ones(2, t))):
            assert (result.dtype.name, result.tolist()) == (found, [2, 2])


def test_a_group_that_gathers_bytes_adds_up_like_core() -> None:
    """In rank order, in the right type; an array without elements is not sent."""

    class Three:
        sent = 0

        def gather(self, own: np.ndarray) -> list[np.ndarray]:
            assert own.dtype == np.uint8
            assert own.size % 4 == 0
            self.sent += 1
            value = own.view(dtype)
            return [np.array(part, dtype).view(np.uint8) for part in (value, value * 2, value * 4)]

        def close(self) -> None:
            self.sent = -1

    group = Three()
    collectives = GatheringCollectives(group)
    for dtype, given in (("<i8", 2**53 + 1), ("<f8", 0.1), ("<f4", 0.1)):
        values = np.full((2, 1), given, dtype)
        total = collectives.all_reduce_sum(values)
        assert total.dtype == values.dtype
        assert np.array_equal(total, values + values * 2 + values * 4)
    assert collectives.all_reduce_sum(np.zeros((0, 3))).shape == (0, 3)
    assert group.sent == 3
    collectives.close()
    assert group.sent == -1


def test_different_collectives_are_a_diagnosis_not_a_hang() -> None:

    def work(collectives: TcpCollectives, rank: int) -> None:
        if rank:
            collectives.all_reduce_sum(np.zeros(2))
        else:
            collectives.barrier()

    for result in on_ranks(2, work):
        assert isinstance(result, BackendUnavailable)
        assert "different collectives" in str(result)


def test_a_rank_that_leaves_is_named() -> None:
    port = free_port()
    errors: dict[int, Exception] = {}

    def run(rank: int) -> None:
        collectives = TcpCollectives(RankInfo(rank=rank, world=3), "127.0.0.1", port)
        try:
            if rank != 1:
                collectives.all_reduce_sum(np.ones(1_000_000))
        except BackendUnavailable as error:
            errors[rank] = error
        finally:
            collectives.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(errors) == [0, 2]
    assert all("rank 1" in str(error) for error in errors.values())


def test_a_rank_that_never_comes_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="rank 1 did not join"):
        TcpCollectives(RankInfo(rank=0, world=2), "127.0.0.1", free_port(), join_timeout_s=0.3)
    with pytest.raises(BackendUnavailable, match="cannot reach rank 0"):
        TcpCollectives(RankInfo(rank=1, world=2), "127.0.0.1", free_port(), join_timeout_s=0.3)


def test_a_rank_that_keeps_the_others_waiting_is_named() -> None:
    port = free_port()
    errors: dict[int, str] = {}
    done = threading.Event()

    def run(rank: int) -> None:
        collectives = TcpCollectives(RankInfo(rank=rank, world=2), "127.0.0.1", port, round_timeout_s=0.3)
        if rank == 1:
            done.wait(120)
        else:
            with pytest.raises(BackendUnavailable) as caught:
                collectives.barrier()
            errors[rank] = str(caught.value)
            done.set()
        collectives.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert "rank 1 kept the others waiting" in errors[0]


def test_strangers_are_turned_away() -> None:
    """Another job on our port is refused and does not disturb; garbage does not either."""
    port = free_port()
    sums: list[int] = []

    def run(rank: int) -> None:
        collectives = TcpCollectives(RankInfo(rank=rank, world=2), "127.0.0.1", port, job="a")
        sums.append(int(collectives.all_reduce_sum(np.array([rank + 1]))[0]))
        collectives.close()

    first = threading.Thread(target=run, args=(0,))
    first.start()
    with pytest.raises(BackendUnavailable, match="refused"):
        TcpCollectives(RankInfo(rank=1, world=2), "127.0.0.1", port, job="b", join_timeout_s=5)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    second = threading.Thread(target=run, args=(1,))
    second.start()
    first.join(20)
    second.join(20)
    assert sums == [3, 3]


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BackendUnavailable, match="cannot listen"):
            TcpCollectives(RankInfo(rank=0, world=2), "127.0.0.1", port, join_timeout_s=0.2)
