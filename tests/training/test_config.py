"""Configuration: YAML, settings applied to it, and refused values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from lrmil_training.config import TrainConfig, build_config, describe_differences, dump_config, load_config
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
    ("setting", "message"),
    [
        ("stage1.lamda=1", "key 'stage1.lamda'"),
        ("teacher.epochs=0", "key 'teacher.epochs'"),
        ("stage1", "expected key=value"),
        ("seed.x=1", "key 'seed'"),
        ("name=[", "not readable as YAML"),
        ("stage1.epoch=3", "'stage1.epoch' is unknown; available: .*stage1.epochs"),
        ("loggers=paper", "key 'loggers.0'"),
        ("bootstrap=many", "key 'bootstrap'.*got 'many'"),
        ("stage3.lr=fast", "key 'stage3.lr.0'"),
    ],
)
def test_unknown_and_impossible_settings_are_refused(setting: str, message: str) -> None:
    """The sentence names the key."""
    with pytest.raises(ConfigError, match=message):
        load_config(None, [setting])


@pytest.mark.parametrize(
    ("setting", "group", "key", "expected"),
    [
        ("stage3.lr=1e-4", "stage3", "lr", (1e-4,)),
        ("stage3.lr=3", "stage3", "lr", (3.0,)),
        ("stage3.lr=[1e-4, 3e-4]", "stage3", "lr", (1e-4, 3e-4)),
        ("stage3.lr=1e-4, 3e-4", "stage3", "lr", (1e-4, 3e-4)),
        ("stage1.lr=1e-4", "stage1", "lr", 1e-4),
        ("stage1.layers=block_6", "stage1", "layers", ("block_6",)),
        ("baselines=labels_only", "", "baselines", ("labels_only",)),
        ("baselines=labels_only,both", "", "baselines", ("labels_only", "both")),
        ("baselines=[]", "", "baselines", ()),
        ("loggers=csv", "", "loggers", ("csv",)),
        ("bootstrap=1e3", "", "bootstrap", 1000),
        ("student_input_px=1e2", "", "student_input_px", 100),
        ("precision=32", "", "precision", "32"),
        ("name=12", "", "name", "12"),
    ],
)
def test_values_may_be_written_as_people_write_them(setting: str, group: str, key: str, expected: object) -> None:
    """YAML reads 1e-4 as text and 32 as a number; one of a list needs no brackets; the run's file repeats it."""
    config = load_config(None, [setting])
    assert getattr(getattr(config, group) if group else config, key) == expected
    assert build_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("written", ["1:30", "1.10", "yes", "Off", "1_000", "0x10", "2024-01-02", "'010'", "="])
def test_text_is_what_is_written(tmp_path: Path, written: str) -> None:
    """YAML 1.1 would make these 90, 1.1, true, false, 1000, 16, a date, and an error."""
    file = tmp_path / "c.yaml"
    file.write_text(f"name: {written}\n")
    for config in (load_config(file), load_config(None, [f"name={written}"])):
        assert config.name == written.strip("'")
        file.write_text(dump_config(config))
        assert load_config(file) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("teacher.epochs=1:30", "teacher.epochs.*got '1:30'"),
        ("teacher.epochs=0x10", "teacher.epochs.*got '0x10'"),
        ("teacher.epochs=010", "010 is 8-based to YAML; write 10, or quote it if it is a name"),
        ("teacher.epochs=yes", "teacher.epochs.*got 'yes'"),
        ("teacher.epochs=true", "teacher.epochs.*expected a number"),
        ("teacher.lr=1:30.5", "teacher.lr.*got '1:30.5'"),
        ("teacher.epochs=2024-01-02", "teacher.epochs.*got '2024-01-02'"),
        ("features=off", "features.*expected a folder.*write ./off"),
        ("stage1.augment=2", "stage1.augment.*got '2'"),
    ],
)
def test_a_value_that_yaml_would_convert_without_a_word_is_quoted_and_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [setting])


def test_truth_values_may_be_words() -> None:
    for word, expected in (("yes", True), ("off", False), ("true", True), ("False", False)):
        assert load_config(None, [f"stage1.augment={word}"]).stage1.augment is expected


