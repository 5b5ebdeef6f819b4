"""``resnext-run infer``: images, folders or a list on standard input to JSON lines; tensors to raw logits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.cli.common import add_config_flags, add_weights_flag, print_config, settings_of
from resnext_core.config import Config
from resnext_core.data.index import Index, image_folder, remarks
from resnext_core.data.lines import byte_lines
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.errors import EXIT_DATA, EXIT_OK, DataError, UsageError
from resnext_core.files import atomic_path, check_target, local_path
from resnext_core.jobs.settings import resolve
from resnext_core.plugins import load_plugins
from resnext_core.serving.load import LoadedModel, serve
from resnext_core.serving.metrics import softmax
from resnext_core.terminal import StreamError

EPILOG = """\
examples:
  resnext-run infer --weights runs/RUN photo.jpg folder/
  find . -name '*.jpg' | resnext-run infer --weights model.onnx -
  resnext-run infer --weights model.safetensors --tensor input.npy --logits logits.npy
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image files or folders; - reads paths from standard input"
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to print (default 5)")
    parser.add_argument(
        "--logits", metavar="FILE.npy", help="write raw logits, float32 (N, classes), in order of the images"
    )
    parser.add_argument(
        "--tensor",
        metavar="FILE.npy",
        help="take ready float32 (N, 3, H, W) instead of images; needs --logits",
    )
    add_config_flags(parser)


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    resolved = resolve(settings_of(args), plugins)
    if args.print_config:
        return print_config(resolved)
    config, sources = resolved.config, resolved.sources
    if bool(args.images) == bool(args.tensor):
        raise UsageError("give images, or --tensor FILE.npy, and not both")
    if args.tensor and not args.logits:
        raise UsageError("--tensor needs --logits FILE.npy to write to")
    if args.top < 1:
        raise UsageError("--top must be 1 or more")
    if args.logits:
        check_target(Path(args.logits))  # before the work
    tensor = _read_tensor(Path(args.tensor)) if args.tensor else None
    served = serve(
        Path(args.weights),
        config,
        sources,
        plugins,
        backend_id=args.backend,
        batch_size=config.eval.batch_size,
        tensor_input=tensor is not None,
    )
    try:
        if tensor is not None:
            return _infer_tensor(served, tensor, Path(args.logits), config.eval.batch_size)
        return _infer_images(served, args, config)
    finally:
        served.predictor.close()


def _infer_tensor(served: LoadedModel, tensor: NDArray[Any], path: Path, batch: int) -> int:
    size = served.spec.image_size
    if tensor.shape[1:] != (3, size, size):
        raise DataError(f"--tensor is {tensor.shape}, the model takes (N, 3, {size}, {size})")
    parts = [served.predictor.logits_from_tensor(tensor[i : i + batch]) for i in range(0, len(tensor), batch)]
    _save(path, np.concatenate(parts))
    return EXIT_OK


def _infer_images(served: LoadedModel, args: argparse.Namespace, config: Config) -> int:
    opened: list[Index] = []
    paths = list(_expand(args.images, opened))
    for line in remarks(opened):
        print(f"resnext-run: {line}", file=sys.stderr)
    if not paths:
        raise DataError("no images found in what was given")
    labels = np.full(len(paths), -1, np.int32)
    index = Index(paths=tuple(map(str, paths)), labels=labels, classes=served.classes, root=Path())
    tasks = list(eval_tasks(len(index), config.eval.batch_size))
    rows, failed = [], 0
    lost: StreamError | None = None

    def tell(value: Mapping[str, Any]) -> None:
        nonlocal lost
        try:
            if lost is None:
                print(json.dumps(value))
        except StreamError as error:
            if not args.logits:
                raise
            lost = error  # the logits are worth going on

    with eval_loader(index, served.preprocess, config, watch_folders=False) as loader:
        for task, batch in zip(tasks, loader.batches(tasks), strict=True):
            logits = served.predictor.logits(batch.images)
            for row in np.flatnonzero(task.valid):
                position = int(batch.index[row])
                if batch.valid[row]:
                    tell(_prediction(paths[position], logits[row], served.classes, args.top))
                    rows.append(logits[row])
                else:
                    failed += 1
                    tell({"path": str(paths[position]), "error": loader.failures[position]})
                    rows.append(np.full(len(served.classes), np.nan, np.float32))
    if args.logits:
        _save(Path(args.logits), np.stack(rows))
    if lost is not None:
        raise lost
    if failed:
        print(f"resnext-run: {failed} of {len(paths)} images could not be read", file=sys.stderr)
        return EXIT_DATA
    return EXIT_OK


def _prediction(path: Path, logits: NDArray[Any], classes: Sequence[str], top: int) -> dict[str, Any]:
    probabilities = softmax(logits)
    best = np.argsort(-logits, kind="stable")[:top]
    return {
        "path": str(path),
        "top": [
            {"id": int(i), "name": classes[i], "probability": round(float(probabilities[i]), 6)} for i in best
        ],
    }


def _expand(words: Sequence[str], opened: list[Index]) -> Iterator[Path]:
    """Yield the files named by `words`: files as they are, folders (`opened`) by their images, - by standard input."""
    for word in words:
        if word == "-":
            lines = byte_lines(sys.stdin.buffer, "standard input")
            yield from (local_path(os.fsdecode(line)) for line in lines if line.strip())
        elif os.path.isdir(word):
            found = image_folder(Path(word))
            opened.append(found)
            yield from (found.path(i) for i in range(len(found)))
        else:
            yield Path(word)


def _read_tensor(path: Path) -> NDArray[Any]:
    try:
        tensor = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds on a file that is none of its own
        raise DataError(f"cannot read tensor {path}: {' '.join(str(error).split())}") from error
    if (
        not isinstance(tensor, np.ndarray)
        or tensor.dtype != np.float32
        or tensor.ndim != 4
        or not len(tensor)
    ):
        raise DataError(f"{path} must hold one float32 array (N, 3, H, W)")
    return tensor


def _save(path: Path, logits: NDArray[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(logits, np.float32))
