"""Phantom patients: looks of their own, shared by a patient's slides; phantoms without them are as before."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lrmil_training.data.cohort import read_cohort
from lrmil_training.data.patient_groups import count_patients
from napari_lrmil.cli import app
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.phantom import (
    LESION,
    NORMAL,
    SCANNERS,
    PhantomLook,
    PhantomPatient,
    PhantomSlide,
    draw_patient,
    make_cohort,
    paint,
)
from napari_lrmil.core.phantom.cohort import MAX_PATIENTS
from napari_lrmil.core.phantom.patients import parse_slides_per_patient
from napari_lrmil.core.slides.slide import Slide

TINY = (640, 448)
# Green of every 80th row and 100th column before phantoms had patients.
LESIONAL_GREEN = [
    [151, 173, 241, 242, 241, 119, 243], [243, 146, 172, 184, 155, 136, 238], [246, 243, 241, 242, 171, 153, 240],
    [243, 241, 240, 167, 156, 156, 240], [242, 240, 241, 177, 240, 148, 243], [243, 241, 242, 245, 241, 242, 241],
]  # fmt: skip
MARKED_GREEN = [
    [114, 164, 173, 163, 184, 91, 247], [140, 162, 111, 192, 65, 241, 242], [161, 163, 163, 64, 238, 244, 243],
    [175, 122, 65, 112, 104, 160, 242], [204, 62, 149, 106, 174, 169, 244], [241, 188, 179, 241, 241, 246, 243],
]  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def written(events: list[Event]) -> Path:
    assert isinstance(events[-1], Finished)
    return Path(events[-1].result)


def patient(number: int, size: tuple[int, int] = TINY, **changes: Any) -> PhantomPatient:
    return draw_patient(number, size, 3, "train", look=PhantomLook(), **changes)


# ---------------------------------------------------------------- without patients


@pytest.mark.parametrize(
    ("slide", "look", "green"),
    [
        (PhantomSlide("a", LESION, 11, TINY), PhantomLook(), LESIONAL_GREEN),
        (PhantomSlide("a", NORMAL, 5, TINY), PhantomLook(fold=True, pen="blue"), MARKED_GREEN),
    ],
)
def test_phantoms_without_patients_have_the_pixels_of_before(
    slide: PhantomSlide, look: PhantomLook, green: list[list[int]]
) -> None:
    """A grey level of tolerance, because processors round the exponential differently."""
    assert np.abs(paint(slide, look).pixels[40::80, 30::100, 1] - np.array(green)).max() <= 1


def test_a_cohort_without_patients_has_the_slides_of_before(tmp_path: Path) -> None:
    """Names, labels and columns are those of earlier versions, so that a cohort can be extended."""
    table = written(list(make_cohort(tmp_path, 2, TINY, 9)))
    assert table.read_text() == (
        "slide,patient,label,split\n"
        "slide-9-000.tif,P-slide-9-000,normal,train\nslide-9-001.tif,P-slide-9-001,lesion,train\n"
    )


# ---------------------------------------------------------------- patients


def test_the_slides_of_a_patient_share_its_look_and_differ_in_tissue(tmp_path: Path) -> None:
    """The table tells patient and scanner; every slide states the resolution of its scanner."""
    table = written(list(make_cohort(tmp_path, None, TINY, 3, split="train", patients=4, slides_per_patient=(2, 2))))
    rows = read(table)
    assert list(rows[0]) == ["slide", "patient", "label", "split", "scanner"]
    assert count_patients(row["patient"] for row in rows) == 4 and len(rows) == 8
    for number in range(4):
        drawn = patient(number, slides_per_patient=(2, 2))
        own = [row for row in rows if row["patient"] == drawn.name]
        assert {(row["label"], row["scanner"]) for row in own} == {(drawn.label, drawn.scanner)}
        assert len({slide.seed for slide in drawn.slides}) == len(own) == 2
        for row in own:
            with Slide(tmp_path / row["slide"]) as slide:
                assert slide.mpp.x == pytest.approx(SCANNERS[drawn.scanner].mpp, abs=1e-6)
            outlines = json.loads((tmp_path / f"{Path(row['slide']).stem}_lesions.geojson").read_text())["features"]
            assert bool(outlines) == (drawn.label == LESION)


def test_patients_differ_in_colour_more_than_the_slides_of_one() -> None:
    """The mean colour of tissue varies between patients at least twice as much as within them."""
    colours = []
    for number in range(6):
        drawn = patient(number, slides_per_patient=(2, 2))
        pixels = [paint(slide, drawn.look).pixels for slide in drawn.slides]
        colours.append([p[np.ptp(p.astype(int), axis=-1) > 25].mean(0) for p in pixels])
    by_patient = np.array(colours)  # (patients, slides, channels)
    between = by_patient.mean(1).std(0, ddof=1)
    within = by_patient.std(1, ddof=1).mean(0)
    assert between.sum() > 2 * within.sum() and between.mean() > 3


def test_a_larger_cohort_begins_with_the_patients_of_a_smaller_one() -> None:
    """Learning curves need nested cohorts; each pair of patients has one with lesions, in random order."""
    labels = [patient(number).label for number in range(40)]
    assert all({first, second} == {LESION, NORMAL} for first, second in zip(labels[::2], labels[1::2], strict=True))
    assert 4 <= labels[::2].count(LESION) <= 16
    assert len({patient(number).look for number in range(40)}) == 40
    assert {patient(number).scanner for number in range(40)} == set(SCANNERS)
    assert {len(patient(number).slides) for number in range(40)} == {1, 2}
    assert patient(7) == patient(7)
    assert draw_patient(7, TINY, 3, "test", look=PhantomLook()).look != patient(7).look


def test_a_blurred_slide_has_no_seams_between_bands() -> None:
    """The blur reaches over the borders of the bands that are painted one after the other."""
    slide, look = PhantomSlide("a", NORMAL, 5, (416, 600)), PhantomLook(noise_sd=0, blur_um=1.0)
    rows = paint(slide, look).pixels.astype(int)[..., 1]
    steps = np.abs(np.diff(rows, axis=0)).mean(1)
    assert steps[255] < 1.5 * np.median(steps[245:266])
    sharp = paint(slide, PhantomLook(noise_sd=0)).pixels.astype(int)[..., 1]
    assert steps.mean() < 0.9 * np.abs(np.diff(sharp, axis=0)).mean()


def test_tissue_is_found_on_the_glass_of_every_scanner(tmp_path: Path) -> None:
    """White balances tint the glass less than the threshold of colourfulness; patches lie on tissue only."""
    list(make_cohort(tmp_path, None, (1024, 768), 3, split="train", patients=8, slides_per_patient=(1, 1)))
    rows = read(tmp_path / "cohort.csv")
    assert {row["scanner"] for row in rows} >= {"scanner-c", "scanner-d"}
    for row in rows:
        with Slide(tmp_path / row["slide"]) as slide:
            tissue = find_tissue_grid(slide, PatchPlan(0.5, 2.0, 64, 64)).tissue
        assert 0.3 < tissue.mask.mean() < 0.85, row


def test_splits_are_by_patient_and_both_classes_are_in_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "napari_lrmil.core.phantom.cohort.write_slide",
        lambda folder, slide, look, variants: folder / f"{slide.name}.tif",
    )
    table = written(list(make_cohort(tmp_path, None, TINY, 5, patients=20)))
    cohort = read_cohort_without_files(table)
    splits: dict[str, set[str]] = {}
    for row in cohort:
        splits.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(names) == 1 for names in splits.values()) and len(splits) == 20
    assert [sum(names == {s} for names in splits.values()) for s in ("train", "val", "test")] == [12, 4, 4]
    assert {(row["split"], row["label"]) for row in cohort} == {
        (split, label) for split in ("train", "val", "test") for label in (LESION, NORMAL)
    }


def read_cohort_without_files(table: Path) -> list[dict[str, str]]:
    """Check the table as training does, and return its rows; the slides are empty files."""
    rows = read(table)
    for row in rows:
        (table.parent / row["slide"]).touch()
    assert count_patients(slide.patient for slide in read_cohort(table).slides) == len({r["patient"] for r in rows})
    return rows


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("slides", "changes", "words"),
    [
        (3, {"patients": 2}, "exclude each other"),
        (None, {}, "number of slides or of patients"),
        (None, {"patients": 0}, f"expected 1 to {MAX_PATIENTS}"),
        (None, {"patients": 2, "slides_per_patient": (3, 2)}, "the smaller number first"),
    ],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, slides: int | None, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        list(make_cohort(tmp_path, slides, TINY, 1, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "bounds"), [("2", (2, 2)), ("1..3", (1, 3)), (" 1 .. 2 ", (1, 2))])
def test_numbers_of_slides_per_patient_are_read(text: str, bounds: tuple[int, int]) -> None:
    assert parse_slides_per_patient(text) == bounds


@pytest.mark.parametrize("text", ["", "0", "2..1", "1-2", "x", "1.5", "101", "²"])
def test_other_numbers_of_slides_per_patient_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="slides per patient"):
        parse_slides_per_patient(text)


def test_phantoms_with_and_without_patients_are_not_mixed_in_a_folder(tmp_path: Path) -> None:
    """The refusal comes before a slide is painted."""
    list(make_cohort(tmp_path, 1, TINY, 1, split="test"))
    with pytest.raises(CohortError, match=r"without patients of their own.*choose another folder"):
        list(make_cohort(tmp_path, None, TINY, 1, patients=2))
    assert len(list(tmp_path.glob("*.tif"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--patients", "2", "--slides", "3"], "exclude each other"),
        (["--slides-per-patient", "2"], "--patients"),
        (["--patients", "2", "--slides-per-patient", "few"], "few"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["phantom", str(tmp_path / "out"), "--size", "640x448", *arguments])
    assert result.exit_code != 0 and words in f"{result.output}{result.exception}"
    assert not (tmp_path / "out" / "cohort.csv").exists()


def test_the_command_writes_patients(tmp_path: Path) -> None:
    arguments = ["phantom", str(tmp_path), "--size", "640x448", "--patients", "2", "--slides-per-patient", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "slides of 2 patients" in result.output
    assert [row["patient"] for row in read(tmp_path / "cohort.csv")] == ["P-patient-0-000", "P-patient-0-001"]
