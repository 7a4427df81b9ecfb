"""The configuration: dataclasses with their limits, read from YAML files and KEY=VALUE overrides."""

from lossmix_det.config.data import AugmentConfig, DataConfig, DatasetConfig, MaskingConfig, ShapesConfig
from lossmix_det.config.fields import Settings, as_dict, check, choices, flat
from lossmix_det.config.files import load_config, overrides_set, save_config
from lossmix_det.config.mixers import CoMixupConfig, PuzzleConfig
from lossmix_det.config.mixing import MixingConfig, PairsConfig
from lossmix_det.config.model import TIMM_PREFIX, ModelConfig
from lossmix_det.config.schema import (
    AdaptationConfig,
    AlignmentConfig,
    Config,
    EmaConfig,
    OptimizerConfig,
    PseudoLabelConfig,
    TrainConfig,
)

__all__ = [
    "TIMM_PREFIX",
    "AdaptationConfig",
    "AlignmentConfig",
    "AugmentConfig",
    "CoMixupConfig",
    "Config",
    "DataConfig",
    "DatasetConfig",
    "EmaConfig",
    "MaskingConfig",
    "MixingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PairsConfig",
    "PseudoLabelConfig",
    "PuzzleConfig",
    "Settings",
    "ShapesConfig",
    "TrainConfig",
    "as_dict",
    "check",
    "choices",
    "flat",
    "load_config",
    "overrides_set",
    "save_config",
]
