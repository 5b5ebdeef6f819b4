"""``resnext-run eval``: exact accuracy of a run, of weights, or of an artefact."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.cli.common import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    config_words,
    resolve_config,
)
from resnext_core.cli.output import Output, ProgressBar
from resnext_core.cli.train import launch, stored_layer
from resnext_core.config import Config, DataConfig
from resnext_core.data.index import NO_SPLIT, SPLITS, Index, find_splits, open_index, remarks
from resnext_core.data.opening import eval_loader
from resnext_core.errors import UsageError, shown
from resnext_core.interfaces import Batch
from resnext_core.jobs.training import connect
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.runs.folder import RunFolder, run_of
from resnext_core.serving.evaluate import Evaluation, evaluate
from resnext_core.serving.load import WEIGHTS_SUFFIX, LoadedModel, find_model, is_weights, serve
from resnext_core.serving.metrics import softmax

#: Wrong and right predictions that a report shows, of each at most.
SAMPLES = 12

EPILOG = """\
examples:
  resnext-run eval --weights runs/RUN                the data that the run was trained with
  resnext-run eval --weights model.onnx --data DIR --split test --json
  resnext-run eval --devices 3 --weights model.safetensors --data DIR
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    add_split_flag(parser)
    add_config_flags(parser)
    add_devices_flag(parser)
    add_json_flag(parser)


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add --weights."""
    parser.add_argument(
        "--weights", metavar="FILE", required=True, help="run folder, weights file or artefact"
    )


def add_split_flag(parser: argparse.ArgumentParser) -> None:
    """Add --split."""
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="part of --data (default: test if there, else val)"
    )


def served_config(
    args: argparse.Namespace, plugins: PluginSet, *models: str
) -> tuple[Config, dict[str, str], str | None]:
    """Return the configuration and its sources, and a line where its data is that of a run.

    Where nothing names data and one of `models` is a run, or lies in one, the run's own configuration stands in for
    the recipe.
    """
    quiet = argparse.Namespace(**{**vars(args), "print_config": False})
    if resolve_config(quiet, plugins)[0].data.dir is None:
        for run in (run_of(Path(model)) for model in models):
            if run is not None:
                config, sources = resolve_config(args, plugins, base=stored_layer(run, plugins))
                return (
                    config,
                    sources,
                    f"data: {shown(config.data.dir, None)}, of {run.path.name}; --data takes other",
                )
    return *resolve_config(args, plugins), None


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    rank = rank_info()
    config, sources, taken = served_config(args, plugins, args.weights)
    model = find_model(Path(args.weights))
    suffix = WEIGHTS_SUFFIX if is_weights(model, plugins) else model.suffix
    backend = plugins.choose(
        args.backend, f"evaluate {suffix} files", lambda b: b.predictor is not None and suffix in b.formats
    )
    if args.devices > 1 and rank.world == 1:
        run = RunFolder(Path(config.output.dir) / "eval-ranks")
        words = ["eval", f"--weights={args.weights}", *config_words(args)]
        words += [f"--split={args.split}"] if args.split else []
        return launch(backend, config, run, args.devices, words, args.json)
    output = Output(json_result=args.json, quiet=not rank.is_main)
    if taken is not None:
        output.say(taken)
    collectives: Collectives = SingleProcess()
    if rank.world > 1:
        collectives = connect(backend, config, rank)
    try:
        served = serve(
            Path(args.weights),
            config,
            sources,
            plugins,
            backend_id=backend.id,
            batch_size=config.eval.batch_size,
            rank=rank,
        )
        index = open_split(config, args.split, served)
        for line in remarks([index]):
            output.say(line)
        result, _ = evaluate_served(served, index, config, rank, collectives, output)
        served.predictor.close()
    finally:
        collectives.close()
    value = {
        "weights": served.source,
        "digest": served.digest,
        "backend": served.backend.id,
        **result.to_dict(),
    }
    output.result(value, f"{result.line()} [{served.backend.id}]")
    for path, message in list(result.failures.items())[:10]:
        output.say(f"could not read {path}: {message}")
    return 0


def evaluate_served(
    served: LoadedModel,
    index: Index,
    config: Config,
    rank: RankInfo,
    collectives: Collectives,
    output: Output,
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Evaluate on `index`; also returns samples for the report: the most confident wrong ones, and right ones."""
    bar = ProgressBar(output)
    wrong: list[dict[str, Any]] = []
    right: dict[str, dict[str, Any]] = {}

    def on_batch(batch: Batch, logits: NDArray[Any]) -> None:
        for row in np.flatnonzero(batch.valid):
            best, true = int(logits[row].argmax()), int(batch.labels[row])
            sample = {
                "path": str(index.path(int(batch.index[row]))),
                "true": index.classes[true],
                "predicted": index.classes[best],
                "probability": float(softmax(logits[row])[best]),
            }
            if best != true:
                wrong.append(sample)
            else:
                right.setdefault(index.classes[true], sample)

    with eval_loader(index, served.preprocess, config, rank.world) as loader:
        result = evaluate(
            served.predictor,
            loader,
            index,
            batch_size=config.eval.batch_size,
            rank=rank,
            collectives=collectives,
            on_batch=on_batch,
            on_progress=lambda done, total: bar(
                {"kind": "progress", "what": "eval", "done": done, "total": total}
            ),
        )
    bar.close()
    wrong.sort(key=lambda s: -s["probability"])
    return result, wrong[:SAMPLES] + list(right.values())[:SAMPLES]


def open_split(config: Config, split: str | None, model: LoadedModel) -> Index:
    """Open one part of ``config.data``, with the classes of `model`: the named one, test, val, or itself.

    A test part without labels is passed over for val, as by a whole job.
    """
    if config.data.dir is None:
        raise UsageError("no data given: use --data DIR, or give a run as --weights to take its own")
    root = Path(config.data.dir)
    paths = part_paths(root, config.data)
    passed: tuple[str, ...] = ()
    for name in (split,) if split else ("test", "val"):
        if name in paths:
            index = open_index(paths[name], model.classes, named=model.has_names)
            if split is None and name == "test" and "val" in paths and not index.labelled:
                passed = (f"{shown(paths[name], None)} has no labels: taking val",)
                continue
            return dataclasses.replace(index, remarks=(*index.remarks, *passed))
    if split is not None or "train" in paths:
        raise UsageError(f"{root} has no {split or 'test or val'} part; it has: {', '.join(paths) or 'none'}")
    return open_index(root, model.classes, named=model.has_names)


def part_paths(root: Path, data: DataConfig) -> dict[str, Path]:
    """Return the train, val and test parts of `root`; none where it is itself a folder of classes or a list."""
    if not os.path.isdir(root):
        return {}
    usual = any(
        os.path.exists(root / name) for names in SPLITS.values() for n in names for name in (n, f"{n}.txt")
    )
    stated = any(part not in (None, NO_SPLIT) for part in (data.train, data.val, data.test))
    return find_splits(root, data) if usual or stated else {}
