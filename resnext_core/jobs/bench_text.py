"""The rows of ``bench all`` as people read them: a table for the terminal, and the page."""

from __future__ import annotations

from collections.abc import Sequence

from resnext_core.jobs.bench_ratio import Ratio
from resnext_core.jobs.bench_record import EvalBench, Skipped, in_short
from resnext_core.report.bench_page import PageData, PageRow

#: Of the numbers of a row, after its label.
COLUMNS = (
    "images/s",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "of the fastest",
    "rounds",
    "of peak",
    "MiB",
    "precision",
)


def cells(row: EvalBench, ratio: Ratio) -> list[str]:
    """Return what the table says of a row, by :data:`COLUMNS`."""
    return [
        in_short(row.images_per_s), f"{row.ms_p50:.4g}", f"{row.ms_p90:.4g}", f"{row.ms_p99:.4g}",
        f"{ratio.median:.3g}", f"{ratio.low:.3g} to {ratio.high:.3g}",
        "" if row.mfu is None else f"{100 * row.mfu:.0f} %", str(row.peak_memory_mib), row.precision or "",
    ]  # fmt: skip


def title(row: EvalBench) -> str:
    """Return what all rows have in common, in a few words."""
    return f"{row.variant} at {row.image_size} px, batch {row.batch_size}"


def page_of(rows: Sequence[EvalBench], ratios: Sequence[Ratio], skipped: Sequence[Skipped]) -> PageData:
    """Return the page of the rows, the fastest first."""
    first = rows[0]
    threads = sorted({row.threads for row in rows if row.threads is not None})
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.versions
    return PageData(
        title=title(first),
        lead=f"The fastest of {len(rows)} is {first.label}, with {in_short(first.images_per_s)} images per second. "
        "The times are from uint8 images in memory to logits. They say nothing of accuracy.",
        facts={
            "processor": first.processor.name, "cores": str(first.processor.cores),
            "instructions": first.processor.instructions,
            "threads": ", ".join(map(str, threads)) or "not known", "rounds": str(len(first.rounds_ms or ())),
            "date": first.date, **versions, "command": first.command,
        },
        rows=[
            PageRow(
                label=row.label, precision=row.precision or "", rate=row.images_per_s, cells=cells(row, ratio),
                low=_rate(row, max(row.rounds_ms or (row.ms_p50,))),
                high=_rate(row, min(row.rounds_ms or (row.ms_p50,))),
            )
            for row, ratio in zip(rows, ratios, strict=True)
        ],
        columns=COLUMNS,
        skipped=[(row.label, row.reason) for row in skipped],
    )  # fmt: skip


def _rate(row: EvalBench, ms: float) -> float:
    return 1e3 * row.batch_size / ms
