"""Serve ONNX artefacts, as uint8 images or as already normalised tensors, with the runtime that the options name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from resnext_core.errors import BackendUnavailable, DataError, UsageError, counted, shown
from resnext_core.interfaces import PredictRequest
from resnext_core.model.preprocess import eval_pixels, normalize
from resnext_onnx.artefact import Artefact, read_artefact, without_normalisation
from resnext_onnx.options import OnnxOptions
from resnext_onnx.sessions import Array, Runtime, Session, SessionError

#: Largest |difference| of logits by the graph's own preprocessing, relative to the largest |logit| by core's pixels.
IMAGE_TOLERANCE = 1e-2


class OnnxPredictor:
    """An ONNX file in a runtime.

    `manifest` is what the file says of itself (ModelSpec, PreprocessSpec, classes, ...), `artefact` how it
    was exported. The image size is the ModelSpec's; any number of images is served whatever batch the file
    was exported for. Both doors work on both kinds of file: one of ``uint8`` input takes tensors by a second
    session that starts behind the normalisation, one of ``float`` input takes images normalised by NumPy. One of
    ``image`` input serves both by a session behind its preprocessing, and whole images by
    :meth:`logits_from_image`.

    Raises UsageError when given weights in memory, DataError on a file that cannot be served (see
    :func:`resnext_onnx.artefact.read_artefact`), BackendUnavailable when the provider cannot run here.
    """

    def __init__(self, request: PredictRequest) -> None:
        if request.path is None:
            raise UsageError("backend onnx serves .onnx files; export the weights first")
        self._path = request.path
        self._runtime = open_runtime(request.options or OnnxOptions(), request.rank.local_rank)
        artefact = read_artefact(request.path)
        self.manifest = artefact.manifest
        self.artefact = artefact.entry
        self.precision: str | None = self._runtime.precision if self.manifest.precision is None else None
        self.computes_on: str | None = self._runtime.computes_on
        self._closed = False
        self._images: Session | None = None
        self._tensor: Session | None = None
        self._whole: Session | None = None
        if self.artefact["input"] == "float":
            self._tensor = self._session(artefact.data)
        elif self.artefact["input"] == "image":
            self._tensor = self._session(without_normalisation(artefact.data))
        else:
            self._images = self._session(artefact.data)
            if request.tensor_input:
                self._tensor = self._session(without_normalisation(artefact.data))

    def logits(self, images: Array) -> Array:
        """Map uint8 (N, S, S, 3) to float32 (N, classes); DataError on another shape or type."""
        self._check_open()
        size = self.manifest.spec.image_size
        _check_input(images, np.uint8, (size, size, 3), "images")
        if self._images is not None:
            return self._run(self._images, images)
        assert self._tensor is not None  # made with the predictor where there is no session of images
        return self._run(self._tensor, normalize(images, self.manifest.preprocess))

    def logits_from_tensor(self, tensor: Array) -> Array:
        """Map normalised float32 (N, 3, S, S) to float32 (N, classes); DataError on another shape or type.

        On a file of ``uint8`` input the first call reads the file again to make the second session.
        """
        self._check_open()
        size = self.manifest.spec.image_size
        _check_input(tensor, np.float32, (3, size, size), "tensor")
        if self._tensor is None:
            self._tensor = self._session(without_normalisation(self._reread().data))
        return self._run(self._tensor, tensor)

    def logits_from_image(self, image: Array) -> Array:
        """Map one uint8 RGB image (H, W, 3) of any size to float32 (classes,), preprocessed by the graph itself.

        Only for files of ``image`` input (UsageError on others). The first call reads the file again to make the
        session, and compares the graph's preprocessing with :func:`resnext_core.model.preprocess.eval_pixels`.
        DataError where the logits differ by more than :data:`IMAGE_TOLERANCE`, or on another shape or type.
        """
        self._check_open()
        if self.artefact["input"] != "image":
            raise UsageError(
                f"{self._path} does not resize by itself; preprocess the image, or export it with export.input=image"
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"this ONNX file takes an image uint8 (H, W, 3) of at least 1 x 1, not {image.dtype} {image.shape}"
            )
        if self._whole is None:
            session = self._session(self._reread().data)
            self._check_preprocessing(session)
            self._whole = session
        row: Array = self._run(self._whole, image[None])[0]
        return row

    def _check_preprocessing(self, session: Session) -> None:
        """Raise DataError where the graph's preprocessing is not that of the manifest, on an image of noise."""
        spec = self.manifest.preprocess
        sides = (spec.resize + spec.resize // 3, 2 * spec.resize + 1, 3)
        image = np.random.default_rng(0).integers(0, 256, sides, dtype=np.uint8)
        got = self._run(session, image[None])
        want = self.logits(eval_pixels(Image.fromarray(image), spec)[None])
        difference = float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-12))
        if not difference <= IMAGE_TOLERANCE:
            raise DataError(
                f"{self._path}: its preprocessing gives logits that differ by {difference:.2e} of the largest here "
                f"(allowed {IMAGE_TOLERANCE:.0e}); use onnx.provider=cpu, or export it again"
            )

    def close(self) -> None:
        """Release the sessions; a later call raises UsageError."""
        self._images = self._tensor = self._whole = None
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this predictor is closed; create another one")

    def _reread(self) -> Artefact:
        again = read_artefact(self._path)
        same = _but_proofs(again.entry) == _but_proofs(self.artefact)
        if not (same and again.manifest.same_file(self.manifest)):
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        return again

    def _session(self, data: bytes) -> Session:
        try:
            session = self._runtime.session(data, precision=self.manifest.precision or "float32")
        except SessionError as error:
            raise self._failed("cannot be loaded", error) from error
        self._check_graph(session)
        return session

    def _check_graph(self, session: Session) -> None:
        spec = self.manifest.spec
        size = spec.image_size
        sides = (None, None) if self.artefact["input"] == "image" else (size, size)
        inputs = {"images": ("uint8", (*sides, 3)), "tensor": ("float32", (3, size, size))}
        described = [(i.dtype, i.shape[1:]) for i in session.inputs] == [
            inputs.get(i.name) for i in session.inputs
        ]
        rows = [i.shape[0] for i in session.inputs if i.shape]
        answers = [(o.name, o.shape[1:]) for o in session.outputs] == [("logits", (spec.num_classes,))]
        if len(session.inputs) != 1 or not described or not answers or rows == [0]:
            raise DataError(f"{self._path} is damaged: its graph does not match its manifest")

    def _failed(self, what: str, error: SessionError) -> DataError | BackendUnavailable:
        """Return the error for what a runtime says: a verified file that the CPU takes fails by the device."""
        message = f"{self._path} {what} by {self._runtime.name}: {shown(str(error), 300)}"
        return DataError(message) if self._runtime.on_cpu else BackendUnavailable(message)

    def _run(self, session: Session, array: Array) -> Array:
        (source,) = session.inputs
        fixed = source.shape[0]
        if fixed is None:
            return self._logits(session, source.name, array)
        parts = [_padded(array[start : start + fixed], fixed) for start in range(0, len(array), fixed)]
        return np.concatenate([self._logits(session, source.name, part) for part in parts])[: len(array)]

    def _logits(self, session: Session, name: str, array: Array) -> Array:
        try:
            logits = session.run(name, array)
        except SessionError as error:
            raise self._failed("cannot be run", error) from error
        classes = self.manifest.spec.num_classes
        if logits.shape != (len(array), classes) or logits.dtype != np.float32:
            raise DataError(
                f"{self._path} is damaged: it returns {logits.dtype} {logits.shape} for "
                f"{counted(len(array), 'image')}, not float32 {(len(array), classes)}; export it again"
            )
        return logits


def open_runtime(options: OnnxOptions, device: int) -> Runtime:
    """Return the runtime of ``onnx.provider``; BackendUnavailable where it is not installed."""
    if options.provider == "openvino":
        from resnext_onnx.openvino_sessions import OpenVinoRuntime

        return OpenVinoRuntime(options)
    from resnext_onnx.ort_sessions import OrtRuntime

    return OrtRuntime(options, device)


def _but_proofs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an artefact's entry says of the file itself: `validate` writes proofs while others serve it."""
    return {key: value for key, value in entry.items() if key != "proofs"}


def _padded(array: Array, rows: int) -> Array:
    if len(array) == rows:
        return array
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def _check_input(array: Array, dtype: type[np.generic], shape: tuple[int, ...], name: str) -> None:
    if array.dtype != dtype or array.ndim != 4 or array.shape[1:] != shape or not len(array):
        wanted = ", ".join(map(str, shape))
        raise DataError(
            f"this ONNX file takes {name} {np.dtype(dtype)} (N, {wanted}) with N of 1 or more, "
            f"not {array.dtype} {array.shape}"
        )
