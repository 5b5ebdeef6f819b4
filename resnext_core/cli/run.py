"""``resnext-run``: the whole job. Train, evaluate, export, validate, report; what a newcomer types first."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from resnext_core.children import outliving_terminal
from resnext_core.cli.common import (
    DEFAULT_RECIPE,
    add_config_flags,
    add_devices_flag,
    add_json_flag,
)  # fmt: skip
from resnext_core.cli.eval import evaluate_served
from resnext_core.cli.export import export, line
from resnext_core.cli.output import Output, ProgressBar
from resnext_core.cli.report import make_report
from resnext_core.cli.train import (
    add_resume_flag,
    check_pretrained,
    launch,
    prepare_run,
    resumed_config,
    train,
)
from resnext_core.cli.validate import compare_on, describe
from resnext_core.config import Config
from resnext_core.data.demo import write_digits
from resnext_core.data.index import Index
from resnext_core.distributed import RankInfo, SingleProcess
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Backend
from resnext_core.jobs import open_splits, per_rank
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.pointers import best_weights
from resnext_core.runs import RunFolder
from resnext_core.serve import exporters, serve, serve_weights
from resnext_core.validate import TOLERANCE
from resnext_core.weights import load_weights

DEMO_RECIPE = "digits"
#: Where the demo data goes, in the parent of the run folders.
DEMO_DATA = "digits-data"

EPILOG = """\
examples:
  resnext-run                                     the built-in digits on the best backend here
  resnext-run run --data DIR --recipe photos-small
  resnext-run run --resume runs/RUN               go on with a whole job that was interrupted
  resnext-run --backend reference run --epochs 3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_flags(parser)
    add_resume_flag(parser)
    add_devices_flag(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    with outliving_terminal():
        return _handle(args)


def _handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    recipe = DEFAULT_RECIPE if args.data else DEMO_RECIPE
    resumed, backend_id, config = resumed_config(args, plugins, recipe)
    backend = plugins.choose(backend_id, "train", lambda b: b.trainer is not None)
    formats = exporters(
        plugins, config.export.formats, prefer=backend.id
    )  # an unknown format must not wait for the training
    output = Output(json_result=args.json)
    if config.data.dir is None:
        folder = Path(config.output.dir) / DEMO_DATA
        output.say(f"no --data given: using scikit-learn's handwritten digits in {folder}")
        write_digits(folder)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(folder)))
    _scored_part(config)  # before the training
    started = time.perf_counter()
    run = _train(config, backend, args.devices, output, resumed)
    result = finish(run, config, backend, formats, plugins, output)
    result["seconds"] = round(time.perf_counter() - started, 1)
    output.result(result, f"done in {result['seconds']:.0f} s; report: {run.report}")
    if not all(v["passed"] for v in result["validations"]):
        raise DataError(f"an artefact does not agree with its source; see {run.report}")
    return 0


def _train(
    config: Config, backend: Backend, devices: int, output: Output, resumed: RunFolder | None
) -> RunFolder:
    if devices == 1:
        return train(config, backend, RankInfo(), output, resumed)
    splits = open_splits(config)
    per_rank(config, devices, len(splits.train))  # before a run folder is made
    check_pretrained(config, splits.train.classes, resumed)
    run = resumed or prepare_run(config, backend)
    words = ["train", "--resume", str(run.path), "--no-result"]
    code = launch(backend, config, run, devices, words, output.json_result)
    if code != 0:
        raise SystemExit(code)
    return run


def _scored_part(config: Config) -> tuple[str, Index]:
    """Return name and index of the part that the finished network is evaluated on (UsageError when none)."""
    splits = open_splits(config)
    if splits.test is not None:
        return "test", splits.test
    if splits.val is not None:
        return "val", splits.val
    raise UsageError(f"{config.data.dir} has no val or test part to evaluate on; add one, or use 'train'")


def finish(
    run: RunFolder,
    config: Config,
    backend: Backend,
    formats: dict[str, Backend],
    plugins: PluginSet,
    output: Output,
) -> dict[str, Any]:
    """Evaluate, export, validate and report a trained run; returns the JSON result."""
    output.log = run.path / "log.txt"
    path = best_weights(run.checkpoints)
    weights = load_weights(path)
    name, index = _scored_part(config)
    source = serve_weights(
        weights, config, plugins, prefer=backend.id, batch_size=config.eval.batch_size, source=str(path)
    )
    evaluation, samples = evaluate_served(source, index, config, RankInfo(), SingleProcess(), output)
    output.say(f"{name}: {evaluation.line()}")
    run.write_result("evaluation", {"split": name, **evaluation.to_dict(), "samples": samples})

    artefacts = []
    for format_name, exporter in formats.items():
        target = run.path / f"{weights.spec.variant}.{format_name}"
        artefacts.append(export(weights, format_name, exporter, target, config, plugins, backend.id))
        output.say(line(artefacts[-1]))
    run.write_result("artefacts", artefacts)

    validations = []
    for artefact in artefacts:
        made = serve(
            Path(artefact["path"]), config, {}, plugins, prefer=backend.id,
            batch_size=config.eval.batch_size, self_check=False,
        )  # fmt: skip
        result = compare_on(made, source, index, config, TOLERANCE, ProgressBar(output))
        made.predictor.close()
        validations.append(describe(made, source, result))
        output.say(f"{artefact['format']}: {result.line()}")
    run.write_result("validations", validations)
    source.predictor.close()

    make_report(run)
    summary = evaluation.to_dict()
    del summary["confusion"]
    return {
        "run": str(run.path), "backend": backend.id, "weights": str(path), "digest": weights.digest,
        "evaluation": summary, "artefacts": artefacts, "validations": validations, "report": str(run.report),
    }  # fmt: skip
