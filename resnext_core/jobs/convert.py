"""Convert weights from and to other frameworks, with an account of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import load_config, parse_set
from resnext_core.convert.containers import container, default_naming, read_tensors
from resnext_core.convert.names import NAMINGS as NAMINGS
from resnext_core.convert.names import current_name as current_name
from resnext_core.convert.reading import ModelDescription, from_tensors, read_converted
from resnext_core.convert.report import Change, joined, summary
from resnext_core.convert.writing import to_tensors
from resnext_core.data.lines import class_names
from resnext_core.errors import DataError, UsageError, counted, quoted, reason, shown, suggest
from resnext_core.files import check_target, make_folder, write_atomic
from resnext_core.interfaces import StoredTensors, TrainState
from resnext_core.jobs.recorder import ignore
from resnext_core.model.sidecar import read_sidecar, sidecar_path, write_sidecar
from resnext_core.model.spec import check_variant
from resnext_core.model.weights import (
    Manifest,
    Weights,
    load_weights,
    parse_manifest,
    read_manifest_text,
    save_weights,
    tensor_digest,
)
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.runs.checkpoint import load_checkpoint, save_checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress
from resnext_core.runs.records import Listener, Note
from resnext_core.serving.load import WEIGHTS_SUFFIX, find_model

#: The naming scheme of neutral weights, which is none of `NAMINGS`.
NEUTRAL = "neutral"

#: Config keys that a conversion takes, by how they begin.
SETTABLE = ("model.pool_padding", "preprocess.")


@dataclass(frozen=True, kw_only=True)
class ConvertJob:
    """Read `source` and write `target`.

    `source` is a weights file, a run or a checkpoint folder; `target` a new file, whose suffix gives the format, or a
    folder with `moments` ``keep``. `source_naming` None infers the naming scheme; `target_naming` None means that of
    the suffix, else neutral. `variant` and `image_size` (pixels) None are inferred. `overrides` are ``key=value``
    assignments to the keys of `SETTABLE`. `classes` is a text file with one class name a line; `report` is written
    with a JSON line for each tensor.
    """

    source: Path
    target: Path
    source_naming: str | None = None
    target_naming: str | None = None
    variant: str | None = None
    image_size: int | None = None
    overrides: tuple[str, ...] = ()
    classes: Path | None = None
    moments: Literal["drop", "keep"] = "drop"
    any_padding: bool = False
    dry_run: bool = False
    report: Path | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvertResult:
    """The weights, how it is known what they are (`known`, for people), and what was done to each tensor."""

    source: Path
    target: Path
    weights: Weights
    known: str
    changes: tuple[Change, ...]
    written: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        weights = self.weights
        return {
            "source": str(self.source), "target": str(self.target), "variant": weights.spec.variant,
            "digest": weights.digest, "pool_padding": weights.spec.pool_padding, "known": self.known,
            "classes": weights.spec.num_classes, "preprocess": weights.preprocess.to_dict(),
            "changes": [c.to_dict() for c in self.changes],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """What was read: neutral weights, momentum by neutral name (empty unless kept) and the optimizer's step."""

    weights: Weights
    known: str
    momentum: Mapping[str, NDArray[Any]]
    step: int = 0
    changes: tuple[Change, ...] = ()


def convert(job: ConvertJob, listen: Listener = ignore) -> ConvertResult:
    """Convert, read the written file back and compare it bit by bit. `listen` gets a note of what was read.

    Raises UsageError where the user must say something else, DataError on files that cannot be read or written.
    """
    plugins = load_plugins()
    job = _checked(job)
    read = _read(job, plugins)
    listen(Note(text=f"{_about(job.source, read.weights)}; {read.known}"))
    changes = joined(read.changes, _write(job, read, plugins))
    for line in summary(changes):
        listen(Note(text=f"  {line}"))
    if job.report is not None:
        write_atomic(job.report, "".join(json.dumps(c.to_dict()) + "\n" for c in changes))
    return ConvertResult(
        source=job.source, target=job.target, weights=read.weights, known=read.known, changes=changes,
        written=not job.dry_run,
    )  # fmt: skip


