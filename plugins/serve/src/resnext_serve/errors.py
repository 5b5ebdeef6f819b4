"""What a request is answered with when it cannot be answered with a result."""

from __future__ import annotations


class Refused(Exception):
    """A request that is refused: the HTTP `status`, a line for the client, and after how many seconds to try again."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
