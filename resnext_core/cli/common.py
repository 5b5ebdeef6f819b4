"""What every command shares: its flags, and the settings that they give."""

from __future__ import annotations

import argparse

from resnext_core.console.flags import add_config_flags as add_config_flags
from resnext_core.console.flags import add_devices_flag as add_devices_flag
from resnext_core.console.flags import add_json_flag as add_json_flag
from resnext_core.console.flags import add_resume_flag as add_resume_flag
from resnext_core.console.flags import add_split_flag as add_split_flag
from resnext_core.console.flags import add_weights_flag as add_weights_flag
from resnext_core.console.flags import positive as positive
from resnext_core.console.flags import resume_of as resume_of
from resnext_core.errors import EXIT_OK
from resnext_core.jobs.settings import Resolved, Settings


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the flags of :func:`add_config_flags` give."""
    return Settings.from_flags(vars(args))


def print_config(resolved: Resolved) -> int:
    """Print the configuration with the source of each value; returns the exit code."""
    print(resolved.to_text())
    return EXIT_OK
