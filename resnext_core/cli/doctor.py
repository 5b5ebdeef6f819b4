"""``resnext-run doctor``: versions, machine, every backend's probe, and a forward pass against golden logits.

With ``--run`` it looks at a training before it is started instead.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from resnext_core.cli.common import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    print_config,
    settings_of,
)
from resnext_core.cli.output import Output, table
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.extras import install_hint, plugin_extras
from resnext_core.interfaces import Backend
from resnext_core.jobs.backend_check import FAILED, WRONG, check
from resnext_core.jobs.environment import environment
from resnext_core.jobs.plan import faults, plan_job
from resnext_core.jobs.preflight import Note, machine_memory, preflight
from resnext_core.jobs.settings import resolve, stored_layer
from resnext_core.plugins import PluginSet, load_plugins, probe
from resnext_core.runs.folder import RunFolder

EPILOG = """\
Every format that a backend serves is tried where an exporter for it is installed. Exit code 3 when a backend that is
available gives wrong numbers or fails; what is not here is no error, unless it is the backend named by --backend.
With --run: exit code 3 when the training could not work, 4 when only something that could be installed is missing.

examples:
  resnext-run doctor
  resnext-run doctor --run digits --data digits     data, learning rate, memory and disk of a training
  resnext-run doctor --run imagenet-150e --data IMAGENET --devices 8 --set train.ema_decay=0.9999
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", metavar="CONFIG", help="check the training of this recipe, YAML file or run folder instead"
    )
    add_devices_flag(parser)
    add_json_flag(parser)
    add_config_flags(parser, recipe=False)


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    output = Output(json_result=args.json)
    args.recipe = None
    if args.run is not None:
        return _preflight(args, plugins, output)
    if settings_of(args).to_flags() or args.devices > 1 or args.print_config:
        raise UsageError(
            "these flags describe a training: add --run CONFIG, a recipe, YAML file or run folder"
        )
    facts = environment() | {
        "memory": f"{memory / 2**30:.1f} GiB" if (memory := machine_memory()) else "unknown",
        "disk_free_here": f"{shutil.disk_usage('.').free / 1e9:.0f} GB",
    }
    del facts["command"]
    output.say("\n".join(f"{k:<15} {v}" for k, v in facts.items()))
    found = [plugins.available(args.backend)] if args.backend else plugins.ranked()
    results = [check(b, plugins) for b in found]
    rows = [[r["id"], r["state"], r["detail"]] for r in results]
    text = "\n" + table(rows, ["backend", "state", "detail"])
    missing = _missing_extras(plugins)
    if missing:
        text += "\n\nnot installed: " + ", ".join(f"{m} ({install_hint(m)})" for m in missing)
    text += "".join(f"\nproblem: {p}" for p in plugins.problems)
    value = {
        "environment": facts,
        "backends": results,
        "not_installed": missing,
        "problems": list(plugins.problems),
    }
    output.result(value, text)
    wrong, failed = ([r["id"] for r in results if r["state"] == state] for state in (WRONG, FAILED))
    if wrong:
        raise DataError(
            f"wrong numbers from {', '.join(wrong)}: do not use it on this machine before that is mended"
        )
    if failed:
        raise DataError(f"{', '.join(failed)} cannot compute here: the table says why")
    return 0


def _preflight(args: argparse.Namespace, plugins: PluginSet, output: Output) -> int:
    base, run = None, None
    if (Path(args.run) / "config.yaml").is_file():
        run = RunFolder.open(Path(args.run))
        base = stored_layer(run, plugins)
    else:
        args.recipe = args.run
    resolved = resolve(settings_of(args), plugins, base=base)
    if args.print_config:
        return print_config(resolved)
    backend, first = _trains(args.backend, plugins)
    plan = plan_job(resolved.config, plugins, backend, world=args.devices, resumed=run, whole=True)
    found = list(faults(plan))
    notes = [first, *preflight(plan, found)]
    rows = [[n.topic, "" if n.level == "ok" else n.level, n.text] for n in notes]
    value = {"run": args.run, "devices": args.devices, "notes": [vars(n) for n in notes]}
    output.result(value, table(rows, ["topic", "", "what"]))
    wrong = [error for _, error in found if backend or not isinstance(error, BackendUnavailable)]
    if wrong:
        kind = BackendUnavailable if all(isinstance(e, BackendUnavailable) for e in wrong) else DataError
        raise kind(f"this training cannot work: {wrong[0]}")
    return 0


def _trains(backend_id: str | None, plugins: PluginSet) -> tuple[Backend | None, Note]:
    """Return and note which backend would train; one that is not available here (None) may be elsewhere."""
    try:
        backend = plugins.choose(backend_id, "train", lambda b: b.engine is not None)
    except BackendUnavailable as error:
        return None, Note(topic="backend", level="warning", text=f"not on this machine: {error}")
    here = probe(backend)
    text = f"{backend.id}, {backend.summary if here.state == 'ready' else here}"
    return backend, Note(topic="backend", level="ok", text=text)


def _missing_extras(plugins: PluginSet) -> list[str]:
    """Return the extras of resnext-core that are backends nobody has installed."""
    return sorted(plugin_extras() - set(plugins.backends))
