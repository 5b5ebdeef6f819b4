"""``resnext-run``: the command line. Each command is one file here with its parser and its handler."""

from resnext_core.cli.main import main

__all__ = ["main"]
