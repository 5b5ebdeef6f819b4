"""Exact accuracy of a run, of weights, or of an artefact, on one or several devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.opening import eval_loader
from resnext_core.data.splits import open_split
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, Batch
from resnext_core.jobs.launching import Lines, launch
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.jobs.training import connect
from resnext_core.metrics import METRICS
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.evaluate import Evaluation
from resnext_core.serving.evaluate import evaluate as score_index
from resnext_core.serving.load import WEIGHTS_SUFFIX, LoadedModel, find_model, is_weights, serve
from resnext_core.serving.metrics import softmax

#: Wrong and right predictions that a report shows, of each at most.
SAMPLES = 12

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """What to evaluate: `weights` is a run folder, a weights file or an artefact.

    `split` None takes test where it is there and labelled, else val. `devices` processes are started, unless this
    process is a rank of a launcher already; `lines` is where their first one prints.
    """

    weights: Path
    settings: Settings = field(default_factory=Settings)
    split: Split | None = None
    backend: str | None = None
    devices: int = 1
    lines: Lines = "stdout"


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateResult(Result):
    """The accuracy of `weights` (a file), whose tensors have `digest`, on `backend`."""

    weights: str
    digest: str
    backend: str
    evaluation: Evaluation

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
        about = {"weights": self.weights, "digest": self.digest, "backend": self.backend}
        return about | self.evaluation.to_dict()

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> EvaluateResult:
        """Return the result that :meth:`to_dict` gave."""
        evaluation = {f.name: found[f.name] for f in fields(Evaluation) if f.name in found} | {
            "metrics": {name: found[name] for name in METRICS},
            "confusion": np.asarray(found["confusion"], np.int64),
            "classes": tuple(found["classes"]),
        }
        return cls(
            weights=found["weights"], digest=found["digest"], backend=found["backend"],
            evaluation=Evaluation(**evaluation),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.evaluation.line()} [{self.backend}]"


def evaluate(job: EvaluateJob, listen: Listener = ignore) -> EvaluateResult:
    """Score every image once; every rank of a job calls this, and all return the same numbers.

    `listen` gets lines and progress, on rank 0. Raises UsageError, DataError or BackendUnavailable; RanksFailed where
    a process that was started failed.
    """
    plugins, rank = load_plugins(), rank_info()
    resolved = resolve_serving(job.settings, plugins, job.weights)
    config = resolved.config
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
    with ExitStack() as stack:
        collectives: Collectives = SingleProcess()
        if rank.world > 1:
            collectives = connect(backend, config, rank)
        stack.callback(collectives.close)
        model = serve(
            job.weights, config, resolved.sources, plugins, backend_id=backend.id,
            batch_size=config.eval.batch_size, rank=rank,
        )  # fmt: skip
        stack.callback(model.predictor.close)
        if model.published is not None:
            listen(Note(text=f"preprocessing of {model.published}: {model.preprocess.words()}"))
        index = open_split(config.data, job.split, model.classes, named=model.has_names)
        for line in remarks([index]):
            listen(Note(text=line))
        evaluation, _ = score(model, index, config, listen, rank, collectives)
    return EvaluateResult(
        weights=model.source, digest=model.digest, backend=model.backend.id, evaluation=evaluation
    )


def score(
    model: LoadedModel,
    index: Index,
    config: Config,
    listen: Listener,
    rank: RankInfo | None = None,
    collectives: Collectives | None = None,
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Evaluate on `index`; also returns samples for the report: the most confident wrong ones, and right ones."""
    rank = rank or RankInfo()
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

    decoder = load_plugins().decoder(config.data.decoder)
    with eval_loader(index, model.preprocess, config, rank.world, decoder=decoder) as loader:
        result = score_index(
            model.predictor, loader, index, batch_size=config.eval.batch_size, rank=rank,
            collectives=collectives or SingleProcess(), on_batch=on_batch,
            on_progress=lambda done, total: listen(Progress(what="eval", done=done, total=total)),
        )  # fmt: skip
    wrong.sort(key=lambda s: -s["probability"])
    return result, wrong[:SAMPLES] + list(right.values())[:SAMPLES]


def _launched(job: EvaluateJob, config: Config, backend: Backend) -> EvaluateResult:
    """Evaluate in `job.devices` processes, of which rank 0 writes the result to a file."""
    logs = RunFolder(Path(config.output.dir) / "eval-ranks").logs
    with Scratch("evaluation") as folder:
        words = ["eval", f"--weights={job.weights}", *job.settings.to_flags()]
        words += [f"--split={job.split}"] if job.split else []
        words += [f"--result={folder / 'result.json'}"]
        launch(backend, config, words, devices=job.devices, logs=logs, lines=job.lines)
        return EvaluateResult.from_dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
