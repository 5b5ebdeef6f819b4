"""Compare an artefact with its source on real images."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.data.splits import open_split
from resnext_core.errors import DataError, UsageError
from resnext_core.jobs.evaluate import Split
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.model.proof import Proof
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.golden import make_golden
from resnext_core.serving.load import LoadedModel, find_model, is_weights, serve
from resnext_core.serving.validate import FEW_BITS_AGREEMENT as FEW_BITS_AGREEMENT
from resnext_core.serving.validate import FEW_BITS_DROP as FEW_BITS_DROP
from resnext_core.serving.validate import TOLERANCE as TOLERANCE
from resnext_core.serving.validate import ValidationResult
from resnext_core.serving.validate import validate as compare


@dataclass(frozen=True, kw_only=True)
class ValidateJob:
    """Which `artefact` to compare with which `weights`: a run folder or a weights file.

    `tolerance` is the largest logit difference relative to the largest logit, `min_agreement` the least share of
    images with the same first guess, and `max_drop` the largest drop of top-1 in percentage points. None takes what
    goes with the artefact's precision: in float32 a tolerance and full agreement; in few bits no tolerance, an
    agreement of 0.99, and a drop of 0.3 where there are labels. `backend` computes the artefact's logits,
    `source_backend` those of the weights; None takes the best one here that can.
    """

    artefact: Path
    weights: Path
    settings: Settings = field(default_factory=Settings)
    split: Split | None = None
    tolerance: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    backend: str | None = None
    source_backend: str | None = None


@dataclass(frozen=True, kw_only=True)
class ValidateResult(Result):
    """How far `artefact` is from `source`; `digest` is that of the tensors of the source.

    `precision` is what the artefact computes in where that is few bits. Then `proven` is the place whose proof was
    written into the file (see :mod:`resnext_core.model.proof`), and `unwritten` says why none was, though it passed.
    """

    artefact: str
    artefact_backend: str
    source: str
    source_backend: str
    digest: str
    same_weights: bool
    comparison: ValidationResult
    precision: str | None = None
    proven: str | None = None
    unwritten: str | None = None

    @property
    def passed(self) -> bool:
        """True where they agree as far as was asked."""
        return self.comparison.passed

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "artefact": self.artefact,
            "artefact_backend": self.artefact_backend,
            "source": self.source,
            "source_backend": self.source_backend,
            "digest": self.digest,
            "same_weights": self.same_weights,
            **({} if self.precision is None else self._proof()),
            **self.comparison.to_dict(),
        }

    def _proof(self) -> dict[str, Any]:
        return {"precision": self.precision, "proven": self.proven, "unwritten": self.unwritten}

    @property
    def standing(self) -> str:
        """What became of the proof, in a line; empty where there was none to write."""
        if self.proven is not None:
            return f"is now proven on {self.proven}"
        return self.unwritten or ""

    def __str__(self) -> str:
        name = Path(self.artefact).name
        standing = f"\n{name}: {self.standing}" if self.proven is not None else ""
        return f"{name}: {self.comparison.line()}{standing}"


def validate(job: ValidateJob, listen: Listener = ignore) -> ValidateResult:
    """Compare the two on every image; `listen` gets lines and progress.

    The result says whether they agree. An artefact in few bits that does is given a proof of the place where it
    computed, see :attr:`ValidateResult.proven`. Raises UsageError, BackendUnavailable, or DataError where they are not
    the same network.
    """
    _check(job)
    plugins = load_plugins()
    resolved = resolve_serving(job.settings, plugins, job.weights, job.artefact)
    config = resolved.config
    plugins.decoder(config.data.decoder)  # before a model is loaded
    if resolved.note is not None:
        listen(Note(text=resolved.note))
    batch = config.eval.batch_size
    with ExitStack() as stack:
        artefact = serve(
            job.artefact, config, resolved.sources, plugins, backend_id=job.backend, batch_size=batch,
            self_check=False,
        )  # fmt: skip
        stack.callback(artefact.predictor.close)
        source = serve(
            job.weights, _at_size_of(artefact, job.weights, config, plugins), resolved.sources, plugins,
            backend_id=job.source_backend, prefer=job.backend, batch_size=batch,
        )  # fmt: skip
        stack.callback(source.predictor.close)
        source = _seeing_the_same(source, artefact)
        index = open_split(config.data, job.split, source.classes, named=source.has_names)
        for line in remarks([index]):
            listen(Note(text=line))
        if job.max_drop is not None and not index.labelled:
            raise UsageError("--max-drop needs images with labels")
        result = compare_on(
            artefact, source, index, config, listen, tolerance=job.tolerance,
            min_agreement=job.min_agreement, max_drop=job.max_drop,
        )  # fmt: skip
        return prove(find_model(job.artefact), artefact, result, plugins)


def _check(job: ValidateJob) -> None:
    """Raise UsageError for limits that mean nothing."""
    limits = [
        ("tolerance", job.tolerance, math.inf),
        ("min-agreement", job.min_agreement, 1.0),
        ("max-drop", job.max_drop, 100.0),
    ]
    for name, value, most in limits:
        if value is not None and not 0 <= value <= most:
            limit = "" if most == math.inf else f" to {most:g}"
            raise UsageError(f"--{name} must be a number from 0{limit}, not {value!r}")


def prove(path: Path, artefact: LoadedModel, result: ValidateResult, plugins: PluginSet) -> ValidateResult:
    """Write the proof of where `artefact`, the file `path`, computed into it, where `result` is one.

    Returns `result` with what came of it: it stays as it is where the file is in float32 or did not pass.
    """
    predictor = artefact.predictor
    manifest = predictor.manifest
    if manifest is None or manifest.precision is None or not result.passed:
        return result
    compared = result.comparison
    place = predictor.computes_on
    writer = next(
        (b for b in plugins.backends.values() if b.add_proof is not None and path.suffix in b.formats), None
    )
    try:
        if not result.same_weights:
            raise DataError(f"{path} was made from other weights than {result.source}")
        if place is None or writer is None or writer.add_proof is None:
            raise DataError(f"the backend {artefact.backend.id} cannot prove {path}")
        golden = make_golden(predictor, artefact.spec, manifest.precision)
        if golden is None:
            raise DataError(f"{path} gives logits that are not finite for the images of the proof")
        proof = Proof(
            logits=golden.logits, images=compared.images, top1_agreement=compared.top1_agreement,
            top1=compared.top1_artefact, top1_source=compared.top1_source,
        )  # fmt: skip
        writer.add_proof(path, place, proof, manifest)
    except DataError as error:
        return replace(result, unwritten=f"no proof was written: {error}")
    return replace(result, proven=place)


def _at_size_of(artefact: LoadedModel, weights: Path, config: Config, plugins: PluginSet) -> Config:
    """Return the configuration for `weights` at the artefact's image size, which may be another than their own."""
    if not is_weights(find_model(weights), plugins):
        return config
    return replace(config, eval=replace(config.eval, size=artefact.spec.image_size, crop_pct=None))


