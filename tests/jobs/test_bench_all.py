"""``bench all``: every row in a process of its own; one that fails, crashes or hangs loses only itself."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import CommandLine, in_process, write_plugin

from resnext_core.config import Config
from resnext_core.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, EXIT_USAGE
from resnext_core.jobs.bench_all import BenchAllJob, bench_all
from resnext_core.jobs.bench_compare import compare
from resnext_core.jobs.bench_contender import Contender, ContenderFailed
from resnext_core.jobs.bench_record import EvalBench, from_dict
from resnext_core.jobs.bench_rows import rows_here, thread_overrides
from resnext_core.jobs.bench_worker import Work
from resnext_core.jobs.settings import Settings
from resnext_core.model.weights import Weights
from resnext_core.plugins import load_plugins

#: A backend that serves as the reference does, until its plugin is told otherwise.
PLUGIN = """
import os, sys, threading
from dataclasses import dataclass, replace
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Compute, Predictor, Readiness, Variant
from resnext_core.reference.plugin import _predictor

@dataclass(frozen=True, kw_only=True)
class Options:
    fail: str = ""
    threads: int | None = None

class Planted(Predictor):
    def __init__(self, request):
        self.fail, self.close = request.options.fail, lambda: None
        self.inner = _predictor(replace(request, options=None))
        if self.fail == "raises":
            raise RuntimeError("no luck\\ntoday")

    def logits(self, images):
        if self.fail == "aborts":
            print("about to crash", file=sys.stderr, flush=True)
            os.abort()
        if self.fail and os.path.exists(self.fail):
            threading.Event().wait()
        return self.inner.logits(images)

def variants():
    yield Variant(label="raising", overrides=("mine.fail=raises",))
    yield Variant(label="aborting", overrides=("mine.fail=aborts",))
    yield Variant(label="absent", readiness=Readiness(state="missing", reason="<needs> a thing"))

@hookimpl
def resnext_backends():
    yield Backend(
        id="mine", summary="planted", probe=lambda: READY, predictor=Planted, options=Options, priority=1,
        variants=variants, compute=lambda options: Compute(threads=options.threads or 1),
    )
    yield Backend(
        id="away", summary="missing", predictor=Planted, formats=(".x",),
        probe=lambda: Readiness(state="missing", reason="it is not here"),
    )
    yield Backend(
        id="tester", summary="in test mode", predictor=Planted, options=Options,
        probe=lambda: Readiness(state="test mode", reason="no device"),
    )