def test_weights_that_leave_nothing_are_refused() -> None:
    """In stage 1 where it is fitted, and in a stage 3 that keeps stage 2's terms."""
    none = {"lambda_layer": 0, "lambda_attn": 0}
    with pytest.raises(ConfigError, match=r"raise lambda_layer or lambda_attn, or set stage1\.epochs=0"):
        build_config({"stage1": none})
    build_config({"stage1": none | {"epochs": 0}})
    unfitted = {"init": "frozen_head", "lambda_ce": 0, "lambda_bag": 0, "lambda_soft": 0}
    with pytest.raises(ConfigError, match=r"configuration: .*set stage3\.keep_stage2_terms=false"):
        build_config({"stage2": unfitted, "stage3": {"epochs": 1}})
    build_config({"stage2": unfitted, "stage3": {"epochs": 1, "keep_stage2_terms": False}})


def test_the_papers_maps_need_no_projection() -> None:
    """Its student is a copy of the teacher; the identity serves where widths agree."""
    paper = load_config("paper")
    assert (paper.stage1.projection, paper.encoder.student) == ("identity", "teacher")


def test_every_key_has_its_reason() -> None:
    """A sentence below its line, which the window shows beside the field."""
    groups = [value for _, value in TrainConfig() if isinstance(value, BaseModel)]
    sentences = {
        f"{type(model).__name__}.{name}": field.description
        for model in (TrainConfig(), *groups)
        for name, field in type(model).model_fields.items()
    }
    assert len(sentences) > 60
    assert not [key for key, sentence in sentences.items() if not sentence or not sentence.endswith(".")]


def test_resolutions_that_do_not_nest_are_refused() -> None:
    """An LR patch must hold a whole number of HR patches."""
    with pytest.raises(GeometryError, match="whole number"):
        build_config({"lr_patch_px": 200})


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ratios_of_the_method(n: int) -> None:
    """N = 2, 4 and 8 follow from resolution and patch size."""
    assert TrainConfig(lr_mpp=0.5 * n).plan.n == n


def test_demo_configuration_is_valid() -> None:
    """The preset that the shipped model was trained with builds."""
    demo = load_config("demo")
    assert demo.plan.n == 4 and demo.seed == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("teacher: {lr: .inf}", "'teacher.lr': Input should be a valid number"),
        ("teacher: {lr: inf}", "'teacher.lr': Input should be a finite number, got 'inf'"),
        ("stage3: {lr: [1e-4, nan]}", "'stage3.lr.1': Input should be a finite number"),
        ("stage2: {lambda_ce: .inf}", "'stage2.lambda_ce'"),
        ("lr_mpp: .inf", "'lr_mpp'"),
        ("folds: 1", "1 folds leave nothing to learn from; take 3 or more"),
        ("stage1: {epochs: true}", "expected a number, got True"),
        ("stage1: {batch_size: 1000000000000}", "less than or equal to"),
        ("seed: 1\nseed: 2", "the key 'seed' is written twice"),
        ("teacher:", "'teacher' has no value"),
        ("seed: " + "9" * 5000, "exceeded maximum size, got '999"),
        ("[" * 5000, "nested too deeply"),
        ("name: " + "x" * 1000, "at most 200 characters"),
        ("about: " + "x" * 2_000_000, "more than 1,000,000 bytes"),
        ('features: "a\\0b"', "expected printable characters"),
    ],
)
def test_a_value_that_means_nothing_is_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        load_config(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_configuration_is_read_in_utf_16_and_refused_in_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text("about: été", encoding=encoding)
        assert load_config(path).about == "été"
    path.write_text("about: été", encoding="latin-1")
    with pytest.raises(ConfigError, match="expected YAML in UTF-8"):
        load_config(path)


def test_differences_name_keys_and_both_values() -> None:
    """Keys as --set takes them, values as a file writes them; at most five, in the order of the fields."""
    stored = load_config()
    assert describe_differences(stored, load_config()) == ""
    changed = load_config(
        settings=["stage3.lr=[1e-4, 2e-4]", "seed=9", "baselines=[]", f"about={'x' * 200}", "features=a/b"]
    )
    assert describe_differences(stored, changed).split("; ") == [
        f'about is "", this call has "{"x" * 59}…',
        "seed is 0, this call has 9",
        f"stage3.lr is {list(stored.stage3.lr)}, this call has [0.0001, 0.0002]",
        'baselines is ["labels_only"], this call has []',
        'features is null, this call has "a/b"',
    ]
    more = load_config(
        settings=["seed=1", "seeds=2", "folds=3", "hr_patch_px=64", "lr_patch_px=64", "ablation=true", "devices=2"]
    )
    assert describe_differences(stored, more).endswith("lr_patch_px is 256, this call has 64; and 2 more")
