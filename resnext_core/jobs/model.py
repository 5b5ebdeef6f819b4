"""A trained model that predicts images from files and from memory."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.config import DataConfig
from resnext_core.data.content import BadImage
from resnext_core.data.index import image_folder, listed, remarks
from resnext_core.data.render import load_eval, load_eval_bytes
from resnext_core.data.sources.base import Reader
from resnext_core.data.sources.registry import kind_of
from resnext_core.errors import UsageError, counted
from resnext_core.files import local_path
from resnext_core.jobs.infer import Prediction, predicted
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.model.preprocess import eval_pixels
from resnext_core.model.spec import ModelSpec
from resnext_core.plugins import load_plugins
from resnext_core.serving.load import LoadedModel, serve

#: One image: a file, a Pillow image, or uint8 (H, W, 3) in RGB.
OneImage: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

#: Modes of Pillow images whose samples have 8 bits or fewer; alpha is dropped, as in a file.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


class Model:
    """A model on a backend. Close it, or use it in a ``with`` block, to release the device."""

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        self._loaded, self._batch_size = loaded, batch_size
        self._closed = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self._loaded.classes

    @property
    def spec(self) -> ModelSpec:
        """The network: its variant, image size and number of classes."""
        return self._loaded.spec

    @property
    def source(self) -> str:
        """The file that was loaded."""
        return self._loaded.source

    @property
    def digest(self) -> str:
        """The digest of the weights."""
        return self._loaded.digest

    @property
    def backend(self) -> str:
        """The id of the backend that computes."""
        return self._loaded.backend.id

    @property
    def precision(self) -> str | None:
        """What it computes in where that is few bits (``int8``, ...); None for float32."""
        return self._loaded.precision

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known of how it computes, such as that an artefact in few bits is not proven here."""
        return self._loaded.notes

    def predict(
        self,
        images: OneImage | Iterable[OneImage],
        *,
        top: int = 5,
        errors: Literal["raise", "report"] = "raise",
    ) -> Any:
        """Return the prediction of one image, or a list with one for each of several, in their order.

        `images` is a file, a Pillow image or uint8 (H, W, 3) in RGB: one image; or a folder, tar shards, a packed file,
        uint8 (N, H, W, 3), or a list of images. Files of a folder that are not images are counted in a warning. `top`
        classes are returned, most probable first. A file that cannot be read raises DataError; with `errors` ``report``
        its prediction has the reason as `error` instead. Preprocessing is the model's own.
        """
        if top < 1:
            raise UsageError(f"top must be 1 or more, not {top}")
        if errors not in ("raise", "report"):
            raise UsageError(f"errors must be 'raise' or 'report', not {errors!r}")
        if not _is_one(images):
            return list(self._predictions(_several(images), top, errors))
        return next(self._predictions(iter([images]), top, errors))

    def logits(self, images: OneImage | Iterable[OneImage]) -> NDArray[np.float32]:
        """Return float32 (N, classes) for the images, as :meth:`predict` takes them; one image is N = 1."""
        given: Iterator[Any] = iter([images]) if _is_one(images) else _several(images)
        rows = [p.logits for p in self._predictions(given, 1, "raise") if p.logits is not None]
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def close(self) -> None:
        """Release the device; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._loaded.predictor.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"on {self.backend}"
        return f"<Model {self.spec.variant}, {counted(len(self.classes), 'class', 'classes')}, {state}: {self.source}>"

    def _predictions(self, images: Iterator[Any], top: int, errors: str) -> Iterator[Prediction]:
        if self._closed:
            raise UsageError("the model is closed; load it again")
        while chunk := list(itertools.islice(images, self._batch_size)):
            read = [self._read(image, errors) for image in chunk]
            pixels = [found for found in read if not isinstance(found, Prediction)]
            rows = iter(self._loaded.predictor.logits(np.stack(pixels)) if pixels else ())
            for image, found in zip(chunk, read, strict=True):
                yield (
                    found
                    if isinstance(found, Prediction)
                    else predicted(_name(image), next(rows), self.classes, top)
                )

    def _read(self, image: OneImage, errors: str) -> NDArray[np.uint8] | Prediction:
        """Return uint8 (size, size, 3), or the prediction that reports why there is none."""
        preprocess = self._loaded.preprocess
        if isinstance(image, (str, os.PathLike)):
            try:
                if isinstance(image, _Stored):
                    return load_eval_bytes(image.reader.read(image.locator), preprocess, name=image)
                return load_eval(local_path(Path(image)), preprocess)
            except BadImage as error:
                if errors == "raise":
                    raise BadImage(os.fspath(image), error.reason) from error
                return Prediction(path=os.fspath(image), error=error.reason)
        return eval_pixels(_rgb(image), preprocess)


class _Stored(str):
    """The path of an image in a source, and how it is read."""

    reader: Reader
    locator: bytes

    def __new__(cls, path: str, reader: Reader, locator: bytes) -> _Stored:
        stored = super().__new__(cls, path)
        stored.reader, stored.locator = reader, locator
        return stored


def load_model(
    path: Path, settings: Settings, *, backend: str | None = None, batch_size: int | None = None
) -> Model:
    """Load a run folder, a weights file or an artefact; see :func:`resnext_core.serving.load.serve`."""
    plugins = load_plugins()
    resolved = resolve(settings, plugins)
    size = batch_size or resolved.config.eval.batch_size
    loaded = serve(path, resolved.config, resolved.sources, plugins, backend_id=backend, batch_size=size)
    for line in loaded.notes:
        warnings.warn(line, stacklevel=3)
    return Model(loaded, size)


def _is_one(images: Any) -> bool:
    if isinstance(images, (str, os.PathLike)):
        return not os.path.isdir(images) and kind_of(images) is None
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, Image.Image)


def _several(images: Any) -> Iterator[Any]:
    if isinstance(images, (str, os.PathLike)):
        kind = kind_of(images)
        found = (
            image_folder(Path(images))
            if kind is None
            else listed(kind.open(os.fspath(images), DataConfig()), labelled=False)
        )
        for line in remarks([found]):
            warnings.warn(line, stacklevel=3)
        reader = found.source.reader()
        return (_Stored(str(found.path(i)), reader, found.source.locator(i)) for i in range(len(found)))
    if not isinstance(images, Iterable):
        raise UsageError(f"images are files, Pillow images or uint8 arrays, not {type(images).__name__}")
    return iter(images)


def _rgb(image: Any) -> Image.Image:
    """Return a Pillow image in mode RGB; UsageError for what has no 8-bit colours."""
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise UsageError(
                f"a Pillow image of mode {image.mode} has more than 8 bits; convert it to RGB first"
            )
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UsageError(
                f"an array must be uint8 (H, W, 3) or (N, H, W, 3), not {image.dtype} {image.shape}"
            )
        return Image.fromarray(np.ascontiguousarray(image))
    raise UsageError(f"an image is a file, a Pillow image or a uint8 array, not {type(image).__name__}")


def _name(image: Any) -> str:
    """Return the path of an image; that of one in memory is empty."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or "")
