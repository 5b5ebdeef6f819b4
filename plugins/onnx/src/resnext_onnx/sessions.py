"""What a session is: one graph, loaded by a runtime, that maps an array to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class SessionError(Exception):
    """A runtime refused a graph or could not run it; the text is the runtime's own words on one line."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output of a graph.

    `dtype` is NumPy's name of the type, or the runtime's own name where it is neither uint8 nor float32. `shape` has
    None where any length is taken.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Session(Protocol):
    """A graph that was loaded. It is released with the last reference to it."""

    @property
    def inputs(self) -> Sequence[Value]:
        """The inputs of the graph as it was loaded."""
        ...

    @property
    def outputs(self) -> Sequence[Value]:
        """The outputs of the graph as it was loaded."""
        ...

    def run(self, name: str, array: Array) -> Array:
        """Return the output ``logits`` for `array` at the input `name`; SessionError where the run fails."""
        ...


class Runtime(Protocol):
    """What loads graphs: a library with its settings.

    `name` is what its errors call it. `on_cpu` is False where a device other than the CPU computes, so that a verified
    file can fail through no fault of its own. `computes_on` is the predictor's, see
    :class:`resnext_core.interfaces.Predictor`. `precision` is what float32 layers are computed in where that is fewer
    bits, else None.
    """

    name: str
    on_cpu: bool
    computes_on: str
    precision: str | None

    def session(self, data: bytes, *, precision: str) -> Session:
        """Load the ONNX file `data`, whose manifest states `precision` (``float32``, ``int8``, ...).

        Raises SessionError where the runtime refuses the graph, BackendUnavailable where it lacks something here.
        """
        ...
