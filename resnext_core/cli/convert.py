"""``resnext-run convert``: weights from and to other worlds, with an account of every tensor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output
from resnext_core.config import load_config, parse_set
from resnext_core.convert.containers import container, read_tensors
from resnext_core.convert.names import NAMINGS, current_name
from resnext_core.convert.reading import ModelDescription, from_tensors, read_converted
from resnext_core.convert.report import Change, Kind, summary
from resnext_core.convert.writing import to_tensors
from resnext_core.data.lines import class_names
from resnext_core.errors import DataError, UsageError, quoted, reason
from resnext_core.files import check_target, make_folder, write_atomic
from resnext_core.interfaces import StoredTensors, TrainState
from resnext_core.model.sidecar import read_sidecar, sidecar_path, write_sidecar
from resnext_core.model.spec import check_variant
from resnext_core.model.weights import (
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
from resnext_core.serving.load import WEIGHTS_SUFFIX, find_model

EPILOG = f"""\
names: {", ".join(f"{n.id} ({n.summary})" for n in NAMINGS.values())}; and neutral, ours

examples:
  resnext-run convert resnext152.ckpt resnext152.safetensors        the ModelZoo's checkpoint to ours
  resnext-run convert resnext50.pth resnext50.safetensors           torchvision's or timm's to ours
  resnext-run convert runs/RUN model.ckpt --to modelzoo-split       ours to what the old scripts load
  resnext-run convert old.ckpt continued --moments keep             weights and momentum, as a checkpoint folder