def _seeing_the_same(source: LoadedModel, artefact: LoadedModel) -> LoadedModel:
    """Return `source` with the artefact's crop, where that is all that differs: the same tensors at another size."""
    given, own = artefact.preprocess, source.preprocess
    same = replace(own, size=given.size, resize=given.resize) == given
    return replace(source, preprocess=given) if same and source.digest == artefact.digest else source


def compare_on(
    artefact: LoadedModel,
    source: LoadedModel,
    index: Index,
    config: Config,
    listen: Listener,
    *,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    max_drop: float | None = None,
) -> ValidateResult:
    """Compare two loaded models on every image of `index`; DataError when they are not the same network.

    Limits are as in :class:`ValidateJob`.
    """
    if artefact.spec != source.spec or artefact.preprocess != source.preprocess:
        raise DataError(
            f"{artefact.source} is {artefact.spec.variant} with other preprocessing or shape than {source.source} "
            f"({source.spec.variant}): it was exported from something else"
        )
    if artefact.precision is None:
        tolerance = TOLERANCE if tolerance is None else tolerance
        min_agreement = 1.0 if min_agreement is None else min_agreement
    else:
        min_agreement = FEW_BITS_AGREEMENT if min_agreement is None else min_agreement
        max_drop = FEW_BITS_DROP if max_drop is None else max_drop
    decoder = load_plugins().decoder(config.data.decoder)
    with eval_loader(index, source.preprocess, config, decoder=decoder) as loader:
        result = compare(
            artefact.predictor, source.predictor,
            loader.batches(eval_tasks(len(index), config.eval.batch_size)), tolerance=tolerance,
            min_agreement=min_agreement, max_drop=max_drop,
            progress=lambda n: listen(Progress(what="validate", done=n, total=len(index))),
        )  # fmt: skip
    return ValidateResult(
        artefact=artefact.source, artefact_backend=artefact.backend.id, source=source.source,
        source_backend=source.backend.id, digest=source.digest, same_weights=artefact.digest == source.digest,
        comparison=result, precision=artefact.precision,
    )  # fmt: skip
