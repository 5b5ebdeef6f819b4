"""What resnext finds through the entry point: the command ``serve``."""

from __future__ import annotations

from collections.abc import Iterator

from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import Command


@hookimpl
def resnext_commands() -> Iterator[Command]:
    """Yield the command."""
    yield Command(
        name="serve", summary="answer requests over HTTP with trained models", module="resnext_serve.command"
    )
