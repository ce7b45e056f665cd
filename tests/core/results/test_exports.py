"""Exports for other programs: position, units, completeness, and equal bytes for equal results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import torch

from napari_lrmil.core.events import Finished
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_comparison import shared_patches
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import read_regions
from napari_lrmil.core.results.exports import write_attention_ome
from napari_lrmil.core.results.qupath import BANDS, HEATMAP_SCRIPT, write_attention_geojson, write_heatmap_script
from napari_lrmil.core.visualize.colormaps import viridis, viridis_colors
from napari_lrmil.core.visualize.overlay import color_limits, make_heatmap
from support.fake_slides import TISSUE, DarknessBundle, FakeSlide, fake_slide, glass, resolution

BOUNDS = Bounds(120, 340, 1500, 1300)
MPP = (0.5, 0.4)  # a patch of 128 µm is 256 x 320 pixels
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def predicted(folder: Path, name: str = "s 1.svs", teacher: str = "none") -> Prediction:
    """Return a prediction on uneven tissue with a gap, away from the corner, on a slide that has bounds."""
    base = glass(1999, 1711)
    noise = np.random.default_rng(3).integers(-30, 30, (1300, 900, 1))
    base[400:1700, 420:1320] = (np.array(TISSUE) + noise).clip(0, 255)
    base[700:1400, 900:1320] = glass(420, 700)
    scanned = {"x": BOUNDS.x, "y": BOUNDS.y, "width": BOUNDS.width, "height": BOUNDS.height}
    properties = resolution(*MPP) | {f"openslide.bounds-{k}": str(v) for k, v in scanned.items()}
    with fake_slide(folder, FakeSlide(base, (1.0, 4.0), properties), name=name) as slide:
        *_, last = predict(
            slide,
            DarknessBundle(),  # type: ignore[arg-type]
            device=torch.device("cpu"),
            teacher=TeacherPatches.parse(teacher),
        )
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


@pytest.fixture(scope="module")
def prediction(tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    prediction = predicted(tmp_path_factory.mktemp("slide"))
    cells = np.ptp(prediction.grid.lr_index, axis=0) + 1
    assert prediction.student.patch_level0 == (256, 320) and len(prediction.student.coords) < cells.prod(), (
        "there is a gap"
    )
    assert prediction.student.coords.min(axis=0).tolist() != [BOUNDS.x, BOUNDS.y] and cells[0] != cells[1]
    return prediction


# ---------------------------------------------------------------- OME-TIFF


def test_the_ome_tiff_has_a_pixel_per_patch_and_nan_elsewhere(tmp_path: Path, prediction: Prediction) -> None:
    write_attention_ome(tmp_path / "attention.ome.tif", prediction)
    student, heat = prediction.student, make_heatmap(prediction.student)
    with tifffile.TiffFile(tmp_path / "attention.ome.tif") as file:
        assert file.is_ome and file.series[0].axes == "CYX"
        pixels = file.series[0].asarray()
    assert pixels.dtype == np.float32 and pixels.shape == (3, *heat.image.shape)
    np.testing.assert_array_equal(pixels[0], heat.image)
    assert (np.isfinite(pixels).sum(axis=(1, 2)) == len(student.coords)).all()
    for corner, evidence in zip(student.coords, student.evidence, strict=True):
        column, row = (corner - heat.origin_level0) // (256, 320)
        np.testing.assert_array_equal(pixels[1:, row, column], evidence)
    assert np.nanmean(pixels[0]) == pytest.approx(1, abs=1e-4), "relative to the slide's average"


def test_the_ome_tiff_says_how_large_and_where_it_is(tmp_path: Path, prediction: Prediction) -> None:
    """µm per pixel is the patch's size on this slide; the position is that of the raster's corner on level 0."""
    write_attention_ome(tmp_path / "attention.ome.tif", prediction)
    with tifffile.TiffFile(tmp_path / "attention.ome.tif") as file:
        assert file.ome_metadata is not None
        (image,) = ElementTree.fromstring(file.ome_metadata).iter(f"{OME}Image")
    (pixels,) = image.iter(f"{OME}Pixels")
    assert image.get("Name") == "s 1" and pixels.get("Type") == "float"
    assert float(pixels.attrib["PhysicalSizeX"]) == 256 * 0.5 and float(pixels.attrib["PhysicalSizeY"]) == 320 * 0.4
    assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
    names = [channel.get("Name") for channel in pixels.iter(f"{OME}Channel")]
    assert names == ["attention", "evidence normal", "evidence lesion"]
    x, y = prediction.student.coords.min(axis=0).tolist()
    planes = list(pixels.iter(f"{OME}Plane"))
    assert [plane.get("TheC") for plane in planes] == ["0", "1", "2"]
    for plane in planes:
        assert float(plane.attrib["PositionX"]) == pytest.approx(x * 0.5)
        assert float(plane.attrib["PositionY"]) == pytest.approx(y * 0.4)
        assert plane.get("PositionXUnit") == plane.get("PositionYUnit") == "µm"


def test_odd_names_are_kept(tmp_path: Path, prediction: Prediction) -> None:
    odd = replace(prediction, slide='Größe <µ> & "{x}"', classes=("no & so", "жёлтый"))
    write_attention_ome(tmp_path / "attention.ome.tif", odd)
    write_attention_geojson(tmp_path / "attention.geojson", odd, BOUNDS)
    with tifffile.TiffFile(tmp_path / "attention.ome.tif") as file:
        assert file.ome_metadata is not None
        root = ElementTree.fromstring(file.ome_metadata)
    assert next(root.iter(f"{OME}Image")).get("Name") == odd.slide
    assert [c.get("Name") for c in root.iter(f"{OME}Channel")][1:] == ["evidence no & so", "evidence жёлтый"]
    assert "evidence жёлтый" in tiles(tmp_path / "attention.geojson")[0]["properties"]["measurements"]


# ---------------------------------------------------------------- QuPath


def tiles(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} in a file for Java")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["type"] == "FeatureCollection"
    return list(content["features"])


def test_a_tile_for_each_patch_in_qupaths_frame(tmp_path: Path, prediction: Prediction) -> None:
    path = tmp_path / "attention.geojson"
    write_attention_geojson(path, prediction, BOUNDS)
    features = tiles(path)
    assert len(features) == len(prediction.student.coords)
    for feature, (x, y) in zip(features, prediction.student.coords.tolist(), strict=True):
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        left, top = x - 120, y - 340
        assert ring == [[left, top], [left + 256, top], [left + 256, top + 320], [left, top + 320], [left, top]]
        assert list(feature["properties"]) == ["objectType", "name", "color", "classification", "measurements"]
        assert feature["properties"]["objectType"] == "tile"
    back = read_regions(path, BOUNDS).regions
    corners = [region.geometry.bounds[:2] for region in back]
    assert corners == [tuple(corner) for corner in prediction.student.coords.tolist()]


def test_measurements_are_attention_rank_and_evidence(tmp_path: Path, prediction: Prediction) -> None:
    write_attention_geojson(tmp_path / "attention.geojson", prediction, BOUNDS)
    rows = [feature["properties"]["measurements"] for feature in tiles(tmp_path / "attention.geojson")]
    assert all(
        list(row) == ["attention", "attention relative", "rank", "evidence normal", "evidence lesion"] for row in rows
    )
    attention, n = np.array([row["attention"] for row in rows]), len(rows)
    assert attention.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(attention.astype(np.float32), prediction.student.attention)
    np.testing.assert_allclose([row["attention relative"] for row in rows], attention * n, rtol=1e-6)
    ranks = [row["rank"] for row in rows]
    assert sorted(ranks) == list(range(1, n + 1)) and rows[int(attention.argmax())]["rank"] == 1
    assert (np.diff(attention[np.argsort(ranks)]) <= 0).all()
    for i, name in enumerate(prediction.classes):
        column = np.array([row[f"evidence {name}"] for row in rows], dtype=np.float32)
        np.testing.assert_array_equal(column, prediction.student.evidence[:, i])


def test_tiles_have_a_name_a_band_of_attention_and_the_colour_of_the_overlay(
    tmp_path: Path, prediction: Prediction
) -> None:
    """The class is a band of attention, never a diagnosis, and has the same colour on every slide."""
    write_attention_geojson(tmp_path / "a.geojson", prediction, BOUNDS)
    features = [feature["properties"] for feature in tiles(tmp_path / "a.geojson")]
    relative = prediction.student.attention * len(features)
    low, high = color_limits([prediction.student])
    np.testing.assert_array_equal([f["color"] for f in features], viridis_colors((relative - low) / (high - low)))
    ranks = [feature["measurements"]["rank"] for feature in features]
    assert [f["name"] for f in features] == [f"patch {rank} of {len(features)} by attention" for rank in ranks]
    bands = [BANDS.index(feature["classification"]["name"]) for feature in features]
    assert bands == [sum(value >= edge for edge in (1, 2, 4)) for value in relative.tolist()] and len(set(bands)) > 1
    colors = {f["classification"]["name"]: tuple(f["classification"]["color"]) for f in features}
    steps = [tuple(color) for color in viridis()[[0, 85, 170, 255]].tolist()]
    assert all(color == steps[BANDS.index(name)] for name, color in colors.items())
    assert not set(prediction.classes) & set(BANDS)


@pytest.mark.parametrize("read", ["all", "top-3"])
def test_the_teacher_stands_where_it_read(tmp_path: Path, read: str) -> None:
    """The difference is that of compare.png. Patches that the teacher did not read have no value, which is not 0."""
    compared = predicted(tmp_path, teacher=read)
    write_attention_geojson(tmp_path / "a.geojson", compared, BOUNDS)
    rows = [feature["properties"]["measurements"] for feature in tiles(tmp_path / "a.geojson")]
    shared = shared_patches(compared)
    has_teacher = [row for row, values in enumerate(rows) if "teacher attention" in values]
    assert has_teacher == shared.rows.tolist() and len(has_teacher) == (len(rows) if read == "all" else 3)
    names = ("teacher attention", "teacher attention relative", "attention difference")
    columns = (compared.teacher_on_lr[shared.rows], shared.teacher, shared.difference)
    for name, expected in zip(names, columns, strict=True):
        np.testing.assert_allclose([rows[row][name] for row in has_teacher], expected, rtol=1e-6)
    assert sum(rows[row]["teacher attention"] for row in has_teacher) == pytest.approx(1, abs=1e-4)


def test_the_script_names_measurements_that_exist(tmp_path: Path, prediction: Prediction) -> None:
    script = write_heatmap_script(tmp_path).read_text(encoding="utf-8")
    assert (tmp_path / HEATMAP_SCRIPT).is_file() and "Research use only" in script
    write_attention_geojson(tmp_path / "a.geojson", predicted(tmp_path, teacher="all"), BOUNDS)
    measurements = set(tiles(tmp_path / "a.geojson")[0]["properties"]["measurements"])
    named = {"attention relative", "teacher attention relative", "attention difference", "rank"}
    assert named <= measurements and all(f'"{name}"' in script for name in named)
    assert script.count("{") == script.count("}") and script.count("(") == script.count(")")


def test_ids_come_of_slide_and_place_and_a_second_export_is_the_same(tmp_path: Path, prediction: Prediction) -> None:
    for name in ("a", "b"):
        write_attention_geojson(tmp_path / f"{name}.geojson", prediction, BOUNDS)
        write_attention_ome(tmp_path / f"{name}.ome.tif", prediction)
    for ending in ("geojson", "ome.tif"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    ids = [UUID(feature["id"]) for feature in tiles(tmp_path / "a.geojson")]
    assert len(set(ids)) == len(ids)
    write_attention_geojson(tmp_path / "c.geojson", replace(prediction, slide_fingerprint="0" * 32), BOUNDS)
    assert not {UUID(feature["id"]) for feature in tiles(tmp_path / "c.geojson")} & set(ids)


def test_nan_never_reaches_qupath_and_nothing_is_left_of_a_failure(
    tmp_path: Path, prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = prediction.student.evidence.copy()
    evidence[2, 1] = np.nan
    broken = replace(prediction, student=replace(prediction.student, evidence=evidence))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_attention_geojson(tmp_path / "a.geojson", broken, BOUNDS)

    def fail(*_: object, **__: object) -> None:
        raise OSError("cable pulled")

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail)
    with pytest.raises(OSError, match="cable pulled"):
        write_attention_ome(tmp_path / "a.ome.tif", prediction)
    assert not list(tmp_path.iterdir())
