"""Checkpoint keys: the same across versions while new fields are neutral, another one for any other setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args, get_origin

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from lrmil_training.config import Stage1Config, TrainConfig, build_config
from lrmil_training.config_hash import FIRST_FIELDS, later_values
from lrmil_training.data.mil_head import Layer, MilHead
from lrmil_training.stages.end_to_end import EndToEnd
from lrmil_training.stages.methods import STUDENT, distilled_method
from lrmil_training.stages.patch_distillation import PatchDistillation
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.slide_distillation import SlideDistillation
from napari_lrmil.core.encoders import LoadedEncoder
from support.run_folders import synthetic_cohort

FIRST_DEFAULTS = Path(__file__).parents[1] / "formats" / "v0_1" / "default_config.yaml"
GROUPS = ("teacher", "stage1", "stage2", "stage3")
AFFECTED = {"teacher": 4, "stage1": 3, "stage2": 2, "stage3": 1}  # how many stages depend on a group, from the last
# The results of a stage depend on none of these, or it is hashed otherwise (the teacher's encoder by its weights), or a
# run folder accepts one value only (devices, precision).
NOT_HASHED = {
    *("name", "about", "seeds", "folds", "by_site", "baselines", "ablation", "bootstrap", "features", "loggers"),
    *("devices", "precision", "encoder.teacher"),
}
RUN_CHANGES: dict[str, tuple[dict[str, Any], int]] = {  # changed values, and how many stages depend on them
    "seed": ({"seed": 1}, 4),
    "hr_mpp": ({"hr_mpp": 1.0}, 4),
    "lr_mpp": ({"lr_mpp": 4.0}, 4),
    "hr_patch_px": ({"hr_patch_px": 128}, 4),
    "lr_patch_px": ({"lr_patch_px": 512}, 4),
    "class_weights": ({"class_weights": "none"}, 4),
    "student_input_px": ({"student_input_px": 224}, 3),
    "encoder.student": ({"encoder": {"student": "mobilenet_v2"}}, 3),
}


def _keys(config: TrainConfig, head: MilHead | None = None) -> dict[str, str]:
    """Return the key of every stage of the student; empty for a stage that is not fitted."""
    encoder = cast(LoadedEncoder, SimpleNamespace(sha256="0" * 64))
    cohort = synthetic_cohort(Path("cohort"), {"train": 4, "val": 2})
    context = RunContext(config, cohort, Path("run"), torch.device("cpu"), encoder, head=head)
    keys = {"teacher": context.fit_plan("teacher", config.teacher).key} | dict.fromkeys(GROUPS[1:], "")
    for stage in distilled_method(STUDENT, config).stages:
        match stage:
            case PatchDistillation():
                keys[stage.name] = context.fit_plan(stage.name, config.stage1, stage.depends).key
            case SlideDistillation() | EndToEnd():
                keys[stage.name] = context.fit_plan(stage.name, stage.settings, stage.depends).key
    return keys


def _differing(config: TrainConfig, other: TrainConfig) -> list[str]:
    keys = _keys(config)
    return [stage for stage, key in _keys(other).items() if keys[stage] != key]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by the names that ``--set`` takes."""
    flat = {}
    for name, value in values.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def test_the_fields_of_the_first_version_are_frozen() -> None:
    """Names and order are those of a file that 0.1.0 wrote: both are part of every key."""
    stored = yaml.safe_load(FIRST_DEFAULTS.read_text())
    assert FIRST_FIELDS[TrainConfig] == tuple(stored)
    for name, group in TrainConfig():
        if isinstance(group, BaseModel) and name in stored:  # not a group that was added later
            assert FIRST_FIELDS[type(group)] == tuple(stored[name])
    assert len(FIRST_FIELDS) == 6


LATER_DEFAULTS: dict[str, Any] = {  # of fields added after 0.1.0
    "compare": [],
    "distil": True,
    "encoder.pca": None,
    "encoder.teacher_layers": [],
    "exclude_artefacts": False,
    "hr_check": 4,
    "hr_features": None,
    "hr_mapping": [],
    "intended_use": "",
    "lambda_patch": 0.0,
    "sampling": "slide",
    "selection.inner_folds": 0,
    "selection.aggregators": [],
    "selection.lr": [],
    "selection.layers": [],
    "bag": "slide",
    "stain.normalise": "none",
    "split.calibration": 0.0,
    "operating_point.sensitivity": None,
    "teacher.feature_dropout": 0.0,
    "teacher.mil": None,
    "teacher.mil_classes": [],
    "teacher.patches_per_slide": None,
    "teacher.top_share": 0.15,
    "stage2.feature_dropout": 0.0,
    "stage2.patches_per_slide": None,
    "stage3.feature_dropout": 0.0,
}


def test_no_default_changes() -> None:
    """A changed default is a change of format: see `lrmil_training.config_hash`.

    A field of 0.1.0: unfinished runs that relied on the old default are refused with "another configuration"; say so
    in the changelog. A later field: runs without it would silently count as runs with the new default, so add a field
    under another name instead. A new field: check that its default computes what versions without it computed, then
    add it to `LATER_DEFAULTS`.
    """
    pinned = _flat(yaml.safe_load(FIRST_DEFAULTS.read_text())) | LATER_DEFAULTS
    assert _flat(TrainConfig().model_dump(mode="json")) == pinned, test_no_default_changes.__doc__


def test_every_field_of_a_run_is_hashed_or_named() -> None:
    """No field of 0.1.0 is forgotten here; `later_values` covers the fields that come later."""
    names = {name for name in _flat(yaml.safe_load(FIRST_DEFAULTS.read_text())) if name.split(".")[0] not in GROUPS}
    assert names == NOT_HASHED | set(RUN_CHANGES)