def _checked(job: ConvertJob) -> ConvertJob:
    """Return `job` with the present names of naming schemes; raises what can be said before anything is read."""
    if job.variant is not None:
        check_variant(job.variant)
    named = {key: getattr(job, key) for key in ("source_naming", "target_naming")}
    named = {key: current_name(name) for key, name in named.items() if name is not None}
    for key, name in named.items():
        known = [*NAMINGS, *([NEUTRAL] if key == "target_naming" else [])]
        if name not in known:
            raise UsageError(f"unknown naming scheme '{shown(name)}'{suggest(name, known)}")
    for path in (job.target, sidecar_path(job.target)):
        if path.exists() and not job.force and not job.dry_run:
            raise UsageError(f"{path} already exists; choose another name or use --force")
    if job.source.exists() and job.target.exists() and job.source.samefile(job.target):
        raise UsageError(f"{job.target} is both SOURCE and TARGET; choose another name")
    if job.report is not None:
        check_target(job.report)
    return replace(job, **named)


# -- reading -------------------------------------------------------------------------------------


def _read(job: ConvertJob, plugins: PluginSet) -> _Source:
    keep = job.moments == "keep"
    if keep and job.source.is_dir():
        return _read_checkpoint(job.source)
    path = find_model(job.source)
    described = _description(job)
    text = read_manifest_text(path) if path.suffix == WEIGHTS_SUFFIX else None
    own = text is not None
    manifest = parse_manifest(text, where=str(path)) if text is not None else read_sidecar(path)
    known, names = "from its manifest", {}
    if described.classes is not None and manifest is not None and not manifest.has_names:
        # a manifest without class names is the one that may be given some
        names = {"classes": tuple(described.classes), "named": True}
        described = replace(described, classes=None)
        known += ", with class names from --classes"
    _refuse_contradiction(job, path, manifest, described, own=own)
    if own:
        if keep:
            raise UsageError(f"{path} has no momentum; give the checkpoint folder, or drop --moments keep")
        return _Source(weights=load_weights(path).replace(**names), known=known, momentum={})
    found = read_converted(path, described, plugins.weight_files, moments=keep)
    if manifest is None:
        evidence = "names and shapes" if described == ModelDescription() else "names, shapes and flags"
        known = f"inferred from {evidence}, with {found.naming.id}'s defaults for the rest"
        if found.published is not None:
            known = f"inferred from {evidence}; {found.published}"
    known = f"naming scheme {found.naming.id}, {known}"
    if entry := found.weights.origin.get("entry"):
        known += f"; weights of its entry {quoted(entry)}"
    return _Source(
        weights=found.weights.replace(**names), known=known, momentum=found.momentum, step=found.step,
        changes=tuple(found.changes),
    )  # fmt: skip


def _read_checkpoint(source: Path) -> _Source:
    """Return the trained weights of a checkpoint with their momentum: not the moving average, where there is one."""
    folder = source if (source / "state.json").is_file() else find_model(source).parent
    state = load_checkpoint(folder)
    tensors, prefix = state.state.tensors, "momentum/"
    trained = {t.name: tensors[f"weights/{t.name}"] for t in state.weights.spec.tensors}
    return _Source(
        weights=state.weights.replace(tensors=trained), known="from its manifest", step=state.progress.step,
        momentum={name[len(prefix) :]: a for name, a in tensors.items() if name.startswith(prefix)},
    )  # fmt: skip


def _refuse_contradiction(
    job: ConvertJob, path: Path, manifest: Manifest | None, described: ModelDescription, *, own: bool
) -> None:
    """Raise UsageError where flags repeat what a manifest says; a file with one beside it may have any names."""
    if manifest is None:
        return
    given = {
        "--from": own and described.naming, "--variant": described.variant, "--image-size": described.image_size,
        "--classes": described.classes, "--set": job.overrides,
    }  # fmt: skip
    flags = [flag for flag, value in given.items() if value]
    if flags:
        beside = "" if own else f" in {sidecar_path(path).name}"
        raise UsageError(f"{path} has a manifest{beside}; drop {' and '.join(flags)}")


