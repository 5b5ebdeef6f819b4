"""The contract between core and backends: plain records for data, small protocols for behaviour.

A backend is one frozen :class:`Backend` record, yielded by the plugin hook ``resnext_backends``. What it
can do is what factories it carries. Everything a backend receives and returns is in neutral form:
NumPy arrays under the tensor names of :class:`~resnext_core.model.spec.ModelSpec`. The other records of a plugin are
defined in :mod:`resnext_core.extensions`, batches in :mod:`resnext_core.batches`; they can be imported from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from resnext_core import API_VERSION
from resnext_core.batches import Batch as Batch
from resnext_core.batches import Mix as Mix
from resnext_core.batches import MixedRows as MixedRows
from resnext_core.batches import StepInput as StepInput
from resnext_core.extensions import READY as READY
from resnext_core.extensions import Command as Command
from resnext_core.extensions import Compute as Compute
from resnext_core.extensions import Decoder as Decoder
from resnext_core.extensions import ImageDecoder as ImageDecoder
from resnext_core.extensions import NotSupported as NotSupported
from resnext_core.extensions import Readiness as Readiness
from resnext_core.extensions import Recipe as Recipe
from resnext_core.extensions import SourceKind as SourceKind
from resnext_core.extensions import StoredTensors as StoredTensors
from resnext_core.extensions import Variant as Variant
from resnext_core.extensions import WeightFile as WeightFile
from resnext_core.extensions import ask as ask
from resnext_core.ranks.info import LaunchRequest as LaunchRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
    from resnext_core.model.proof import Proof
    from resnext_core.model.weights import Manifest, Weights
    from resnext_core.ranks.collectives import Collectives
    from resnext_core.ranks.info import RankInfo


#: Added to the gradient norm when clipping: g is multiplied by min(1, clip_norm / (norm + CLIP_EPS)).
CLIP_EPS = 1e-6
#: The least norm of weights, and of a gradient, that adaptive clipping takes (Brock et al., arXiv:2102.06171; timm).
AGC_EPS, AGC_LEAST = 1e-3, 1e-6

#: What an engine may be able to do beyond SGD with momentum on cross-entropy; see :attr:`Backend.ingredients`.
Ingredient = Literal[
    "mix", "nesterov", "lamb", "adamw", "agc", "groups", "bce", "stochastic-depth", "teacher", "freeze",
    "logit-offsets", "sizes", "ema-schedule",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a teacher counts: the loss is (1 - weight) · loss + weight · T² · H(teacher, softmax(logits / T)).

    T is `temperature` and H the cross-entropy with :attr:`StepInput.teacher`; both terms are weighted row by row.
    """

    weight: float
    temperature: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRequest:
    """Everything that training needs to start.

    `weights` hold the initial tensors, the ModelSpec and the PreprocessSpec (mean and std are applied on
    the device). `batch_size` is the number of samples a rank gives to one optimizer step; it is split in
    order into `accumulate` equal micro-batches, whose gradients are averaged and whose BN statistics stay
    their own. `ema_decay` None means no EMA. With `skip_nonfinite` a step whose loss or gradients are not finite
    changes nothing but the counters. With `mixes` every :class:`StepInput` has a `mix`, else none has; so it is with
    `drops` and `branches`, and with `distillation` and `teacher`. The first `frozen` parts of the network (the stem,
    then the stages) do not change: their parameters have no gradient and no optimizer state, and their batch
    normalisation uses the running statistics and leaves them as they are. `logit_offsets` float32 (classes,) are added
    to the logits in the loss, but not in that of the teacher. `class_weights` float64 (classes,) multiply the loss of
    each label: core makes weights and shares of rows of them, and engines do not read them. How the optimizer treats
    each tensor is what :func:`resnext_core.training.rules.tensor_rules` returns. `options` is the backend's own
    validated dataclass.
    """

    weights: Weights
    optimizer: OptimizerConfig
    loss: LossConfig
    precision: PrecisionConfig
    batch_size: int
    accumulate: int = 1
    ema_decay: float | None = None
    skip_nonfinite: bool = False
    mixes: bool = False
    drops: bool = False
    distillation: Distillation | None = None
    frozen: int = 0
    logit_offsets: NDArray[np.float32] | None = None
    class_weights: NDArray[np.float64] | None = None
    seed: int = 1
    rank: RankInfo
    collectives: Collectives
    options: Any = None

    @property
    def checked(self) -> bool:
        """True where a step is skipped if its gradients are not finite."""
        return self.skip_nonfinite or self.precision.loss_scale != "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainState:
    """The state of a trainer in neutral form.

    `tensors` maps ``weights/<name>``, ``momentum/<name>`` (trainable tensors that are not frozen) and, with EMA,
    ``ema/<name>`` to float32 arrays shaped as in the ModelSpec. LAMB and AdamW also have ``variance/<name>``, the
    second moment beside ``momentum/<name>``, the first, and ``optimizer/updates``, float32 (1,), the number of steps
    that were taken and not skipped. `scalars` are JSON numbers, always with
    ``step`` (optimizer steps taken or skipped), ``overflow_steps``, ``loss_scale`` and
    ``good_steps`` (steps since the dynamic loss scale last changed).
    """

    tensors: Mapping[str, NDArray[Any]]
    scalars: Mapping[str, float | int]


