"""Training on features of other programs: the same student on the same grid, by area on another, and refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lrmil_training.config import build_config
from lrmil_training.data.cohort import read_cohort
from lrmil_training.data.features import FeatureRequest, find_encoder
from lrmil_training.data.hr_features import (
    HrIntake,
    find_hr_folder,
    source_fingerprint,
    take_features,
    take_request,
)
from lrmil_training.data.hr_placement import grid_of_features, require_plan
from lrmil_training.data.hr_sample import LEAST_COSINE
from lrmil_training.dry_run import DryRun, dry_run
from lrmil_training.stages.run_context import RunContext
from lrmil_training.train import train
from napari_lrmil.core.encoders import save_encoder
from napari_lrmil.core.errors import CohortError, ConfigError, LrmilError
from napari_lrmil.core.events import Event, Failed, Finished, Notice
from napari_lrmil.core.features.bag import Bag, read_bag, read_origin
from napari_lrmil.core.features.layouts.proof import ProvenPatches
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import PlacedGrid
from support import foreign_features as ff
from support.networks import untrained_encoder
from support.phantoms import copy_cohort
from support.trained import SHORT, TINY

CPU = torch.device("cpu")


class Lab:
    """A cohort, an encoder, the features that a run of ours made of it, and its student.

    Features are rounded to float16, so that files of STAMP, which have no more, lose nothing.
    """

    def __init__(self, folder: Path, phantoms: Path) -> None:
        self.cohort = copy_cohort(phantoms, folder / "cohort", train=4, val=2, test=2)
        save_encoder(folder / "encoder.safetensors", untrained_encoder())
        self.encoder = str(folder / "encoder.safetensors")
        self.run = folder / "run"
        self.train(self.run)
        (high,) = (self.run / "features").glob("20x_*/features_*")
        self.bags = [read_bag(file) for file in sorted(high.glob("*.h5"))]

    def train(self, out: Path, **changes: Any) -> list[Event]:
        """Train a run, whose loss has no layer term."""
        stage1 = {"epochs": 1, "lambda_layer": 0.0, **changes.pop("stage1", {})}
        values = TINY | SHORT | {"encoder": {"teacher": self.encoder}, "stage1": stage1, "baselines": ()} | changes
        return list(train(self.cohort, out, build_config(values), CPU))

    def write(self, folder: Path, write: Callable[[Path, Bag], Path]) -> Path:
        """Write the features of all slides in a layout."""
        for bag in self.bags:
            out = write(folder, bag)
        return out

    def moved(self, by: int) -> list[Bag]:
        """Return the features as those of patches that lie elsewhere."""
        return [replace(bag, coords=bag.coords + by) for bag in self.bags]

    def dry_run(self, **changes: Any) -> DryRun:
        """Return what a dry run says."""
        end = self.dry_run_events(**changes)[-1]
        assert isinstance(end, Finished) and isinstance(end.result, DryRun)
        return end.result

    def dry_run_events(self, **changes: Any) -> list[Event]:
        """Return the events of a dry run."""
        values = TINY | {"encoder": {"teacher": self.encoder}, "stage1": {"epochs": 0}} | changes
        return list(dry_run(self.cohort, self.run.parent / "none", build_config(values), "cpu"))

    def take(self, out: Path, **changes: Any) -> tuple[list[Event], list[Path]]:
        """Take features without fitting anything; return the events and the copies."""
        config = build_config(TINY | {"encoder": {"teacher": self.encoder}} | changes)
        loaded = find_encoder(self.encoder)
        request = take_request(
            config, FeatureRequest(loaded.encoder, "e", loaded.sha256, config.plan, high=True, folder=out)
        )
        slides = read_cohort(self.cohort, seed=0).slides
        intake = HrIntake(find_hr_folder(config), config, request, loaded, CPU)
        return list(take_features(slides, intake)), [request.path(slide) for slide in slides]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), phantoms)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Bundle(run / "bundle").student.state_dict()


def write_halves(lab: Lab, folder: Path, write: Callable[[Path, Bag], Path]) -> Path:
    """Write the first half of each slide's features."""
    for bag in lab.bags:
        count = len(bag) // 2
        out = write(folder, replace(bag, coords=bag.coords[:count], features=bag.features[:count]))
    return out


