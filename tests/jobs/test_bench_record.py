"""The records of benchmarks: written, read again, documented, and what is measured for them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine

from resnext_core.errors import EXIT_DATA
from resnext_core.interfaces import Compute
from resnext_core.jobs import bench_peak
from resnext_core.jobs.bench_peak import processor_peak
from resnext_core.jobs.bench_record import (
    KINDS,
    SCHEMA,
    StepsResult,
    from_dict,
    median_interval,
    read_results,
)
from resnext_core.jobs.bench_steps import measured_peak, warm_up
from resnext_core.model.spec import model_spec
from resnext_core.processor import blas_threads, processor

PAGE = Path(__file__).parents[2] / "docs" / "benchmarking.md"
FAST = [
    "--set",
    "model.variant=resnext_tiny",
    "--set",
    "model.image_size=8",
    "--batch-size",
    4,
    "--classes",
    6,
]


@pytest.fixture(params=["train", "eval", "data"])
def found(request: pytest.FixtureRequest, cli: CommandLine, photos: Path) -> dict[str, Any]:
    """What each kind prints with --json."""
    words = ["bench", request.param, *FAST, "--steps", 7, "--warmup", 1, "--data", photos]
    record: dict[str, Any] = cli.ok(*words, "--set", "data.workers=0", "--peak-tflops", 1, "--json").json()
    return record


def documented(kind: str) -> set[str]:
    """Return the keys of a kind of record by the table of the page."""
    table = PAGE.read_text().split("\n## The record\n")[1].split("\n## ")[0]
    lines = [line.strip("| \n").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {
        key.strip("`")
        for keys, kinds, *_ in lines
        if kind in kinds or "all" in kinds
        for key in keys.split(", ")
    }


def test_every_kind_of_output_is_a_record_of_the_schema(found: dict[str, Any], tmp_path: Path) -> None:
    kind = found["bench"]
    assert found["schema"] == SCHEMA == "resnext-bench/1"
    assert set(found) == documented(kind)
    assert from_dict(found).to_dict() == found
    file = tmp_path / "one.json"
    file.write_text(json.dumps(found))
    (again,) = read_results(file)
    assert type(again) is KINDS[kind]
    assert again.to_dict() == found
    file.write_text(f"{json.dumps(found)}\n{json.dumps(found)}\n")
    assert len(read_results(file)) == 2, "one a line"
    assert found["processor"] == dataclasses.asdict(processor())
    assert found["versions"]["numpy"] == np.__version__
    assert "python" in found["versions"]
    if kind != "data":
        spec = model_spec("resnext_tiny", num_classes=6, image_size=8)
        assert (found["variant"], found["classes"], found["macs"]) == ("resnext_tiny", 6, spec.macs)
        assert (found["steps"], found["warmup"], found["precision"]) == (7, 1, "float32")
        passes = 3 if kind == "train" else 1
        assert found["images_per_s"] == pytest.approx(4e3 / found["ms_p50"])
        assert found["gflop_per_s"] == pytest.approx(2e-9 * passes * spec.macs * found["images_per_s"])
        assert found["mfu"] == pytest.approx(found["gflop_per_s"] / 1000)
        assert found["threads"] == blas_threads()
        assert found["ms_min"] <= found["ms_interval"][0] <= found["ms_p50"] <= found["ms_interval"][1]
        assert found["ms_p50"] <= found["ms_p90"] <= found["ms_p99"] <= found["ms_max"]


def test_the_peak_is_measured_in_the_same_run(cli: CommandLine) -> None:
    words = ["--backend", "reference", "bench", "eval", *FAST, "--steps", 1, "--warmup", 0, "--json"]
    found = cli.ok(*words).json()
    assert found["peak_gflop_per_s"] > 0
    assert found["mfu"] == found["gflop_per_s"] / found["peak_gflop_per_s"]
    threads = blas_threads()
    assert found["peak_source"] == (
        f"measured: matrix product of NumPy in float32, up to {threads} thread{'s' if threads > 1 else ''}"
    )
    assert found["ms_interval"] is None, "one step has no interval"


def test_a_peak_is_two_flops_a_product_of_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peak, "_fastest", lambda size, precision: {256: 1, 512: 1e-3, 1024: 1e-1}[size])
    assert bench_peak.product_flops("float32") == 2 * 512**3 / 1e-3


def test_several_threads_that_disturb_each_other_are_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {1: 7.0, 2: 5.0, 4: 9.0, 8: None}
    monkeypatch.setattr(bench_peak, "_measured", lambda precision, threads: found[threads])
    assert [processor_peak("float32", threads) for threads in (1, 2, 4, 8)] == [7.0, 7.0, 9.0, 7.0]
    found[1] = None
    assert processor_peak("float32", 8) is None


def test_a_peak_that_nobody_can_measure_is_none() -> None:
    assert processor_peak("bfloat16", 1) is None
    assert measured_peak(Compute(device="mine"), "float32") == (None, None), (
        "no other device than the processor"
    )
    assert measured_peak(Compute(threads=1), None) == (None, None)
    asked: list[str] = []

    def peak(precision: str) -> float:
        asked.append(precision)
        return 5e12

    found = measured_peak(Compute(device="mine", peak=peak), "bfloat16")
    assert found == (5000.0, "measured: matrix product of the backend in bfloat16 on mine")
    assert asked == ["bfloat16"]


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        ([5, 1, 1, 1, 1, 1], 5),  # the first compiles; three after the second are no faster
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], 8),
        ([1, 1, 1, 0.98], 4),  # less than 3 % faster
        ([1, 0.9, 0.8, 0.7, 0.6, 0.59, 0.59, 0.59, 0.59], 8),
        ([20, 1], 1),  # not longer than that
    ],
)
def test_warming_up_ends_when_steps_no_longer_get_faster(seconds: list[float], steps: int) -> None:
    times: Iterator[float] = iter(seconds)
    assert warm_up(lambda: next(times)) == steps


def test_warming_up_ends_and_takes_a_fixed_number_where_one_is_given() -> None:
    counter = iter(range(1, 1000))
    assert warm_up(lambda: 1 / next(counter)) == 30
    assert warm_up(lambda: 1.0, 0) == 0
    assert warm_up(lambda: 100.0, 7) == 7


def test_interval_of_the_median_by_hand() -> None:
    """P(Binomial(6, 1/2) = 0) = 1/64; with 10: (1 + 10) / 1024 below 2.5 %, (1 + 10 + 45) / 1024 above."""
    assert median_interval([3, 1, 2, 5, 4]) is None, "1/32 is more than 2.5 %"
    assert median_interval([3, 1, 2, 5, 4, 6]) == (1, 6)
    assert median_interval(list(range(10))) == (1, 8)
    assert median_interval(list(range(20))) == (5, 14)
    low, high = median_interval(list(range(10_000)))  # 5000 ± 1.96 · sqrt(10000) / 2
    assert low == pytest.approx(5000 - 98, abs=2)
    assert high == pytest.approx(5000 + 98, abs=2)


def test_interval_of_the_median_covers_it() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        low, high = median_interval(rng.exponential(size=15).tolist())
        inside += low <= math.log(2) <= high
    assert 0.95 <= inside / 2000 <= 0.99  # exactly 0.9648


def record(**changes: Any) -> dict[str, Any]:
    """A record of an evaluation, by hand."""
    return {
        "schema": SCHEMA, "bench": "eval", "label": "mine .x", "images_per_s": 100.0, "batch_size": 1, "image_size": 8,
        "peak_memory_mib": 1, "versions": {"python": "3"}, "date": "2026-01-01T00:00:00+00:00", "command": "c",
        "processor": {"name": "P", "cores": 2, "instructions": "avx2", "bfloat16": False}, "backend": "mine",
        "format": ".x", "file": None, "device": None, "threads": None, "precision": None, "options": {},
        "variant": "v", "classes": 2, "digest": None, "warmup": 1, "steps": 9, "ms_p50": 10.0, "ms_p90": 10,
        "ms_p99": 10, "ms_mean": 10, "ms_min": 9, "ms_max": 11, "ms_interval": [9.0, 11.0],
        "rounds_ms": None, "macs": 10,
        "gflop_per_s": 1.0, "peak_gflop_per_s": None, "peak_source": None, "mfu": None, "peak_device_mib": None,
        "notes": [],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "is no result of resnext-run bench --json"),
        ("[]", "it has no record"),
        ("3", "it has no key 'schema'"),
        ('{"top1": 0.5}', "it has no key 'schema'"),
        (
            json.dumps(record(schema="resnext-bench/2")),
            "its schema is 'resnext-bench/2', this version reads resnext",
        ),
        (json.dumps(record(bench="eat")), "bench is 'eat', not one of train, eval, data"),
        (json.dumps({k: v for k, v in record().items() if k != "steps"}), "the key 'steps' is missing"),
        (json.dumps(record(steps="many")), "'steps' cannot be \"many\""),
        (json.dumps(record(steps=True)), "'steps' cannot be true"),
        (json.dumps(record(ms_interval=[1.0])), "'ms_interval' cannot be [1.0]"),
        (json.dumps(record(images_per_s=0)), "'images_per_s' cannot be 0"),
        (json.dumps(record(images_per_s=1e308)), "'images_per_s' cannot be 1e+308"),
        (json.dumps(record(ms_p50=1e-320)), "'ms_p50' cannot be"),
        (json.dumps(record(ms_interval=[0.0, 9.0])), "'ms_interval' cannot be 0"),
        (json.dumps(record(ms_interval=[-1.0, 9.0])), "'ms_interval' cannot be -1"),
        (json.dumps(record(ms_interval=[9.0, 1.0])), "'ms_interval' begins after its end"),
        (json.dumps(record(rounds_ms=[1.0, 0.0])), "'rounds_ms' cannot be 0"),
        (json.dumps(record(processor={"name": "P"})), "'processor' cannot be"),
        (json.dumps(record(versions={"numpy": 2})), "'versions.numpy' cannot be 2"),
        (json.dumps(record(ms_p50=float("nan"))), "NaN"),
    ],
)
def test_what_is_no_result_is_one_line(
    text: str, says: str, cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # messages shorten long paths
    good, bad = Path("good.json"), Path("bad.json")
    good.write_text(json.dumps(record()))
    bad.write_text(text)
    cli.refuses(EXIT_DATA, "bench", "compare", good, bad, says=("bad.json is no result", says))


def test_keys_of_a_later_version_are_passed_over() -> None:
    found = from_dict(record(news=1))
    assert isinstance(found, StepsResult)
    assert found.to_dict() == record()


def test_a_rate_above_the_peak_says_so() -> None:
    found = from_dict(record())
    assert isinstance(found, StepsResult)
    assert found.against(2.0, "given").notes == ()
    above = found.against(0.5, "given")
    assert above.mfu == 2.0
    assert "faster than the peak" in str(above)
