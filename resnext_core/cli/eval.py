"""``resnext-run eval``: exact accuracy of a run, of weights, or of an artefact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.cli.common import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    add_split_flag,
    add_weights_flag,
    print_config,
    settings_of,
)
from resnext_core.cli.output import Output, ProgressBar
from resnext_core.cli.train import launch
from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.opening import eval_loader
from resnext_core.data.splits import open_split
from resnext_core.interfaces import Batch
from resnext_core.jobs.settings import resolve_serving
from resnext_core.jobs.training import connect
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Progress
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


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    rank = rank_info()
    settings = settings_of(args)
    resolved = resolve_serving(settings, plugins, Path(args.weights))
    if args.print_config:
        return print_config(resolved)
    config, sources, taken = resolved.config, resolved.sources, resolved.note
    model = find_model(Path(args.weights))
    suffix = WEIGHTS_SUFFIX if is_weights(model, plugins) else model.suffix
    backend = plugins.choose(
        args.backend, f"evaluate {suffix} files", lambda b: b.predictor is not None and suffix in b.formats
    )
    if args.devices > 1 and rank.world == 1:
        run = RunFolder(Path(config.output.dir) / "eval-ranks")
        words = ["eval", f"--weights={args.weights}", *settings.to_flags()]
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
        index = open_split(config.data, args.split, served.classes, named=served.has_names)
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
            on_progress=lambda done, total: bar(Progress(what="eval", done=done, total=total)),
        )
    bar.close()
    wrong.sort(key=lambda s: -s["probability"])
    return result, wrong[:SAMPLES] + list(right.values())[:SAMPLES]
