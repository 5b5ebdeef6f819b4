"""From a path to a predictor: run folders, neutral weights, weights of other programs, artefacts of any backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resnext_core.config import Config, ExportConfig, stated
from resnext_core.convert.containers import readable
from resnext_core.convert.reading import ModelDescription, read_foreign
from resnext_core.errors import BackendUnavailable, DataError, UsageError, quoted, suggest
from resnext_core.extras import install_hint, others_hint
from resnext_core.files import local_path
from resnext_core.files.types import refuse_foreign
from resnext_core.interfaces import Backend, Predictor, PredictRequest
from resnext_core.model.preprocess import PreprocessSpec, evaluated_at
from resnext_core.model.sidecar import read_sidecar, sidecar_path
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Golden, Manifest, Weights, load_weights, read_manifest_text
from resnext_core.plugins import PluginSet, probe_file, probe_format
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import other_runs
from resnext_core.runs.pointers import best_weights
from resnext_core.serving.golden import check_golden
from resnext_core.serving.proof import known
from resnext_core.terminal import starting

WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model on a backend: its predictor, and what must be known to use it.

    `golden` are the logits by which it was checked, and can be again within `golden_tolerance` (None: the one of what
    they were computed in). `precision` is what it computes in where that is few bits, None for float32 or more. `notes`
    are lines for whoever uses it. `published` names weights of another program that were recognised, and whose
    preprocessing it has.
    """

    predictor: Predictor
    backend: Backend
    source: str
    spec: ModelSpec
    preprocess: PreprocessSpec
    classes: tuple[str, ...]
    digest: str
    has_names: bool = True
    golden: Golden | None = None
    golden_tolerance: float | None = None
    precision: str | None = None
    notes: tuple[str, ...] = ()
    published: str | None = None


def find_model(path: Path) -> Path:
    """Return the file to serve: `path` itself, or the best weights of a run or checkpoint folder.

    DataError where there is none, and where the file is a stand-in for weights or plainly something else.
    """
    path = local_path(path)
    if path.is_dir():
        if (path / "weights.safetensors").is_file():
            return path / "weights.safetensors"
        if (path / "checkpoints").is_dir():
            return best_weights(path / "checkpoints")
        raise DataError(
            f"{path} is neither a run nor a checkpoint folder{other_runs(path)}; or give a weights file or an artefact"
        )
    if not path.exists():
        raise DataError(f"no model at {path}{other_runs(path)}; or give a weights file or an artefact")
    refuse_foreign(path)
    return path


def read_weights(path: Path, config: Config, sources: Mapping[str, str], plugins: PluginSet) -> Weights:
    """Load weights of a run, a neutral file, or another world's file, whose model shapes and configuration tell.

    They are for the image size and the crop of the section ``eval``.
    """
    path = find_model(path)
    if path.suffix == WEIGHTS_SUFFIX and read_manifest_text(path) is not None:
        found = load_weights(path)
    else:
        found = read_foreign(path, described_model(config, sources), plugins.weight_files)[0]
    return found.evaluated_at(config.eval.size, config.eval.crop_pct)


def is_weights(path: Path, plugins: PluginSet) -> bool:
    """Return whether `path` holds weights, ours or another world's, and is no artefact that a backend serves."""
    if path.suffix == WEIGHTS_SUFFIX:
        return True
    served = {s for b in plugins.backends.values() if b.predictor for s in b.formats}
    return path.suffix not in served and readable(path, plugins.weight_files)


def described_model(config: Config, sources: Mapping[str, str]) -> ModelDescription:
    """Return what the configuration says, and not merely by default, of a file without manifest."""
    keys = stated(sources)
    model = config.model
    return ModelDescription(
        variant=model.variant if "model.variant" in keys else None,
        image_size=model.image_size, pool_padding=model.pool_padding, num_classes=model.num_classes,
        preprocess={
            key: value for key, value in vars(config.preprocess).items() if f"preprocess.{key}" in keys
        },
    )  # fmt: skip