def write_dense(lab: Lab, folder: Path) -> Path:
    """Write features of patches that overlap by half, in CLAM's layout; their mapping is patch=64."""
    for bag in lab.bags:
        shifted = replace(bag, coords=bag.coords + 32)
        both = np.concatenate([bag.coords, shifted.coords]), np.concatenate([bag.features, bag.features])
        inside = (both[0] < bag.origin.level0_size).all(axis=1)
        dense = replace(bag, coords=both[0][inside], features=both[1][inside])
        out = ff.write_clam(folder, dense)
    return out


def notices(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Notice))


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and bytes of all files below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.mark.parametrize("name", ff.LAYOUTS)
def test_every_layout_gives_the_arrays_that_a_run_of_ours_makes(name: str, lab: Lab, tmp_path: Path) -> None:
    """Files are only read; how many seconds were saved is said."""
    write, mapping = ff.LAYOUTS[name]
    folder = lab.write(tmp_path / "features", write)
    before = content(tmp_path / "features")
    events, copies = lab.take(tmp_path / "copies", hr_features=folder, hr_mapping=mapping)
    assert content(tmp_path / "features") == before
    for own, copy in zip(lab.bags, sorted(copies), strict=True):
        bag = read_bag(copy)
        np.testing.assert_array_equal(bag.features, own.features)
        np.testing.assert_array_equal(bag.coords, own.coords)
        assert replace(bag.origin, source="", encoder="", pixels_decoded=None, cpu_seconds=None) == replace(
            own.origin, encoder="", pixels_decoded=None, cpu_seconds=None
        )
    text = notices(events)
    assert text.index("no layers of the encoder") < text.index("HR patches are not encoded"), "before it begins"
    assert "HR patches are not encoded" in text and "saved" in text and "cosine 1.0000" in text
    assert "do not nest" not in text


def test_the_same_student_whoever_encoded_the_patches(lab: Lab, tmp_path: Path) -> None:
    """The test above says that the other layouts give the same arrays."""
    folder = lab.write(tmp_path / "features", ff.write_stamp)
    lab.train(tmp_path / "run", hr_features=folder)
    student = weights(tmp_path / "run")
    for key, values in weights(lab.run).items():
        torch.testing.assert_close(student[key], values, rtol=0, atol=1e-6)


def test_what_was_taken_is_not_taken_again_unless_the_file_changes(lab: Lab, tmp_path: Path) -> None:
    """The key of every fit carries the content, not the time of the file."""
    folder = lab.write(tmp_path / "features", ff.write_trident)
    _, copies = lab.take(tmp_path / "copies", hr_features=folder)
    first, fingerprint = content(tmp_path / "copies"), source_fingerprint(copies)
    events, _ = lab.take(tmp_path / "copies", hr_features=folder)
    assert "none encoded now" in notices(events) and content(tmp_path / "copies") == first
    file = next(folder.rglob("train*.h5"))
    file.touch()
    lab.take(tmp_path / "copies", hr_features=folder)
    assert content(tmp_path / "copies") != first and source_fingerprint(copies) == fingerprint
    with h5py.File(file, "r+") as h5:
        h5["features"][0] *= 1.001
    lab.take(tmp_path / "copies", hr_features=folder)
    assert source_fingerprint(copies) != fingerprint
    own = RunContext(build_config({}), read_cohort(lab.cohort, seed=0), tmp_path, CPU, find_encoder(lab.encoder))
    plans = [replace(own, hr_source=text).fit_plan("teacher", own.config.teacher).key for text in ("", "a", "b")]
    assert len(set(plans)) == 3


def test_a_grid_with_another_origin_nests_as_it_is(lab: Lab, tmp_path: Path) -> None:
    """LR patches begin where the HR patches do."""
    for bag in lab.moved(17):
        folder = ff.write_clam(tmp_path / "features", bag)
    events, _ = lab.take(tmp_path / "run", hr_features=folder, hr_check=0)
    assert "do not nest" not in notices(events) and "none encoded now" in notices(events)
    copy = next((tmp_path / "run").rglob("*-from-clam-*/train*.h5"))
    origin, coords = read_origin(copy)
    grid = grid_of_features(origin, coords, PatchPlan(0.5, 2.0, 64, 64))
    assert not isinstance(grid, PlacedGrid) and origin.origin_level0[0] % 64 == 17
    np.testing.assert_array_equal(grid.hr_corners, coords)


