"""The cohort table while it is edited, without a screen: splits, leaks, and what is said of each slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrmil_training.data.cohort import read_cohort
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.plugin.train.cohort_table import COLUMNS, ClassCount, CohortRow, CohortTable, check_slide, find_slides
from support.fake_slides import glass, one_sentence, speckled, write_tiff
from support.phantoms import paint_inked

SMALL = PatchPlan(hr_patch_px=64, lr_patch_px=64)


def written(folder: Path, patients: int = 10, per_patient: int = 2, split: str = "") -> Path:
    """Write a table of slides that are empty files, two classes by turns."""
    lines = ["slide,patient,label,split,scanner"]
    for patient in range(patients):
        for slide in range(per_patient):
            name = f"s{patient}_{slide}.tif"
            (folder / name).touch()
            lines.append(f"{name},P{patient},{'tumour' if patient % 2 else 'normal'},{split},A")
    path = folder / "cohort.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(path: Path) -> CohortTable:
    table = CohortTable()
    table.open(path)
    return table


# ---------------------------------------------------------------- opening


def test_decimal_commas_are_points_and_what_is_no_resolution_is_refused(tmp_path: Path) -> None:
    """The check of slides, training and the saved table read the same number."""
    path = tmp_path / "cohort.csv"
    (tmp_path / "s.tif").touch()
    path.write_text("slide;label;patient;mpp\ns.tif;a;p;0,5\n")
    table = opened(path)
    assert [row.mpp for row in table.rows] == ["0.5"] and "decimal commas" in " ".join(table.notices)
    path.write_text("slide;label;patient;mpp\ns.tif;a;p;nan\n")
    with pytest.raises(CohortError, match="line 2, column mpp"):
        opened(path)


# ---------------------------------------------------------------- splits


def test_proposed_splits_go_by_patient_and_hold_every_class(tmp_path: Path) -> None:
    table = opened(written(tmp_path))
    table.propose_splits()
    sides = {row.patient: {r.split for r in table.rows if r.patient == row.patient} for row in table.rows}
    assert all(len(splits) == 1 for splits in sides.values())
    counts = table.counts()
    assert list(counts) == ["train", "val", "test"] and all(set(of) == {"normal", "tumour"} for of in counts.values())
    assert counts["train"]["normal"] == ClassCount(slides=6, patients=3) and not table.blocked_by


def test_a_split_belongs_to_the_patient(tmp_path: Path) -> None:
    """Editing one slide moves the others of its patient, so that editing never makes a leak."""
    table = opened(written(tmp_path, split="train"))
    table.edit(0, "split", "val")
    assert [row.split for row in table.rows[:3]] == ["val", "val", "train"]


def test_a_patient_on_two_sides_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    table = opened(written(tmp_path))
    table.propose_splits()
    other = next(row for row in table.rows if row.split != table.rows[0].split)
    before = table.rows
    with pytest.raises(CohortError, match=f"patient {other.patient} is in .* and .*must be in one split") as refused:
        table.edit(0, "patient", other.patient)
    assert one_sentence(refused.value) and table.rows == before


def test_a_leak_in_a_file_is_told_and_can_be_mended(tmp_path: Path) -> None:
    path = written(tmp_path, split="train")
    text = path.read_text().replace("s0_1.tif,P0,normal,train", "s0_1.tif,P0,normal,test")
    path.write_text(text)
    table = opened(path)
    assert "atient P0 is in test and train" in table.blocked_by and one_sentence(Exception(table.blocked_by))
    table.edit(0, "split", "train")
    assert "P0" not in table.blocked_by


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([(0, "label", "")], "s0_0.tif has no label; fill it in"),
        ([(3, "patient", " ")], "s1_1.tif has no patient"),
        ([(i, "label", "normal") for i in range(20)], "needs two classes"),
        ([(0, "split", "val")], "have no split while others do"),
    ],
)
def test_what_keeps_a_table_from_training_is_one_sentence(
    tmp_path: Path, edits: list[tuple[int, str, str]], reason: str
) -> None:
    table = opened(written(tmp_path))
    for row, column, text in edits:
        table.edit(row, column, text)  # type: ignore[arg-type]  # columns, written out
    assert reason in table.blocked_by and one_sentence(Exception(table.blocked_by))


# ---------------------------------------------------------------- files


def test_what_is_saved_trains_and_keeps_other_columns(tmp_path: Path) -> None:
    table = opened(written(tmp_path))
    table.propose_splits()
    assert not table.saved
    (tmp_path / "elsewhere").mkdir()
    table.save(tmp_path / "elsewhere" / "mine.csv")
    assert table.saved
    cohort = read_cohort(tmp_path / "elsewhere" / "mine.csv")
    assert len(cohort.slides) == 20 and cohort.fixed and cohort.slides[0].extra == (("scanner", "A"),)
    again = opened(tmp_path / "elsewhere" / "mine.csv")
    assert [row.split for row in again.rows] == [row.split for row in table.rows]


def test_subfolders_are_taken_for_classes(tmp_path: Path) -> None:
    for name in ("normal/a.svs", "tumour/b.SVS", "tumour/notes.txt", "tumour/.hidden.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = CohortTable()
    table.build(tmp_path)
    assert [(row.path.name, row.label, row.patient) for row in table.rows] == [
        ("a.svs", "normal", "a"),
        ("b.SVS", "tumour", "b"),
    ]


def test_a_folder_of_dicom_files_is_one_slide_of_its_class(tmp_path: Path) -> None:
    for name in ("normal/a/0.dcm", "normal/a/1.dcm", "normal/a/label.DCM", "tumour/b/0.DCM", "tumour/c.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows, _ = find_slides(tmp_path)
    assert [(row.path.relative_to(tmp_path).as_posix(), row.label, row.patient) for row in rows] == [
        ("normal/a", "normal", "a"),
        ("tumour/b", "tumour", "b"),
        ("tumour/c.svs", "tumour", "c"),
    ]
    assert [(row.path, row.label) for row in find_slides(tmp_path / "normal" / "a")[0]] == [
        (tmp_path / "normal" / "a", "")
    ]


def test_a_folder_without_slides_and_a_wrong_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no slide in this folder") as none:
        CohortTable().build(tmp_path)
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CohortError, match="no column named slide") as wrong:
        opened(tmp_path / "wrong.csv")
    assert one_sentence(none.value) and one_sentence(wrong.value)


def test_a_resolution_is_a_number(tmp_path: Path) -> None:
    table = opened(written(tmp_path))
    with pytest.raises(CohortError, match="'half' is not a resolution"):
        table.edit(0, "mpp", "half")
    assert COLUMNS[-1] == "mpp" and not table.rows[0].mpp


# ---------------------------------------------------------------- checks of slides


def test_each_slide_is_told_what_is_wrong_with_it(tmp_path: Path) -> None:
    good = write_tiff(tmp_path / "good.tif", speckled(1280, 1000), (1.0, 4.0), mpp=(0.5, 0.5))
    empty = write_tiff(tmp_path / "empty.tif", glass(1280, 1000), (1.0, 4.0), mpp=(0.5, 0.5))
    coarse = write_tiff(tmp_path / "coarse.tif", speckled(600, 400), (1.0,), mpp=(1.0, 1.0))
    (tmp_path / "text.tif").write_text("not a slide")
    checks = {
        p.stem: check_slide(CohortRow(p), SMALL) for p in (good, empty, coarse, tmp_path / "text.tif", Path("gone.tif"))
    }
    assert not checks["good"].fault and checks["good"].mpp == pytest.approx(0.5)
    assert checks["good"].hr_patches > checks["good"].lr_patches > 0
    assert "no tissue found" in checks["empty"].fault and "too coarse for the teacher" in checks["coarse"].fault
    for name in ("empty", "coarse", "text", "gone"):
        assert checks[name].fault and str(tmp_path) not in checks[name].fault.split(";")[0], checks[name]


def test_checks_come_one_by_one_and_those_of_other_patch_sizes_are_dropped(tmp_path: Path) -> None:
    table = opened(written(tmp_path, patients=2))
    table.choose_plan(SMALL)
    events = list(table.checking())
    for event in events[:4]:
        table.handle(event)
    assert len(table.unchecked) == 2 and table.broken == 2
    table.choose_plan(PatchPlan(hr_patch_px=128, lr_patch_px=128))
    for event in events:
        table.handle(event)
    assert len(table.unchecked) == 4


def test_patches_are_counted_as_the_settings_leave_artefacts_out(tmp_path: Path) -> None:
    """Checks of another mask are dropped, as those of other patch sizes."""
    row, without = CohortRow(paint_inked(tmp_path)), TissueConfig(exclude_artefacts=True)
    clean = check_slide(row, SMALL, without)
    assert 0 < clean.lr_patches < check_slide(row, SMALL).lr_patches
    table = opened(written(tmp_path, patients=2))
    assert table.choose_plan(SMALL) and not table.choose_plan(SMALL)
    (*events, _) = table.checking()
    assert table.choose_plan(SMALL, without) and table.tissue == without
    for event in events:
        table.handle(event)
    assert len(table.unchecked) == len(table.rows)


def test_labels_may_be_empty_if_a_teacher_is_given(tmp_path: Path) -> None:
    """All of them: then splits need slides alone. One label makes the others missing."""
    rows = [f"s{i}.tif,,p{i},{'val' if i == 0 else 'train'}" for i in range(4)]
    for i in range(4):
        (tmp_path / f"s{i}.tif").touch()
    (tmp_path / "cohort.csv").write_text("\n".join(["slide,label,patient,split", *rows]))
    table = opened(tmp_path / "cohort.csv")
    assert "4 slides have no label" in table.blocked_by
    table.allow_unlabelled(True)
    assert table.is_unlabelled and not table.blocked_by
    table.edit(0, "label", "normal")
    assert "3 slides have no label" in table.blocked_by
    table.edit(0, "label", "")
    table.edit(0, "split", "train")
    assert "Split val has no slide at all" in table.blocked_by
