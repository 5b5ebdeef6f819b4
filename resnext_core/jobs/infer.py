"""Predict image files with a trained model, or compute the logits of ready tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config, DataConfig
from resnext_core.data.index import Index, image_folder, listed, remarks
from resnext_core.data.lines import byte_lines
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.data.sources.joined import JoinedSource
from resnext_core.data.sources.registry import kind_of
from resnext_core.errors import DataError, UsageError, counted, one_line, shown
from resnext_core.files import check_target, local_path
from resnext_core.files.fresh import check_new
from resnext_core.files.npy import npy_rows
from resnext_core.jobs.annotate import Pictures, check_pictures
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.plugins import load_plugins
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.load import LoadedModel, serve
from resnext_core.serving.metrics import softmax
from resnext_core.serving.predictions import Row, csv_rows, short


@dataclass(frozen=True, kw_only=True)
class InferJob:
    """What to predict: `weights` is a run folder, a weights file or an artefact.

    Either `images`, files and folders, or `tensor`, a ``.npy`` file of float32 (N, 3, H, W), is given. A prediction has
    the `top` most probable classes. `logits` is a ``.npy`` file to write: float32 (N, classes) in the order of the
    images, NaN for one that cannot be read. `csv` is a new file with a row for each image, `save` a new or empty folder
    for a picture of each image with its classes.
    """

    weights: Path
    images: Iterable[Path] | None = None
    tensor: Path | None = None
    logits: Path | None = None
    csv: Path | None = None
    save: Path | None = None
    top: int = 5
    settings: Settings = field(default_factory=Settings)
    backend: str | None = None


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One class of a prediction, with its probability (0..1)."""

    id: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction(Result):
    """What an image shows, most probable class first; or the `error` why there is no prediction.

    `path` is empty for an image in memory. `logits` are float32 (classes,), None where the image could not be read.
    """

    path: str
    top: tuple[Guess, ...] = ()
    error: str | None = None
    logits: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        found = self.error or ", ".join(f"{guess.name} {100 * guess.probability:.1f} %" for guess in self.top)
        return f"{self.path}: {found}" if self.path else found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, probabilities to six decimals."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        top = [{"id": g.id, "name": g.name, "probability": round(g.probability, 6)} for g in self.top]
        return {"path": self.path, "top": top}


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """How many images (or tensors) there were, and of how many images there is no prediction."""

    images: int
    failed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"images": self.images, "failed": self.failed}


def infer(
    job: InferJob,
    take: Callable[[Prediction], None] = lambda prediction: None,
    listen: Listener = ignore,
) -> InferResult:
    """Predict; `take` gets each prediction as it is made, in the order of the images, and none is kept here.

    Raises UsageError, DataError or BackendUnavailable.
    """
    if (job.images is None) == (job.tensor is None):
        raise UsageError("give images, or --tensor FILE.npy, and not both")
    if job.tensor is not None and job.logits is None:
        raise UsageError("--tensor needs --logits FILE.npy to write to")
    if job.tensor is not None and (job.csv is not None or job.save is not None):
        raise UsageError("--tensor holds no images: leave out --csv and --save")
    if job.csv is not None and str(job.csv) == "-":
        raise UsageError("--csv takes the name of a file: standard output has the predictions as JSON lines")
    _check_targets({"--logits": job.logits, "--csv": job.csv, "--save": job.save})
    if job.top < 1:
        raise UsageError("--top must be 1 or more")
    plugins = load_plugins()
    resolved = resolve(job.settings, plugins)
    plugins.decoder(resolved.config.data.decoder)  # before a model is loaded
    if job.logits is not None:
        check_target(job.logits)  # before the work
    if job.csv is not None:
        check_new(job.csv)
    if job.save is not None:
        check_pictures(job.save)
    tensor = _read_tensor(job.tensor) if job.tensor is not None else None
    model = serve(
        job.weights, resolved.config, resolved.sources, plugins, backend_id=job.backend,
        batch_size=resolved.config.eval.batch_size, tensor_input=tensor is not None,
    )  # fmt: skip
    try:
        for line in model.notes:
            listen(Note(text=line))
        if tensor is not None and job.logits is not None:
            return _infer_tensor(model, tensor, job.logits, resolved.config.eval.batch_size)
        return _infer_images(model, job, resolved.config, take, listen)
    finally:
        model.predictor.close()


def _check_targets(targets: Mapping[str, Path | None]) -> None:
    """Raise UsageError where two of `targets`, by flag, are the same file or folder."""
    seen: dict[str, str] = {}
    for flag, path in targets.items():
        if path is not None and (other := seen.setdefault(os.path.realpath(path), flag)) != flag:
            raise UsageError(f"{other} and {flag} are both {shown(path)}; give two names")


def _infer_tensor(model: LoadedModel, tensor: NDArray[Any], path: Path, batch: int) -> InferResult:
    size = model.spec.image_size
    if tensor.shape[1:] != (3, size, size):
        raise DataError(f"--tensor is {tensor.shape}, the model takes (N, 3, {size}, {size})")
    with npy_rows(path, (len(tensor), model.spec.num_classes)) as write:
        for i in range(0, len(tensor), batch):
            write(model.predictor.logits_from_tensor(tensor[i : i + batch]))
    return InferResult(images=len(tensor))


