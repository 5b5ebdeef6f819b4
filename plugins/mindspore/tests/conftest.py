"""Lets the tests import the small networks of `mindspore_cases` that they share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