@pytest.mark.parametrize("name", RUN_CHANGES)
def test_another_value_of_the_run_changes_the_keys(name: str) -> None:
    """Of the stages that depend on it, and of no other: those are used again."""
    changes, affected = RUN_CHANGES[name]
    assert _differing(TrainConfig(), build_config(changes)) == list(_keys(TrainConfig()))[-affected:]


def test_words_about_the_model_change_no_key() -> None:
    """A corrected sentence on the card must not fit a run again."""
    assert _differing(TrainConfig(), build_config({"intended_use": "breast H&E"})) == []


def test_further_teachers_change_no_key() -> None:
    """Students do not learn from the teachers that are only compared."""
    assert _differing(TrainConfig(), build_config({"compare": ["abmil"]})) == []


def _other_values(kind: Any, value: Any) -> st.SearchStrategy[Any]:
    """Return what else a field accepts, as far as all fields of a type accept it."""
    if get_origin(kind) is Literal:
        values: st.SearchStrategy[Any] = st.sampled_from(get_args(kind))
    elif kind is bool:
        values = st.booleans()
    elif kind is float:
        values = st.floats(1e-9, 0.999)
    elif kind == tuple[float, ...]:
        values = st.lists(st.floats(1e-9, 1), min_size=1, max_size=4).map(tuple)
    elif kind == tuple[str, ...]:
        values = st.lists(st.text(), max_size=4).map(tuple)
    else:
        assert kind in (int, int | None), kind
        values = st.integers(2, 65_536)
    return values.filter(lambda other: bool(other != value))


BASE = build_config({"stage1": {"targets": "on_the_fly"}})  # with which every value of every field is possible
GIVEN_HEAD = ("mil", "mil_classes")  # the content of the file is part of the keys, see below
FIELDS = [(g, name) for g in GROUPS for name in type(getattr(BASE, g)).model_fields if name not in GIVEN_HEAD]


@pytest.mark.parametrize(("group", "name"), FIELDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_other_value_of_a_stage_changes_the_keys(group: str, name: str, data: st.DataObject) -> None:
    """Of its stage and of those after it; the teacher's settings are those of all."""
    part = getattr(BASE, group)
    value = data.draw(_other_values(type(part).model_fields[name].annotation, getattr(part, name)))
    other = build_config(BASE.model_dump() | {group: part.model_dump() | {name: value}})
    assert _differing(BASE, other) == list(_keys(BASE))[-AFFECTED[group] :]


def test_the_content_of_a_given_head_and_its_order_change_the_keys() -> None:
    """The name of its file does not: it may be moved. Without a head the keys are those of before."""
    layer = Layer(torch.ones(2, 3), torch.zeros(2))
    head = MilHead("CLAM_SB", layer, torch.ones(1, 2), layer, file="a.pt", sha256="0" * 64)
    heads = [None, head, replace(head, sha256="1" * 64), head.with_order([1, 0])]
    keys = [_keys(BASE, each) for each in heads]
    assert all(len({key[stage] for key in keys}) == 4 for stage in GROUPS)
    assert _keys(BASE, head.with_order([0, 1])) == _keys(BASE, replace(head, file="b.pt")) == keys[1]
    given = build_config(BASE.model_dump() | {"teacher": {"mil": "a.pt", "mil_classes": ["x", "y"]}})
    assert _keys(given) == keys[0]


class Blur(BaseModel):
    """A group of settings that 0.1.0 does not have."""

    sigma: float = 0.0
    kernel: str = "gauss"


class LaterStage1(Stage1Config):
    """Stage 1 with a field that 0.1.0 does not have."""

    drop_path: float = 0.0


class LaterConfig(TrainConfig):
    """The configuration of a later version: new fields in a group, at the top, and as a group of their own."""

    stage1: LaterStage1 = LaterStage1()
    tint: tuple[str, ...] = ()
    blur: Blur = Blur()


class EvenLaterBlur(Blur):
    """The new group with one more field."""

    passes: int = 1


class EvenLaterConfig(LaterConfig):
    """The version after that."""

    blur: EvenLaterBlur = EvenLaterBlur()


def test_new_fields_keep_the_keys_at_their_defaults() -> None:
    """Whether the default was left or written down."""
    first = _keys(TrainConfig(seed=3))
    assert _keys(LaterConfig(seed=3)) == first
    assert _keys(LaterConfig(seed=3, stage1=LaterStage1(drop_path=0.0), tint=(), blur=Blur(sigma=0.0))) == first


@pytest.mark.parametrize(
    ("changes", "affected"),
    [
        ({"stage1": LaterStage1(drop_path=0.1)}, 3),
        ({"tint": ("macenko",)}, 4),
        ({"blur": Blur(sigma=1.0)}, 4),
    ],
)
def test_new_fields_change_the_keys_at_other_values(changes: dict[str, Any], affected: int) -> None:
    """A field of a stage changes the keys from that stage on, one of the run all keys."""
    config = LaterConfig(**changes)
    assert _differing(LaterConfig(), config) == list(_keys(config))[-affected:]


def test_a_group_that_was_added_can_grow() -> None:
    """The values that a later version wrote keep their key in the version after it."""
    blurred = _keys(LaterConfig(blur=Blur(sigma=1.0)))
    assert _keys(EvenLaterConfig(blur=EvenLaterBlur(sigma=1.0))) == blurred
    assert _keys(EvenLaterConfig(blur=EvenLaterBlur(sigma=1.0, passes=2))) != blurred
    assert later_values(EvenLaterConfig(blur=EvenLaterBlur(sigma=1.0, passes=2))) == {
        "blur": {"passes": 2, "sigma": 1.0}
    }
