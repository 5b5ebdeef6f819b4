"""Pictures inside a page: thumbnails as data URIs."""

from __future__ import annotations

import base64
import io

from PIL import Image

from resnext_core.errors import DataError

#: Longest side of a thumbnail in pixels.
THUMBNAIL = 192
#: An image of at most this side is so small that its pixels should show.
SMALL = 64


def data_uri(thumbnail: Image.Image | bytes, name: str, longest: int = THUMBNAIL) -> tuple[str, bool]:
    """Return the image as a data URI, at most `longest` pixels long, and whether it is so small that its pixels show.

    `thumbnail` may be the bytes of a file. Raises DataError, which calls it the thumbnail of `name`.
    """
    try:
        image = Image.open(io.BytesIO(thumbnail)) if isinstance(thumbnail, bytes) else thumbnail
        image.load()
        small = max(image.size) <= SMALL
        if isinstance(thumbnail, bytes) and image.format in ("JPEG", "PNG") and max(image.size) <= longest:
            kind, content = image.format, thumbnail
        else:
            kind = "PNG" if small else "JPEG"
            image = image.convert("RGB")
            image.thumbnail((longest, longest))
            buffer = io.BytesIO()
            image.save(buffer, kind, **({} if small else {"quality": 85}))
            content = buffer.getvalue()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the thumbnail of {name} is not a readable image: {error}") from error
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}", small
