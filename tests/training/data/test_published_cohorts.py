"""Cohort tables of CAMELYON16 and TCGA, from miniatures of their published layout with planted traps."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lrmil_training.data.cohort import Cohort, read_cohort
from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.patching.regions import read_regions

Call = Callable[..., tuple[int, str, str]]
LEVEL0 = Bounds(0, 0, 0, 0)


def left_out(table: Path) -> dict[str, str]:
    """Return name -> reason of the list beside a table."""
    return dict(tuple(row) for row in read_csv(table.with_name("cohort.left_out.csv"))[1:])  # type: ignore[misc]


def labels(cohort: Cohort) -> dict[str, str]:
    return {slide.name: slide.label for slide in cohort.slides}


# ---------------------------------------------------------------- CAMELYON16


def annotation(*boxes: tuple[int, int], group: str = "_0", hole: tuple[int, int] | None = None) -> str:
    """Return ASAP's XML with a square of 100 px at each corner, and a hole of 20 px in the group ``_2``."""
    squares = [(x, y, 100, group) for x, y in boxes] + ([(*hole, 20, "_2")] if hole else [])
    parts = []
    for i, (x, y, size, name) in enumerate(squares):
        corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size)]
        points = "".join(f'<Coordinate Order="{k}" X="{a}" Y="{b}"/>' for k, (a, b) in enumerate(corners))
        parts.append(
            f'<Annotation Name="Annotation {i}" Type="Polygon" PartOfGroup="{name}" Color="#F4FA58">'
            f"<Coordinates>{points}</Coordinates></Annotation>"
        )
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(parts)}</Annotations></ASAP_Annotations>'


