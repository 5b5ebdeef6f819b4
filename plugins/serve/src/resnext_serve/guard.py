"""What every request passes through: the token, the time limit, errors as JSON, and the figures."""

from __future__ import annotations

import hmac
import json
import logging
import time
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnext_serve.errors import Refused
from resnext_serve.metrics import Metrics

log = logging.getLogger("resnext.serve")
#: Routes that need no token: whether the service lives, and the page, which holds nothing.
OPEN = ("/", "/page.css", "/page.js", "/v2/health/live", "/v2/health/ready")
#: No answer is to be kept, shown in another page, or taken for another type; the page loads nothing from elsewhere.
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
]


class Guard:
    """ASGI middleware around `app`."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, token: str | None, timeout: float) -> None:
        self._app, self._metrics, self._timeout = app, metrics, timeout
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, scope, receive)
        started = time.perf_counter()
        self._metrics.begin()
        try:
            await self._answer(scope, answer)
        finally:
            route = scope.get("resnext.route", "other")
            self._metrics.end(route, _method(scope), answer.status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, answer: _Answer) -> None:
        try:
            with anyio.fail_after(self._timeout):
                try:
                    self._check_token(scope)
                    await self._app(scope, answer.receive, answer.send)
                except Refused as refused:
                    await answer.refuse(refused)
                except Exception:  # a bug: the client learns that there is one, the log which
                    log.exception("%s %s", scope["method"], ascii(scope["path"])[:200])
                    await answer.refuse(Refused(500, "an internal error; the log of the service says which"))
        except TimeoutError:
            if answer.started:  # a client that does not take its answer: the server closes the connection
                return
            late = Refused(504, f"not answered within {self._timeout:g} s", retry_after=1)
            slow = Refused(408, f"the request did not arrive within {self._timeout:g} s")
            await answer.refuse(late if answer.complete else slow)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in OPEN:
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        given_bytes = given.strip().encode("latin-1", "replace")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given_bytes, self._token):
            raise Refused(401, "a bearer token is needed: Authorization: Bearer TOKEN")


class _Answer:
    """The two ends of a request, watched: what has arrived, what has been sent."""

    def __init__(self, send: Send, scope: Scope, receive: Receive) -> None:
        self._send, self._receive, self._scope = send, receive, scope
        self.status, self.started, self.complete = 499, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.complete = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Send an error, unless an answer has begun."""
        if self.started:
            return
        body = json.dumps({"error": refused.message}).encode()
        headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if refused.retry_after is not None:
            headers.append((b"retry-after", str(refused.retry_after).encode()))
        if refused.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        start: dict[str, Any] = {"type": "http.response.start", "status": refused.status, "headers": headers}
        await self.send(start)
        await self.send(
            {"type": "http.response.body", "body": b"" if self._scope["method"] == "HEAD" else body}
        )


def _method(scope: Scope) -> str:
    """Return the method, of which a client must not invent more than there are."""
    method = scope["method"]
    return method if method in ("GET", "HEAD", "POST") else "other"
