"""Parts of a self-test that go wrong in every way, and a program that runs them: ``python -m selftest_parts OUT``."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from resnext_ascend.selftest import command
from resnext_ascend.selftest.parts import Part
from resnext_ascend.selftest.place import NotHere, Place, Refuted

from resnext_core.cli.main import main


def good(place: Place, value: int = 1) -> dict[str, Any]:
    print(f"a line of the part in {os.path.expanduser('~')}, GLOG_v={os.environ['GLOG_v']}")  # noqa: SIM112
    return {"value": value}


def refuted(place: Place) -> dict[str, Any]:
    raise Refuted("x is 3.0e-01, above 1e-04", {"x": 0.3, "lists": [[float("nan")], float("inf")]})


def error(place: Place) -> dict[str, Any]:
    raise RuntimeError("of a library")


def lacking(place: Place) -> dict[str, Any]:
    raise NotHere("needs two devices; here is 1")


def crash(place: Place) -> dict[str, Any]:
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def leave(place: Place) -> dict[str, Any]:
    os._exit(7)


def hang(place: Place) -> dict[str, Any]:
    print("about to hang", flush=True)
    while True:
        time.sleep(60)


def interrupt(place: Place) -> dict[str, Any]:
    os.kill(os.getppid(), signal.SIGINT)
    return hang(place)


def part(name: str, limit_s: float = 300, **given: Any) -> Part:
    """Return the part whose function has this name."""
    return Part(
        name=name, proves=f"{name} on an Ascend", on_cpu=f"{name} on the CPU", module="selftest_parts", function=name,
        limit_s=limit_s, given=given,
    )  # fmt: skip


if __name__ == "__main__":
    parts = tuple(part(name) for name in ("good", "interrupt", "refuted"))
    command.chosen = lambda names: parts  # type: ignore[assignment]
    sys.exit(main(["ascend", "selftest", "--device", "cpu", "--out", sys.argv[1]]))