def touch(folder: Path, *names: str) -> None:
    """Write files whose content is their name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"slide {name}")


@pytest.fixture
def camelyon(tmp_path: Path) -> Path:
    """Return a miniature of CAMELYON16 without a fault: annotations of training slides as files, of tests in a zip."""
    folder = tmp_path / "CAMELYON16"
    touch(folder / "training" / "normal", *(f"normal_{i:03d}.tif" for i in range(1, 6)))
    touch(folder / "training" / "tumor", *(f"tumor_{i:03d}.tif" for i in range(1, 6)))
    touch(folder / "testing" / "images", "test_001.tif", "test_002.tif")
    notes = folder / "training" / "lesion_annotations"
    notes.mkdir()
    for i in range(1, 6):
        (notes / f"tumor_{i:03d}.xml").write_text(annotation((100 * i, 200)))
    (folder / "testing" / "reference.csv").write_text("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")
    with zipfile.ZipFile(folder / "testing" / "lesion_annotations.zip", "w") as archive:
        archive.writestr("lesion_annotations/test_001.xml", annotation((300, 400), hole=(330, 430)))
        archive.writestr("__MACOSX/lesion_annotations/._test_001.xml", "junk")
    return folder


def test_camelyon16_gives_labels_splits_patients_and_outlines(camelyon: Path, call: Call) -> None:
    code, out, err = call("cohort", "camelyon16", camelyon)
    assert code == 0 and err == ""
    assert "12 slides of 12 patients (normal 6, tumor 6; test 2, train 8, val 2)" in out
    assert "outlines beside 12 slides, 6 of them with lesions" in out and "left out: 0" in out
    cohort = read_cohort(camelyon / "cohort.csv")
    assert cohort.classes == ("normal", "tumor") and cohort.fixed
    assert cohort.summary()["val"] == {"normal": 1, "tumor": 1}
    assert {s.name: s.label for s in cohort.of("test")} == {"test_001": "tumor", "test_002": "normal"}
    assert all(slide.patient == slide.name for slide in cohort.slides)
    areas = {s.name: sum(r.geometry.area for r in read_lesions(s.lesions)) for s in cohort.slides}
    assert areas["tumor_003"] == 100**2 and areas["normal_001"] == 0
    assert areas["test_001"] == 100**2 - 20**2  # the group _2 is cut out
    box = read_lesions(next(s.lesions for s in cohort.slides if s.name == "tumor_003"))[0].geometry.bounds
    assert box == (300, 200, 400, 300)


def read_lesions(file: Path) -> Sequence[object]:
    return read_regions(file, LEVEL0, may_be_empty=True).regions


def test_camelyon16_twice_is_the_same_and_an_edited_table_stays(camelyon: Path, call: Call) -> None:
    table = camelyon / "cohort.csv"
    assert call("cohort", "camelyon16", camelyon)[0] == 0
    first = table.read_bytes()
    assert call("cohort", "camelyon16", camelyon)[0] == 0 and table.read_bytes() == first
    table.write_bytes(first.replace(b"tumor_001,tumor", b"tumor_001,normal"))
    code, _, err = call("cohort", "camelyon16", camelyon)
    assert code == 2 and "the file exists with other rows" in err
    table.write_bytes(first)
    outlines = camelyon / "training" / "tumor" / "tumor_001_lesions.geojson"
    outlines.write_text(outlines.read_text().replace("100", "140"))
    code, _, err = call("cohort", "camelyon16", camelyon)
    assert code == 2 and "other lesion outlines are there already" in err


def test_camelyon16_traps_are_told_by_count_and_reason(camelyon: Path, call: Call) -> None:
    notes, tumor = camelyon / "training" / "lesion_annotations", camelyon / "training" / "tumor"
    (notes / "tumor_001.xml").unlink()
    (notes / "tumor_002.xml").write_text("<broken")
    (notes / "normal_001.xml").write_text(annotation((0, 0)))
    (notes / "tumor_099.xml").write_text(annotation((0, 0)))
    touch(tumor, "tumor_010.tif", "tumor_003_mask.tif")  # the first is known to be outlined in part
    (notes / "tumor_010.xml").write_text(annotation((0, 0)))
    shutil.copy(tumor / "tumor_004.tif", tumor / "tumor_104.tif")  # a duplicate
    shutil.copy(tumor / "tumor_005.tif", camelyon / "training" / "normal" / "normal_086.tif")  # with another label
    touch(camelyon / "testing" / "images", "test_003.tif", "test_004.tif")
    with (camelyon / "testing" / "reference.csv").open("a") as file:
        file.write("test_003,Tumor,ILC,Micro\ntest_003,Normal,None,None\ntest_005,Normal,None,None\n")
    code, _, err = call("cohort", "camelyon16", camelyon)
    assert code == 0
    assert left_out(camelyon / "cohort.csv") == {
        "tumor_001.tif": "slide kept without outlines: no annotation file",
        "tumor_002.tif": "slide kept without outlines: the annotation file cannot be read",
        "tumor_010.tif": "slide kept without outlines: not all of its lesions are outlined",
        "tumor_104.tif": "copy of another slide's file",
        "normal_001.tif": "two diagnoses: labelled normal, lesions outlined",
        "normal_086.tif": "copies of one file with different labels",
        "tumor_005.tif": "copies of one file with different labels",
        "tumor_003_mask.tif": "not named like a slide of CAMELYON16 (a mask?)",
        "tumor_099.xml": "annotation file without its slide",
        "test_003": "two diagnoses in reference.csv",
        "test_004": "test slide without a row in reference.csv",
        "test_005": "in reference.csv, but no such file here",
    }
    assert "2: copies of one file with different labels, first" in err and "1: two diagnoses in reference.csv" in err
    kept = labels(read_cohort(camelyon / "cohort.csv"))
    assert set(kept) == {
        *(f"normal_{i:03d}" for i in range(2, 6)),
        *("tumor_001", "tumor_002", "tumor_003", "tumor_004", "tumor_010", "test_001", "test_002"),
    }
    assert not (tumor / "tumor_001_lesions.geojson").exists() and (tumor / "tumor_003_lesions.geojson").exists()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("patient_100_node_0.tif,itc\n", "another release"),
        ("patient,stage\npatient_100_node_0.tif,itc\n", "line 2 is 'patient_100_node_0.tif,itc'"),
        ("test_001,macro\n", "line 1 is 'test_001,macro'"),
        ("test_101,Tumor\ntest_102,Normal\n", "names none of the 2 test slides here"),
        (None, "2 test slides and no reference.csv"),
    ],
)
def test_a_label_file_of_another_release_is_refused(
    camelyon: Path, call: Call, reference: str | None, said: str
) -> None:
    path = camelyon / "testing" / "reference.csv"
    path.unlink()
    if reference is not None:
        path.write_text(reference)
    code, _, err = call("cohort", "camelyon16", camelyon)
    assert code == 2 and said in err
    assert not (camelyon / "cohort.csv").exists() and not list(camelyon.rglob("*.geojson"))


def test_camelyon16_in_one_folder_and_in_parts(tmp_path: Path, call: Call) -> None:
    """The mirror on object storage has all slides in one folder; without tests, training assigns all three splits."""
    touch(tmp_path / "images", "normal_001.tif", "tumor_001.tif")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "tumor_001.xml").write_text(annotation((1, 2)))
    code, out, _ = call("cohort", "camelyon16", tmp_path, "--no-outlines", "--out", tmp_path / "c.csv")
    assert code == 0 and "2 slides of 2 patients (normal 1, tumor 1)" in out and "outlines" not in out
    assert not read_cohort(tmp_path / "c.csv").fixed and not list(tmp_path.rglob("*.geojson"))


def test_a_folder_without_slides_is_refused(tmp_path: Path, call: Call) -> None:
    touch(tmp_path, "patient_000_node_0.tif")
    for source, said in (("camelyon16", "no slide of CAMELYON16; expected training/normal"), ("tcga", "no .svs file")):
        code, _, err = call("cohort", source, tmp_path)
        assert code == 2 and said in err
        code, _, err = call("cohort", source, tmp_path / "nowhere")
        assert code == 2 and "no such folder" in err
    assert call("cohort", "camelyon17", tmp_path)[0] == 2
    assert call("cohort", "camelyon16", tmp_path, "--task", "rcc")[0] == 2
    assert call("cohort", "tcga", tmp_path, "--task", "dance")[0] == 2


# ---------------------------------------------------------------- TCGA

HEAD = ("File ID", "File Name", "Data Category", "Data Type", "Project ID", "Case ID", "Sample ID", "Sample Type")


class Gdc:
    """A miniature of GDC's download: a folder per slide, and the sample sheet of the cart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.count = folder, [HEAD], 0

    def add(self, barcode: str, project: str, *, here: bool = True, kind: str = "Primary Tumor", case: str = "") -> str:
        """Add a slide and its row; return the name of the file."""
        self.count += 1
        file_id = f"0000000{self.count % 10}-1111-2222-3333-{self.count:012d}"
        name = f"{barcode}.{file_id.upper()}.svs"
        row = (file_id, name, "Biospecimen", "Slide Image", project, case or barcode[:12], barcode[:16], kind)
        self.rows.append(row)
        if here:
            touch(self.folder / file_id, name)
        return name

    def write(self) -> None:
        """Write the sample sheet."""
        text = "".join("\t".join(row) + "\n" for row in self.rows)
        (self.folder / "gdc_sample_sheet.2026-01-01.tsv").write_text(text)


