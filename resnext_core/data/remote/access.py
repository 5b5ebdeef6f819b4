"""Asking a store for something: with time limits, several tries, and one line about what went wrong for good.

fsspec (an extra) knows the stores; what is asked of it passes through :meth:`Access.ask`. Credentials, endpoints and
other options of a store are read by fsspec and by the store's own library, from their usual files and variables.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from resnext_core.errors import DataError, UsageError, one_line, quoted, reason, shown
from resnext_core.extras import command

T = TypeVar("T")

#: Seconds: until a connection stands, until the next bytes come, and bytes a second that an answer must have at least.
_CONNECT, _SILENCE, _SLOWEST = 10, 30, 64 << 10
#: The longest pause between two tries in seconds.
_LONGEST_PAUSE = 30.0
#: HTTP status of requests that may succeed later; others from 400 to 499 will not.
_LATER = (408, 425, 429)
#: Errors of the operating system, as stores' libraries raise them, that another try does not mend.
_FINAL = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG)
#: Errors by name, since their classes belong to libraries of the stores: no credentials, or not all of them.
_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "DefaultCredentialsError", "RefreshError", "GatedRepoError", "LocalTokenNotFoundError",
)  # fmt: skip
#: What to do about credentials, by scheme.
_LOG_IN = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for public data FSSPEC_S3_ANON=true",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "run hf auth login, or set HF_TOKEN; some data sets have conditions to accept on their page",
}
#: Keys of what stores tell about an object, the best first: checksums, version numbers, times.
_VERSIONS = (
    "md5Hash", "ETag", "etag", "blob_id", "generation", "Content-MD5", "content_settings", "LastModified",
    "last_modified", "Last-Modified", "mtime", "created",
)  # fmt: skip
#: Seconds for a question about names. A folder may have a million of them, a thousand an answer.
_LISTING = 600.0
#: Web servers that are known to answer range requests.
_WITH_RANGES: set[str] = set()
#: The extra that brings the library of a scheme.
_EXTRAS = {"s3": "remote", "http": "remote", "https": "remote", "gs": "gs", "gcs": "gs", "hf": "hf"}


class NotThere(DataError):
    """There is no such object, or no such bucket."""


class Unreachable(DataError):
    """The store did not answer, or not in time, at any try."""


class Changed(DataError):
    """An object never has the bytes that it should have: it was replaced, or every answer is cut off."""


class _Cut(Exception):
    """An answer that is shorter or longer than it should be."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How often something is asked for: `tries` times, with pauses that begin at `pause` seconds and double.

    Each pause is between half and the whole of that, so that the workers of a job do not all come back at once.
    """

    tries: int = 6
    pause: float = 0.5

    def ask(self, url: str, question: Callable[[], T]) -> T:
        """Return the answer of `question`, which messages call `url`.

        Raises :class:`NotThere`; :class:`Unreachable` after the last try; DataError where another try cannot help.
        """
        begin, pause = time.monotonic(), self.pause
        for number in range(1, self.tries + 1):
            try:
                return question()
            except DataError:
                raise
            except Exception as error:
                cause = _cause(error)
                _raise_final(url, cause)
                if number == self.tries:
                    kind = Changed if isinstance(error, _Cut) else Unreachable
                    took = time.monotonic() - begin
                    raise kind(
                        f"cannot read {shown(url, 300)}: {_said(cause)} ({number} tries in {took:.0f} s); check the "
                        "network and the store, then start again, or raise data.tries"
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("tries is at least 1")

    def content(self, url: str, offset: int, length: int, *, whole: bool) -> bytes:
        """Return `length` bytes from `offset` of the object `url`; `whole` where that is all of it.

        Raises as :meth:`ask`, and :class:`Changed` where it is another number of bytes that comes.
        """
        if not length:
            return b""
        end = offset + length + whole  # a byte more shows that the object has grown
        limit = _CONNECT + _SILENCE + length / _SLOWEST
        files, path = filesystem(url)

        def content() -> bytes:
            found: bytes = in_time(files, "cat_file", limit, path, start=offset, end=end)
            if len(found) == length:
                return found
            if len(found) > end - offset:
                raise _without_ranges(url)
            raise _Cut(
                f"{len(found)} bytes came instead of {length}: cut off, or changed since it was listed"
            )

        return self.ask(url, content)

    def check_ranges(self, url: str, size: int) -> None:
        """Raise DataError if the web server of `url`, of `size` bytes, sends whole files where a part is asked for.

        A byte is asked for, and a body that is longer is not read. A server is asked once. Raises as :meth:`ask`.
        """
        server = "/".join(url.split("/", 3)[:3])
        if server in _WITH_RANGES:
            return
        files, path = filesystem(url)

        def byte() -> None:
            from fsspec.asyn import sync

            file = files.open(path, block_size=1 << 16, cache_type="none", size=size)
            try:
                sync(files.loop, file.async_fetch_range, 1, 2, timeout=_CONNECT + _SILENCE)
            except ValueError as error:
                raise _without_ranges(url) from error

        self.ask(url, byte)
        _WITH_RANGES.add(server)

    def all_content(self, url: str) -> bytes:
        """Return the whole of an object whose size is unknown; raises as :meth:`ask`."""
        files, path = filesystem(url)
        found: bytes = self.ask(url, lambda: in_time(files, "cat_file", _LISTING, path))
        return found

    def status(self, url: str) -> Status | None:
        """Return what is at `url`, None where there is nothing. A folder is what has something below it."""
        files, path = filesystem(url)
        try:
            found = self.ask(url, lambda: in_time(files, "info", _CONNECT + _SILENCE, path))
        except NotThere:
            return None
        return _status(found)

    def names(self, url: str) -> list[Status]:
        """Return what is in the folder `url`, without hidden files, in any order; NotThere where there is none."""
        files, path = filesystem(url)
        found = self.ask(url, lambda: in_time(files, "ls", _LISTING, path, detail=True))
        own = path.rstrip("/")
        all_of_it = [_status(one) for one in found if one["name"].rstrip("/") != own]
        return [one for one in all_of_it if one.name and not one.name.startswith(".")]


def _without_ranges(url: str) -> DataError:
    return DataError(
        f"{shown(url, 300)}: the server sends the whole file where a part is asked for (no range requests); copy the "
        "files to a local disk or to another store"
    )


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a store says about an object or a folder.

    `name` is the last part of its path. `size` is in bytes, -1 where the store does not say. `version` differs between
    two contents under one name, as far as the store tells (checksum, ETag, time); it is '' where it tells nothing.
    """

    name: str
    folder: bool
    size: int
    version: str


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of `url` and the path that it calls it by; UsageError where a library is missing."""
    files = _filesystem(url.partition("://")[0].lower())
    return files, files._strip_protocol(url)


def in_time(files: Any, name: str, limit: float, *args: Any, **options: Any) -> Any:
    """Call method `name` of a file system; TimeoutError after `limit` seconds where its library is asynchronous.

    Other libraries (``hf://``) have time limits of their own.
    """
    if files.async_impl and not files.asynchronous:
        from fsspec.asyn import sync

        return sync(files.loop, getattr(files, f"_{name}"), *args, timeout=limit, **options)
    return getattr(files, name)(*args, **options)


@cache
def _filesystem(scheme: str) -> Any:
    try:
        from fsspec import get_filesystem_class
        from fsspec.config import conf
    except ImportError:
        raise UsageError(f"{scheme}:// needs fsspec: {command('remote')}") from None
    try:
        kind = get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = command(extra) if extra else one_line(error, 200)
        raise UsageError(f"{scheme}:// needs a library that is not installed: {how}") from None
    except ValueError:
        raise UsageError(
            f"no store is called {quoted(scheme)}; URLs begin with s3://, gs://, hf://, https://, ..."
        ) from None
    for name in ("fsspec", "s3fs", "gcsfs", "aiobotocore", "botocore"):  # what they log is raised too
        logging.getLogger(name).addHandler(logging.NullHandler())
    # a million names in a listing cache would take a gigabyte, and it would hide what has changed
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if kind.protocol in ("s3", ("s3", "s3a")):
        ours = {"retries": {"max_attempts": 0}, "connect_timeout": _CONNECT, "read_timeout": _SILENCE}
        options["config_kwargs"] = ours | conf.get("s3", {}).get("config_kwargs", {})
    try:
        try:
            files = kind(**options)
        except TypeError:  # a store that does not take these options
            files = kind()
    except Exception as error:  # whatever a store's library says of its options and of credentials
        raise UsageError(f"cannot use {scheme}://: {one_line(error, 300)}{_log_in(scheme)}") from error
    if hasattr(files, "retries"):
        files.retries = 1  # tries are counted in one place
    return files


def _status(found: Any) -> Status:
    """Return fsspec's description of an object as a Status; each store has its own keys."""
    size = found.get("size")
    told = [str(found[key]) for key in _VERSIONS if found.get(key)]
    return Status(
        name=found["name"].rstrip("/").rpartition("/")[2],
        folder=found.get("type") == "directory",
        size=-1 if size is None else int(size),
        version=told[0].strip('"') if told else "",
    )


def _cause(error: BaseException) -> BaseException:
    """Return what is behind an error; fsspec calls any failed question to a web server FileNotFoundError."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or _is_missing(cause):
        return error
    of_a_connection = type(cause).__module__.startswith(("aiohttp", "asyncio"))
    return cause if of_a_connection or isinstance(cause, OSError) else error


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def _raise_final(url: str, error: BaseException) -> None:
    """Raise DataError where another try cannot help."""
    place, status = shown(url, 300), getattr(error, "status", None)
    scheme = url.partition("://")[0].lower()
    if _is_missing(error):
        said = _said(error)
        raise NotThere(
            f"there is nothing at {place}{f': {said}' if ' ' in said else ''}; correct the URL"
        ) from error
    if type(error).__name__ in _CREDENTIALS:
        raise DataError(f"no credentials for {place}: {_said(error)}{_log_in(scheme)}") from error
    if isinstance(error, PermissionError) or status in (401, 403):
        raise DataError(f"no permission to read {place}: {_said(error)}{_log_in(scheme)}") from error
    final = isinstance(error, OSError) and error.errno in _FINAL
    if final or (isinstance(status, int) and 400 <= status < 500 and status not in _LATER):
        raise DataError(
            f"cannot read {place}: {_said(error)}; correct the URL, or give another copy of the data"
        ) from error
    if isinstance(
        error, (ImportError, TypeError, ValueError, IsADirectoryError, NotADirectoryError, MemoryError)
    ):
        raise DataError(f"cannot read {place}: {_said(error)}") from error


def _log_in(scheme: str) -> str:
    hint = _LOG_IN.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme))
    return f"; {hint}" if hint else "; check the credentials"


def _said(error: BaseException) -> str:
    """Return what an error says in one line of printable text; those that say nothing are told by name."""
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if isinstance(status, int):
        return shown(f"HTTP status {status} {message or ''}".rstrip(), 200)
    if type(error).__name__.endswith("TimeoutError") and not str(error):
        return "no answer in time"
    return shown(reason(error), 200)
