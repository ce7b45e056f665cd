"""Annotations of a reviewer: GeoJSON with QuPath's classes, never written over the changes of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shapely

from napari_lrmil.core.errors import ReviewError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.worklist.annotation_file import (
    ANNOTATION_CLASSES,
    AnnotationFile,
    annotation_path,
    class_colour,
    with_class,
)

BOUNDS = Bounds(100, 50, 4000, 3000)
BOX = Region("region 1", shapely.box(200, 150, 400, 450))


def test_annotations_are_read_back_and_qupath_gets_class_colour_and_its_origin(tmp_path: Path) -> None:
    path = annotation_path(tmp_path, "slide", "Dr. Ann/Lee")
    assert path.parent == tmp_path / "slide"
    regions = (with_class(BOX, "Tumor"), with_class(BOX, "own class"))
    AnnotationFile(path).write(regions, BOUNDS)
    assert AnnotationFile(path).read(BOUNDS) == regions
    tumour, own = json.loads(path.read_text())["features"]
    assert tumour["properties"]["classification"] == {"name": "Tumor", "color": [213, 94, 0]}
    assert own["properties"]["classification"] == {"name": "own class", "color": list(class_colour("own class"))}
    assert min(x for x, _ in tumour["geometry"]["coordinates"][0]) == 100


def test_colours_of_classes_are_stable_and_those_offered_differ() -> None:
    assert len({class_colour(name) for name in ANNOTATION_CLASSES}) == len(ANNOTATION_CLASSES)
    assert class_colour("Mitoses") == class_colour("Mitoses") not in ANNOTATION_CLASSES.values()


def test_no_annotation_makes_no_file_and_deleting_all_empties_it(tmp_path: Path) -> None:
    file = AnnotationFile(tmp_path / "s" / "a.geojson")
    file.write((), BOUNDS)
    assert not file.path.exists() and file.read(BOUNDS) == ()
    file.write((BOX,), BOUNDS)
    file.write((), BOUNDS)
    assert AnnotationFile(file.path).read(BOUNDS) == ()


def test_changes_of_another_program_are_not_overwritten(tmp_path: Path) -> None:
    file = AnnotationFile(tmp_path / "a.geojson")
    file.write((BOX,), BOUNDS)
    changed = file.path.read_text().replace("region 1", "changed in QuPath")
    file.path.write_text(changed)
    with pytest.raises(ReviewError, match="not overwritten"):
        file.write((), BOUNDS)
    assert file.path.read_text() == changed
    assert file.read(BOUNDS)[0].name == "changed in QuPath"
    file.write((BOX,), BOUNDS)


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file where a folder is needed")
    with pytest.raises(ReviewError, match="were not stored"):
        AnnotationFile(tmp_path / "s" / "a.geojson").write((BOX,), BOUNDS)