@pytest.fixture
def gdc(tmp_path: Path) -> Gdc:
    """Return a download of six lung cancers of four patients from two sites."""
    gdc = Gdc(tmp_path / "tcga")
    for barcode, project in (
        ("TCGA-05-0001-01Z-00-DX1", "TCGA-LUAD"),
        ("TCGA-05-0001-01Z-00-DX2", "TCGA-LUAD"),
        ("TCGA-05-0002-01Z-00-DX1", "TCGA-LUAD"),
        ("TCGA-21-0003-01Z-00-DX1", "TCGA-LUSC"),
        ("TCGA-21-0004-01Z-00-DX1", "TCGA-LUSC"),
        ("TCGA-21-0004-01A-03-DX3", "TCGA-LUSC"),
    ):
        gdc.add(barcode, project)
    return gdc


def test_tcga_gives_classes_patients_and_sites(gdc: Gdc, call: Call) -> None:
    gdc.write()
    code, out, err = call("cohort", "tcga", gdc.folder)
    assert code == 0 and err == "" and "6 slides of 4 patients (LUAD 3, LUSC 3)" in out
    cohort = read_cohort(gdc.folder / "cohort.csv")
    assert {(s.patient, s.label, s.site) for s in cohort.slides} == {
        ("TCGA-05-0001", "LUAD", "05"),
        ("TCGA-05-0002", "LUAD", "05"),
        ("TCGA-21-0003", "LUSC", "21"),
        ("TCGA-21-0004", "LUSC", "21"),
    }
    assert not cohort.fixed


