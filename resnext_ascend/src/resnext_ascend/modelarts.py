"""ModelArts: object-store URLs in and outputs out, through moxing, once per server."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnext_core.errors import BackendUnavailable, DataError, UsageError, one_line, reason
from resnext_core.files import make_folder

#: Local folders of a ModelArts container, unless an old configuration names others.
DATA, OUTPUT, CHECKPOINTS = "/cache/data", "/cache/train", "/cache/checkpoint_path"
#: Times that a copy is tried, and seconds before another try.
TRIES, PAUSE_S = 3, 5.0
#: Seconds that the other processes of a server wait for the one that copies.
PATIENCE_S = 3600.0
_POLL_S = 0.5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that ModelArts gives to a program."""
    parser.add_argument("--data_url", metavar="URL", help="ModelArts: data in the object store")
    parser.add_argument("--checkpoint_url", metavar="URL", help="ModelArts: checkpoint in the object store")
    parser.add_argument(
        "--enable_modelarts", metavar="BOOL", help="no effect: URLs and environment variables are used"
    )


def is_url(text: object) -> bool:
    """True for a URL of an object store."""
    return isinstance(text, str) and text.startswith(("obs://", "s3://"))


@contextmanager
def synchronised(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Copy data and checkpoint here, yield the flags with local paths, and copy the output back at the end.

    The output is copied back also after a failure. Without URLs nothing happens. Raises UsageError for
    URLs that lack what they need, BackendUnavailable without moxing, DataError when a copy fails for good.
    """
    found = dict(given)
    data, checkpoint, output = (found.get(k) for k in ("data_url", "checkpoint_url", "train_url"))
    if data and not is_url(data):
        found.setdefault("data_dir", data)
    if is_url(data):
        found["data_dir"] = str(fetch(str(data), Path(found.get("data_path", DATA))))
    if is_url(found.get("pretrained")):
        checkpoint = found["pretrained"]
    if is_url(checkpoint):
        local = fetch(str(checkpoint), Path(found.get("load_path", CHECKPOINTS)))
        found["pretrained"] = str(_only_checkpoint(local, str(checkpoint)))
    elif checkpoint:
        found["pretrained"] = checkpoint
    if not is_url(output):
        yield found
        return
    moxing()  # before hours of training
    found["train_url"] = str(found.get("output_path", OUTPUT))
    try:
        yield found
    finally:
        if first_of_job():
            send(Path(found["train_url"]), str(output))


def first_of_job(environ: Mapping[str, str] | None = None) -> bool:
    """True in the process that copies the output back: of rank 0, or of the first server."""
    environ = os.environ if environ is None else environ
    return environ.get("RANK_ID", environ.get("VC_TASK_INDEX", "0")) == "0"


def moxing() -> Any:
    """Return ModelArts' own copying library; BackendUnavailable if it is missing."""
    try:
        return importlib.import_module("moxing")
    except ImportError as error:
        raise BackendUnavailable(
            f"URLs of an object store need moxing, which is part of ModelArts' images ({error}): copy the "
            "files and give local folders"
        ) from error


def fetch(url: str, target: Path, *, patience: float = PATIENCE_S) -> Path:
    """Copy `url` to a folder of its own in `target`, once a server, and return it.

    The first process copies, the others wait for it. A process that died with the lock is noticed. Raises
    DataError when the copy fails for good, or does not come in `patience` seconds.
    """
    place = target / hashlib.sha256(url.encode()).hexdigest()[:12]
    work = lambda: _copy(url, place)  # noqa: E731
    once(place, work, patience=patience)
    return place


def send(source: Path, url: str) -> None:
    """Copy the folder `source` to `url`; DataError when it fails for good."""
    if source.is_dir():
        _copy(source, url)


def _copy(source: object, target: object) -> None:
    copy = moxing().file.copy_parallel
    for attempt in range(1, TRIES + 1):
        try:
            copy(str(source), str(target))
            return
        except Exception as error:  # moxing raises what its transports raise
            reason = one_line(error)
            if attempt == TRIES:
                raise DataError(f"cannot copy {source} to {target}, tried {TRIES} times: {reason}") from error
            print(f"copying {source} failed ({reason}); try {attempt + 1} of {TRIES}", file=sys.stderr)
            time.sleep(PAUSE_S)


def once(place: Path, work: Callable[[], None], *, patience: float) -> None:
    """Do `work` in one process of this server while the others wait; returns in all when it is done.

    ``<place>.done`` says that it is, ``<place>.lock`` names the process at work and goes with it. Raises DataError
    after `patience` seconds of waiting; what `work` raises, and then the next one tries.
    """
    done, lock = place.with_name(place.name + ".done"), place.with_name(place.name + ".lock")
    try:
        make_folder(place.parent)
    except OSError as error:
        raise DataError(f"cannot write in {place.parent}: {reason(error)}") from error
    deadline = time.monotonic() + patience
    while not done.exists():
        if _take(lock):
            try:
                if not done.exists():
                    work()
                    done.touch()
            finally:
                lock.unlink(missing_ok=True)
            return
        if _abandoned(lock):
            with contextlib.suppress(OSError):
                lock.unlink()
            continue
        if time.monotonic() > deadline:
            raise DataError(
                f"waited {patience:.0f} s for the process that copies; if none does, remove {lock}"
            )
        time.sleep(_POLL_S)


def _take(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise DataError(f"cannot write {lock}: {reason(error)}") from error
    with os.fdopen(descriptor, "w") as stream:
        stream.write(str(os.getpid()))
    return True


def _abandoned(lock: Path) -> bool:
    """True if the process named by the lock has ended."""
    try:
        text = lock.read_text()
    except OSError:
        return False
    if not text.isdecimal():  # just being written
        return False
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _only_checkpoint(local: Path, url: str) -> Path:
    """Return the checkpoint in the folder that `url` was copied to; UsageError unless there is exactly one."""
    if local.is_file():
        return local
    found = sorted(p for p in local.rglob("*") if p.suffix in (".ckpt", ".safetensors"))
    if len(found) != 1:
        raise UsageError(
            f"{url} holds {len(found)} checkpoints (.ckpt, .safetensors): name the folder of one"
        )
    return found[0]
