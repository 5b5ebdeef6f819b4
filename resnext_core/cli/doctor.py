"""``resnext-run doctor``: versions, machine, every backend's probe, and a forward pass against golden logits.

With ``--run`` it looks at a training before it is started instead.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.cli.common import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    config_words,
    resolve_config,
)
from resnext_core.cli.output import Output, table
from resnext_core.cli.train import environment, stored_layer
from resnext_core.config import load_config
from resnext_core.distributed import RankInfo
from resnext_core.errors import BackendUnavailable, DataError, ResnextError, UsageError
from resnext_core.interfaces import Backend, Exporter, ExportRequest, PredictRequest
from resnext_core.jobs import open_splits
from resnext_core.plugins import PluginSet, load_plugins, probe
from resnext_core.preflight import Note, machine_memory, preflight
from resnext_core.runs import RunFolder
from resnext_core.selfcheck import GOLDEN_LOGITS, check_backend, golden_images, golden_weights
from resnext_core.serve import WEIGHTS_SUFFIX

#: Largest relative golden difference of float32 logits.
TOLERANCE = 1e-5

EPILOG = """\
Exit code 3 when a backend that is available gives wrong numbers; a backend that is not available is no error,
unless it is the one named by --backend. With --run: exit code 3 when the training could not work.

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
    if config_words(args) or args.devices > 1 or args.print_config:
        raise UsageError(
            "these flags describe a training: add --run CONFIG, a recipe, YAML file or run folder"
        )
    facts = environment() | {
        "memory": f"{memory / 2**30:.1f} GiB" if (memory := machine_memory()) else "unknown",
        "disk_free_here": f"{shutil.disk_usage('.').free / 1e9:.0f} GB",
    }
    del facts["command"]
    output.say("\n".join(f"{k:<15} {v}" for k, v in facts.items()))
    found = [plugins.available(args.backend)] if args.backend else list(plugins.backends.values())
    results = [_check(b, plugins) for b in sorted(found, key=lambda b: (-b.priority, b.id))]
    rows = [[r["id"], r["state"], r["detail"]] for r in results]
    text = "\n" + table(rows, ["backend", "state", "detail"])
    missing = _missing_extras(plugins)
    if missing:
        text += "\n\nnot installed: " + ", ".join(f"{m} (pip install 'resnext-core[{m}]')" for m in missing)
    text += "".join(f"\nproblem: {p}" for p in plugins.problems)
    value = {
        "environment": facts,
        "backends": results,
        "not_installed": missing,
        "problems": list(plugins.problems),
    }
    output.result(value, text)
    wrong = [r["id"] for r in results if r["state"] == "WRONG"]
    if wrong:
        raise DataError(
            f"wrong numbers from {', '.join(wrong)}: do not use it on this machine before that is mended"
        )
    return 0


def _preflight(args: argparse.Namespace, plugins: PluginSet, output: Output) -> int:
    base = None
    if (Path(args.run) / "config.yaml").is_file():
        base = stored_layer(RunFolder.open(Path(args.run)), plugins)
    else:
        args.recipe = args.run
    config, _ = resolve_config(args, plugins, base=base)
    splits = open_splits(config)
    notes = [_trains(args.backend, plugins), *preflight(config, splits, args.devices)]
    rows = [[n.topic, "" if n.level == "ok" else n.level, n.text] for n in notes]
    value = {"run": args.run, "devices": args.devices, "notes": [vars(n) for n in notes]}
    output.result(value, table(rows, ["topic", "", "what"]))
    wrong = [n.text for n in notes if n.level == "error"]
    if wrong:
        raise DataError(f"this training cannot work: {wrong[0]}")
    return 0


def _trains(backend_id: str | None, plugins: PluginSet) -> Note:
    """Note which backend would train; one that is not available here may be elsewhere."""
    try:
        backend = plugins.choose(backend_id, "train", lambda b: b.trainer is not None)
    except BackendUnavailable as error:
        return Note(topic="backend", level="warning", text=f"not on this machine: {error}")
    return Note(topic="backend", level="ok", text=f"{backend.id}, {backend.summary}")


def _check(backend: Backend, plugins: PluginSet) -> dict[str, Any]:
    result: dict[str, Any] = {"id": backend.id, "state": "ready", "detail": "", "difference": None}
    reason = probe(backend)
    if reason is not None:
        return result | {"state": "not here", "detail": reason}
    try:
        difference = _difference(backend, plugins)
    except BackendUnavailable as error:  # what only opening the device could tell
        return result | {"state": "not here", "detail": str(error)}
    except ResnextError as error:
        return result | {"state": "WRONG", "detail": str(error)}
    if difference is None:
        return result | {
            "detail": "no self-check: it neither serves weights nor an artefact that can be written here"
        }
    good = difference <= TOLERANCE
    return result | {
        "state": "ready" if good else "WRONG", "difference": difference,
        "detail": f"golden logits within {difference:.1e} of the largest (allowed {TOLERANCE:.0e})",
    }  # fmt: skip


def _difference(backend: Backend, plugins: PluginSet) -> float | None:
    """Return the golden difference of `backend`, through an artefact where it serves no weights in memory."""
    options = load_config([], plugins.option_types())[0].backends
    if backend.predictor is None:
        return None
    if WEIGHTS_SUFFIX in backend.formats:
        return check_backend(backend, options.get(backend.id))
    for maker in plugins.backends.values():
        for name, exporter in maker.exporters.items():
            if f".{name}" in backend.formats and probe(maker) is None:
                return _through_artefact(
                    backend, f".{name}", exporter, options.get(maker.id), options.get(backend.id)
                )
    return None


def _through_artefact(
    backend: Backend, suffix: str, exporter: Exporter, export_options: Any, options: Any
) -> float:
    assert backend.predictor is not None
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for padding, golden in GOLDEN_LOGITS.items():
            path = Path(folder) / f"golden-{padding}{suffix}"
            exporter(golden_weights(padding), path, ExportRequest(options=export_options))
            predictor = backend.predictor(
                PredictRequest(path=path, batch_size=3, rank=RankInfo(), options=options)
            )
            difference = np.abs(predictor.logits(golden_images()) - golden).max() / np.abs(golden).max()
            predictor.close()
            worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst


def _missing_extras(plugins: PluginSet) -> list[str]:
    """Return the extras of resnext-core that are backends nobody has installed."""
    return sorted(plugins.extras() - set(plugins.backends) - {"demo", "tensorboard", "dev"})