def test_tcga_traps_are_told_by_count_and_reason(gdc: Gdc, call: Call) -> None:
    names = {
        gdc.add(
            "TCGA-05-0005-11A-01-DX1", "TCGA-LUAD", kind="Solid Tissue Normal"
        ): "normal tissue or control (sample type 11)",
        gdc.add("TCGA-05-0006-06Z-00-DX1", "TCGA-LUAD"): "no primary tumour (sample type 06)",
        gdc.add("TCGA-05-0001-01A-01-TS1", "TCGA-LUAD"): "frozen section, not a diagnostic slide",
        gdc.add("TCGA-05-0007-01Z-00-DX1", "TCGA-LUAD", kind="Solid Tissue Normal"): (
            "barcode of a tumour, but normal tissue in the sample sheet"
        ),
        gdc.add("TCGA-05-0008-01Z-00-DX1", "TCGA-LUAD", case="TCGA-05-0009"): (
            "barcode and Case ID of the sample sheet disagree"
        ),
        gdc.add("TCGA-A6-0010-01Z-00-DX1", "TCGA-COAD"): "project TCGA-COAD is not in this question",
        gdc.add("TCGA-05-0011-01Z-00-DX1", "TCGA-LUAD", here=False): "in the sample sheet, but not downloaded",
    }
    twice = gdc.add("TCGA-05-0012-01Z-00-DX1", "TCGA-LUAD")
    gdc.rows.append(tuple("TCGA-LUSC" if cell == "TCGA-LUAD" else cell for cell in gdc.rows[-1]))
    names[twice] = "two diagnoses: rows of the sample sheet name different projects"
    partial = gdc.add("TCGA-05-0013-01Z-00-DX1", "TCGA-LUAD", here=False)
    touch(gdc.folder / "x", f"{partial}.partial", "TCGA-99-0001-01Z-00-DX1.svs", "notes.svs")
    names |= {
        partial: "download not finished (.partial)",
        "TCGA-99-0001-01Z-00-DX1.svs": "not in the sample sheet",
        "notes.svs": "the name is no barcode of a TCGA slide",
    }
    second = next(path for path in sorted(gdc.folder.rglob("*.svs")) if "-0003-01Z" in path.name)
    touch(gdc.folder / "zz_copy")
    shutil.copy(second, gdc.folder / "zz_copy" / second.name)
    names[second.name] = "second copy of a slide"
    source = next(path for path in sorted(gdc.folder.rglob("*.svs")) if "-0002-01Z" in path.name)
    copy = gdc.add("TCGA-21-0014-01Z-00-DX1", "TCGA-LUSC")
    shutil.copy(source, next(gdc.folder.rglob(copy)))
    names |= {copy: "copies of one file with different labels", source.name: "copies of one file with different labels"}
    gdc.write()
    code, out, err = call("cohort", "tcga", gdc.folder)
    assert code == 0 and left_out(gdc.folder / "cohort.csv") == names
    assert "5 slides of 3 patients (LUAD 2, LUSC 3)" in out
    assert "1: normal tissue or control (sample type 11), first TCGA-05-0005" in err


