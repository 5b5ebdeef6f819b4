"""resnext: ResNeXt trained on any accelerator, served from any runtime, with the same numbers.

This package is the backend-neutral core. It imports no deep-learning framework. Its Python API, the functions of
:mod:`resnext_core.api`, is imported when it is first used::

    import resnext_core as rx

    run = rx.train("photos", recipe="photos")
    print(rx.evaluate(run))
    print(rx.load(run).predict("photo.jpg"))
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which this module need not import

if TYPE_CHECKING:
    from typing import Any

    from resnext_core.api import average, evaluate, evaluate_sizes, export, load, run, train, validate
    from resnext_core.errors import BackendUnavailable, DataError, Interrupted, ResnextError, UsageError

__version__ = "0.1.0"

#: Version of the contract between core and backends (:mod:`resnext_core.interfaces`).
API_VERSION = 2

__all__ = [
    "API_VERSION",
    "BackendUnavailable",
    "DataError",
    "Interrupted",
    "ResnextError",
    "UsageError",
    "__version__",
    "average",
    "evaluate",
    "evaluate_sizes",
    "export",
    "load",
    "run",
    "train",
    "validate",
]

#: What is imported when it is first used, from which module.
_LAZY = {
    **dict.fromkeys(
        ("average", "evaluate", "evaluate_sizes", "export", "load", "run", "train", "validate"),
        "resnext_core.api",
    ),
    **dict.fromkeys(
        ("BackendUnavailable", "DataError", "Interrupted", "ResnextError", "UsageError"),
        "resnext_core.errors",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
