"""What ``resnext-run bench`` prints for people."""

from __future__ import annotations

from resnext_core.console.output import table
from resnext_core.jobs.bench_all import BenchAllResult
from resnext_core.jobs.bench_compare import CompareResult
from resnext_core.jobs.bench_record import BenchResult, DataBench, in_short
from resnext_core.jobs.bench_text import COLUMNS, cells, title


def stages_text(result: BenchResult) -> str:
    """Return a table of the stages of loading, and an empty line; nothing for what has no stages."""
    if not isinstance(result, DataBench):
        return ""
    rows = [[name, f"{ms:.3f}"] for name, ms in result.stages_ms.items()]
    return table(rows, ["stage", "ms an image"]) + "\n\n"


def rows_text(found: BenchAllResult) -> str:
    """Return a table of all rows, and below it what was not timed and why."""
    first = found.results[0]
    rows = [[row.label, *cells(row, ratio)] for row, ratio in zip(found.results, found.ratios, strict=True)]
    lines = [f"{title(first)}; {first.processor}", table(rows, ["backend, format", *COLUMNS])]
    if found.skipped:
        lines.append(f"not timed: {len(found.skipped)}")
        lines += [f"  {row.label}: {row.reason}" for row in found.skipped]
    return "\n".join(lines)


def compared_text(found: CompareResult) -> str:
    """Return a table of the ratios, and below it what differs."""
    rows, lines = [], [f"differs: {line}" for line in found.differs]
    for pair in found.pairs:
        spread = "unknown" if pair.interval is None else "{:.3f} to {:.3f}".format(*pair.interval)
        rows.append([pair.label, in_short(pair.before), in_short(pair.after), f"{pair.ratio:.3f}", spread])
        lines += [f"{pair.label}: differs: {line}" for line in pair.differs]
    lines += [f"only in the first file: {label}" for label in found.only_before]
    lines += [f"only in the second file: {label}" for label in found.only_after]
    return "\n".join([table(rows, ["", "images/s", "then", "ratio", "95 % interval"]), *lines])