def test_tcga_brca_takes_its_classes_from_the_clinical_table(tmp_path: Path, call: Call) -> None:
    gdc = Gdc(tmp_path)
    cases = {
        "TCGA-A1-0001": ["Infiltrating duct carcinoma, NOS", "Infiltrating duct carcinoma, NOS"],  # a row per treatment
        "TCGA-A1-0002": ["Lobular carcinoma, NOS"],
        "TCGA-A1-0003": ["Lobular carcinoma, NOS", "Infiltrating duct carcinoma, NOS"],
        "TCGA-A1-0004": ["Mucinous adenocarcinoma"],
        "TCGA-A1-0005": ["'--"],
    }
    names = [gdc.add(f"{case}-01Z-00-DX1", "TCGA-BRCA") for case in cases]
    gdc.write()
    code, _, err = call("cohort", "tcga", tmp_path)
    assert code == 2 and "no clinical tables of GDC here" in err
    head = "cases.submitter_id\tdiagnoses.primary_diagnosis\n"
    rows = "".join(f"{case}\t{diagnosis}\n" for case, stated in cases.items() for diagnosis in stated)
    (tmp_path / "clinical.tsv").write_text(head + rows)
    code, out, _ = call("cohort", "tcga", tmp_path)
    assert code == 0 and "2 slides of 2 patients (IDC 1, ILC 1)" in out
    assert left_out(tmp_path / "cohort.csv") == {
        names[2]: "two diagnoses in the clinical table",
        names[3]: "diagnosis Mucinous adenocarcinoma is neither IDC nor ILC",
        names[4]: "no diagnosis in the clinical table",
    }
    (tmp_path / "clinical.tsv").write_text(head + "TCGA-ZZ-9999\tLobular carcinoma, NOS\n")
    code, _, err = call("cohort", "tcga", tmp_path)
    assert code == 2 and "another release" in err
    (tmp_path / "clinical.tsv").write_text("case\tdiagnosis\nTCGA-A1-0001\tLobular carcinoma, NOS\n")
    assert call("cohort", "tcga", tmp_path)[0] == 2


def test_other_diseases_of_a_patient_are_no_second_diagnosis(tmp_path: Path, call: Call) -> None:
    gdc = Gdc(tmp_path)
    gdc.add("TCGA-A1-0001-01Z-00-DX1", "TCGA-BRCA")
    gdc.write()
    (tmp_path / "clinical.tsv").write_text(
        "cases.submitter_id\tdiagnoses.primary_diagnosis\tdiagnoses.diagnosis_is_primary_disease\n"
        "TCGA-A1-0001\tLobular carcinoma, NOS\ttrue\nTCGA-A1-0001\tInfiltrating duct carcinoma, NOS\tfalse\n"
    )
    code, out, err = call("cohort", "tcga", tmp_path)
    assert code == 0 and "ILC 1" in out and "all slides are ILC; training needs a second class" in err


def test_a_sample_sheet_of_another_release_is_refused(gdc: Gdc, call: Call) -> None:
    code, _, err = call("cohort", "tcga", gdc.folder)
    assert code == 2 and "no sample sheets of GDC here" in err
    sheet = gdc.folder / "gdc_sample_sheet.2026-01-01.tsv"
    sheet.write_text("\t".join(HEAD) + "\n" + "\t".join(gdc.rows[1]).replace(gdc.rows[1][1], "other.svs") + "\n")
    code, _, err = call("cohort", "tcga", gdc.folder)
    assert code == 2 and "names none of the 6 slides here; it is of another release" in err
    sheet.write_text("id\tfilename\tmd5\tsize\tstate\n1\ta.svs\tx\t1\treleased\n")  # a manifest
    code, _, err = call("cohort", "tcga", gdc.folder)
    assert code == 2 and "no column named File ID, File Name" in err
