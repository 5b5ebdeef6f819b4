"""``bench all``: one model on every backend and in every format that is ready here, in turns, a process each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from resnext_core.config import Config, stated
from resnext_core.errors import BackendUnavailable, UsageError, counted, quoted, shown
from resnext_core.files import check_target
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, Compute
from resnext_core.jobs.bench import new_model
from resnext_core.jobs.bench_contender import Contender, ContenderFailed
from resnext_core.jobs.bench_ratio import Ratio, of_rounds
from resnext_core.jobs.bench_record import SCHEMA, EvalBench, Skipped, StepsResult, from_dict
from resnext_core.jobs.bench_rows import Made, Row, rows_here, thread_overrides
from resnext_core.jobs.bench_steps import measured_peak
from resnext_core.jobs.bench_worker import Work
from resnext_core.jobs.environment import command_line
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Resolved, Settings, resolve
from resnext_core.model.weights import Weights, save_weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.processor import BLAS_THREADS
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.load import find_model, is_weights, read_weights


@dataclass(frozen=True, kw_only=True)
class BenchAllJob:
    """Time `weights` (a run folder or a weights file; None: a new model of ``model.variant`` with `classes` outputs).

    `files` are artefacts of the same network to time beside those that are written here. Every row has a process of its
    own; in each of `rounds` rounds each of them has a turn of `seconds` seconds. `limit` are the seconds that a process
    has to write an artefact, to load and warm up, and for each turn: one that takes longer is ended and left out.
    `threads` are those of every backend, None as each does by default. `only` are the ids of the backends to time,
    empty for all, and `rows` words of which a row's name contains one, empty for all. `html` is where a page with a
    plot goes.
    """

    weights: Path | None = None
    files: tuple[Path, ...] = ()
    classes: int = 1000
    rounds: int = 5
    seconds: float = 1.0
    limit: float = 300.0
    threads: int | None = None
    peak_tflops: float | None = None
    only: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    html: Path | None = None
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class BenchAllResult(Result):
    """The rows that were timed, the fastest first, and those that could not be."""

    results: tuple[EvalBench, ...]
    skipped: tuple[Skipped, ...]

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Images/s of each row over those of the fastest."""
        return tuple(of_rounds(row, self.results[0]) for row in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the records under ``results``."""
        return {
            "schema": SCHEMA,
            "results": [result.to_dict() for result in self.results],
            "skipped": [dataclasses.asdict(row) for row in self.skipped],
        }


def bench_all(job: BenchAllJob, listen: Listener = ignore) -> BenchAllResult:
    """Time every row; `listen` gets the progress, and a line about each row that cannot be timed.

    A backend that fails, crashes or hangs loses its own row alone. Raises UsageError and DataError for settings and
    weights, BackendUnavailable where nothing at all could be timed.
    """
    plugins = load_plugins()
    _check(job, plugins)
    settings = job.settings
    if job.threads is not None:
        overrides = (*thread_overrides(plugins, job.threads), *settings.overrides)
        settings = dataclasses.replace(settings, overrides=overrides)
    resolved = resolve(settings, plugins)
    weights = _weights(job, resolved, plugins)
    named = stated(resolve(job.settings, plugins).sources)
    found = rows_here(plugins, resolved.config, only=job.only, stated=named, files=job.files)
    chosen, skipped = list(found.rows), list(found.skipped)
    if job.rows:
        chosen = [row for row in chosen if any(word in row.label for word in job.rows)]
        skipped = [row for row in skipped if any(word in row.label for word in job.rows)]
        if not chosen:
            names = ", ".join(row.label for row in found.rows)
            raise UsageError(
                f"no row's name contains {' or '.join(map(quoted, job.rows))}; rows: {names or 'none'}"
            )
    files = len({row.made for row in chosen if row.made is not None})
    plan = (counted(len(chosen), "row"), f"{counted(files, 'file')} to write", counted(job.rounds, "round"))
    listen(Note(text=", ".join(plan)))
    with Scratch("bench") as folder, ExitStack() as opened:
        match = _Match(job, settings, resolved.config, weights, folder, opened, listen, skipped)
        rows = match.timed(match.loaded(match.written(chosen)))
    if not rows:
        why = "; ".join(f"{row.label}: {row.reason}" for row in skipped[:3])
        raise BackendUnavailable(f"nothing could be timed here: {why or 'no backend serves here'}")
    rows = [_with_peak(row, job.peak_tflops) for row in rows]
    result = BenchAllResult(
        results=tuple(sorted(rows, key=lambda row: -row.images_per_s)), skipped=tuple(skipped)
    )
    if job.html is not None:
        from resnext_core.jobs.bench_text import page_of  # jinja2, for those who want a page
        from resnext_core.report.bench_page import write_bench_page

        write_bench_page(job.html, page_of(result.results, result.ratios, result.skipped))
    return result


def _check(job: BenchAllJob, plugins: PluginSet) -> None:
    for name, value in (("rounds", job.rounds), ("threads", job.threads), ("classes", job.classes)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be 1 or more, not {value}")
    for name, seconds in (("seconds", job.seconds), ("limit", job.limit), ("peak-tflops", job.peak_tflops)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise UsageError(f"--{name} must be above 0, not {seconds:g}")
    if job.limit <= job.seconds:
        raise UsageError(f"--limit must be above the {job.seconds:g} seconds of a turn, not {job.limit:g}")
    for backend_id in job.only:
        if plugins.get(backend_id).predictor is None:
            raise UsageError(f"backend '{backend_id}' serves nothing, so it cannot be timed")
    if job.html is not None:
        if job.html.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--html {shown(job.html)}: a page needs a name that ends in .html")
        check_target(job.html)


def _weights(job: BenchAllJob, resolved: Resolved, plugins: PluginSet) -> Weights:
    """Return the weights that all rows compute with."""
    read = {suffix for backend in plugins.ranked() if _takes(job, backend) for suffix in backend.formats}
    for file in job.files:
        find_model(file)
        if file.suffix not in read:
            raise UsageError(
                f"--file {shown(file)}: no backend that is timed reads it; they read {', '.join(sorted(read))}"
            )
    if job.weights is None:
        return new_model(resolved.config, job.classes)
    path = find_model(job.weights)
    if not is_weights(path, plugins):
        raise UsageError(
            f"{path} is an artefact, which has one format: give the run or the weights that it was made from, "
            "and the artefact as --file; or time it alone with bench eval"
        )
    return read_weights(path, resolved.config, resolved.sources, plugins)


def _takes(job: BenchAllJob, backend: Backend) -> bool:
    return backend.predictor is not None and (not job.only or backend.id in job.only)


class _Match:
    """The contenders of one benchmark; a row that fails moves to `skipped`, with a line."""

    def __init__(
        self, job: BenchAllJob, settings: Settings, config: Config, weights: Weights, folder: Path,
        opened: ExitStack, listen: Listener, skipped: list[Skipped],
    ) -> None:  # fmt: skip
        self._job, self._settings, self._weights, self._folder = job, settings, weights, folder
        self._opened, self._listen, self._skipped = opened, listen, skipped
        self._batch_size = config.train.batch_size
        self._file = folder / "weights.safetensors"
        save_weights(weights, self._file)
        threads = job.threads
        self._environment = {} if threads is None else dict.fromkeys(BLAS_THREADS, str(threads))
        self._done = 0

    def written(self, rows: Sequence[Row]) -> list[Row]:
        """Write the artefacts that rows need, one after another; return the rows that have theirs."""
        failed: dict[Made, str] = {}
        for made in dict.fromkeys(row.made for row in rows if row.made is not None):
            work = self._work(
                f"writing {made.name}", made.maker, made.overrides, path=self._path(made), writes=made.format,
                variant=made.variant,
            )  # fmt: skip
            contender = self._contender(work)
            try:
                contender.start(self._job.limit)
            except ContenderFailed as error:
                failed[made] = f"cannot be written: {error}"
            finally:
                contender.close()
        return [row for row in rows if row.made is None or not self._lost(row.label, failed.get(row.made))]

    def loaded(self, rows: Sequence[Row]) -> list[tuple[Row, Contender]]:
        """Start a process for each row, one after another, and return those that are loaded and warm."""
        ready = []
        for number, row in enumerate(rows):
            self._listen(Progress(step=number, what="load", done=number, total=len(rows)))
            path = row.file if row.made is None else self._path(row.made)
            overrides = (*(row.made.overrides if row.made is not None else ()), *row.overrides)
            checked = row.made is None or row.made.variant is None
            work = self._work(row.label, row.backend, overrides, path=path, checked=checked)
            contender = self._contender(work)
            self._opened.callback(contender.close)
            if self._asked(row, partial(contender.start, self._job.limit)) is not None:
                ready.append((row, contender))
        self._listen(Progress(step=len(rows), what="load", done=len(rows), total=len(rows)))
        return ready

    def timed(self, ready: list[tuple[Row, Contender]]) -> list[EvalBench]:
        """Give every contender its turns, round by round, and return the records of those that had them all."""
        job = self._job
        for number in range(job.rounds):
            self._listen(Progress(step=number, what="bench", done=number, total=job.rounds))
            turn = {"turn": job.seconds}
            # There and back, so that what changes steadily hits all alike.
            ready = [
                one
                for one in reversed(ready)
                if self._asked(one[0], partial(one[1].ask, turn, job.limit)) is not None
            ]
        self._listen(Progress(step=job.rounds, what="bench", done=job.rounds, total=job.rounds))
        results = []
        for row, contender in ready:
            answer = self._asked(row, partial(contender.ask, {"end": True}, job.limit))
            contender.close()
            if answer is not None:
                results.append(self._result(row, answer["result"]))
        return results

    def _result(self, row: Row, found: Any) -> EvalBench:
        result = from_dict(found)
        assert isinstance(result, EvalBench)
        file = None if row.file is None else str(row.file)  # others are gone when somebody reads this
        digest = (
            None if self._job.weights is None and row.file is None else result.digest or self._weights.digest
        )
        # What is said of a file that was made for this benchmark helps nobody: it is gone.
        notes = () if row.made is not None else result.notes
        return dataclasses.replace(result, file=file, digest=digest, notes=notes)

    def _asked(self, row: Row, ask: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Return an answer; None, and the row is lost, where there is none."""
        try:
            return ask()
        except ContenderFailed as error:
            self._lost(row.label, str(error))
            return None

    def _lost(self, label: str, reason: str | None) -> bool:
        if reason is None:
            return False
        self._skipped.append(Skipped(label=label, reason=reason))
        self._listen(Note(text=f"{label} is left out: {reason}"))
        return True

    def _path(self, made: Made) -> Path:
        return self._folder / f"{made.name}{made.ending}"

    def _work(self, label: str, backend: str, overrides: tuple[str, ...], **more: Any) -> Work:
        settings = dataclasses.replace(self._settings, overrides=(*self._settings.overrides, *overrides))
        spec, path = self._weights.spec, more.pop("path")
        return Work(
            label=label, settings=settings, backend=backend, weights=str(self._file),
            path=None if path is None else str(path), batch_size=self._batch_size,
            expected=(spec.variant, spec.image_size), command=command_line(), **more,
        )  # fmt: skip

    def _contender(self, work: Work) -> Contender:
        self._done += 1
        log = self._folder / f"{self._done}.log"
        return Contender(work, log, self._environment)


def _with_peak(result: EvalBench, given_tflops: float | None) -> EvalBench:
    """Return the record with the peak that the user gave, that its backend measured, or that NumPy reaches here."""
    if given_tflops is not None:
        with_peak: StepsResult = result.against(1000 * given_tflops, "--peak-tflops")
    elif result.peak_gflop_per_s is not None or result.device is None:
        with_peak = result
    else:
        compute = Compute(device=result.device, threads=result.threads)
        with_peak = result.against(*measured_peak(compute, result.precision))
    assert isinstance(with_peak, EvalBench)
    return with_peak
