"""What core's commands share: the settings that flags give, and ``--print-config``."""

from __future__ import annotations

import argparse

from resnext_core.errors import EXIT_OK
from resnext_core.jobs.settings import Resolved, Settings


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the flags of :func:`add_config_flags` give."""
    return Settings.from_flags(vars(args))


def print_config(resolved: Resolved) -> int:
    """Print the configuration with the source of each value; returns the exit code."""
    print(resolved.to_text())
    return EXIT_OK
