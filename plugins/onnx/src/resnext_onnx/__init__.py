"""The `onnx` backend of resnext: ONNX files written from neutral weights and served by ONNX Runtime."""

from __future__ import annotations

__version__ = "0.1.0"