@runtime_checkable
class Predictor(Protocol):
    """A network in evaluation mode (running BN statistics). A subclass inherits the defaults of the attributes."""

    #: The manifest inside an artefact; None where there is none inside: it is read from the sidecar ``<file>.json``.
    manifest: Manifest | None = None
    #: What it computes in where that is fewer bits than the file's: ``bfloat16``, ...; None where it is the file's.
    precision: str | None = None
    #: Where it computes, as one word by which the proofs of an artefact in few bits are looked up: an instruction set
    #: (:attr:`~resnext_core.processor.Processor.instructions`), with the runtime before it where another one may give
    #: other numbers, or a device. None: artefacts in few bits cannot be proven.
    computes_on: str | None = None

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes), for any N ≥ 1."""
        ...

    def logits_from_tensor(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Map an already normalised float32 (N, 3, H, W) to float32 logits (N, classes).

        Raises UsageError where the artefact has normalisation inside and cannot skip it.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What became of some steps: `losses` float64 (n,) of this rank, and `skipped` bool (n,), the same on all ranks."""

    losses: NDArray[np.float64]
    skipped: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class DeviceUsage:
    """What an engine measured; None where it did not.

    Both are since the engine was made or was last asked: `copy_seconds` is how long steps waited for their images on
    the way to the device, `peak_bytes` the most device memory that was in use at a time.
    """

    copy_seconds: float | None = None
    peak_bytes: int | None = None


