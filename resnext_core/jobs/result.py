"""What the results of jobs have in common."""

from __future__ import annotations

from typing import Any


class Result:
    """A result that a notebook shows as the command line does: by its text, not by its fields."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print for IPython."""
        printer.text(str(self))
