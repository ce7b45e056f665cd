"""Which bundles make a ladder, and what is said of those that make none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from napari_lrmil.core.errors import BundleError, ConfigError
from napari_lrmil.core.ladder.rungs import magnification_text, open_ladder
from support.ladders import OPEN, ladder_bundles, write_sets
from support.networks import untrained_bundle, untrained_encoder


def test_a_folder_of_runs_is_a_ladder_with_the_coarsest_first(tmp_path: Path) -> None:
    coarse, fine = ladder_bundles(tmp_path, 4.0, 1.0)
    ladder = open_ladder([tmp_path], teacher=True)
    assert [rung.label for rung in ladder.rungs] == ["2.5x", "10x", "20x teacher"]
    assert [bundle.sha256 for bundle in ladder.bundles] == [coarse.sha256, fine.sha256]
    assert ladder.rungs[-1].bundle is ladder.bundles[-1]  # the teacher of the finest student
    assert set(ladder.missing_text) == {"5x"}
    named = open_ladder([fine.path, coarse.path, fine.path], teacher=False)
    assert [rung.label for rung in named.rungs] == ["2.5x", "10x"]
    assert "--teacher all" in named.missing_text["20x"]
    assert named.sha256 != ladder.sha256


def test_magnifications_read_as_people_say_them() -> None:
    assert [magnification_text(mpp) for mpp in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)] == [
        "40x",
        "20x",
        "10x",
        "5x",
        "2.5x",
        "1.25x",
    ]


def test_one_rung_is_no_ladder(tmp_path: Path) -> None:
    (bundle,) = ladder_bundles(tmp_path, 2.0)
    with pytest.raises(ConfigError, match="one model at 5x is no ladder"):
        open_ladder([bundle.path], teacher=False)
    with pytest.raises(ConfigError, match="one model at 5x is no ladder"):
        open_ladder([bundle.path, bundle.path], teacher=False)


def test_two_models_of_one_resolution_are_refused(tmp_path: Path) -> None:
    ladder_bundles(tmp_path, 2.0)
    other = untrained_bundle(tmp_path / "other", name="other")
    with pytest.raises(ConfigError, match="both read 5x"):
        open_ladder([tmp_path, other.path], teacher=False)


def test_other_classes_and_other_teachers_are_refused(tmp_path: Path) -> None:
    (first,) = ladder_bundles(tmp_path, 2.0)
    other = untrained_bundle(tmp_path / "classes", lr_mpp=1.0, classes=("benign", "malignant"))
    with pytest.raises(BundleError, match="the same classes in the same order"):
        open_ladder([first.path, other.path], teacher=False)
    other = untrained_bundle(tmp_path / "teacher", lr_mpp=1.0, teachers=untrained_encoder(7))
    with pytest.raises(BundleError, match="had another teacher"):
        open_ladder([first.path, other.path], teacher=False)
    other = untrained_bundle(tmp_path / "labels", lr_mpp=1.0, teacher=False, distilled=False)
    with pytest.raises(BundleError, match="labels alone"):
        open_ladder([first.path, other.path], teacher=False)


def test_a_bundle_that_leaves_its_teacher_out_is_taken_with_a_notice(tmp_path: Path) -> None:
    (first,) = ladder_bundles(tmp_path, 2.0)
    alone = untrained_bundle(tmp_path / "alone", lr_mpp=1.0, teacher=False)
    ladder = open_ladder([first.path, alone.path], teacher=True)
    assert [rung.label for rung in ladder.rungs] == ["5x", "10x", "20x teacher"]
    assert ladder.rungs[-1].bundle.path == first.path
    (notice,) = ladder.notices
    assert str(alone.path) in notice and "may be another one" in notice
    with pytest.raises(BundleError, match="the bundle has no teacher"):
        open_ladder([alone.path], teacher=True)


def test_a_cascade_needs_sets_of_all_rungs_but_the_last(tmp_path: Path) -> None:
    ladder_bundles(tmp_path / "a", 4.0, 2.0)
    open_ladder([tmp_path / "a"], teacher=True).require_sets()
    ladder_bundles(tmp_path / "b", 4.0, score=None)
    ladder = open_ladder([tmp_path / "b"], teacher=True)
    with pytest.raises(ConfigError, match=re.escape("has no sets (the bundle has no limits)")):
        ladder.require_sets()
    for bundle in ladder_bundles(tmp_path / "c", 4.0, score=None):
        write_sets(bundle, OPEN, "patient")
    with pytest.raises(ConfigError, match=re.escape("has no sets (its limits are of patients, not of slides)")):
        open_ladder([tmp_path / "c"], teacher=True).require_sets()
