"""Compare an artefact with its source on real images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.data.splits import open_split
from resnext_core.errors import DataError
from resnext_core.jobs.evaluate import Split
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.load import LoadedModel, find_model, is_weights, serve
from resnext_core.serving.validate import TOLERANCE as TOLERANCE
from resnext_core.serving.validate import ValidationResult
from resnext_core.serving.validate import validate as compare


@dataclass(frozen=True, kw_only=True)
class ValidateJob:
    """Which `artefact` to compare with which `weights`: a run folder or a weights file.

    `tolerance` is the largest logit difference relative to the largest logit. `backend` computes the artefact's
    logits, `source_backend` those of the weights; None takes the best one here that can.
    """

    artefact: Path
    weights: Path
    settings: Settings = field(default_factory=Settings)
    split: Split | None = None
    tolerance: float = TOLERANCE
    backend: str | None = None
    source_backend: str | None = None


@dataclass(frozen=True, kw_only=True)
class ValidateResult(Result):
    """How far `artefact` is from `source`; `digest` is that of the tensors of the source."""

    artefact: str
    artefact_backend: str
    source: str
    source_backend: str
    digest: str
    same_weights: bool
    comparison: ValidationResult

    @property
    def passed(self) -> bool:
        """True where every logit is within the tolerance and every first guess agrees."""
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
            **self.comparison.to_dict(),
        }

    def __str__(self) -> str:
        return f"{Path(self.artefact).name}: {self.comparison.line()}"


def validate(job: ValidateJob, listen: Listener = ignore) -> ValidateResult:
    """Compare the two on every image; `listen` gets lines and progress.

    The result says whether they agree. Raises UsageError, BackendUnavailable, or DataError where they are not the same
    network.
    """
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
        return compare_on(artefact, source, index, config, listen, tolerance=job.tolerance)


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
    tolerance: float = TOLERANCE,
) -> ValidateResult:
    """Compare two loaded models on every image of `index`; DataError when they are not the same network."""
    if artefact.spec != source.spec or artefact.preprocess != source.preprocess:
        raise DataError(
            f"{artefact.source} is {artefact.spec.variant} with other preprocessing or shape than {source.source} "
            f"({source.spec.variant}): it was exported from something else"
        )
    decoder = load_plugins().decoder(config.data.decoder)
    with eval_loader(index, source.preprocess, config, decoder=decoder) as loader:
        result = compare(
            artefact.predictor, source.predictor,
            loader.batches(eval_tasks(len(index), config.eval.batch_size)), tolerance=tolerance,
            progress=lambda n: listen(Progress(what="validate", done=n, total=len(index))),
        )  # fmt: skip
    return ValidateResult(
        artefact=artefact.source, artefact_backend=artefact.backend.id, source=source.source,
        source_backend=source.backend.id, digest=source.digest, same_weights=artefact.digest == source.digest,
        comparison=result,
    )  # fmt: skip
