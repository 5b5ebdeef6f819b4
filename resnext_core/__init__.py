"""resnext: ResNeXt trained on any accelerator, served from any runtime, with the same numbers.

This package is the backend-neutral core. It imports no deep-learning framework.
"""

__version__ = "0.1.0"

#: Version of the contract between core and backends (:mod:`resnext_core.interfaces`).
API_VERSION = 2
