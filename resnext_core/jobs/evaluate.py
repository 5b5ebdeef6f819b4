"""Exact accuracy of a run, of weights, or of an artefact, on one or several devices and at one or several sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.splits import open_split, part_paths
from resnext_core.errors import UsageError, quoted
from resnext_core.files import place
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, Batch
from resnext_core.jobs.calibrate import Calibrated, KeptLogits
from resnext_core.jobs.launching import Lines, launch
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.scoring import Taker, score
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.jobs.training import connect
from resnext_core.metrics import METRICS
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Note
from resnext_core.serving.calibration import Calibration
from resnext_core.serving.evaluate import Evaluation
from resnext_core.serving.load import WEIGHTS_SUFFIX, LoadedModel, find_model, is_weights, serve
from resnext_core.serving.predictions import check_predictions, predictions

#: The largest image size in pixels, that of ``eval.size``.
LARGEST = 8192

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """What to evaluate: `weights` is a run folder, a weights file or an artefact.

    `split` None takes test where it is there and labelled, else val. `sizes` are image sizes in pixels, each of which
    is evaluated; none is the model's own, or ``eval.size``. With `calibrate` a temperature is fitted on val, or on what
    is evaluated where there is no val. `predictions` is a new .csv, .jsonl or .parquet file with a row for each image
    and its `top` most probable classes. `devices` processes are started, unless this process is a rank of a launcher
    already; `lines` is where their first one prints.
    """

    weights: Path
    settings: Settings = field(default_factory=Settings)
    split: Split | None = None
    sizes: tuple[int, ...] = ()
    calibrate: bool = False
    predictions: Path | None = None
    top: int = 5
    backend: str | None = None
    devices: int = 1
    lines: Lines = "stdout"


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateResult(Result):
    """The accuracy of `weights` (a file), whose tensors have `digest`, on `backend`.

    `precision` is what was computed in where that is few bits, and `notes` are lines about that, as in
    :class:`~resnext_core.serving.load.LoadedModel`.
    """

    weights: str
    digest: str
    backend: str
    evaluation: Evaluation
    calibrated: Calibrated | None = None
    precision: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def top1(self) -> float:
        """The share of the images whose class was the first guess; one that could not be read counts as wrong."""
        return self.evaluation.top1

    @property
    def top5(self) -> float:
        """The share of the images whose class was among the first five guesses."""
        return self.evaluation.top5

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        about: dict[str, Any] = {"weights": self.weights, "digest": self.digest, "backend": self.backend}
        if self.precision is not None:
            about["precision"] = self.precision
        if self.notes:
            about["notes"] = list(self.notes)
        fitted = {} if self.calibrated is None else {"calibrated": self.calibrated.to_dict()}
        return about | self.evaluation.to_dict() | fitted

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> EvaluateResult:
        """Return the result that :meth:`to_dict` gave."""
        evaluation = {f.name: found[f.name] for f in fields(Evaluation) if f.name in found} | {
            "metrics": {name: found[name] for name in METRICS},
            "confusion": np.asarray(found["confusion"], np.int64),
            "support": np.asarray(found["support"], np.int64),
            "classes": tuple(found["classes"]),
            "calibration": Calibration.from_dict(found["calibration"]),
        }
        fitted = found.get("calibrated")
        return cls(
            weights=found["weights"], digest=found["digest"], backend=found["backend"],
            evaluation=Evaluation(**evaluation),
            calibrated=None if fitted is None else Calibrated.from_dict(fitted),
            precision=found.get("precision"), notes=tuple(found.get("notes", ())),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.evaluation.line()} [{self.backend}]"


def evaluate_sizes(job: EvaluateJob, listen: Listener = ignore) -> list[EvaluateResult]:
    """Score every image once at each of the sizes of `job`, and return the results in their order.

    Every rank of a job calls this, and all return the same numbers. `listen` gets lines and progress, on rank 0. Raises
    UsageError, DataError or BackendUnavailable; RanksFailed where a process that was started failed.
    """
    plugins, rank = load_plugins(), rank_info()
    resolved = resolve_serving(job.settings, plugins, job.weights)
    config = resolved.config
    _check(job, rank)
    plugins.decoder(config.data.decoder)  # before a model is loaded
    path = find_model(job.weights)
    suffix = WEIGHTS_SUFFIX if is_weights(path, plugins) else path.suffix
    backend = plugins.choose(
        job.backend, f"evaluate {suffix} files", lambda b: b.predictor is not None and suffix in b.formats
    )
    if job.devices > 1 and rank.world == 1:
        return _launched(job, config, backend)
    if not rank.is_main:
        listen = ignore
    if resolved.note is not None:
        listen(Note(text=resolved.note))
    results = []
    with ExitStack() as stack:
        collectives: Collectives = SingleProcess()
        if rank.world > 1:
            collectives = connect(backend, config, rank)
        stack.callback(collectives.close)
        sizes = job.sizes or (config.eval.size,)
        configs = [replace(config, eval=replace(config.eval, size=size)) for size in sizes]
        open_model = partial(
            _opened, job.weights, sources=resolved.sources, plugins=plugins, backend_id=backend.id, rank=rank
        )
        if (
            len(configs) > 1 and suffix != WEIGHTS_SUFFIX
        ):  # an artefact has one size: refused before any is evaluated
            for sized in configs:
                with open_model(sized):
                    pass
        for sized in configs:
            with open_model(sized) as model:
                for line in model.notes:
                    listen(Note(text=line))
                if model.published is not None:
                    listen(Note(text=f"preprocessing of {model.published}: {model.preprocess.words()}"))
                results.append(_evaluated(job, model, sized, listen, rank, collectives))
    return results


def _check(job: EvaluateJob, rank: RankInfo) -> None:
    """Raise UsageError or DataError for what cannot be, before a model is loaded."""
    if not all(type(size) is int and 1 <= size <= LARGEST for size in job.sizes):
        raise UsageError(f"image sizes are integers from 1 to {LARGEST}, not {quoted(list(job.sizes))}")
    if len(set(job.sizes)) < len(job.sizes):
        raise UsageError("the same image size is given twice")
    if job.predictions is not None:
        if len(job.sizes) > 1:
            raise UsageError(f"predictions are of one image size, not of {len(job.sizes)}")
        if rank.is_main:
            check_predictions(job.predictions, job.top)


@contextmanager
def _opened(
    path: Path,
    config: Config,
    *,
    sources: Mapping[str, str],
    plugins: PluginSet,
    backend_id: str,
    rank: RankInfo,
) -> Iterator[LoadedModel]:
    model = serve(
        path, config, sources, plugins, backend_id=backend_id, batch_size=config.eval.batch_size, rank=rank
    )
    with closing(model.predictor):
        yield model


def _evaluated(
    job: EvaluateJob,
    model: LoadedModel,
    config: Config,
    listen: Listener,
    rank: RankInfo,
    collectives: Collectives,
) -> EvaluateResult:
    """Evaluate as `job` says, at the image size of `config`."""
    index = open_split(config.data, job.split, model.classes, named=model.has_names)
    for line in remarks([index]):
        listen(Note(text=line))
    look = partial(score, model, config=config, listen=listen, rank=rank, collectives=collectives)
    kept, takers = KeptLogits(), list[Taker]()
    temperature, images, after = None, 0, Calibration()
    val = _other_val(config, model, index) if job.calibrate else None
    if val is not None:
        look(val, takers=[kept.take])
        temperature, images = kept.fit(collectives, str(val.root))
        takers.append(partial(_add_at, after, temperature.value))
    elif job.calibrate:
        takers.append(kept.take)
    with ExitStack() as stack:
        if job.predictions is not None:
            table = predictions(job.predictions, index, job.top, rank, collectives)
            takers.append(stack.enter_context(table))
        evaluation = look(index, takers=takers)
    calibrated = None
    if job.calibrate:
        if temperature is None:
            temperature, images = kept.fit(collectives, str(index.root))
            after = kept.calibration(temperature.value)
        calibrated = Calibrated(
            temperature=temperature, images=images, same=val is None, fitted_on=str((val or index).root),
            before=evaluation.calibration,
            after=Calibration.from_array(collectives.all_reduce_sum(after.to_array())),
        )  # fmt: skip
    return EvaluateResult(
        weights=model.source, digest=model.digest, backend=model.backend.id, evaluation=evaluation,
        calibrated=calibrated, precision=model.precision, notes=model.notes,
    )  # fmt: skip


def _other_val(config: Config, model: LoadedModel, index: Index) -> Index | None:
    """Return the labelled val part of the data, None where there is none or it is `index` itself."""
    if config.data.dir is None or "val" not in part_paths(place(config.data.dir), config.data):
        return None
    val = open_split(config.data, "val", model.classes, named=model.has_names)
    return val if val.labelled and val.root != index.root else None


def _add_at(
    calibration: Calibration,
    temperature: float,
    batch: Batch,
    logits: NDArray[Any],
    why: Callable[[int], str],
) -> None:
    calibration.add(logits[batch.valid], batch.labels[batch.valid], temperature)


def _launched(job: EvaluateJob, config: Config, backend: Backend) -> list[EvaluateResult]:
    """Evaluate in `job.devices` processes, of which rank 0 writes the results to a file."""
    logs = RunFolder(Path(config.output.dir) / "eval-ranks").logs
    with Scratch("evaluation") as folder:
        words = ["eval", f"--weights={job.weights}", *job.settings.to_flags()]
        words += [f"--split={job.split}"] if job.split else []
        words += [f"--sizes={','.join(map(str, job.sizes))}"] if job.sizes else []
        words += ["--calibrate"] if job.calibrate else []
        words += [f"--predictions={job.predictions}", f"--topk={job.top}"] if job.predictions else []
        words += [f"--result={folder / 'result.json'}"]
        launch(backend, config, words, devices=job.devices, logs=logs, lines=job.lines)
        results = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return [EvaluateResult.from_dict(result) for result in results]
