"""From image files in memory to the pixels that a network takes, in threads: decoders leave the interpreter free."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.data.decode import BadImage
from resnext_core.data.render import load_eval_bytes
from resnext_core.model.preprocess import PreprocessSpec


class Decoder:
    """Decodes in so many `threads`; images above `most_pixels` are refused before any of them is decoded."""

    def __init__(self, threads: int, most_pixels: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resnext-decode")
        self._most_pixels = most_pixels

    async def pixels(
        self, files: Sequence[bytes], spec: PreprocessSpec
    ) -> tuple[list[NDArray[np.uint8] | BadImage], float]:
        """Return for each file uint8 (size, size, 3), or why it cannot be read; and the seconds that took."""
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        work = [loop.run_in_executor(self._pool, self._one, file, spec) for file in files]
        return list(await asyncio.gather(*work)), time.perf_counter() - started

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _one(self, file: bytes, spec: PreprocessSpec) -> NDArray[np.uint8] | BadImage:
        try:
            return load_eval_bytes(file, spec, name="given", most_pixels=self._most_pixels)
        except BadImage as error:
            return error


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
