"""``resnext-run runs``: list, show, verify and prune run folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output, table
from resnext_core.config import read_layer
from resnext_core.errors import DataError, ResnextError, UsageError, reason
from resnext_core.jobs.settings import stored_config
from resnext_core.plugins import load_plugins
from resnext_core.runs.checkpoint import load_checkpoint
from resnext_core.runs.checkpoint_folder import Summary, checkpoint_age, checkpoint_names, read_summary
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import (
    best_checkpoint,
    latest_checkpoint,
    pointer_damages,
    remove,
    superfluous,
)
from resnext_core.runs.records import End, Eval, Nonfinite, Note, Record, Resume, Saved, Start, Train

EPILOG = """\
examples:
  resnext-run runs list                   every run in ./runs: how far, how good, how large
  resnext-run runs show runs/RUN          its settings and checkpoints
  resnext-run runs verify runs/RUN        read every file and compare it with its digest; exit 3 on damage
  resnext-run runs prune runs --keep 1    keep latest, best and the newest one of each run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="a line for each run in a folder", allow_abbrev=False)
    listing.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="default: runs")
    for name, summary in (
        ("show", "settings, progress and checkpoints of one run"),
        ("verify", "check every checkpoint, digest and record of one run"),
    ):
        one = actions.add_parser(name, help=summary, allow_abbrev=False)
        one.add_argument("folder", metavar="RUN")
    prune = actions.add_parser("prune", help="remove checkpoints that are not needed", allow_abbrev=False)
    prune.add_argument("folder", metavar="RUN|DIR", help="a run, or a folder of runs")
    prune.add_argument(
        "--keep",
        type=int,
        default=1,
        metavar="N",
        help="newest checkpoints to keep beside latest and best (default 1)",
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for action in actions.choices.values():
        add_json_flag(action)


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    folder = Path(args.folder)
    if args.action == "list":
        return _list(folder, output)
    if args.action == "show":
        return _show(RunFolder.open(folder), output)
    if args.action == "verify":
        return _verify(RunFolder.open(folder), output)
    if args.keep < 1:
        raise UsageError(f"--keep must be 1 or more, not {args.keep}")
    return _prune(folder, args.keep, args.dry_run, output)


def describe_run(run: RunFolder) -> dict[str, Any]:
    """Return how far a run is and how good, as its records and its checkpoints say."""
    records = run.read_records()
    made = run.read_result("run") or {}
    summaries = _summaries(run)
    newest = next((s for _, s in reversed(summaries) if isinstance(s, Summary)), None)
    step = max([r.step for r in records] + ([newest.progress.step] if newest else []), default=0)
    return {
        "run": run.path.name,
        "backend": made.get("backend"),
        "variant": _config_value(run, "model", "variant"),
        "state": _state(run, records),
        "step": step,
        "epoch": max((r.epoch for r in records if isinstance(r, (Train, Nonfinite, Eval, Saved))), default=0),
        "epochs": _config_value(run, "train", "epochs"),
        "best": newest.progress.best if newest else None,
        "checkpoints": len(summaries),
        "bytes": _size(run.path),
    }


def _list(folder: Path, output: Output) -> int:
    runs = [RunFolder(p.parent) for p in sorted(folder.glob("*/config.yaml"))]
    if not runs:
        raise DataError(f"no run folder in {folder}")
    found = [describe_run(run) for run in runs]
    rows = [
        [
            r["run"], r["backend"] or "?", r["variant"] or "?", r["state"], f"{r['epoch']} of {r['epochs']}",
            str(r["step"]), "" if r["best"] is None else f"{100 * r['best']:.2f} %", _amount(r["bytes"]),
        ]
        for r in found
    ]  # fmt: skip
    header = ["run", "backend", "variant", "state", "epoch", "step", "best", "size"]
    output.result({"folder": str(folder), "runs": found}, table(rows, header))
    return 0


def _show(run: RunFolder, output: Output) -> int:
    about = describe_run(run)
    latest, best = latest_checkpoint(run.checkpoints), best_checkpoint(run.checkpoints, output.say)
    checkpoints = []
    for name, summary in _summaries(run):
        marks = [word for word, target in (("latest", latest), ("best", best)) if target == name]
        entry: dict[str, Any] = {"name": name, "marks": marks}
        if isinstance(summary, Summary):
            entry |= {
                "step": summary.progress.step, "bytes": summary.saving.bytes, "seconds": summary.saving.seconds,
                "blocked_s": summary.saving.blocked_s, "metrics": dict(summary.metrics),
            }  # fmt: skip
        else:
            entry["damage"] = summary
        checkpoints.append(entry)
    made = run.read_result("run") or {}
    lines = [f"{key:<12} {about[key]}" for key in ("run", "backend", "variant", "state", "step", "best")]
    lines.insert(5, f"{'epoch':<12} {about['epoch']} of {about['epochs']}")
    lines.append(f"{'size':<12} {_amount(about['bytes'])}")
    lines.append(f"{'command':<12} {made.get('environment', {}).get('command', '?')}")
    rows = [
        [
            c["name"],
            _amount(c["bytes"]) if "bytes" in c else "",
            _accuracy(c),
            " ".join(c["marks"]),
            c.get("damage", ""),
        ]
        for c in checkpoints
    ]
    text = (
        "\n".join(lines)
        + "\n\n"
        + (table(rows, ["checkpoint", "size", "top-1", "", ""]) if rows else "no checkpoint")
    )
    output.result({**about, "path": str(run.path), "checkpoints": checkpoints, "made_by": made}, text)
    return 0


def _verify(run: RunFolder, output: Output) -> int:
    damages: list[str] = []
    try:
        stored_config(run, load_plugins())
    except ResnextError as error:
        damages.append(str(error))
    torn = run.torn_records()
    damages += [f"{run.records}:{number}: not a JSON record" for number in torn]
    names, whole = checkpoint_names(run.checkpoints), None
    for name in names:
        try:
            whole = load_checkpoint(run.checkpoints / name).summary
        except DataError as error:
            damages.append(str(error))
    damages += [*pointer_damages(run.checkpoints, whole), *_missing(run, whole)]
    text = f"{run.path}: {len(names)} checkpoints, {len(run.read_records())} records"
    output.result(
        {"run": str(run.path), "checkpoints": len(names), "damages": damages},
        "\n".join([*damages, f"{text}; {len(damages)} damages" if damages else f"{text}; all whole"]),
    )
    if damages:
        raise DataError(f"{run.path} is damaged: {len(damages)} findings")
    return 0


def _missing(run: RunFolder, whole: Summary | None) -> list[str]:
    """Return what is gone of the records and checkpoints, by what is left of them; `whole` is the newest checkpoint."""
    records, found = run.read_records(), []
    if whole is not None and not records:
        found.append(f"{run.records} has no record, and there is {whole.name}")
    elif records and not _is_beginning(records):
        found.append(f"{run.records} does not begin with a start record: those before are missing")
    elif whole is not None and run.position() < (whole.saving.records or 0):
        found.append(f"{run.records} is shorter than when {whole.name} was saved: records are missing")
    saved = [r.path for r in records if isinstance(r, Saved)]
    there = checkpoint_names(run.checkpoints)
    if saved and (not there or checkpoint_age(saved[-1]) > checkpoint_age(there[-1])):
        found.append(f"{run.checkpoints / saved[-1]} is missing, the last one that {run.records.name} names")
    return found


def _is_beginning(records: Sequence[Record]) -> bool:
    """True where a start record is first, but for notes: a run from --pretrained begins with what it took from it."""
    return isinstance(next((r for r in records if not isinstance(r, Note)), None), Start)


def _prune(folder: Path, keep: int, dry_run: bool, output: Output) -> int:
    runs = [RunFolder(folder)] if (folder / "config.yaml").is_file() else []
    runs = runs or [RunFolder(p.parent) for p in sorted(folder.glob("*/config.yaml"))]
    if not runs:
        raise DataError(f"no run folder in {folder}")
    removed, busy, freed = [], [], 0
    for run in runs:
        if run.is_training():
            busy.append(str(run.path))
            output.say(f"{run.path} is being trained: left alone")
            continue
        for path in superfluous(run.checkpoints, keep):
            size = _size(path)
            if not dry_run:
                try:
                    remove(path)
                except OSError as error:
                    raise DataError(f"cannot remove {path}: {reason(error)}") from error
            freed += size
            removed.append(str(path))
            output.say(f"{'would remove' if dry_run else 'removed'} {path} ({_amount(size)})")
    verb = "would free" if dry_run else "freed"
    output.result(
        {"removed": removed, "bytes": freed, "being_trained": busy, "dry_run": dry_run},
        f"{verb} {_amount(freed)} in {len(removed)} folders",
    )
    return 0


def _summaries(run: RunFolder) -> list[tuple[str, Summary | str]]:
    """Return name and summary of every checkpoint, oldest first; the damage instead where there is some."""
    found: list[tuple[str, Summary | str]] = []
    for name in checkpoint_names(run.checkpoints):
        try:
            found.append((name, read_summary(run.checkpoints / name)))
        except DataError as error:
            found.append((name, str(error)))
    return found


def _state(run: RunFolder, records: list[Record]) -> str:
    if run.is_training():
        return "training"
    turns = [r for r in records if isinstance(r, (Start, Resume, End))]
    if not turns:
        return "new"
    return "done" if isinstance(turns[-1], End) else "stopped"


def _config_value(run: RunFolder, section: str, key: str) -> Any:
    try:
        return (read_layer(run.config).values.get(section) or {}).get(key)
    except UsageError:
        return None


def _accuracy(entry: dict[str, Any]) -> str:
    top1 = entry.get("metrics", {}).get("top1")
    return f"{100 * top1:.2f} %" if isinstance(top1, float) else ""


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.lstat().st_size for p in files)


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
