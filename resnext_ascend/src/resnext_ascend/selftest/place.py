"""What a part of the self-test gets, and the ways in which it ends other than well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_ascend.options import AscendOptions
from resnext_core.errors import EXIT_OK, EXIT_UNAVAILABLE


class NotHere(Exception):
    """This machine lacks what a part needs; the message says what."""


class Refuted(Exception):
    """A part has found something wrong; the message says what, and `measured` is all that it measured."""

    def __init__(self, message: str, measured: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.measured = dict(measured or {})


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part runs: on an Ascend or in test mode on the CPU, with an own empty `folder`.

    `soc_version` is the chip that an ``.om`` is made for, None to ask npu-smi.
    """

    device: Literal["ascend", "cpu"]
    folder: Path
    soc_version: str | None = None

    def options(self, **changes: Any) -> AscendOptions:
        """Return the backend's options on this device."""
        return AscendOptions(device=self.device, **changes)

    def need_device(self, why: str) -> None:
        """Raise NotHere in test mode."""
        if self.device == "cpu":
            raise NotHere(f"needs a device: {why}")

    def python(self, module: str, *words: object) -> str:
        """Run a module of Python, keep what it prints in the log, and return its standard output.

        NotHere with its last line where it says that something is not available, Refuted where it fails otherwise.
        """
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, words)], cwd=self.folder, capture_output=True, text=True,
            errors="replace", check=False,
        )  # fmt: skip
        print(done.stdout + done.stderr, flush=True)
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("resnext-run: ")
        if done.returncode == EXIT_UNAVAILABLE:
            raise NotHere(said)
        if done.returncode != EXIT_OK:
            shown = " ".join(map(str, words[:4]))
            raise Refuted(f"python -m {module} {shown} ... ended with {done.returncode}: {said}")
        return done.stdout

    def command(self, *words: object) -> str:
        """Run a command of resnext-run; see :meth:`python`."""
        return self.python("resnext_core.cli", *words)

    def json_of(self, *words: object) -> dict[str, Any]:
        """Run a command of resnext-run with ``--json`` and return its result."""
        (line,) = [line for line in self.command(*words, "--json").splitlines() if line.startswith("{")]
        return dict(json.loads(line))


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return max |difference| over max |expected|, infinity where `found` is not finite."""
    if found.shape != expected.shape:
        raise Refuted(f"shape {found.shape}, not {expected.shape}")
    if not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def within(measured: dict[str, Any], limits: dict[str, float]) -> None:
    """Raise Refuted with the values of `measured` that exceed their limit."""
    over = [f"{name} is {measured[name]:.2e}, above {limit:.0e}" for name, limit in limits.items()
            if not measured[name] <= limit]  # fmt: skip
    if over:
        raise Refuted("; ".join(over), measured)
