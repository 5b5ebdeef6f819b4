"""Chips of this machine by Huawei's ``npu-smi``, and device addresses by its ``hccn_tool``: their tables, read."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from dataclasses import dataclass

from resnext_core.errors import BackendUnavailable, DataError, one_line, reason, shown

_TIMEOUT_S = 60
_VERSION = re.compile(r"^\|\s*npu-smi\s+(\S+)", re.MULTILINE)
#: The first line of a chip: card and name, health, power, temperature; the second begins with its number on the card.
_FIRST = re.compile(r"\|\s*(\d+)\s+(\S+)\s*\|\s*(\w+)\s*\|")
_SECOND = re.compile(r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*(\S+)\s*\|([^|]*)\|")
_USED = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip: number of its `card` and of the chip on it, `name`, `health`, PCI address, and memory in MiB.

    Memory is HBM where the chip has it. `soc_version` is the name that ATC takes, None where the table lacks it.
    """

    card: int
    chip: int
    name: str
    health: str
    bus: str
    used_mib: int
    total_mib: int

    @property
    def soc_version(self) -> str | None:
        # CANN, page of --soc_version: "Ascend" and the name. Atlas A3 shows Ascend910 for all, and its board the rest.
        return f"Ascend{self.name}" if not self.name.startswith("Ascend") else None


def read_chips() -> tuple[str, tuple[Chip, ...]]:
    """Return what :func:`parse` reads from ``npu-smi info`` here.

    Raises BackendUnavailable where the tool is missing or says why it cannot look, DataError on text it never writes.
    """
    return parse(_run("npu-smi", "info"))


def parse(text: str) -> tuple[str, tuple[Chip, ...]]:
    """Return the version of npu-smi and the chips in the output of ``npu-smi info``; DataError on anything else."""
    version = _VERSION.search(text)
    if version is None:
        raise DataError(f"npu-smi info shows no table: {shown(text.strip(), 200)}")
    found: list[Chip] = []
    card: re.Match[str] | None = None
    for line in text[version.end() :].splitlines():
        second = _SECOND.match(line) if card is not None else None
        if card is not None and second is not None:
            memory = _USED.findall(second[3])
            if not memory:
                raise DataError(f"npu-smi info shows no memory of a chip: {shown(line)}")
            # Two pairs are Memory-Usage and HBM-Usage; a chip without HBM has one, or 0 / 0 as the second.
            used, total = next(((u, t) for u, t in reversed(memory) if int(t)), memory[-1])
            found.append(
                Chip(
                    card=int(card[1]), chip=int(second[1]), name=card[2], health=card[3], bus=second[2],
                    used_mib=int(used), total_mib=int(total),
                )
            )  # fmt: skip
            card = None
        elif "Process id" in line:
            break
        else:
            card = _FIRST.match(line)
    return version[1], tuple(found)


def read_address(device: int) -> str:
    """Return the address of a device's network card; errors as :func:`read_chips`."""
    return parse_address(_run("hccn_tool", "-i", str(device), "-ip", "-g"))


def parse_address(text: str) -> str:
    """Return the address in the output of ``hccn_tool -i N -ip -g``; DataError where there is none."""
    found = re.search(r"^\s*ipaddr\s*:\s*(\S+)\s*$", text, re.MULTILINE)
    try:
        return str(ipaddress.ip_address(found[1] if found else ""))
    except ValueError:
        raise DataError(f"hccn_tool shows no address: {shown(text.strip(), 200)}") from None


def _run(*words: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = (
            f"no answer in {_TIMEOUT_S} s" if isinstance(error, subprocess.TimeoutExpired) else reason(error)
        )
        raise BackendUnavailable(f"{words[0]} cannot be run: {why}") from error
    if done.returncode:
        why = one_line(ValueError(done.stdout + done.stderr), 200)
        raise BackendUnavailable(f"{' '.join(words)} ended with {done.returncode}: {why}")
    return done.stdout