def _infer_images(
    model: LoadedModel, job: InferJob, config: Config, take: Callable[[Prediction], None], listen: Listener
) -> InferResult:
    index = _index(job.images or (), model.classes, config.data, listen)
    tasks = list(eval_tasks(len(index), config.eval.batch_size))
    done = failed = 0
    with ExitStack() as stack:
        decoder = load_plugins().decoder(config.data.decoder)
        loader = stack.enter_context(
            eval_loader(index, model.preprocess, config, decoder=decoder, watch_folders=False)
        )
        pictures = None
        if job.save is not None:
            pictures = Pictures(job.save, index, oriented=model.preprocess.oriented)
        add = stack.enter_context(csv_rows(job.csv, index, job.top)) if job.csv is not None else ignore
        write = None
        if job.logits is not None:
            write = stack.enter_context(npy_rows(job.logits, (len(index), len(model.classes))))
        for task, batch in zip(tasks, loader.batches(tasks), strict=True):
            logits = model.predictor.logits(batch.images)[task.valid]
            positions, readable = batch.index[task.valid], batch.valid[task.valid]
            for row, position, is_readable in zip(logits, positions.tolist(), readable.tolist(), strict=True):
                path = index.paths[position]
                if is_readable:
                    prediction = predicted(path, row, model.classes, job.top)
                else:
                    prediction = Prediction(path=path, error=loader.failures[position])
                failed += prediction.error is not None
                add(_row(position, prediction))
                if pictures is not None and prediction.error is None:
                    pictures.save(position, [(guess.name, guess.probability) for guess in prediction.top])
                take(prediction)
            if write is not None:
                write(np.where(readable[:, None], logits, np.float32(np.nan)))
            done += len(logits)
            listen(Progress(what="infer", done=done, total=len(index)))
    if pictures is not None:
        listen(Note(text=f"saved {counted(pictures.saved, 'picture')} in {job.save}"))
    return InferResult(images=len(index), failed=failed)


def _row(position: int, prediction: Prediction) -> Row:
    """Return the row of a table that holds a prediction."""
    return Row(
        position=position, classes=[guess.id for guess in prediction.top],
        probabilities=[short(guess.probability) for guess in prediction.top], error=prediction.error,
    )  # fmt: skip


def read_paths(stream: BinaryIO, name: str) -> Iterator[Path]:
    """Yield the path in each line of `stream`, which messages call `name`; UsageError for an address."""
    for line in byte_lines(stream, name):
        if line.strip():
            yield local_path(os.fsdecode(line))


def predicted(path: str, logits: NDArray[Any], classes: Sequence[str], top: int) -> Prediction:
    """Return the prediction of one image from its `logits`, float32 (classes,); an error where they hold a NaN."""
    if np.isnan(logits).any():
        return Prediction(path=path, error="the network's output is not a number (NaN)", logits=logits)
    probabilities = softmax(logits)
    best = np.argsort(-logits, kind="stable")[:top].tolist()
    guesses = (Guess(id=i, name=classes[i], probability=float(probabilities[i])) for i in best)
    return Prediction(path=path, top=tuple(guesses), logits=logits)


def _index(images: Iterable[Path], classes: Sequence[str], data: DataConfig, listen: Listener) -> Index:
    """Return one index of all that was given: files as they are, and the images of folders and other sources."""
    parts: list[Index] = []
    paths: list[str] = []
    files: list[str] = []  # those that are not in `parts` yet

    def close() -> None:
        if files:
            parts.append(_unlabelled(Path(), tuple(files), classes))
            files.clear()

    opened: list[Index] = []
    for path in images:
        kind = kind_of(path)
        if kind is None and not os.path.isdir(path):
            files.append(str(local_path(path)))
            paths.append(files[-1])
            continue
        close()
        found = image_folder(path) if kind is None else listed(kind.open(str(path), data), labelled=False)
        opened.append(found)
        parts.append(found)
        paths += [str(found.root / name) for name in found.paths]
    close()
    for line in remarks(opened):
        listen(Note(text=line))
    if not paths:
        raise DataError("no images found in what was given")
    index = _unlabelled(Path(), tuple(paths), classes)
    joined = JoinedSource([part.source for part in parts], [len(part) for part in parts])
    return replace(index, source=parts[0].source if len(parts) == 1 else joined)


def _unlabelled(root: Path, paths: Sequence[str], classes: Sequence[str]) -> Index:
    return Index(paths=paths, labels=np.full(len(paths), -1, np.int32), classes=tuple(classes), root=root)


def _read_tensor(path: Path) -> NDArray[Any]:
    try:
        tensor: Any = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds for a file in another format
        raise DataError(f"cannot read tensor {path}: {one_line(error)}") from error
    is_tensor = isinstance(tensor, np.ndarray) and tensor.dtype == np.float32 and tensor.ndim == 4
    if not is_tensor or not len(tensor):
        raise DataError(f"{path} must hold one float32 array (N, 3, H, W)")
    return np.asarray(tensor)
