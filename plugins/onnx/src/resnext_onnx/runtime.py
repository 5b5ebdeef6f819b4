"""ONNX Runtime, imported so that it reports to nobody.

Since 1.32 its wheels send usage events to Microsoft and keep an identifier of the device in ``~/.cache``, unless the
variable ORT_DISABLE_TELEMETRY is set before the library is loaded (onnxruntime/Privacy.md). Whoever wants that sets it
to 0.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as onnxruntime  # type: ignore[import-untyped, unused-ignore]

if os.environ["ORT_DISABLE_TELEMETRY"] != "0":  # the program may have imported it before
    onnxruntime.disable_telemetry_events()