"""

TINY = [
    "--set",
    "model.variant=resnext_tiny",
    "--set",
    "model.image_size=8",
    "--batch-size",
    2,
    "--classes",
    3,
]
SHORT = ["--rounds", 3, "--seconds", 0.01, "--peak-tflops", 0.1]


@pytest.fixture
def planted(site: Path, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    write_plugin(site, "mine", PLUGIN)
    return in_process(capfd)


def test_every_row_is_timed_and_what_fails_is_named(planted: CommandLine, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = planted.ok("bench", "--all", *TINY, *SHORT, "--threads", 1, "--html", page, "--json").json()
    assert set(found) == {"schema", "results", "skipped"}
    labels = {row["label"] for row in found["results"]}
    assert labels == {"mine .safetensors", "reference .safetensors"}
    rates = [row["images_per_s"] for row in found["results"]]
    assert rates == sorted(rates, reverse=True)
    for row in found["results"]:
        result = from_dict(row)
        assert isinstance(result, EvalBench)
        assert len(result.rounds_ms) == 3
        assert result.steps >= 3
        assert (result.threads, result.batch_size, result.variant) == (1, 2, "resnext_tiny")
        assert result.file is None, "the files of a benchmark are gone"
        assert result.mfu == result.gflop_per_s / 100
        assert result.command.startswith("resnext-run")
    skipped = {row["label"]: row["reason"] for row in found["skipped"]}
    assert set(skipped) == {
        "mine absent", "away", "tester", "mine .safetensors raising", "mine .safetensors aborting",
    }  # fmt: skip
    assert skipped["mine .safetensors raising"] == "RuntimeError: no luck today"
    assert skipped["mine .safetensors aborting"] == "its process was killed by SIGABRT: about to crash"
    assert skipped["away"] == "it is not here"
    assert skipped["tester"] == "test mode: no device"
    assert psutil.Process().children() == []
    text = page.read_text()
    for label in labels | set(skipped):
        assert label in text
    assert "&lt;needs&gt; a thing" in text
    assert "Not timed: 5" in text
    assert len(re.findall(r'<rect class="share"', text)) == 2
    assert "http" not in re.sub(r"http-equiv", "", text), "it loads nothing"


def test_a_table_for_people_and_a_file_for_compare(planted: CommandLine, tmp_path: Path) -> None:
    words = ["bench", "all", *TINY, *SHORT, "--only", "reference,mine", "--rows", "reference,abort,absent"]
    out = planted.ok(*words).out
    assert out.splitlines()[-3].startswith("not timed: 2")
    assert re.search(r"^reference \.safetensors  +[\d.]+  ", out, re.MULTILINE)
    assert "mine .safetensors aborting is left out: its process was killed by SIGABRT" in out
    file = tmp_path / "all.json"
    file.write_text(planted.ok(*words, "--json").out)
    (pair,) = compare(file, file).pairs
    assert (pair.label, pair.ratio) == ("reference .safetensors", 1.0)


def test_one_that_takes_too_long_is_ended(planted: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own limit is short here: the others have all the time that a busy machine takes."""
    ask = Contender.ask

    def impatient(self: Contender, message: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        return ask(self, message, 0.01 if self.label.startswith("mine") else limit_s)

    monkeypatch.setattr(Contender, "ask", impatient)
    found = planted.ok("bench", "all", *TINY, *SHORT, "--json").json()
    assert [row["label"] for row in found["results"]] == ["reference .safetensors"]
    reasons = [row["reason"] for row in found["skipped"] if row["label"].startswith("mine .safetensors")]
    assert reasons == ["no answer within 0.01 s, so it was ended (--limit)"] * 3
    assert psutil.Process().children() == []


def served(weights: Path, **overrides: str) -> Work:
    settings = Settings(overrides=tuple(f"mine.{name}={value}" for name, value in overrides.items()))
    return Work(label="a row", settings=settings, backend="mine", weights=str(weights))


def test_one_that_hangs_in_a_turn_is_ended(planted: CommandLine, weights_file: Path, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    contender = Contender(served(weights_file, fail=str(hang)), tmp_path / "log", {})
    try:
        assert contender.start(600) == {"ready": True}
        assert contender.ask({"turn": 0.01}, 600)["ms"] > 0
        (process,) = psutil.Process().children()
        hang.touch()
        with pytest.raises(ContenderFailed, match=r"no answer within 0\.05 s, so it was ended \(--limit\)"):
            contender.ask({"turn": 0.01}, 0.05)
        assert not process.is_running()
    finally:
        contender.close()


@pytest.mark.skipif(not os.path.exists("/proc"), reason="stops processes on Linux alone")
def test_a_process_is_stopped_between_its_turns(
    planted: CommandLine, weights_file: Path, tmp_path: Path
) -> None:
    contender = Contender(served(weights_file), tmp_path / "log", {})
    try:
        contender.start(600)
        (process,) = psutil.Process().children()
        os.waitpid(process.pid, os.WUNTRACED)  # returns once it is stopped
        assert process.status() == psutil.STATUS_STOPPED
        contender.ask({"turn": 0.01}, 600)
        os.waitpid(process.pid, os.WUNTRACED)
        result = contender.ask({"end": True}, 600)["result"]
        assert (result["label"], result["batch_size"], len(result["rounds_ms"])) == ("a row", 1, 1)
    finally:
        contender.close()
    assert not process.is_running()


def test_nothing_that_could_be_timed(planted: CommandLine, weights_file: Path) -> None:
    words = ["bench", "all", *TINY, *SHORT]
    planted.refuses(
        EXIT_UNAVAILABLE, *words, "--only", "away", says="nothing could be timed here: away: it is not here"
    )
    says = "no row's name contains 'int9'; rows: reference .safetensors"
    planted.refuses(EXIT_USAGE, *words, "--only", "reference", "--rows", "int9", says=says)
    planted.refuses(EXIT_USAGE, *words, "--only", "nobody", says="unknown backend 'nobody'")
    planted.refuses(EXIT_USAGE, *words, "--only", "mine", "--backend", "mine", says="give one of them")
    planted.refuses(EXIT_USAGE, *words, "--limit", 0, says="--limit must be above 0")
    planted.refuses(
        EXIT_USAGE,
        "bench",
        "all",
        "--seconds",
        2,
        "--limit",
        2,
        says="--limit must be above the 2 seconds of a turn",
    )
    planted.refuses(
        EXIT_USAGE, *words, "--file", __file__, says="no backend that is timed reads it; they read ."
    )
    planted.refuses(EXIT_DATA, *words, "--html", weights_file / "page.html", says="page.html")
    planted.refuses(EXIT_USAGE, *words, "--html", weights_file, says="a page needs a name that ends in .html")
    planted.refuses(EXIT_DATA, *words, "--file", "nothing.x", says="no model at nothing.x")


def test_the_weights_of_a_run_are_what_is_timed(
    planted: CommandLine, weights_file: Path, tiny_weights: Weights, tmp_path: Path
) -> None:
    words = [
        "bench",
        "all",
        "--weights",
        weights_file,
        "--batch-size",
        2,
        *SHORT,
        "--only",
        "reference",
        "--json",
    ]
    (row,) = planted.ok(*words).json()["results"]
    assert (row["digest"], row["classes"]) == (tiny_weights.digest, 6)


def test_rows_in_python(planted: CommandLine) -> None:
    settings = Settings(
        overrides=("model.variant=resnext_tiny", "model.image_size=8"), batch_size=2, spelling="arguments"
    )
    job = BenchAllJob(
        classes=3, rounds=1, seconds=0.01, peak_tflops=1.0, only=("reference",), settings=settings
    )
    found = bench_all(job)
    assert [result.label for result in found.results] == ["reference .safetensors"]
    assert (found.ratios[0].median, found.skipped) == (1.0, ())
    assert found.results[0].digest is None, "random weights"


WRITERS = """
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Readiness, Variant

def write(weights, path, request):
    path.write_bytes(b"")

def variants():
    yield Variant(label="small", exports="x", overrides=("export.fold_bn=false",))
    yield Variant(label="quick")

def broken():
    raise ValueError("no variants")

def wrong():
    yield "a text"

TEST = Readiness(state="test mode", reason="no device")

@hookimpl
def resnext_backends():
    yield Backend(id="first", summary="", priority=3, probe=lambda: TEST, exporters={"x": write})
    yield Backend(
        id="second", summary="", priority=2, probe=lambda: READY, exporters={"x": write, "rare": write},
        predictor=lambda request: None, formats=(".x",), variants=variants, endings={"rare": ".x"},
        on_request=("rare",),
    )
    yield Backend(
        id="third", summary="", priority=1, probe=lambda: READY, exporters={"x": write}, formats=(".x", ".y"),
        predictor=lambda request: None, variants=broken,
    )
    yield Backend(
        id="fourth", summary="", probe=lambda: READY, formats=(".x",), predictor=lambda request: None, variants=wrong
    )
"""


def test_written_ways_are_served_by_everyone_and_serving_ways_by_their_own(site: Path) -> None:
    write_plugin(site, "writers", WRITERS)
    found = rows_here(load_plugins(), Config(), only=("second", "third"))
    assert [row.label for row in found.rows] == [
        "second .x", "second .x small", "second .x quick", "second .x small quick", "third .x", "third .x small",
    ]  # fmt: skip
    assert {row.made.maker for row in found.rows} == {"second"}, "of several writers the best that is ready"
    (small,) = {row.made for row in found.rows if row.label == "third .x small"}
    assert (small.overrides, small.name) == (("export.fold_bn=false",), "second-x-small")
    assert {row.label: row.reason for row in found.skipped} == {
        "first": "test mode: no device",
        "third variants": "ValueError: no variants",
        "third .y": "nothing here writes such files",
    }
    config = replace(Config(), export=replace(Config().export, formats=("rare",)))
    rare = rows_here(load_plugins(), config, only=("third",))
    assert [row.label for row in rare.rows] == ["third .x", "third .x small", "third .x (rare)"]


def test_variants_that_are_none_lose_no_other_row(site: Path) -> None:
    write_plugin(site, "writers", WRITERS)
    found = rows_here(load_plugins(), Config(), only=("fourth",))
    assert [row.label for row in found.rows] == ["fourth .x", "fourth .x small"]
    reasons = {row.label: row.reason for row in found.skipped}
    assert reasons["fourth variants"] == "TypeError: str is no Variant"


def test_files_of_the_user_are_rows(site: Path) -> None:
    write_plugin(site, "writers", WRITERS)
    found = rows_here(load_plugins(), Config(), only=("third",), files=[Path("a/net.y"), Path("b.x")])
    assert [(row.label, row.file and str(row.file)) for row in found.rows] == [
        ("third .x", None), ("third .x small", None), ("third b.x", "b.x"), ("third net.y", "a/net.y"),
    ]  # fmt: skip


def test_files_of_one_name_are_told_apart(site: Path) -> None:
    write_plugin(site, "writers", WRITERS)
    files = [Path("a/net.y"), Path("b/net.y"), Path("a/net.y")]
    found = rows_here(load_plugins(), Config(), only=("third",), files=files)
    assert [row.label for row in found.rows if row.file] == ["third a/net.y", "third b/net.y"]


SILENT = """
from dataclasses import replace
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Compute, Predictor
from resnext_core.reference.plugin import _predictor

def broken(*_):
    raise ValueError("no\\nidea")

def serve(request):
    return _predictor(replace(request, options=None))

@hookimpl
def resnext_backends():
    yield Backend(id="silent", summary="", priority=2, probe=lambda: READY, predictor=serve, compute=broken)
    yield Backend(
        id="peakless", summary="", priority=1, probe=lambda: READY, predictor=serve,
        compute=lambda _: Compute(peak=broken, precision="float32"),
    )
"""


def test_a_backend_that_does_not_say_what_it_computes_with_keeps_its_rows(
    site: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_plugin(site, "silent", SILENT)
    cli = in_process(capfd)
    found = cli.ok("bench", "all", *TINY, *SHORT[:4], "--only", "silent,peakless", "--json").json()
    rows = {row["label"]: row for row in found["results"]}
    assert set(rows) == {"silent .safetensors", "peakless .safetensors"}
    assert rows["silent .safetensors"]["notes"] == [
        "backend 'silent' does not say what it computes with: ValueError: no idea"
    ]
    assert rows["peakless .safetensors"]["notes"] == ["the peak could not be measured: ValueError: no idea"]
    assert {row["mfu"] for row in rows.values()} == {None}
    alone = cli.ok(
        "--backend", "silent", "bench", "eval", *TINY, "--steps", 1, "--warmup", 0, "--json"
    ).json()
    assert alone["device"] is None


STARTER = """
import subprocess, sys
from dataclasses import replace
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Predictor
from resnext_core.reference.plugin import _predictor

class Starting(Predictor):
    def __init__(self, request):
        self.inner, self.close = _predictor(replace(request, options=None)), lambda: None
        self.child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

    def logits(self, images):
        return self.inner.logits(images)

@hookimpl
def resnext_backends():
    yield Backend(id="mine", summary="", probe=lambda: READY, predictor=Starting)
"""


@pytest.mark.skipif(not os.path.exists("/proc"), reason="stops processes on Linux alone")
def test_what_a_stopped_process_had_started_ends_after_it(
    site: Path, weights_file: Path, tmp_path: Path
) -> None:
    """As with kill -9 of the benchmark: the system ends the process alone, and nobody lets its children go on."""
    write_plugin(site, "starter", STARTER)
    contender = Contender(served(weights_file), tmp_path / "log", {})
    try:
        contender.start(600)
        (process,) = psutil.Process().children()
        os.waitpid(process.pid, os.WUNTRACED)
        (child,) = process.children()
        process.kill()
        child.wait(timeout=60)
    finally:
        contender.close()


def test_told_to_end_it_leaves_no_files(
    planted: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    seen: list[Path] = []

    def told(self: Contender, limit_s: float) -> dict[str, Any]:
        seen.extend(folder.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(Contender, "start", told)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # by default it would end the tests
    try:
        planted.refuses(EXIT_INTERRUPTED, "bench", "all", *TINY, *SHORT, says="stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen
    assert list(folder.iterdir()) == []
    assert psutil.Process().children() == []


def test_a_backend_in_test_mode_is_timed_where_its_options_are_set(planted: CommandLine) -> None:
    plugins = load_plugins()
    labels: Callable[..., list[str]] = lambda **more: [  # noqa: E731
        row.label for row in rows_here(plugins, Config(), only=("tester",), **more).rows
    ]
    assert labels() == []
    assert labels(stated=["tester.fail"]) == ["tester .safetensors"]
    assert set(thread_overrides(plugins, 3)) == {"mine.threads=3", "tester.threads=3"}
