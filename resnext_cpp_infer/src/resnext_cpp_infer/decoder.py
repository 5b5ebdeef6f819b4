"""The decoder ``turbo``: pixels of JPEG and PNG from C++, equal to the bit to core's, for many threads at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from resnext_core.data.exif import upright
from resnext_core.extensions import NotSupported
from resnext_cpp_infer.pixels import KINDS, PNG, Header, Pixels, Unread, load, use_pillows_jpeg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnext_core.data.plan import Operation, Plan
    from resnext_core.model.preprocess import PreprocessSpec


_LOCK = threading.Lock()


def open_turbo() -> TurboDecoder:
    """Return the decoder, one for the process; BackendUnavailable where the library is missing.

    Its pixels are first compared with Pillow's on this machine: what differs is left to Pillow.
    """
    with _LOCK:  # the choice of a libjpeg is no time to decode in another thread
        return _opened()


@functools.cache
def _opened() -> TurboDecoder:
    library = load()
    use_pillows_jpeg(library)
    decoder = TurboDecoder(lambda: Pixels(library))
    decoder.compare()
    return decoder


class TurboDecoder:
    """An :class:`~resnext_core.extensions.ImageDecoder` over libresnext_pixels.

    It never raises BadImage: a file that it cannot read is Pillow's, which then says why.
    """

    def __init__(self, scratch: Callable[[], Pixels]) -> None:
        self._scratch = scratch
        self._threads = threading.local()
        self._kinds = frozenset(KINDS)
        #: Why all images are left to Pillow, for the user; empty where they are not.
        self.note = ""

    def evaluation(
        self, content: bytes, name: str, spec: PreprocessSpec, out: NDArray[np.uint8], remarks: list[str]
    ) -> None:
        self._check()
        pixels = self._pixels()
        try:
            _suitable(pixels.open(content))
            pixels.evaluate(spec, out, upright(content, remarks) if spec.oriented else 1)
        except Unread as error:
            raise NotSupported(str(error)) from None

    def training(
        self,
        content: bytes,
        name: str,
        draw: Callable[[int, int], Plan],
        out: NDArray[np.uint8],
        remarks: list[str],
    ) -> None:
        self._check()
        pixels = self._pixels()
        try:
            header = pixels.open(content)
            _suitable(header)
            plan = draw(header.width, header.height)
            ours = known(plan.operations, self._kinds)
            pixels.train(plan, plan.operations[:ours], out)
        except Unread as error:
            raise NotSupported(str(error)) from None
        if ours < len(plan.operations):
            _finish(plan.operations[ours:], out)

    def compare(self) -> None:
        """Compare with Pillow on this machine, so that the pixels never depend on the decoder.

        Another build of libjpeg or of Pillow may round otherwise. If decoded pixels differ, all images are left to
        Pillow, with a remark; an operation that differs is done by Pillow.
        """
        from resnext_cpp_infer.comparison import pixels_differ, same_operations

        differing = pixels_differ(self)
        if differing:
            self.note = f"decoder turbo: {differing}; Pillow decodes every image"
        self._kinds = same_operations(self._pixels())

    def _check(self) -> None:
        if self.note:
            raise NotSupported(self.note)

    def _pixels(self) -> Pixels:
        found: Pixels | None = getattr(self._threads, "pixels", None)
        if found is None:
            found = self._threads.pixels = self._scratch()
        return found


def known(operations: Sequence[Operation], kinds: frozenset[str]) -> int:
    """Return how many of the first `operations` the library does; a branch and its merge stay together."""
    branch = -1
    for i, operation in enumerate(operations):
        if operation.name not in kinds or (branch < 0 and operation.name in ("add", "merge")):
            return branch if branch >= 0 else i
        if operation.name == "branch":
            branch = i
        elif operation.name == "merge":
            branch = -1
    return branch if branch >= 0 else len(operations)


def _suitable(header: Header) -> None:
    if header.format == PNG and header.bits > 8:
        raise NotSupported("16-bit samples, about which there may be a remark")


def _finish(operations: Sequence[Operation], out: NDArray[np.uint8]) -> None:
    """Do the rest of a plan's operations with Pillow, in place."""
    import numpy as np
    from PIL import Image

    from resnext_core.data.render import operated

    out[...] = np.asarray(operated(Image.fromarray(out), operations))