def _description(job: ConvertJob) -> ModelDescription:
    layers = parse_set(job.overrides)
    for layer in layers:
        ((section, values),) = layer.values.items()
        if not f"{section}.{next(iter(values))}".startswith(SETTABLE):
            raise UsageError(f"{layer.source}: convert takes model.pool_padding and preprocess.* only")
    config, _ = load_config(layers)
    given = {key for layer in layers for key in layer.values.get("preprocess", {})}
    return ModelDescription(
        naming=job.source_naming, variant=job.variant, image_size=job.image_size,
        classes=class_names(job.classes) if job.classes is not None else None,
        pool_padding=config.model.pool_padding,
        preprocess={key: getattr(config.preprocess, key) for key in given},
    )  # fmt: skip


def _about(source: Path, weights: Weights) -> str:
    spec = weights.spec
    return (
        f"{source}: {spec.variant}, "
        f"{counted(spec.num_classes, 'class', 'classes')}, {spec.parameters:,} parameters; pool padding "
        f"{spec.pool_padding}, {weights.preprocess.words()}"
    )


# -- writing -------------------------------------------------------------------------------------


def _write(job: ConvertJob, read: _Source, plugins: PluginSet) -> tuple[Change, ...]:
    """Write the target, read it back, and return what was changed; DataError when it does not hold the same bits."""
    target, weights = job.target, read.weights
    changes: tuple[Change, ...] = ()
    naming_id = job.target_naming or default_naming(target, plugins.weight_files) or NEUTRAL
    if naming_id == NEUTRAL:
        if job.moments == "keep":
            _write_checkpoint(job, read)
            return changes
        if target.suffix != WEIGHTS_SUFFIX:
            hint = f"; choose a naming scheme for {target.suffix} with --to" if target.suffix else ""
            raise UsageError(f"neutral weights are {WEIGHTS_SUFFIX} files, not '{target.name}'{hint}")
        if job.dry_run:
            return changes
        save_weights(weights, target)
        written = load_weights(target).digest
    else:
        naming = NAMINGS[naming_id]
        if not target.name.endswith(naming.containers):
            raise UsageError(
                f"{naming_id} weights are {', '.join(naming.containers)} files, not '{target.name}'"
            )
        tensors, changes = to_tensors(weights, naming, momentum=read.momentum, any_padding=job.any_padding)
        kind = container(target, plugins.weight_files)
        if job.dry_run:
            return changes
        kind.write(target, tensors, naming.tag)
        write_sidecar(target, weights)
        written = _digest_of(target, weights, naming_id, read_tensors(target, plugins.weight_files))
    if written != weights.digest:
        raise DataError(
            f"checksum mismatch: {target} reads back as {written}, not {weights.digest}; do not use it"
        )
    return changes


def _digest_of(target: Path, weights: Weights, naming_id: str, tensors: StoredTensors) -> str:
    found = from_tensors(
        tensors, target, ModelDescription(naming=naming_id, spec=weights.spec, classes=weights.classes)
    )
    return tensor_digest(found.weights.spec, found.weights.tensors)


def _write_checkpoint(job: ConvertJob, read: _Source) -> None:
    """Write a checkpoint folder into the target, from which a training can start with its momentum."""
    target, weights = job.target, read.weights
    if target.suffix:
        raise UsageError(
            f"--moments keep writes a checkpoint folder: TARGET must have no file extension, not '{target.name}'"
        )
    learned = [t for t in weights.spec.tensors if t.trainable]
    missing = [t.name for t in learned if t.name not in read.momentum]
    if missing:
        raise DataError(f"{job.source} has no momentum for {missing[0]} and {len(missing) - 1} others")
    if job.dry_run:
        return
    tensors = {f"weights/{n}": a for n, a in weights.tensors.items()}
    tensors |= {f"momentum/{t.name}": np.asarray(read.momentum[t.name], np.float32) for t in learned}
    scalars = {"step": read.step, "overflow_steps": 0, "loss_scale": 1.0, "good_steps": 0}
    try:
        make_folder(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {reason(error)}") from error
    save_checkpoint(
        target, weights, TrainState(tensors=tensors, scalars=scalars),
        RunProgress(step=read.step, epoch_closed=True), run={}, keep=1,
    )  # fmt: skip
