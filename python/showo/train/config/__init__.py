"""Training configuration: dataclasses, read from YAML with key=value overrides; unknown keys are errors."""

from showo.train.config.image_tokenizer import TokenizerTraining
from showo.train.config.loading import load_config, to_yaml
from showo.train.config.loop import LoopConfig, OptimizerConfig
from showo.train.config.showo import ShowoTraining
from showo.train.config.streams import Stream

__all__ = ["LoopConfig", "OptimizerConfig", "ShowoTraining", "Stream", "TokenizerTraining", "load_config", "to_yaml"]
