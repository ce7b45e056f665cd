"""Configuration of a training run: frozen values, presets, and YAML files."""

from lrmil_training.config.files import (
    NEW_RUNS,
    PRESETS,
    build_config,
    describe_differences,
    dump_config,
    known_keys,
    load_config,
)
from lrmil_training.config.run import UNDISTILLED_BASELINES, Baseline, TrainConfig
from lrmil_training.config.sections import (
    SMALL_STUDENTS,
    EncoderConfig,
    OperatingPointConfig,
    SelectionConfig,
    SplitConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    StainConfig,
    TeacherConfig,
    split_layers,
)

__all__ = [
    "NEW_RUNS",
    "PRESETS",
    "SMALL_STUDENTS",
    "UNDISTILLED_BASELINES",
    "Baseline",
    "EncoderConfig",
    "OperatingPointConfig",
    "SelectionConfig",
    "SplitConfig",
    "Stage1Config",
    "Stage2Config",
    "Stage3Config",
    "StainConfig",
    "TeacherConfig",
    "TrainConfig",
    "build_config",
    "describe_differences",
    "dump_config",
    "known_keys",
    "load_config",
    "split_layers",
]
