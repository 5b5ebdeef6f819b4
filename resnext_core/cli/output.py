"""The output of commands; see :mod:`resnext_core.console.output`."""

from resnext_core.console.output import Output as Output
from resnext_core.console.output import ProgressBar as ProgressBar
from resnext_core.console.output import table as table
