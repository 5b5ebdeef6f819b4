"""Write artefacts, and report them as done only once they agree with their source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.errors import BackendUnavailable, DataError, ResnextError, UsageError, reason
from resnext_core.files import files_digest, make_folder, place_folder, replace_file
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, ExportRequest, Predictor
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.runs.folder import run_of
from resnext_core.runs.records import Listener, Note
from resnext_core.serving.load import (
    WEIGHTS_SUFFIX,
    exporters,
    find_model,
    read_weights,
    serve,
    serve_weights,
    server_of,
)
from resnext_core.serving.validate import TOLERANCE
from resnext_core.terminal import starting

#: Largest difference of an artefact's logits on two random images, relative to the largest of its source, by
#: precision. In 16 bits about 20 (float16) and 13 (bfloat16) times the rounding of one number, which is 2^-11 and 2^-8;
#: a network of 26 layers gave 1.3e-3 and 1.0e-2.
_TOLERANCES = {"float32": TOLERANCE, "float16": 1e-2, "bfloat16": 5e-2}
#: Said of weights whose JPEG images are reduced by the decoder, which no graph can do.
SCALED_DECODE = (
    "evaluated with preprocess.scaled_decode: JPEG images that are decoded at full size give other logits in a file of "
    "export.input=image; measure its top-1 so, or train with preprocess.scaled_decode=false"
)


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export: `weights` is a run folder or a weights file.

    `formats` empty takes that of the ending of `target`, or everything that can be written here. `target` is a file,
    or a folder for several formats; None is the run folder of the weights, or else their own folder.
    """

    weights: Path
    formats: tuple[str, ...] = ()
    target: Path | None = None
    settings: Settings = field(default_factory=Settings)
    backend: str | None = None


@dataclass(frozen=True, kw_only=True)
class Artefact(Result):
    """An exported file, or a folder of files; it stands for its path wherever one is taken.

    `digest` is that of the file (of a folder: of the digests and names of its files), `weights_digest` that of the
    tensors it was made from. `difference` is max |logit difference| / max |logit| on random images, None where nothing
    here reads the format.
    """

    format: str
    path: Path
    bytes: int
    digest: str
    backend: str
    weights_digest: str
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {"path": str(self.path)}

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        checked = "not compared: no backend here reads it"
        if self.difference is not None:
            checked = f"logits agree within {self.difference:.1e}"
        return f"{self.format}: {self.path} ({self.bytes / 1e6:.1f} MB, {checked}) {self.digest[:19]}"


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """The artefacts that were written; a single one stands for its path wherever one is taken."""

    artefacts: tuple[Artefact, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"artefacts": [artefact.to_dict() for artefact in self.artefacts]}

    def __iter__(self) -> Iterator[Artefact]:
        return iter(self.artefacts)

    def __len__(self) -> int:
        return len(self.artefacts)

    def __getitem__(self, name: str) -> Artefact:
        """Return the artefact of a format."""
        return {artefact.format: artefact for artefact in self.artefacts}[name]

    def __fspath__(self) -> str:
        if len(self.artefacts) != 1:
            formats = ", ".join(artefact.format for artefact in self.artefacts)
            raise UsageError(
                f"{len(self.artefacts)} artefacts were exported ({formats}); choose one by its format"
            )
        return os.fspath(self.artefacts[0])

    def __str__(self) -> str:
        return "\n".join(map(str, self.artefacts))


@dataclass(frozen=True, kw_only=True)
class PlannedArtefact:
    """An artefact that would be written at `path` by `backend`; `commands` is what it would run, in lines."""

    format: str
    path: Path
    backend: str
    commands: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        return f"{self.format}: {self.path}, by {self.backend}" + (f"\n{self.commands}" * bool(self.commands))


def export(job: ExportJob, listen: Listener = ignore) -> ExportResult:
    """Write the artefacts; `listen` gets a line about each.

    Raises UsageError on an unknown format, BackendUnavailable where nothing here writes one, DataError where an
    artefact disagrees with its source: it is not kept.
    """
    weights, config, plugins, chosen = _choice(job)
    made = []
    if config.export.input == "image" and weights.preprocess.scaled_decode:
        listen(Note(text=f"{weights.spec.variant}: {SCALED_DECODE}"))
    with Source(weights, config, plugins) as source:
        for name, (backend, path) in chosen.items():
            made.append(write_artefact(source, name, backend, path))
            listen(Note(text=str(made[-1])))
    return ExportResult(artefacts=tuple(made))


def plan_export(job: ExportJob) -> tuple[PlannedArtefact, ...]:
    """Return what :func:`export` would write; nothing is written. A format that is named may lack what it needs here.

    Raises what :func:`export` does for its settings.
    """
    weights, config, _, chosen = _choice(job, planned=True)
    planned = []
    for name, (backend, path) in chosen.items():
        describe = backend.dry_runs.get(name)
        commands = describe(weights, path, export_request(config, backend)) if describe is not None else ""
        planned.append(PlannedArtefact(format=name, path=path, backend=backend.id, commands=commands))
    return tuple(planned)


