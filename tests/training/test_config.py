"""Configuration: YAML, settings laid over it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrmil_training.config import TrainConfig, build_config, dump_config, load_config
from napari_lrmil.core.errors import ConfigError, GeometryError


def test_yaml_goes_round(tmp_path: Path) -> None:
    """The resolved configuration that a run stores gives the same run again."""
    config = load_config(None, ["stage1.layers=[block_6, block_12]", "stage2.init=frozen_head", "student_input_px=128"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert config.stage1.layers == ("block_6", "block_12")


def test_settings_win_over_the_file(tmp_path: Path) -> None:
    """``--set`` is laid over the file, the rest of the group stays."""
    file = tmp_path / "c.yaml"
    file.write_text("stage1: {epochs: 3, lr: 0.01}\nseed: 7\n")
    config = load_config(file, ["stage1.epochs=5"])
    assert (config.stage1.epochs, config.stage1.lr, config.seed) == (5, 0.01, 7)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("stage1.lamda=1", "key 'stage1.lamda'"),
        ("teacher.epochs=0", "key 'teacher.epochs'"),
        ("stage1", "expected key=value"),
        ("seed.x=1", "key 'seed'"),
        ("name=[", "not readable as YAML"),
        ("stage1.epoch=3", "'stage1.epoch' is unknown; there are: .*stage1.epochs"),
    ],
)
def test_unknown_and_impossible_settings_are_refused(setting: str, said: str) -> None:
    """The sentence names the key."""
    with pytest.raises(ConfigError, match=said):
        load_config(None, [setting])


def test_resolutions_that_do_not_nest_are_refused() -> None:
    """An LR patch must hold a whole number of HR patches."""
    with pytest.raises(GeometryError, match="whole number"):
        build_config({"lr_patch_px": 200})


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ratios_of_the_method(n: int) -> None:
    """N = 2, 4 and 8 follow from resolution and patch size."""
    assert TrainConfig(lr_mpp=0.5 * n).plan.n == n


def test_demo_configuration_is_valid() -> None:
    """The file that the shipped bundle was trained with builds."""
    demo = load_config(Path(__file__).parents[2] / "benchmarks" / "demo.yaml")
    assert demo.plan.n == 4
