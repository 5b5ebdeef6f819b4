"""``resnext-run``: the whole job. Train, evaluate, export, validate, report; what a newcomer types first."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from resnext_core.cli.common import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    add_resume_flag,
    print_config,
    resume_of,
    settings_of,
)  # fmt: skip
from resnext_core.cli.eval import evaluate_served
from resnext_core.cli.export import export, line
from resnext_core.cli.output import Output, ProgressBar
from resnext_core.cli.train import (
    backend_of,
    launch,
    prepare_run,
    train,
)
from resnext_core.cli.validate import compare_on, describe
from resnext_core.data.demo import write_digits
from resnext_core.errors import DataError
from resnext_core.interfaces import Backend
from resnext_core.jobs.plan import Plan, plan_job, require
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.settings import resolve_training
from resnext_core.model.weights import load_weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.children import outliving_terminal
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.serving.load import serve, serve_weights
from resnext_core.serving.validate import TOLERANCE

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
    resolved, resumed = resolve_training(
        settings_of(args), plugins, resume=resume_of(args), default_recipe=recipe
    )
    if args.print_config:
        return print_config(resolved)
    config = resolved.config
    backend = plugins.choose(args.backend or backend_of(resumed), "train", lambda b: b.engine is not None)
    output = Output(json_result=args.json)
    if config.data.dir is None:
        folder = Path(config.output.dir) / DEMO_DATA
        write_digits(folder)
        output.say(f"no --data given: using scikit-learn's handwritten digits in {folder}")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(folder)))
    plan = plan_job(config, plugins, backend, world=args.devices, resumed=resumed, whole=True)
    require(plan)
    _ = plan.scored  # before the training
    for note in plan.notes:
        output.say(note)
    started = time.perf_counter()
    run = _train(plan, backend, args.devices, output)
    result = finish(run, plan, backend, output)
    result["seconds"] = round(time.perf_counter() - started, 1)
    output.result(result, f"done in {result['seconds']:.0f} s; report: {run.report}")
    if not all(v["passed"] for v in result["validations"]):
        raise DataError(f"an artefact does not agree with its source; see {run.report}")
    return 0


def _train(plan: Plan, backend: Backend, devices: int, output: Output) -> RunFolder:
    if devices == 1:
        return train(plan, backend, RankInfo(), output)
    run = plan.resumed or prepare_run(plan.config, backend)
    words = ["train", "--resume", str(run.path), "--no-result"]
    code = launch(backend, plan.config, run, devices, words, output.json_result)
    if code != 0:
        raise SystemExit(code)
    return run


def finish(run: RunFolder, plan: Plan, backend: Backend, output: Output) -> dict[str, Any]:
    """Evaluate, export, validate and report a trained run; returns the JSON result."""
    config, plugins = plan.config, plan.plugins
    output.log = run.path / "log.txt"
    path = best_weights(run.checkpoints)
    weights = load_weights(path)
    name, index = plan.scored
    source = serve_weights(
        weights, config, plugins, prefer=backend.id, batch_size=config.eval.batch_size, source=str(path)
    )
    evaluation, samples = evaluate_served(source, index, config, RankInfo(), SingleProcess(), output)
    output.say(f"{name}: {evaluation.line()}")
    run.write_result("evaluation", {"split": name, **evaluation.to_dict(), "samples": samples})

    artefacts = []
    for format_name, exporter in plan.formats.items():
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

    from resnext_core.report.gather import make_report  # jinja2: not for --help

    make_report(run)
    summary = evaluation.to_dict()
    del summary["confusion"]
    return {
        "run": str(run.path), "backend": backend.id, "weights": str(path), "digest": weights.digest,
        "evaluation": summary, "artefacts": artefacts, "validations": validations, "report": str(run.report),
    }  # fmt: skip
