"""The whole job: train, evaluate, export, validate, report."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.config import Config
from resnext_core.data.demo import write_digits
from resnext_core.errors import BackendUnavailable
from resnext_core.jobs.evaluate import EvaluateResult
from resnext_core.jobs.export import Artefact, ExportResult, Source, measured, write_artefact
from resnext_core.jobs.launching import Lines
from resnext_core.jobs.new_run import backend_of
from resnext_core.jobs.plan import Plan, plan_job, require, training_backend
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.recorder import Recorder, ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.scoring import score
from resnext_core.jobs.settings import AUTO, Settings, resolve_training
from resnext_core.jobs.train import train_on, train_plan
from resnext_core.jobs.validate import ValidateResult, compare_on, prove
from resnext_core.model.weights import load_weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.runs.records import Listener, Note
from resnext_core.serving.gallery import Gallery
from resnext_core.serving.load import serve, serve_weights

#: Recipe of a whole job without data: handwritten digits, written into this folder beside the runs.
DEMO_RECIPE, DEMO_DATA = "digits", "digits-data"


@dataclass(frozen=True, kw_only=True)
class WholeJob:
    """What to train and what to make of it; the fields are those of :class:`~resnext_core.jobs.train.TrainJob`.

    Without data in the configuration the built-in digits are taken.
    """

    settings: Settings = field(default_factory=Settings)
    backend: str | None = None
    resume: Path | bool = False
    devices: int = 1
    lines: Lines = "stdout"
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class WholeResult(Result):
    """A run that `backend` trained, its accuracy on `split`, its artefacts, how they compare with it, and its report.

    It stands for the run folder wherever a path is taken. `seconds` is the time of the whole job.
    """

    run: Path
    backend: str
    split: str
    evaluation: EvaluateResult
    exported: ExportResult
    validations: tuple[ValidateResult, ...]
    report: Path
    seconds: float

    @property
    def weights(self) -> Path:
        """The weights file that everything was made from."""
        return Path(self.evaluation.weights)

    @property
    def passed(self) -> bool:
        """True where every artefact agrees with its source."""
        return all(validation.passed for validation in self.validations)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found = self.evaluation
        summary = found.evaluation.to_dict()
        del summary["confusion"]
        return {
            "run": str(self.run), "backend": self.backend, "weights": found.weights, "digest": found.digest,
            "evaluation": summary, **self.exported.to_dict(),
            "validations": [validation.to_dict() for validation in self.validations],
            "report": str(self.report), "seconds": self.seconds,
        }  # fmt: skip

    def __fspath__(self) -> str:
        return str(self.run)

    def __str__(self) -> str:
        lines = [f"run {self.run}", f"{self.split}: {self.evaluation}", *map(str, self.exported.artefacts)]
        return "\n".join([*lines, *map(str, self.validations), f"report {self.report}"])


def default_recipe(settings: Settings) -> str:
    """Return the recipe of a whole job that names none."""
    return DEFAULT_RECIPE if settings.data else DEMO_RECIPE


def whole(job: WholeJob, listen: Listener = ignore) -> WholeResult:
    """Do the whole job; `listen` gets its records. The result says whether every artefact agrees with its source.

    Raises what :func:`~resnext_core.jobs.train.train` raises, and before the training what would end a later part.
    """
    plugins = load_plugins()
    resolved, resumed = resolve_training(
        job.settings, plugins, resume=job.resume, default_recipe=default_recipe(job.settings)
    )
    backend = training_backend(plugins, job.backend or backend_of(resumed))
    config = _with_data(resolved.config, listen)
    plan = plan_job(
        config, plugins, backend, world=job.devices, resumed=resumed, whole=True,
        finds_batch=job.settings.batch_size == AUTO, sources=resolved.sources,
    )  # fmt: skip
    require(plan)
    _ = plan.scored  # before the training
    started = time.perf_counter()
    if job.devices == 1:
        run = train_plan(plan, RankInfo(), listen, command=job.command)
    else:
        flags = job.settings.to_flags() if resumed else []
        run = train_on(plan, job.devices, listen, flags=flags, lines=job.lines, command=job.command)
    return finish(run, plan, listen, started)


def finish(run: RunFolder, plan: Plan, listen: Listener, started: float) -> WholeResult:
    """Evaluate, export, validate and report a trained run; its weights and its data are opened once.

    The job `started` at this time of :func:`time.perf_counter`.
    """
    from resnext_core.report.gather import make_report  # jinja2, for those who write one

    config, plugins, prefer = plan.config, plan.plugins, plan.trainer.id
    say = Recorder(run, listen).say
    path = best_weights(run.checkpoints)
    weights = load_weights(path)
    split, index = plan.scored
    with ExitStack() as stack:
        source = serve_weights(
            weights, config, plugins, prefer=prefer, batch_size=config.eval.batch_size, source=str(path)
        )
        stack.callback(source.predictor.close)
        gallery = Gallery(index)
        evaluation = score(source, index, config, listen, takers=[gallery.take])
        say(f"{split}: {evaluation.line()}")
        run.write_result("evaluation", {"split": split, **evaluation.to_dict(), "samples": gallery.samples()})

        artefacts: list[Artefact] = []
        made_from = Source(weights, config, plugins, prefer=prefer, predictor=source.predictor)
        for name, backend in plan.formats.items():
            target = run.path / backend.file_name(weights.spec.variant, name)
            artefacts.append(write_artefact(made_from, name, backend, target))
            say(str(artefacts[-1]))
        run.write_result("artefacts", [artefact.to_dict() for artefact in artefacts])

        validations: list[ValidateResult] = []
        for i, artefact in enumerate(artefacts):
            try:
                made = serve(
                    artefact.path, config, {}, plugins, prefer=prefer, batch_size=config.eval.batch_size,
                    self_check=False,
                )  # fmt: skip
            except BackendUnavailable as error:
                if config.export.precision == "float32":
                    raise
                say(f"{artefact.format}: not validated: {error}")  # not every device computes in 16 bits
                continue
            try:
                compared = compare_on(made, source, index, config, listen)
                validations.append(prove(artefact.path, made, compared, plugins))
            finally:
                made.predictor.close()
            say(f"{artefact.format}: {compared.comparison.line()}")
            if standing := validations[-1].standing:  # a proof changes the file
                artefacts[i] = measured(artefact)
                run.write_result("artefacts", [found.to_dict() for found in artefacts])
                say(f"{artefact.format}: {standing}")
        run.write_result("validations", [validation.to_dict() for validation in validations])
    make_report(run)
    return WholeResult(
        run=run.path, backend=prefer, split=split, exported=ExportResult(artefacts=tuple(artefacts)),
        evaluation=EvaluateResult(
            weights=str(path), digest=weights.digest, backend=source.backend.id, evaluation=evaluation
        ),
        validations=tuple(validations), report=run.report, seconds=round(time.perf_counter() - started, 1),
    )  # fmt: skip


def _with_data(config: Config, listen: Listener) -> Config:
    """Return the configuration with the built-in digits where it names no data."""
    if config.data.dir is not None:
        return config
    folder = Path(config.output.dir) / DEMO_DATA
    write_digits(folder)
    listen(Note(text=f"no --data given: using scikit-learn's handwritten digits in {folder}"))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(folder)))
