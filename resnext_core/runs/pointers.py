"""Which checkpoint is `latest` and which is `best`, even if their pointers are damaged; and what may be removed.

The pointers are small files that name a checkpoint. They have no checksum, so they are only trusted where the
``state.json`` of a checkpoint, which has one, agrees; otherwise that decides.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from resnext_core.errors import DataError, quoted, reason
from resnext_core.files import write_atomic
from resnext_core.runs.checkpoint_folder import (
    REPLACED,
    STATE,
    WEIGHTS,
    RunProgress,
    Summary,
    checkpoint_age,
    checkpoint_names,
    find_checkpoint,
    newest_readable,
    newest_whole,
    plain_name,
    readable_before,
    step_name,
)

POINTERS = ("latest", "best")
#: What a killed process leaves in the folder of the checkpoints.
_HALF_WRITTEN = (".step-*.partial", ".latest.*", ".best.*")
_NAME = re.compile(r"step-[0-9]{8,18}")

Warn = Callable[[str], None]


def best_weights(folder: Path, warn: Warn | None = None) -> Path:
    """Return the weights file of the best checkpoint, or of the latest where none is best yet (DataError if none).

    `warn` gets a line where ``best`` is damaged, and where another checkpoint is used instead; by default it goes to
    standard error, once.
    """
    warn = warn or _warn_once
    best = best_checkpoint(folder, warn)
    path = None if best is None else find_checkpoint(folder, best)
    if path is not None:
        return path / WEIGHTS
    whole = newest_whole(folder)
    for name in [whole.name] if whole is not None else checkpoint_names(folder)[::-1]:
        if (folder / name / WEIGHTS).is_file():
            if best is not None:
                warn(f"the best checkpoint {folder / best} is missing; using the latest one, {name}")
            return folder / name / WEIGHTS
    raise DataError(
        f"no checkpoint in {folder}; continue with 'resnext-run train --resume {folder.parent}', or use another run"
    )


def best_checkpoint(folder: Path, warn: Warn | None = None) -> str | None:
    """Return the name of the best checkpoint, which need not be there; None where no evaluation has found one yet.

    `warn` gets a line where the pointer ``best`` is damaged (by default: standard error, once).
    """
    warn = warn or _warn_once
    held, damage = _read(folder, "best")
    newest = newest_readable(folder)
    if damage is None and (newest is None or held == newest.best):  # what is served has a digest of its own
        return held
    whole = newest_whole(folder) or newest
    if whole is None:
        warn(f"{damage}; the best checkpoint is unknown")
        return None
    damage = damage or _best_damage(folder, held, whole)
    if damage is not None:
        warn(f"{damage}; {_best_by(whole)}")
    return whole.best


def latest_checkpoint(folder: Path) -> str | None:
    """Return the name that ``latest`` holds, or where it is damaged that of the newest whole checkpoint."""
    held = _read(folder, "latest")[0]
    whole = None if held is not None else newest_whole(folder)
    return held if whole is None else whole.name


def pointer_damages(folder: Path, whole: Summary | None = None) -> list[str]:
    """Return a line for each of ``latest`` and ``best`` that is damaged; `whole` is the newest whole checkpoint.

    That they name the checkpoint before is no damage: a process may be killed before it moves them. Nor is that
    they name a newer one, which then is damaged itself.
    """
    whole = whole or newest_whole(folder)
    damages = []
    for pointer, check in (("latest", _latest_damage), ("best", _best_damage)):
        held, damage = _read(folder, pointer)
        newer = held is not None and whole is not None and checkpoint_age(held) > checkpoint_age(whole.name)
        if damage is None and whole is not None and not newer:
            damage = check(folder, held, whole)
        damages += [] if damage is None else [damage]
    return damages


def damages_at_resume(folder: Path, whole: Summary) -> list[str]:
    """Return a line for each damaged pointer, and what is known without it."""
    return [f"{line}; continuing without it: {_best_by(whole)}" for line in pointer_damages(folder, whole)]


def set_pointers(folder: Path, progress: RunProgress) -> None:
    """Move ``latest`` to the checkpoint of `progress`, and ``best`` to the one that it says is best, if that is there.

    What stands in place of a pointer and is no file stays: ``state.json`` tells the same.
    """
    targets = {"latest": step_name(progress.step)}
    if progress.best_step is not None and find_checkpoint(folder, step_name(progress.best_step)) is not None:
        targets["best"] = step_name(progress.best_step)
    for pointer, name in targets.items():
        path = folder / pointer
        if path.is_file() or not os.path.lexists(path):
            write_atomic(path, name, parents=False)


# -- what may be removed -------------------------------------------------------------------------


def superfluous(folder: Path, keep: int, needed: Collection[str] | None = None) -> list[Path]:
    """Return what may be removed: checkpoints beyond the newest `keep`, replaced ones, half-written ones and pointers.

    What ``latest`` and ``best`` name stays, however old, and so do those that are `needed`. Without `needed` these
    are the newest whole checkpoint and the one that it says is best, whatever the pointers say.
    For the process that writes into `folder` alone.
    """
    if needed is None:
        whole = newest_whole(folder)
        needed = [name for s in (whole, newest_readable(folder)) if s for name in (s.name, s.best) if name]
    keeping = {*needed, *(_read(folder, pointer)[0] for pointer in POINTERS)}
    names = checkpoint_names(folder)
    replaced = [name for name in names if name.endswith(REPLACED) and plain_name(name) in names]
    old = [name for name in names if name not in replaced][:-keep]
    gone = [folder / name for name in replaced if name not in keeping]
    gone += [folder / name for name in old if not {name, plain_name(name)} & keeping]
    return gone + [path for part in _HALF_WRITTEN for path in sorted(folder.glob(part))]


def remove(path: Path) -> None:
    """Remove one of the superfluous: a folder, a file, or a link, but not what it leads to; OSError where it cannot."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(folder: Path, pointer: str) -> tuple[str | None, str | None]:
    """Return the checkpoint that a pointer names, which is there, and what is wrong with the pointer otherwise."""
    path = folder / pointer
    if not path.is_file():
        return None, f"{path} is damaged: it is not a file" if os.path.lexists(path) else None
    try:
        with path.open("rb") as stream:
            text = stream.read(100).decode("ascii", errors="surrogateescape").strip()
    except OSError as error:
        return None, f"{path} cannot be read: {reason(error)}"
    if _NAME.fullmatch(text) is None:
        return None, f"{path} is damaged: it contains {quoted(text)}, which is not the name of a checkpoint"
    if find_checkpoint(folder, text) is None:
        return None, f"{path} names {text}, which does not exist"
    return text, None


def _latest_damage(folder: Path, held: str | None, whole: Summary) -> str | None:
    """Return what is wrong with a pointer ``latest`` that holds `held` where `whole` is the latest."""
    before = readable_before(folder, whole)
    if held in (plain_name(whole.name), None if before is None else plain_name(before.name)):
        return None
    return f"{folder / 'latest'} {_content(held)}, but the latest undamaged checkpoint is {whole.name}"


def _best_damage(folder: Path, held: str | None, whole: Summary) -> str | None:
    """Return what is wrong with a pointer ``best`` that holds `held`, by what `whole` says."""
    before = readable_before(folder, whole)
    unmoved = whole.best == plain_name(whole.name) and held == (None if before is None else before.best)
    if held == whole.best or unmoved:
        return None
    return f"{folder / 'best'} {_content(held)}, but it is not the best checkpoint"


def _content(held: str | None) -> str:
    return "is missing" if held is None else f"names {held}"


def _best_by(whole: Summary) -> str:
    best = "there is no best checkpoint yet" if whole.best is None else f"the best checkpoint is {whole.best}"
    return f"{best}, according to {whole.name}/{STATE}"


@cache
def _warn_once(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
