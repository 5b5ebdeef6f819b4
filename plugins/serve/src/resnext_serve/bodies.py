"""Reading the body of a request into memory, within its limit; no part of it touches a disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from resnext_serve.errors import Refused

#: A body above the limit is read to its end up to so many times the limit, so that the client sees the answer.
_PATIENCE = 4


@dataclass(frozen=True, kw_only=True)
class GivenFile:
    """An image file of a request: its bytes, and the name that the client gave it."""

    content: bytes
    name: str = ""


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 62  # never on a disk; the body is in memory already


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; Refused (413) where it has more than `limit` bytes, (415) where it is compressed."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "a compressed body is not supported; send it as it is")
    declared = request.headers.get("content-length", "")
    too_large = declared.isascii() and declared.isdecimal() and int(declared[:20]) > limit
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            too_large = too_large or size > limit
            if too_large:
                chunks.clear()
                if size > _PATIENCE * limit:
                    break
            else:
                chunks.append(chunk)
    except ClientDisconnect as error:
        raise Refused(400, "the client went away") from error
    if too_large:
        raise Refused(413, f"the body has more than {limit} bytes")
    return b"".join(chunks)


async def files_of(request: Request, body: bytes, most: int) -> tuple[list[GivenFile], bool]:
    """Return the image files of a body, and whether it is a form, which can hold several.

    Raises Refused: 400 on a broken form, or one without files, 413 on more than `most` files.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        if not body:
            raise Refused(400, "the body is empty; send an image file, or a form with files")
        return [GivenFile(content=body)], False
    if b"boundary" not in options:
        raise Refused(400, "the form has no boundary")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemory(
        request.headers, stream(), max_files=most, max_fields=most, max_part_size=len(body) + 1
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        too_many = error.message.startswith("Too many files")
        raise Refused(413 if too_many else 400, f"the form cannot be read: {error.message}") from error
    except Exception as error:  # the parser below may raise anything of its own on a broken form
        raise Refused(400, f"the form cannot be read: {error}") from error
    found = [one for _, one in form.multi_items() if isinstance(one, UploadFile)]
    if not found:
        raise Refused(400, "the form has no file; send images as files, as with curl -F image=@photo.jpg")
    files = [GivenFile(content=await one.read(), name=one.filename or "") for one in found]
    await form.close()
    return files, True
