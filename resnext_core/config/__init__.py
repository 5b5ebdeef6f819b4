"""Configuration: typed sections, merged from recipe, user file and ``--set``, with where each value came from."""

from resnext_core.config.loading import Layer as Layer
from resnext_core.config.loading import load_config as load_config
from resnext_core.config.loading import parse_set as parse_set
from resnext_core.config.loading import read_layer as read_layer
from resnext_core.config.sections import SECTIONS as SECTIONS
from resnext_core.config.sections import AugmentConfig as AugmentConfig
from resnext_core.config.sections import Config as Config
from resnext_core.config.sections import DataConfig as DataConfig
from resnext_core.config.sections import EvalConfig as EvalConfig
from resnext_core.config.sections import ExportConfig as ExportConfig
from resnext_core.config.sections import LossConfig as LossConfig
from resnext_core.config.sections import ModelConfig as ModelConfig
from resnext_core.config.sections import OptimizerConfig as OptimizerConfig
from resnext_core.config.sections import OutputConfig as OutputConfig
from resnext_core.config.sections import PrecisionConfig as PrecisionConfig
from resnext_core.config.sections import PreprocessConfig as PreprocessConfig
from resnext_core.config.sections import ScheduleConfig as ScheduleConfig
from resnext_core.config.sections import TrainConfig as TrainConfig