class Engine(Protocol):
    """The arithmetic of training on a device. Core's :class:`~resnext_core.training.trainer.Trainer` drives it.

    The trainer checks requests, batches and states before the engine sees them, counts, keeps the loss scale, and
    averages losses over ranks. Tensors are named as in :class:`TrainState`. Subclass this protocol to inherit the
    default of `usage`.
    """

    def queue(self, steps: Sequence[StepInput], scale: Callable[[], float]) -> Iterator[Any]:
        """Take one optimizer step for each of `steps`; yield for each, in order, what `settle` reads its outcome from.

        Nothing has to wait for the device. `scale()` is the loss scale. With a dynamic loss scale it depends on the
        step before: ask for it after that step was yielded. Otherwise it is constant, and the engine may take all steps
        before it yields the first. A step whose gradients are not finite on any rank is skipped where
        :attr:`TrainRequest.checked` says so; ``docs/contract.md`` has the rules.
        """
        ...

    def settle(self, queued: Sequence[Any]) -> Outcomes:
        """Wait for steps that `queue` yielded, at least one, and return their outcomes.

        A loss is the mean over this rank's micro-batches, before the update and without the loss scale.
        """
        ...

    def read(self) -> dict[str, NDArray[Any]]:
        """Return a float32 copy of every tensor of the state, shaped as in the ModelSpec."""
        ...

    def write(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Go on from these values: all tensors of the state, in the right shapes."""
        ...

    def predictor(self, *, ema: bool) -> Predictor:
        """Return a predictor that shares the weights, or their EMA, and follows them. Called once for each."""
        ...

    def usage(self) -> DeviceUsage:
        """Return what was measured; nothing unless overridden."""
        return DeviceUsage()

    def close(self) -> None:
        """Release the device."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictRequest:
    """What to serve: the path of an artefact or weights file, or weights in memory (exactly one).

    `batch_size` is a hint of the usual batch. `tensor_input` asks for :meth:`Predictor.logits_from_tensor`.
    """

    path: Path | None = None
    weights: Weights | None = None
    batch_size: int = 32
    tensor_input: bool = False
    rank: RankInfo
    options: Any = None


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """How to write an artefact.

    `batch_size` None means any batch size. `input` is ``uint8`` (uint8 NHWC, normalisation inside),
    ``float`` (normalised float32 NCHW) or ``image`` (uint8 (1, H, W, 3) of any size, resized and cropped inside; only
    for formats in :attr:`Backend.takes_images`, and `batch_size` is None or 1). `fold_bn` folds batch normalisation
    into the convolutions where the exporter builds the graph itself. `precision` is what the network computes in:
    ``float32``, or for formats in :attr:`Backend.precisions` ``float16`` or ``bfloat16``; inputs, the normalisation and
    logits are as in float32.
    """

    batch_size: int | None = None
    input: str = "uint8"
    fold_bn: bool = True
    precision: str = "float32"
    options: Any = None


class Exporter(Protocol):
    """Write `weights` as an artefact at `path`, with its manifest inside or beside it.

    An artefact can be a folder: one of the files in it is then what a backend serves.
    """

    def __call__(self, weights: Weights, path: Path, request: ExportRequest) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend, complete. Capability is the presence of a factory.

    `id` is the one word of ``--backend``, the entry point, the extra and the config section. Without
    ``--backend`` the ready one of highest `priority` that can do what is asked is taken. `probe()` says whether the
    backend can run here; it must be fast and must not import a framework. `formats` are the file suffixes that the
    predictor can serve; a backend that serves weights in memory lists ``.safetensors``. `format_probe` is asked with
    one of them, and answers like `probe()` whether such files can be served here; None means that all can that
    `probe()` allows. `file_probe` is asked with a file that ends so, and the backend's options, whether it can serve
    this very file; it is for endings that several kinds of files share. `exporters` maps the name of a format to its
    exporter, `endings` to what its files end in where that is not a dot and the name, and `dry_runs` to a function that
    returns what the exporter would run, in lines, where that is another program. Formats in `on_request` are written
    only when they are named, and those in `takes_images` can contain the whole preprocessing (``export.input=image``).
    `precisions` maps the formats that can be written in 16 bits to the values of ``export.precision`` for that.
    `packages` are the distributions whose versions a run records beside those of core. `connect` joins the other ranks
    and returns the collectives; None takes core's own over TCP. `launch` starts several processes and returns their
    exit code; None takes core's own local launcher. `steps_per_call` is how many steps the engine likes in one call of
    :meth:`Engine.queue`. `batch_fits` says whether steps of a request fit the memory of this rank's device, by trying
    some; it gives everything back, does not talk to other ranks, and returns None where that cannot be found out so:
    the batch is then estimated by the machine's memory. `ingredients` is what the engine can do beyond SGD with
    momentum on cross-entropy: a training that needs another one is refused. ``groups`` are rules of tensors that differ
    in more than decay on weights, and ``sizes`` images of another size than the ModelSpec's. `former_options` are
    options of earlier versions that are gone, and the value at which each did nothing: a stored run that has that value
    is read without it. `add_proof` writes what an artefact in few bits computes at a place
    (:attr:`Predictor.computes_on`) into the file, atomically, and raises DataError where it cannot be written, or where
    the file is no longer the one of the given manifest; None where such artefacts are not read. `compute` says what the
    backend computes with under its options, and `variants` which ways of serving and writing ``bench all`` should try;
    both are for benchmarks alone.

    Factories import their framework when called, never before.
    """

    id: str
    summary: str
    probe: Callable[[], Readiness]
    priority: int = 0
    api_version: int = API_VERSION
    engine: Callable[[TrainRequest], Engine] | None = None
    predictor: Callable[[PredictRequest], Predictor] | None = None
    formats: tuple[str, ...] = (".safetensors",)
    format_probe: Callable[[str], Readiness] | None = None
    file_probe: Callable[[Path, Any], Readiness] | None = None
    exporters: Mapping[str, Exporter] = field(default_factory=dict)
    endings: Mapping[str, str] = field(default_factory=dict)
    on_request: tuple[str, ...] = ()
    takes_images: tuple[str, ...] = ()
    precisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dry_runs: Mapping[str, Callable[[Weights, Path, ExportRequest], str]] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    options: type | None = None
    former_options: Mapping[str, Any] = field(default_factory=dict)
    steps_per_call: int = 1
    batch_fits: Callable[[TrainRequest], bool | None] | None = None
    ingredients: frozenset[Ingredient] = frozenset()
    connect: Callable[[RankInfo, Any], Collectives] | None = None
    launch: Callable[[LaunchRequest], int] | None = None
    add_proof: Callable[[Path, str, Proof, Manifest], None] | None = None
    compute: Callable[[Any], Compute] | None = None
    variants: Callable[[], Iterable[Variant]] | None = None

    def ending(self, name: str) -> str:
        """Return what files of the exporter's format `name` end in: ``.suffix``."""
        return self.endings.get(name, f".{name}")

    def file_name(self, stem: str, name: str) -> str:
        """Return the usual name of a file of that format: unlike those of other formats with the same ending."""
        ending = self.ending(name)
        return f"{stem}{ending}" if ending == f".{name}" else f"{stem}.{name}{ending}"
