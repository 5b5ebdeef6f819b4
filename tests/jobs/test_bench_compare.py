"""``bench compare``: ratios by hand, what differs, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from test_bench_record import record

from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.jobs.bench_compare import compare
from resnext_core.jobs.bench_ratio import of_rounds
from resnext_core.jobs.bench_record import StepsResult, from_dict


def write(path: Path, *records: dict[str, Any], whole: bool = False) -> Path:
    path.write_text(
        json.dumps({"schema": "resnext-bench/1", "results": records, "skipped": []} if whole else records[0])
    )
    return path


def test_a_ratio_and_its_interval_by_hand(tmp_path: Path, cli: CommandLine) -> None:
    before = write(tmp_path / "a.json", record(ms_p50=10.0, ms_interval=[9.0, 11.0], images_per_s=100.0))
    after = write(tmp_path / "b.json", record(ms_p50=8.0, ms_interval=[7.2, 8.8], images_per_s=125.0))
    (pair,) = compare(before, after).pairs
    assert pair.ratio == 1.25
    low, high = pair.interval
    assert low == pytest.approx(1.25 * math.exp(-math.sqrt(math.log(8.8 / 8) ** 2 + math.log(10 / 9) ** 2)))
    assert high == pytest.approx(1.25 * math.exp(math.sqrt(math.log(8 / 7.2) ** 2 + math.log(11 / 10) ** 2)))
    assert pair.differs == ()
    found = cli.ok("bench", "compare", before, after, "--json").json()
    assert found["pairs"][0]["ratio"] == 1.25
    assert found["differs"] == []
    assert "1.250  1.084 to 1.441" in cli.ok("bench", "compare", before, after).out
    (back,) = compare(after, before).pairs
    assert back.interval == (pytest.approx(1 / high), pytest.approx(1 / low))


def test_a_single_step_has_no_interval(tmp_path: Path, cli: CommandLine) -> None:
    files = [write(tmp_path / name, record(ms_interval=None)) for name in ("a.json", "b.json")]
    assert compare(*files).pairs[0].interval is None
    assert "1.000  unknown" in cli.ok("bench", "compare", *files).out


def test_rows_are_paired_by_label(tmp_path: Path, cli: CommandLine) -> None:
    rows = [record(label=f"row {i}", images_per_s=10.0 + i) for i in range(3)]
    before = write(tmp_path / "a.json", *rows[:2], whole=True)
    faster = [row | {"images_per_s": 2 * row["images_per_s"]} for row in reversed(rows)]
    after = write(tmp_path / "b.json", *faster[:2], whole=True)
    found = compare(before, after)
    assert [(p.label, p.before, p.after, p.ratio) for p in found.pairs] == [("row 1", 11.0, 22.0, 2.0)]
    assert (found.only_before, found.only_after) == (("row 0",), ("row 2",))
    out = cli.ok("bench", "compare", before, after).out
    assert "only in the first file: row 0" in out
    assert "only in the second file: row 2" in out
    other = write(tmp_path / "c.json", record(label="x"), record(label="y"), whole=True)
    cli.refuses(
        EXIT_USAGE, "bench", "compare", before, other, says="have no row in common: row 0, row 1 and x, y"
    )
    twice = write(tmp_path / "d.json", *rows[:1], *rows[:1], whole=True)
    cli.refuses(EXIT_USAGE, "bench", "compare", before, twice, says="several results labelled 'row 0'")


def test_what_differs_is_one_line_each(tmp_path: Path, cli: CommandLine) -> None:
    mine = record(
        versions={"python": "3", "numpy": "1.26", "gone": "1"}, peak_gflop_per_s=100.0, peak_source="measured"
    )
    other = record(
        processor={"name": "Q", "cores": 4, "instructions": "avx2", "bfloat16": False},
        versions={"python": "3", "numpy": "2.0"}, batch_size=8, options={"threads": 1}, label="other .x",
        precision="bfloat16", peak_gflop_per_s=50.0, peak_source="measured",
    )  # fmt: skip
    before, after = write(tmp_path / "a.json", mine), write(tmp_path / "b.json", other)
    found = compare(before, after)
    assert found.differs == (
        "processor name: P -> Q", "processor cores: 2 -> 4", "numpy: 1.26 -> 2.0", "gone: 1 -> none",
    )  # fmt: skip
    (pair,) = found.pairs
    assert pair.label == "mine .x -> other .x"
    assert pair.differs == (
        "measured peak: 100 -> 50 GFLOP/s", "precision: none -> bfloat16", "options: defaults -> threads=1",
        "batch_size: 1 -> 8",
    )  # fmt: skip
    lines = cli.ok("bench", "compare", before, after).out.splitlines()
    assert "differs: processor name: P -> Q" in lines
    assert "mine .x -> other .x: differs: batch_size: 1 -> 8" in lines


def test_what_differs_for_one_pair_alone_is_told_of_it(tmp_path: Path) -> None:
    mine = {"python": "3.11", "mine": "1"}
    rows = [record(label="a", versions=mine), record(label="b", versions={"python": "3.11"})]
    later = [
        record(label="a", versions=mine | {"python": "3.12", "mine": "2"}),
        record(label="b", versions={"python": "3.12"}),
    ]
    found = compare(
        write(tmp_path / "a.json", *rows, whole=True), write(tmp_path / "b.json", *later, whole=True)
    )
    assert found.differs == ("python: 3.11 -> 3.12",)
    assert [pair.differs for pair in found.pairs] == [("mine: 1 -> 2",), ()]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": "w"}, "variant v and w: not the same work; --force"),
        ({"image_size": 9}, "image_size 8 and 9: not the same work"),
        ({"classes": 3, "variant": "w"}, "variant v and w, classes 2 and 3: not the same work"),
    ],
)
def test_other_work_is_refused_unless_forced(
    changes: dict[str, Any], says: str, tmp_path: Path, cli: CommandLine
) -> None:
    before, after = write(tmp_path / "a.json", record()), write(tmp_path / "b.json", record(**changes))
    cli.refuses(EXIT_USAGE, "bench", "compare", before, after, says=says)
    (pair,) = compare(before, after, force=True).pairs
    assert pair.ratio == 1.0
    assert [line.split(":")[0] for line in pair.differs] == [
        k for k in ("variant", "image_size", "classes") if k in changes
    ]


def test_another_kind_of_benchmark_is_refused_always(tmp_path: Path, cli: CommandLine) -> None:
    before, after = write(tmp_path / "a.json", record()), write(tmp_path / "b.json", record(bench="train"))
    for more in ([], ["--force"]):
        cli.refuses(EXIT_USAGE, "bench", "compare", before, after, *more, says="of bench eval and")


def test_wrong_words(tmp_path: Path, cli: CommandLine) -> None:
    file = write(tmp_path / "a.json", record())
    cli.refuses(EXIT_USAGE, "bench", "compare", file, says="takes two files of --json, not 1")
    cli.refuses(EXIT_DATA, "bench", "compare", file, tmp_path / "none.json", says="none.json is no result")
    cli.refuses(EXIT_USAGE, "bench", "eval", file, says="bench eval takes no file")
    cli.refuses(
        EXIT_USAGE,
        "bench",
        "eval",
        "--html",
        "x",
        says="--html belongs to bench all; leave it out of bench eval",
    )
    for words in (
        ["train", "--weights", file], ["data", "--weights", file], ["all", "--steps", 3], ["all", "--warmup", 3],
        ["compare", file, file, "--classes", 3], ["compare", file, file, "--peak-tflops", 3],
    ):  # fmt: skip
        cli.refuses(EXIT_USAGE, "bench", *words, says=f"; leave it out of bench {words[0]}")
    cli.refuses(EXIT_USAGE, "bench", "train", "--all", says="--all is bench all")
    cli.refuses(EXIT_USAGE, "bench", says="say what to time: bench train, bench eval, bench data, bench all")


def test_a_ratio_of_rounds_by_hand() -> None:
    """What slows a round slows both: 10/5, 40/20 and 10/4 are 2, 2 and 2.5."""
    base, row = (from_dict(record(rounds_ms=ms)) for ms in ([10.0, 40.0, 10.0], [5.0, 20.0, 4.0]))
    assert isinstance(base, StepsResult)
    assert isinstance(row, StepsResult)
    found = of_rounds(row, base)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.5)
    assert of_rounds(base, base).low == of_rounds(base, base).high == 1.0
