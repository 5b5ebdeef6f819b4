"""``resnext-run runs``: list, show, verify and prune run folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output, ProgressBar, table
from resnext_core.errors import DataError, counted
from resnext_core.jobs.runs import (
    CheckpointEntry,
    PruneJob,
    RunDetails,
    RunSummary,
    amount,
    best_words,
    list_runs,
    metric_label,
    prune,
    show_run,
)
from resnext_core.jobs.verify import verify

EPILOG = """\
examples:
  resnext-run runs list                   every run in ./runs with its progress, accuracy and size
  resnext-run runs show runs/RUN          its settings and checkpoints
  resnext-run runs verify runs/RUN        read every file and compare it with its digest; exit 3 on damage
  resnext-run runs prune runs --keep 1    keep latest, best and the newest one of each run
"""

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="one line per run in a folder", allow_abbrev=False)
    listing.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="default: runs")
    for name, summary in (
        ("show", "settings, progress and checkpoints of one run"),
        ("verify", "check every checkpoint, digest and record of one run"),
    ):
        one = actions.add_parser(name, help=summary, allow_abbrev=False)
        one.add_argument("folder", metavar="RUN")
    pruning = actions.add_parser("prune", help="remove checkpoints that are not needed", allow_abbrev=False)
    pruning.add_argument("folder", metavar="RUN|DIR", help="a run, or a folder of runs")
    pruning.add_argument(
        "--keep", type=int, default=1, metavar="N",
        help="newest checkpoints to keep besides latest and best (default %(default)s)",
    )  # fmt: skip
    pruning.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    for action in actions.choices.values():
        add_json_flag(action)


def handle(args: argparse.Namespace) -> int:
    action = {"list": _list, "show": _show, "verify": _verify, "prune": _prune}[args.action]
    action(args, Output(json_result=args.json))
    return 0


def _list(args: argparse.Namespace, output: Output) -> None:
    result = list_runs(Path(args.folder))
    header = ["run", "backend", "variant", "state", "epoch", "step", "best", "size"]
    output.result(result.to_dict(), table([_row(run) for run in result.runs], header))


def _row(run: RunSummary) -> list[str]:
    return [
        run.name, run.backend or "?", run.variant or "?", run.state, f"{run.epoch} of {run.epochs}", str(run.step),
        best_words(run), amount(run.bytes),
    ]  # fmt: skip


def _show(args: argparse.Namespace, output: Output) -> None:
    with ProgressBar(output) as bar:
        result = show_run(Path(args.folder), bar)
    output.result(result.to_dict(), _details(result))


def _details(result: RunDetails) -> str:
    run = result.summary
    state = f"{run.state}, {run.ended}" if run.ended else run.state
    facts = {
        "run": run.name, "backend": run.backend, "variant": run.variant, "state": state, "step": run.step,
        "epoch": f"{run.epoch} of {run.epochs}", "best": best_words(run) or None, "size": amount(run.bytes),
        "command": result.made_by.get("environment", {}).get("command", "?"),
    }  # fmt: skip
    lines = [f"{key:<12} {value}" for key, value in facts.items()]
    rows = [_checkpoint_row(entry, run.metric) for entry in result.checkpoints]
    header = ["checkpoint", "size", metric_label(run.metric), "", ""]
    return "\n".join([*lines, "", table(rows, header) if rows else "no checkpoint"])


def _checkpoint_row(entry: CheckpointEntry, metric: str) -> list[str]:
    size = accuracy = ""
    if entry.summary is not None:
        size, share = amount(entry.summary.saving.bytes), entry.summary.metrics.get(metric)
        accuracy = f"{100 * share:.2f} %" if isinstance(share, float) else ""
    return [entry.name, size, accuracy, " ".join(entry.marks), entry.damage or ""]


def _verify(args: argparse.Namespace, output: Output) -> None:
    result = verify(Path(args.folder))
    found = len(result.damages)
    problems = counted(found, "problem") if found else "no damage"
    unknown = f" ({result.unknown} of them unknown to this version)" if result.unknown else ""
    line = (
        f"{result.path}: {counted(result.checkpoints, 'checkpoint')}, {counted(result.records, 'record')}{unknown}; "
        f"{problems}"
    )
    output.result(result.to_dict(), "\n".join([*result.damages, line]))
    if result.damages:
        raise DataError(f"{result.path} is damaged: {problems}")


def _prune(args: argparse.Namespace, output: Output) -> None:
    job = PruneJob(folder=Path(args.folder), keep=args.keep, dry_run=args.dry_run)
    with ProgressBar(output) as bar:
        result = prune(job, bar)
    verb = "would free" if result.dry_run else "freed"
    output.result(
        result.to_dict(), f"{verb} {amount(result.bytes)} in {counted(len(result.removed), 'folder')}"
    )