def server_of(
    plugins: PluginSet,
    suffix: str,
    backend_id: str | None = None,
    *,
    prefer: str | None = None,
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backend:
    """Return the backend that serves files with the ending `suffix`, or this very `file`; see :meth:`PluginSet.choose`.

    `options` are the backends' by id, for those that look into the file. Raises UsageError where no installed backend
    does, BackendUnavailable where none of them can run here.
    """
    known = sorted({s for b in plugins.backends.values() if b.predictor for s in b.formats})
    if suffix not in known:
        hint = install_hint(suffix)
        missing = f"{hint} adds it" if hint else f"known: {', '.join(known)}{others_hint()}"
        raise UsageError(f"no installed backend serves '{suffix}' files; {missing}")
    return plugins.choose(
        backend_id,
        "serve weights" if suffix == WEIGHTS_SUFFIX else f"serve {suffix} files",
        lambda b: b.predictor is not None and suffix in b.formats,
        prefer=prefer,
        here=lambda b: (
            probe_format(b, suffix) if file is None else probe_file(b, file, (options or {}).get(b.id))
        ),
    )


def exporters(
    plugins: PluginSet,
    formats: Sequence[str],
    *,
    only: str | None = None,
    prefer: str | None = None,
    planned: bool = False,
    settings: ExportConfig | None = None,
) -> dict[str, Backend]:
    """Return the backend that writes each format; without `formats`, all that are not written on request alone.

    `only` names the one backend to take, `prefer` the one to take where it can. With `planned`, one of `formats` that
    cannot be written here is given to the first backend that has it. With `settings` only formats are taken that can be
    written so: with the preprocessing inside, or in their precision. Raises UsageError on a format that no installed
    backend writes, or none so, BackendUnavailable with what is missing where none of them can run here.
    """
    settings = settings or ExportConfig()
    able = [plugins.get(only)] if only is not None else list(plugins.backends.values())
    known = {name for backend in able for name in backend.exporters}
    if not known and only is not None:
        raise UsageError(f"backend '{only}' has no exporter")
    chosen = {}
    for name in formats or sorted(known - {name for backend in able for name in backend.on_request}):
        if name not in known:
            hint = install_hint(name)
            missing = f"; {hint} adds it" if hint else suggest(name, known) + others_hint()
            raise UsageError(f"no installed backend exports '{name}'{missing}")
        if not any(_exports(name, settings, backend) for backend in able):
            if not formats:
                continue
            raise UsageError(_why_not(name, settings, able))
        try:
            chosen[name] = plugins.choose(
                only, f"export {name}", partial(_exports, name, settings), prefer=prefer
            )
        except BackendUnavailable:
            if formats and planned:
                chosen[name] = next(b for b in plugins.ranked(only or prefer) if name in b.exporters)
            elif formats:
                raise
    return chosen


def _exports(name: str, settings: ExportConfig, backend: Backend) -> bool:
    written = name in (backend.takes_images if settings.input == "image" else backend.exporters)
    return written and settings.precision in ("float32", *backend.precisions.get(name, ()))


def _why_not(name: str, settings: ExportConfig, able: Sequence[Backend]) -> str:
    """Return why no backend writes the format `name` with `settings`."""
    if settings.input == "image" and not any(name in backend.takes_images for backend in able):
        return (
            f"format {name} cannot contain the preprocessing (export.input=image): export it with "
            "export.input=uint8"
        )
    known = ["float32", *(p for backend in able for p in backend.precisions.get(name, ()))]
    return f"format {name} cannot be written in {settings.precision}: set export.precision to {' or '.join(known)}"


def serve(
    path: Path,
    config: Config,
    sources: Mapping[str, str],
    plugins: PluginSet,
    *,
    backend_id: str | None = None,
    prefer: str | None = None,
    batch_size: int = 32,
    tensor_input: bool = False,
    rank: RankInfo | None = None,
    self_check: bool = True,
) -> LoadedModel:
    """Load the model at `path` on the named backend, or on the best available one that can read it.

    `prefer` names the backend to take where it can read the file; see :meth:`PluginSet.choose`.
    `self_check` False leaves out the golden logits (as ``eval.self_check`` can): for artefacts that are about to
    be compared with their source.
    """
    path = find_model(path)
    rank = rank or RankInfo()
    if is_weights(path, plugins):
        weights = read_weights(path, config, sources, plugins)
        return serve_weights(
            weights,
            config,
            plugins,
            backend_id=backend_id,
            prefer=prefer,
            batch_size=batch_size,
            rank=rank,
            source=f"{path} ({quoted(entry)})" if (entry := weights.origin.get("entry")) else str(path),
        )
    backend = server_of(
        plugins, path.suffix or path.name, backend_id, prefer=prefer, file=path, options=config.backends
    )
    assert backend.predictor is not None
    request = PredictRequest(
        path=path, batch_size=batch_size, tensor_input=tensor_input, rank=rank,
        options=config.backends.get(backend.id),
    )  # fmt: skip
    with starting(backend.id):
        predictor = backend.predictor(request)
    try:
        manifest = artefact_manifest(path, predictor)
        preprocess = _of_fixed_size(manifest, config, path)
        expected = known(manifest, predictor, str(path))
        if self_check and config.eval.self_check:
            expected.check(predictor, manifest, str(path))
    except BaseException:
        predictor.close()
        raise
    return LoadedModel(
        predictor=predictor, backend=backend, source=str(path), spec=manifest.spec,
        preprocess=preprocess, classes=manifest.classes, digest=manifest.digest,
        has_names=manifest.has_names, golden=expected.golden, golden_tolerance=expected.tolerance,
        precision=predictor.precision or manifest.precision,
        notes=() if expected.note is None else (expected.note,),
    )  # fmt: skip


def _of_fixed_size(manifest: Manifest, config: Config, path: Path) -> PreprocessSpec:
    """Return the preprocessing of an artefact with the crop of the section ``eval``; UsageError for another size."""
    size = manifest.spec.image_size
    if config.eval.size not in (None, size):
        raise UsageError(
            f"{path} takes images of {size} pixels, eval.size is {config.eval.size}: an artefact has one size; "
            f"evaluate the weights, or export them with --set eval.size={config.eval.size}"
        )
    return evaluated_at(manifest.preprocess, None, config.eval.crop_pct)


def serve_weights(
    weights: Weights,
    config: Config,
    plugins: PluginSet,
    *,
    backend_id: str | None = None,
    prefer: str | None = None,
    batch_size: int = 32,
    rank: RankInfo | None = None,
    source: str = "weights in memory",
) -> LoadedModel:
    """Serve `weights` on the named backend, or on the best available one; `prefer` as in :func:`serve`."""
    backend = server_of(plugins, WEIGHTS_SUFFIX, backend_id, prefer=prefer)
    assert backend.predictor is not None
    request = PredictRequest(
        weights=weights,
        batch_size=batch_size,
        rank=rank or RankInfo(),
        options=config.backends.get(backend.id),
    )
    with starting(backend.id):
        predictor = backend.predictor(request)
    if config.eval.self_check:
        check_golden(predictor, weights.golden, weights.spec, source)
    return LoadedModel(
        predictor=predictor, backend=backend, source=source, spec=weights.spec,
        preprocess=weights.preprocess, classes=weights.classes, digest=weights.digest,
        has_names=weights.has_names, golden=weights.golden, precision=predictor.precision,
        published=weights.origin.get("published"),
    )  # fmt: skip


def artefact_manifest(path: Path, predictor: Predictor) -> Manifest:
    """Return what the artefact says of itself: its predictor's `manifest`, or the sidecar ``<path>.json``."""
    if predictor.manifest is not None:
        return predictor.manifest
    manifest = read_sidecar(path)
    if manifest is None:
        raise DataError(f"{path} has no manifest: {sidecar_path(path).name} is missing beside it")
    return manifest
