"""Core's own decoder: Pillow, which reads every format and defines the pixels of all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resnext_core.extensions import READY, Decoder, ImageDecoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnext_core.data.content import Content
    from resnext_core.data.plan import Plan
    from resnext_core.model.preprocess import PreprocessSpec


class PillowDecoder:
    """An :class:`~resnext_core.extensions.ImageDecoder` that never raises NotSupported."""

    def evaluation(
        self, content: Content, name: str, spec: PreprocessSpec, out: NDArray[np.uint8], remarks: list[str]
    ) -> None:
        from resnext_core.data.render import load_eval_bytes

        out[...] = load_eval_bytes(content, spec, name=name, remarks=remarks)

    def training(
        self,
        content: Content,
        name: str,
        draw: Callable[[int, int], Plan],
        out: NDArray[np.uint8],
        remarks: list[str],
    ) -> None:
        from resnext_core.data.render import load_train_bytes

        out[...] = load_train_bytes(content, draw, name=name, remarks=remarks)


def open_pillow() -> ImageDecoder:
    """Return the decoder, with Pillow imported."""
    import resnext_core.data.render  # noqa: F401

    return PillowDecoder()


#: Ready everywhere, and the last that ``auto`` takes.
PILLOW = Decoder(
    name="pillow", summary="Pillow, in processes", priority=-10, probe=lambda: READY, open=open_pillow
)