def _choice(
    job: ExportJob, *, planned: bool = False
) -> tuple[Weights, Config, PluginSet, dict[str, tuple[Backend, Path]]]:
    """Return what to export, and by format the backend that writes it and its path."""
    plugins = load_plugins()
    resolved = resolve(job.settings, plugins)
    config = resolved.config
    weights = read_weights(job.weights, config, resolved.sources, plugins)
    target = job.target or artefact_folder(job.weights)
    wanted = job.formats or config.export.formats
    if not wanted and target.suffix and not target.is_dir():
        wanted = (target.suffix[1:],)
    chosen = exporters(plugins, wanted, only=job.backend, planned=planned, settings=config.export)
    if not chosen:
        raise BackendUnavailable(
            "no backend here writes an artefact; 'resnext-run backends' shows what is missing"
        )
    names = {name: target / backend.file_name(weights.spec.variant, name) for name, backend in chosen.items()}
    if len(chosen) == 1 and all(target.suffix == backend.ending(name) for name, backend in chosen.items()):
        names = dict.fromkeys(chosen, target)
    return weights, config, plugins, {name: (backend, names[name]) for name, backend in chosen.items()}


class Source:
    """Weights that artefacts are made from, and their logits on two random images, computed once and when needed.

    `predictor` computes with them where one is open already, on the backend `prefer`.
    """

    def __init__(
        self,
        weights: Weights,
        config: Config,
        plugins: PluginSet,
        *,
        prefer: str | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self.weights, self.config, self.plugins, self.prefer = weights, config, plugins, prefer
        self._predictor = predictor
        self._logits: NDArray[Any] | None = None
        self._opened = ExitStack()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def difference(self, artefact: Path) -> float | None:
        """Return max |logit difference| / max |logit| of an artefact; None where nothing here reads the format."""
        if artefact.is_dir():
            inside = (self.difference(file) for file in sorted(artefact.rglob("*")) if file.is_file())
            return next((found for found in inside if found is not None), None)
        if artefact.suffix == WEIGHTS_SUFFIX:
            return None
        try:
            server_of(
                self.plugins, artefact.suffix, prefer=self.prefer, file=artefact, options=self.config.backends
            )
        except ResnextError:
            return None
        size = self.weights.spec.image_size
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        expected = self._expected(images)
        try:
            made = serve(
                artefact, self.config, {}, self.plugins, prefer=self.prefer, batch_size=2, self_check=False
            ).predictor
        except BackendUnavailable:
            if self.config.export.precision == "float32":
                raise
            return None  # not everything that serves the format computes in 16 bits
        try:
            got = made.logits(images)
        finally:
            made.close()
        return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-12))

    def _expected(self, images: NDArray[Any]) -> NDArray[Any]:
        if self._logits is None:
            if self._predictor is None:
                served = serve_weights(
                    self.weights, self.config, self.plugins, prefer=self.prefer, batch_size=2
                )
                self._predictor = served.predictor
                self._opened.callback(served.predictor.close)
            self._logits = self._predictor.logits(images)
        return self._logits


def write_artefact(source: Source, name: str, backend: Backend, path: Path) -> Artefact:
    """Write one artefact beside `path`, compare its logits with the source's, then move it into place."""
    request = export_request(source.config, backend)
    if path.is_dir() and any(path.iterdir()):  # before the work
        raise DataError(f"{path} already exists; remove it, or choose another --to")
    with _beside_target(path) as partial:
        made = partial / path.name
        with starting(backend.id):
            backend.exporters[name](source.weights, made, request)
        difference = source.difference(made)
        allowed = _TOLERANCES[request.precision]
        if difference is not None and not difference <= allowed:
            raise DataError(
                f"{path.name} disagrees with its source by {difference:.2e} of the largest logit "
                f"(allowed {allowed:.0e}); it was not kept"
            )
        for file in partial.iterdir():
            move = place_folder if file.is_dir() else replace_file
            move(file, path.parent / file.name)
    written = Artefact(
        format=name, path=path, bytes=0, digest="", backend=backend.id, weights_digest=source.weights.digest,
        difference=difference,
    )  # fmt: skip
    return measured(written)


def measured(artefact: Artefact) -> Artefact:
    """Return `artefact` with the size and the digest that its file, or the files of its folder, have now."""
    path = artefact.path
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return replace(artefact, bytes=size, digest=files_digest(path, files))


def export_request(config: Config, backend: Backend) -> ExportRequest:
    """Return how `backend` is asked to write an artefact under this configuration."""
    return ExportRequest(
        batch_size=config.export.batch_size, input=config.export.input, fold_bn=config.export.fold_bn,
        precision=config.export.precision, options=config.backends.get(backend.id),
    )  # fmt: skip


@contextmanager
def _beside_target(path: Path) -> Iterator[Path]:
    try:
        make_folder(path.parent)
        scratch = Scratch("export", path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error
    with scratch as partial:
        yield partial


def artefact_folder(weights: Path) -> Path:
    """Return where artefacts of `weights` go by default: to their run folder, or else beside them."""
    run = run_of(weights)
    return run.path if run is not None else find_model(weights).parent
