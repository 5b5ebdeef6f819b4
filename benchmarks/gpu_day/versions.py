"""A part: the card, its driver, the versions of everything, and the backend found through its entry point."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_day.child import arguments, write
from gpu_day.place import CORE, OTHER

_ALSO = ("jinja2", "rich", "pytest-timeout", "hypothesis", "psutil", "torchvision", "scikit-learn")
_QUERY = (
    "name", "driver_version", "memory.total", "memory.used", "power.limit", "clocks.sm", "clocks.max.sm", "clocks.mem",
    "temperature.gpu", "pcie.link.gen.current", "mig.mode.current", "compute_mode", "persistence_mode",
)  # fmt: skip


def main() -> int:
    """Look, and write down what is here."""
    args = arguments()
    found: dict[str, Any] = {
        "python": sys.version, "machine": f"{platform.platform()}, {os.cpu_count()} CPUs, {_memory()}",
        "packages": {name: _version(name) for name in [*CORE.values(), *OTHER.values(), *_ALSO]},
        "nvidia_smi": _smi(["--query-gpu=" + ",".join(_QUERY), "--format=csv"]),
        "beside": _smi(["--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"]),
    }  # fmt: skip
    table, problems = [], []
    for look in (_torch, _backend):
        try:
            table += look(found, args.smoke)
        except Exception as error:  # what else there is to say is worth it
            known = type(error).__name__ == "BackendUnavailable"  # whose text is a sentence
            problems.append(str(error) if known else f"{type(error).__name__}: {error}")
    packages = [f"{name} {version}" for name, version in found["packages"].items()]
    table += [", ".join(packages[:8]), ", ".join(packages[8:]), found["machine"]]
    if found["beside"]:
        table.append(f"other programs are on the card: {'; '.join(found['beside'])}")
    said = "; ".join(problems) or f"{found['card']}; {found['state']}"
    return write(args.into, right=not problems, said=said, table=table, **found)


def _torch(found: dict[str, Any], smoke: bool) -> list[str]:
    import torch

    cuda = torch.cuda.is_available()
    found["card"] = torch.cuda.get_device_name() if cuda else "no card"
    if not cuda:
        if smoke:
            return ["no card: smoke test on the CPU"]
        from resnext_gpu.device import Device, open_device

        open_device(Device())  # raises, and says why
    p = torch.cuda.get_device_properties(0)
    found["properties"] = {name: getattr(p, name) for name in dir(p) if name[0] != "_" and name != "uuid"}
    found["cuda"] = {
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nccl": torch.cuda.nccl.version(),
        "cards": torch.cuda.device_count(), "archs": torch.cuda.get_arch_list(),
    }  # fmt: skip
    x = torch.arange(1000, device="cuda", dtype=torch.float64)
    if float(x.sum()) != 499500:
        raise RuntimeError("the card cannot add")
    return [
        f"{p.name}, capability {p.major}.{p.minor}, {p.multi_processor_count} multiprocessors, "
        f"{p.total_memory >> 20} MiB",
        ", ".join(f"{name} {value}" for name, value in found["cuda"].items() if name != "archs"),
        *found["nvidia_smi"][1:],
    ]


def _backend(found: dict[str, Any], smoke: bool) -> list[str]:
    from resnext_core.plugins import load_plugins, probe

    plugins = load_plugins()
    entries = list(metadata.entry_points(group="resnext"))
    found["entry_points"] = [f"{e.name} = {e.value} of {e.dist and e.dist.name}" for e in entries]
    found["where"] = sorted({str(e.dist.locate_file("")) for e in entries if e.dist is not None})
    found["backends"] = {id: plugins.origins["backend", id] for id in plugins.backends}
    found["problems"] = list(plugins.problems)
    if found["backends"].get("gpu") != "resnext-gpu":
        raise RuntimeError(
            f"the backend gpu is not found: {'; '.join(plugins.problems) or found['entry_points']}"
        )
    here = probe(plugins.get("gpu"))
    found["state"] = f"the backend gpu is {here.state}"
    if not smoke and found.get("card") != "no card" and here.state != "ready":
        raise RuntimeError(f"the backend gpu is {here.state}: {here.reason}")
    return [f"backends: {', '.join(found['backends'])}", *found["problems"]]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _memory() -> str:
    try:
        return next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    except (OSError, StopIteration):
        return "memory unknown"


def _smi(words: list[str]) -> list[str]:
    try:
        ran = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=8, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi: {error}"] if not isinstance(error, FileNotFoundError) else []
    return ran.stdout.strip().splitlines() or ran.stderr.strip().splitlines()


if __name__ == "__main__":
    sys.exit(main())
