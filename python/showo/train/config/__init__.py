"""Training configuration: dataclasses, read from YAML with key=value overrides; unknown keys are errors."""

from showo.train.config.image_tokenizer import TokenizerTraining
from showo.train.config.loading import load_config, to_yaml
from showo.train.config.loop import LoopConfig, OptimizerConfig
from showo.train.config.shards import ShardOptions
from showo.train.config.showo import ShowoTraining
from showo.train.config.streams import Stream
from showo.train.config.vision_tower import VisionTowerTraining

__all__ = [
    "LoopConfig",
    "OptimizerConfig",
    "ShardOptions",
    "ShowoTraining",
    "Stream",
    "TokenizerTraining",
    "VisionTowerTraining",
    "load_config",
    "to_yaml",
]