"""

#: Config keys that ``--set`` takes, by how they begin.
SETTABLE = ("model.pool_padding", "preprocess.")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="weights file, run or checkpoint folder")
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="new file (its ending says the format), or a folder with --moments keep",
    )
    names = sorted(NAMINGS)
    parser.add_argument(
        "--from",
        dest="source_names",
        type=current_name,
        choices=names,
        help="naming scheme of SOURCE (default: inferred)",
    )
    parser.add_argument(
        "--to", dest="target_names", type=current_name, choices=["neutral", *names],
        help="naming scheme of TARGET (default: neutral; torch for .pth)",
    )  # fmt: skip
    parser.add_argument(
        "--variant", metavar="NAME", help="the network, where shapes do not tell (default: look)"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: the variant's")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="model.pool_padding or preprocess.*, where SOURCE differs from its world's habits",
    )  # fmt: skip
    parser.add_argument(
        "--classes", metavar="FILE", help="text file with a class name a line (default: numbers)"
    )
    parser.add_argument(
        "--moments",
        choices=("drop", "keep"),
        default="drop",
        help="momentum of the optimizer (default: drop)",
    )
    parser.add_argument(
        "--any-padding", action="store_true",
        help="write for a world that pads its max-pool differently, where the network computes something else",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="read, check and report, but write nothing")
    parser.add_argument("--report", metavar="FILE", help="write a JSON line for each tensor")
    parser.add_argument("--force", action="store_true", help="replace TARGET if it is there")
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    plugins = load_plugins()
    source, target = Path(args.source), Path(args.target)
    if args.variant is not None:
        check_variant(args.variant)
    for there in (target, sidecar_path(target)):
        if there.exists() and not args.force and not args.dry_run:
            raise UsageError(f"{there} is there already; choose another name or use --force")
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"{target} is SOURCE itself; choose another name")
    if args.report:
        check_target(Path(args.report))
    weights, momentum, step, changes, known = _read(source, args, plugins)
    output.say(f"{_about(source, weights)}; {known}")
    changes = _joined(changes, _write(target, weights, momentum, step, args, plugins))
    for line in summary(changes):
        output.say(f"  {line}")
    if args.report:
        write_atomic(Path(args.report), "".join(json.dumps(c.to_dict()) + "\n" for c in changes))
    value = {
        "source": str(source), "target": str(target), "variant": weights.spec.variant, "digest": weights.digest,
        "pool_padding": weights.spec.pool_padding, "known": known, "classes": weights.spec.num_classes,
        "preprocess": weights.preprocess.to_dict(), "changes": [c.to_dict() for c in changes],
    }  # fmt: skip
    done = f"{target} was not written (dry run)" if args.dry_run else f"{target}"
    output.result(value, f"{done}: {len(weights.spec.tensors)} tensors, digest {weights.digest}")
    return 0


def _read(
    source: Path, args: argparse.Namespace, plugins: PluginSet
) -> tuple[Weights, Mapping[str, NDArray[Any]], int, list[Change], str]:
    """Return weights, momentum (empty unless kept), step, changes, and how it is known what the source is."""
    told = "told by its manifest"
    keep = args.moments == "keep"
    if keep and source.is_dir():
        state = load_checkpoint(source if (source / "state.json").is_file() else find_model(source).parent)
        prefix = "momentum/"
        momentum = {k[len(prefix) :]: a for k, a in state.state.tensors.items() if k.startswith(prefix)}
        # what the momentum belongs to: not the moving average, where there is one
        trained = {t.name: state.state.tensors[f"weights/{t.name}"] for t in state.weights.spec.tensors}
        return state.weights.replace(tensors=trained), momentum, state.progress.step, [], told
    path = find_model(source)
    stated = _stated(args)
    text = read_manifest_text(path) if path.suffix == WEIGHTS_SUFFIX else None
    own = text is not None
    manifest = parse_manifest(text, where=str(path)) if text is not None else read_sidecar(path)
    names: dict[str, Any] = {}
    if stated.classes is not None and manifest is not None and not manifest.has_names:
        # a manifest without class names is the one that may be told them
        names = {"classes": tuple(stated.classes), "named": True}
        stated = replace(stated, classes=None)
        told = "told by its manifest, but for the names of its classes"
    if stated != ModelDescription(naming=None if own else stated.naming) and manifest is not None:
        beside = "" if own else f", in {sidecar_path(path).name} beside it,"
        raise UsageError(f"{path} says{beside} what it is; leave out what you say of it")
    if own and keep:
        raise UsageError(f"{path} holds no momentum; give the checkpoint folder, or leave --moments keep out")
    if own:
        return load_weights(path).replace(**names), {}, 0, [], told
    found = read_converted(path, stated, plugins.weight_files, moments=keep)
    if manifest is None:
        told = f"told by names and shapes, and where those are silent by what is usual in {found.naming.id}"
        if stated != ModelDescription():
            told += " and what you say"
    told = f"names of {found.naming.id}, {told}"
    if entry := found.weights.origin.get("entry"):
        told += f"; the weights are those of its entry {quoted(entry)}"
    return found.weights.replace(**names), found.momentum, found.step, list(found.changes), told


def _write(
    target: Path,
    weights: Weights,
    momentum: Mapping[str, NDArray[Any]],
    step: int,
    args: argparse.Namespace,
    plugins: PluginSet,
) -> list[Change]:
    """Write `target`, read it back, and return what was changed; DataError when it does not hold the same bits."""
    names = args.target_names or ("torch" if target.suffix in (".pth", ".pt") else "neutral")
    if names == "neutral":
        if args.moments == "keep":
            return _write_checkpoint(target, weights, momentum, step, dry_run=args.dry_run)
        if target.suffix != WEIGHTS_SUFFIX:
            hint = f"; or say whose names {target.suffix} gets with --to" if target.suffix else ""
            raise UsageError(f"neutral weights are {WEIGHTS_SUFFIX} files, not '{target.name}'{hint}")
        changes: tuple[Change, ...] = ()
        if args.dry_run:
            return []
        save_weights(weights, target)
        written = load_weights(target).digest
    else:
        naming = NAMINGS[names]
        if not target.name.endswith(naming.containers):
            raise UsageError(f"{names} weights are {', '.join(naming.containers)} files, not '{target.name}'")
        tensors, changes = to_tensors(weights, naming, momentum=momentum, any_padding=args.any_padding)
        kind = container(target, plugins.weight_files)
        if args.dry_run:
            return list(changes)
        kind.write(target, tensors, naming.tag)
        write_sidecar(target, weights)
        written = _digest_of(target, weights, names, read_tensors(target, plugins.weight_files))
    if written != weights.digest:
        raise DataError(f"{target} reads back as {written}, not {weights.digest}; do not use it")
    return list(changes)


def _digest_of(target: Path, weights: Weights, names: str, tensors: StoredTensors) -> str:
    found = from_tensors(
        tensors, target, ModelDescription(naming=names, spec=weights.spec, classes=weights.classes)
    )
    return tensor_digest(found.weights.spec, found.weights.tensors)


def _write_checkpoint(
    target: Path, weights: Weights, momentum: Mapping[str, NDArray[Any]], step: int, *, dry_run: bool
) -> list[Change]:
    """Write a checkpoint folder into `target`, from which a training can start with its momentum."""
    if target.suffix:
        raise UsageError(
            f"--moments keep writes a checkpoint folder: give a name without an ending, not '{target.name}'"
        )
    learned = [t for t in weights.spec.tensors if t.trainable]
    missing = [t.name for t in learned if t.name not in momentum]
    if missing:
        raise DataError(f"the source has no momentum of {missing[0]} and {len(missing) - 1} others")
    if dry_run:
        return []
    tensors = {f"weights/{n}": a for n, a in weights.tensors.items()}
    tensors |= {f"momentum/{t.name}": np.asarray(momentum[t.name], np.float32) for t in learned}
    scalars = {"step": step, "overflow_steps": 0, "loss_scale": 1.0, "good_steps": 0}
    try:
        make_folder(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {reason(error)}") from error
    save_checkpoint(
        target, weights, TrainState(tensors=tensors, scalars=scalars), RunProgress(step=step, epoch_closed=True),
        run={}, keep=1,
    )  # fmt: skip
    return []


def _joined(first: list[Change], second: list[Change]) -> list[Change]:
    """Return the changes of the whole way, where `second` goes on from the neutral names that `first` ends with."""
    if not second:
        return first
    before = {change.target: change for change in first if change.target}
    whole = []
    for change in second:
        start = before.pop(change.source, None)
        if start is None or start.kind == "same":
            whole.append(replace(change, dtype=start.dtype if start is not None else None))
            continue
        kind: Kind = change.kind if change.kind in ("split", "merged") else start.kind
        if start.source == change.target:
            kind = "same"
        reason = "; ".join(r for r in (start.reason, change.reason) if r and kind != "same")
        whole.append(replace(start, kind=kind, target=change.target, reason=reason))
    return whole + [change for change in first if not change.target]


def _stated(args: argparse.Namespace) -> ModelDescription:
    layers = parse_set(args.set)
    for layer in layers:
        ((section, values),) = layer.values.items()
        if section != "preprocess" and f"{section}.{next(iter(values))}" != "model.pool_padding":
            raise UsageError(f"{layer.source}: convert takes model.pool_padding and preprocess.* only")
    config, _ = load_config(layers)
    said = {key for layer in layers for key in layer.values.get("preprocess", {})}
    return ModelDescription(
        naming=args.source_names, variant=args.variant, image_size=args.image_size,
        classes=class_names(Path(args.classes)) if args.classes else None, pool_padding=config.model.pool_padding,
        preprocess={key: getattr(config.preprocess, key) for key in said},
    )  # fmt: skip


def _about(source: Path, weights: Weights) -> str:
    spec, pre = weights.spec, weights.preprocess
    return (
        f"{source}: {spec.variant}, {spec.num_classes} classes, {spec.parameters:,} parameters; pool padding "
        f"{spec.pool_padding}, images {pre.mode} {pre.resize} -> {pre.size} ({pre.filter})"
    )
