"""Configuration: typed sections, merged from recipe, user file and ``--set``, with where each value came from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from resnext_core.config.sections import SECTIONS as SECTIONS
from resnext_core.config.sections import AugmentConfig as AugmentConfig
from resnext_core.config.sections import Config as Config
from resnext_core.config.sections import DataConfig as DataConfig
from resnext_core.config.sections import EvalConfig as EvalConfig
from resnext_core.config.sections import ExportConfig as ExportConfig
from resnext_core.config.sections import LossConfig as LossConfig
from resnext_core.config.sections import MixConfig as MixConfig
from resnext_core.config.sections import ModelConfig as ModelConfig
from resnext_core.config.sections import OptimizerConfig as OptimizerConfig
from resnext_core.config.sections import OutputConfig as OutputConfig
from resnext_core.config.sections import PrecisionConfig as PrecisionConfig
from resnext_core.config.sections import PreprocessConfig as PreprocessConfig
from resnext_core.config.sections import ScheduleConfig as ScheduleConfig
from resnext_core.config.sections import TrainConfig as TrainConfig
from resnext_core.config.sections import stated as stated

if TYPE_CHECKING:
    from typing import Any

    from resnext_core.config.loading import Layer as Layer
    from resnext_core.config.loading import load_config as load_config
    from resnext_core.config.loading import parse_set as parse_set
    from resnext_core.config.loading import read_layer as read_layer

#: Imported when they are first used: they need YAML, and every start of the program imports this package.
_LOADING = ("Layer", "load_config", "parse_set", "read_layer")


def __getattr__(name: str) -> Any:
    if name not in _LOADING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.loading"), name)