def test_patches_that_do_not_nest_go_to_the_lr_patch_that_holds_most(lab: Lab, tmp_path: Path) -> None:
    """Half-overlapping patches: the share that falls apart is said, and the run ends with maps and agreement."""
    folder = write_dense(lab, tmp_path / "features")
    events = lab.train(tmp_path / "run", hr_features=folder, hr_check=0, hr_mapping=("patch=64",))
    assert "do not nest into LR patches" in notices(events) and "of their area lies in others" in notices(events)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["student"]["test"]["agreement"]["spearman"] is not None
    assert metrics["teacher"]["test"]["cost"]["pixels_per_slide"] is None  # nothing was read


def test_features_of_another_encoder_or_order_are_refused(lab: Lab, tmp_path: Path) -> None:
    """One slide is listed; if it is all of them, the run does not begin."""
    for i, bag in enumerate(lab.bags):
        features = bag.features[::-1] * np.float32(1 if i else -1) if i == 0 else bag.features
        folder = ff.write_trident(tmp_path / "features", replace(bag, features=np.ascontiguousarray(features)))
    events = lab.train(tmp_path / "run", hr_features=folder)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert f"expected {LEAST_COSINE} or more" in failed.message
    assert f"encoded again by {find_encoder(lab.encoder).spec.full_name} have" in failed.message
    assert failed.subject in (tmp_path / "run" / "failures.csv").read_text()
    for bag in lab.bags:
        ff.write_trident(tmp_path / "all", replace(bag, features=-bag.features))
    with pytest.raises(CohortError, match=r"of no slide can be used.*cosine of -1"):
        lab.train(tmp_path / "run2", hr_features=tmp_path / "all")
    with (tmp_path / "run2" / "failures.csv").open(newline="") as file:
        listed = {row["slide"]: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {bag.origin.slide for bag in lab.bags}
    assert all("have a cosine of -1" in reason for reason in listed.values())


def test_what_cannot_be_the_teachers_features_is_refused_before_any_work(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(
        tmp_path / "narrow", lambda to, bag: ff.write_trident(to, replace(bag, features=bag.features[:, :3]))
    )
    with pytest.raises(ConfigError, match=r"features of resnet of 3 dimensions.*--set encoder.teacher"):
        lab.train(tmp_path / "run", hr_features=folder)
    assert not (tmp_path / "run").exists()
    ff.write_stamp(tmp_path / "others", replace(lab.bags[0], origin=replace(lab.bags[0].origin, slide="other")))
    with pytest.raises(ConfigError, match=r"no features of the cohort.s slides.*files other"):
        lab.train(tmp_path / "run", hr_features=tmp_path / "others")


def test_a_dry_run_counts_no_encoding_and_checks_every_slide(lab: Lab, tmp_path: Path) -> None:
    """Half of a slide's patches are counted as they are; what a training would refuse is a problem now."""
    folder = lab.write(tmp_path / "features", ff.write_trident)
    whole = lab.dry_run(hr_features=folder)
    assert any("HR         features of" in line for line in whole.plan)
    assert any("every slide has HR features" in line for line in whole.passed) and not whole.problems
    half = write_halves(lab, tmp_path / "half", ff.write_trident)
    count = sum(len(bag) // 2 for bag in lab.bags)
    assert any(f"{count:,} HR" in line for line in lab.dry_run(hr_features=half).cost)
    missing, other = (bag.origin.slide for bag in lab.bags[:2])
    next(folder.rglob(f"{missing}.h5")).unlink()
    with h5py.File(next(folder.rglob(f"{other}.h5")), "r+") as file:
        file["coords"][0] = 10**6
    first, second = lab.dry_run(hr_features=folder).problems
    assert f"no features of slide {missing}" in first and "lie outside the slide" in second
    with pytest.raises(ConfigError, match="no such folder"):
        lab.dry_run(hr_features=tmp_path / "no")


def test_a_dry_run_refuses_a_grid_that_on_the_fly_cannot_read(lab: Lab, tmp_path: Path) -> None:
    changes = {"hr_features": write_dense(lab, tmp_path / "features"), "hr_mapping": ("patch=64",)}
    problems = lab.dry_run(**changes, stage1={"epochs": 1, "targets": "on_the_fly"}).problems
    (problem,) = problems  # the same sentence for every slide
    assert problem.startswith(f"{len(lab.bags)} of {len(lab.bags)} slides: its grid does not nest")
    assert "stage1.targets=on_the_fly" in problem
    assert not lab.dry_run(**changes).problems


def test_without_the_encoder_the_student_is_the_same_and_the_bundle_has_no_teacher(lab: Lab, tmp_path: Path) -> None:
    """The features alone are needed; that nothing was encoded again is said, and the terms of the encoder stay."""
    folder = lab.write(tmp_path / "features", ff.write_trident)
    named = {"teacher": lab.encoder, "student": lab.encoder}
    lab.train(tmp_path / "named", hr_features=folder, encoder=named)
    events = lab.train(tmp_path / "run", hr_features=folder, encoder=named | {"teacher": "none"})
    assert "not at hand" in notices(events) and "none encoded now" in notices(events)
    student = weights(tmp_path / "run")
    for key, values in weights(tmp_path / "named").items():
        torch.testing.assert_close(student[key], values, rtol=0, atol=1e-6)
    card = Bundle(tmp_path / "run" / "bundle").card
    assert card.distilled and card.teacher is None and "unknown" in card.licence
    assert "teacher's encoder: resnet; its features were given" in (tmp_path / "run/bundle/README.md").read_text()
    assert "teacher" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    result = lab.dry_run(hr_features=folder, encoder=named | {"teacher": "none"})
    assert any("no patches of each slide are encoded again" in line for line in result.plan) and not result.problems


def test_a_reduction_needs_no_encoder(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(tmp_path / "features", ff.write_trident)
    encoder = {"teacher": "none", "student": lab.encoder, "pca": 8}
    lab.train(tmp_path / "run", hr_features=folder, encoder=encoder, stage1={"epochs": 0})
    assert Bundle(tmp_path / "run" / "bundle").card.teacher is None


def test_a_slide_without_features_is_listed(lab: Lab, tmp_path: Path) -> None:
    folder = lab.write(tmp_path / "features", ff.write_stamp)
    next(folder.glob("test*.h5")).unlink()
    events, _ = lab.take(tmp_path / "run", hr_features=folder)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert "no features of slide test" in failed.message


def test_a_file_with_half_of_the_tissue_is_told(lab: Lab, tmp_path: Path) -> None:
    whole = lab.write(tmp_path / "whole", ff.write_stamp)
    assert "have no features" not in notices(lab.take(tmp_path / "run", hr_features=whole)[0])
    half = write_halves(lab, tmp_path / "half", ff.write_stamp)
    text = notices(lab.take(tmp_path / "other", hr_features=half)[0])
    planned = notices(lab.dry_run_events(hr_features=half))
    for bag in lab.bags:
        sentence = f"{len(bag) - len(bag) // 2} of {len(bag)} HR patches of tissue have no features"
        assert sentence in text and sentence in planned


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distil": False}, "the run has none"),
        ({"stain": {"normalise": "reinhard"}}, "stain.normalise"),
        ({"stage1": {"lambda_attn": 0, "epochs": 1}}, "raise stage1.lambda_attn"),
        ({"encoder": {"teacher": "none"}}, "encoder.student=teacher copies"),
        (
            {"encoder": {"teacher": "none", "student": "convnext_atto"}, "hr_features": None},
            "there are none; name both",
        ),
        ({"encoder": {"teacher": "none", "student": "convnext_atto", "teacher_layers": ["a"]}}, "has none"),
        (
            {"encoder": {"teacher": "none", "student": "convnext_atto"}, "stage1": {"targets": "on_the_fly"}},
            "encodes HR patches",
        ),
        ({"selection": {"layers": ["block_12"], "inner_folds": 2}}, "selection.layers"),
    ],
)
def test_settings_that_need_hr_pixels_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LrmilError, match=sentence):
        build_config({"hr_features": "somewhere", **changes})


PLAN = PatchPlan(0.5, 2.0, 64, 64)
PATCHES = ProvenPatches(np.array([[0, 0], [64, 0]]), 64, 0.5, 64)


@pytest.mark.parametrize(
    ("changes", "mpp0", "sentence"),
    [
        ({}, 0.25, "set hr_mpp=0.25|hr_mpp=0.25 --set hr_patch_px=64"),
        ({"side": 512, "mpp": 4.0}, 0.5, "larger than LR patches"),
        (
            {"side": 128, "patch_px": 128},
            0.5,
            "`features --patch-px 64`.*hr_mpp=0.5 --set hr_patch_px=128",
        ),
        ({"side": 128, "mpp": None, "patch_px": None}, 0.5, "are not HR patches of 32 µm"),
    ],
)
def test_patches_of_another_plan_are_refused_with_the_setting(
    changes: dict[str, Any], mpp0: float, sentence: str
) -> None:
    patches = replace(PATCHES, **({"mpp": PATCHES.side * mpp0 / 64} | changes))
    with pytest.raises(LrmilError, match=sentence):
        require_plan(patches, mpp0, PLAN, Path("file.h5"))
