"""Whether OpenVINO is here, without importing it: its import alone would report to somebody."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from resnext_core.testing.base import required

INSTALLED = find_spec("openvino") is not None
#: RESNEXT_REQUIRE=openvino makes its absence a failure.
needs_openvino = pytest.mark.skipif(
    not INSTALLED and not required("openvino"), reason="openvino is not installed: pip install openvino"
)
