"""Regions: read as QuPath and ASAP mean them, written back exactly, and the patches that belong to them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Bounds, BoxLevel0
from napari_lrmil.core.patching.regions import (
    Region,
    box_region,
    overlap_areas,
    patches_in_regions,
    read_regions,
    write_regions,
)
from support.fake_slides import one_sentence

BOUNDS = Bounds(120, 340, 5000, 4000)  # QuPath's origin on a slide that was scanned in part
WHOLE = Bounds(0, 0, 6000, 5000)
L = [[10, 20], [400, 20], [400, 90], [150, 90], [150, 310], [10, 310], [10, 20]]
HOLE = [[30, 40], [90, 40], [90, 70], [30, 70], [30, 40]]
L_AREA = 390 * 70 + 140 * 220
POLYGON = {"type": "Polygon", "coordinates": [L, HOLE]}
MULTI = {"type": "MultiPolygon", "coordinates": [[L, HOLE], [[[900, 700], [960, 700], [900, 810], [900, 700]]]]}


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": "PathAnnotationObject", "geometry": geometry, "properties": properties}


def written(folder: Path, content: Any, name: str = "a.geojson") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def asap(*annotations: str) -> str:
    return (
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{"".join(annotations)}</Annotations>'
        '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#00ff00"/></AnnotationGroups>'
        "</ASAP_Annotations>"
    )


def annotation(corners: list[tuple[int, float, float]], kind: str = "Polygon", group: str = "None") -> str:
    points = "".join(f'<Coordinate Order="{o}" X="{x}" Y="{y}"/>' for o, x, y in corners)
    return (
        f'<Annotation Name="Annotation 7" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{points}</Coordinates></Annotation>"
    )


# ---------------------------------------------------------------- a region


def test_a_region_that_crosses_itself_keeps_all_of_its_ground() -> None:
    """A bow tie has two wings, and a freehand loop drawn over itself has no hole where it was passed twice."""
    bow_tie = Region("fold", shapely.Polygon([(0, 0), (100, 60), (100, 0), (0, 60)]))
    assert bow_tie.geometry.is_valid and bow_tie.geometry.area == pytest.approx(100 * 60 / 2)
    at = np.deg2rad(90 + 144 * np.arange(5))
    star = Region("star", shapely.Polygon(np.c_[70 * np.cos(at), 40 * np.sin(at)]))
    assert star.geometry.contains(shapely.Point(0, 0)), "the middle of a pentagram is gone round twice"


def test_a_region_is_flat() -> None:
    region = Region("a", shapely.Polygon([(0, 0, 5), (9, 0, 5), (0, 4, 5)]))
    assert not region.geometry.has_z and region.geometry.area == 18


@pytest.mark.parametrize(
    ("geometry", "name", "colour"),
    [
        (shapely.Polygon(), "a", None),
        (shapely.Polygon([(0, 0), (5, 5), (9, 9)]), "a", None),
        (shapely.LineString([(0, 0), (5, 3)]), "a", None),
        (shapely.Point(3, 4), "a", None),
        (shapely.Polygon([(0, 0), (9, 0), (float("inf"), 4)]), "a", None),
        (shapely.box(0, 0, 2, 3), "  ", None),
        (shapely.box(0, 0, 2, 3), "a", (0, 256, 3)),
        (shapely.box(0, 0, 2, 3), "a", (0, 255)),
    ],
)
def test_what_is_no_region_is_one_sentence(geometry: Any, name: str, colour: Any) -> None:
    with pytest.raises(RegionError) as caught:
        Region(name, geometry, colour)
    assert one_sentence(caught.value)


def test_a_box_is_a_region() -> None:
    region = box_region(BoxLevel0(10.5, 20, 30, 4), "view")
    assert region.name == "view" and region.geometry.bounds == (10.5, 20, 40.5, 24)


# ---------------------------------------------------------------- QuPath


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(MULTI)]},
        [feature(MULTI)],
        feature(MULTI),
    ],
)
def test_geojson_as_collection_list_or_bare_feature(tmp_path: Path, content: Any) -> None:
    """And moved by the bounds: QuPath's origin is the scanned part's corner, x by x and y by y."""
    found = read_regions(written(tmp_path, content), BOUNDS)
    (region,) = found.regions
    assert isinstance(region.geometry, shapely.MultiPolygon) and found.skipped == 0 and found.caution is None
    assert region.geometry.bounds == (10 + 120, 20 + 340, 960 + 120, 810 + 340)
    assert region.geometry.area == L_AREA - 60 * 30 + 60 * 110 / 2, "the hole is no part of it"
    assert not region.geometry.covers(shapely.Point(60 + 120, 55 + 340))


@pytest.mark.parametrize(
    ("properties", "name", "colour"),
    [
        ({"classification": {"name": "Tumor", "color": [200, 10, 0]}}, "Tumor", (200, 10, 0)),
        ({"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}}, "Tumor: Positive", (1, 2, 3)),
        ({"classification": "Stroma"}, "Stroma", None),
        ({"classification": {"name": "Cell", "colorRGB": -8397766}}, "Cell", (0x7F, 0xDC, 0x3A)),
        ({"classification": {"name": "Pen"}, "name": "left edge", "color": [9, 8, 7]}, "Pen", (9, 8, 7)),
        ({"name": "left edge", "object_type": "annotation", "color": -16777216}, "left edge", (0, 0, 0)),
        ({"name": " ", "classification": None, "measurements": [{"name": "a", "value": 3}]}, "region", None),
        ({"objectType": "annotation", "isLocked": False, "color": [9, 8, 700]}, "region", None),
    ],
)
def test_classes_and_colours_old_and_new(tmp_path: Path, properties: Any, name: str, colour: Any) -> None:
    (region,) = read_regions(written(tmp_path, feature(POLYGON, **properties)), WHOLE).regions
    assert (region.name, region.colour) == (name, colour)


def test_points_and_lines_are_counted_not_read(tmp_path: Path) -> None:
    others = [
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "MultiPoint", "coordinates": [[1, 2], [4, 9]]},
        {"type": "LineString", "coordinates": [[1, 2], [4, 9]]},
        {"type": "Polygon", "coordinates": [[[1, 2], [1, 2], [1, 2], [1, 2]]]},  # a click taken for an outline
        None,  # RFC 7946 3.2 allows it
    ]
    found = read_regions(written(tmp_path, [feature(g) for g in (others[0], POLYGON, *others[1:], MULTI)]), WHOLE)
    assert len(found.regions) == 2 and found.skipped == 5
    counts = "4 annotations without an area (points, lines), 1 annotation without a geometry"
    assert found.caution == f"a.geojson: left out: {counts}; 2 read"
    one = read_regions(written(tmp_path, [feature(others[0]), feature(POLYGON)]), WHOLE)
    assert one.caution == "a.geojson: left out: 1 annotation without an area (points, lines); 1 read"


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    assert read_regions(written(tmp_path, "\ufeff" + json.dumps(feature(POLYGON))), WHOLE).regions


# ---------------------------------------------------------------- ASAP


def test_asap_counts_from_level_0_and_orders_its_corners(tmp_path: Path) -> None:
    """The bounds do not matter, and corners listed out of order (10 after 2) make the shape that was drawn."""
    shuffled = [(10, 10.5, 310.0), (0, 10.5, 20.0), (3, 150.0, 90.0), (2, 400.0, 90.0), (9, 150.0, 310.0)]
    text = asap(
        annotation([*shuffled, (1, 400.0, 20.0)], group="Tumor"),
        annotation([(0, 5, 5)], "Dot"),
        annotation([(0, 5, 5), (1, 8, 8), (2, 7, 9)], "PointSet"),
        annotation([(0, 5, 5), (1, 8, 8)]),
        annotation([(0, 1, 2), (1, 31, 2), (2, 31, 9), (3, 1, 9)], "Rectangle"),
        annotation([(0, 1, 2), (1, 31, 2), (2, 31, 9)], "Spline"),
    )
    found = read_regions(written(tmp_path, text, "a.xml"), BOUNDS)
    assert [r.name for r in found.regions] == ["Tumor", "Annotation 7", "Annotation 7"] and found.skipped == 3
    tumour, rectangle, spline = (r.geometry for r in found.regions)
    assert tumour.bounds == (10.5, 20, 400, 310) and tumour.area == L_AREA - 0.5 * 290
    assert (rectangle.area, spline.area) == (30 * 7, 30 * 7 / 2)
    assert found.regions[0].colour == (0xF4, 0xFA, 0x58)


# ---------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not an annotation file"),
        ("no json", "not an annotation file"),
        ("[" * 100_000, "not an annotation file"),
        ("3", "JSON without Features"),
        ("{}", "JSON without Features"),
        ('{"positive": [{"name": "Tumor1", "vertices": [[1, 2]]}]}', "JSON without Features"),
        ('{"type": "FeatureCollection"}', "JSON without Features"),
        ("[1]", "1 item other than Features"),
        ("[" * 500 + "]" * 500, "the file has no annotations"),
        ('[{"type": "Feature", "properties": {}}]', "1 annotation without a geometry"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon"}}]', "corners that are not lists of numbers"),
        ('[{"type": "Feature", "geometry": {"type": "Circle"}}]', "1 annotation of the unknown type 'Circle'"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]',
         "1 annotation without an area"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[["a", 0]]]}}]',
         "corners that are not lists of numbers"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": '
         "[[[0, 0], [9, 0], [NaN, 5], [0, 0]]]}}]", "not a finite number"),
        ('[{"type": "Feature", "geometry": null, "properties": 3}]', "1 annotation without a geometry"),
        ("<ASAP_Annotations><Annotations>", "not an annotation file"),
        ('<Annotations MicronsPerPixel="0.25"><Annotation/></Annotations>', "the file has no annotations"),
        ("<svg><Annotation/></svg>", "XML of another program: <svg>"),
        (asap('<Annotation Type="Polygon"><Coordinates><Coordinate X="1" Y="2"/></Coordinates></Annotation>'),
         "1 annotation without an area"),
        (asap('<Annotation Type="Polygon"><Coordinates><Coordinate X="1"/><Coordinate X="1"/><Coordinate X="1"/>'
              "</Coordinates></Annotation>"), "corners that are not lists of numbers"),
        (asap('<Annotation Type="Cloud"/>'), "of the unknown type 'Cloud'"),
        ("[]", "the file has no annotations"),
        ('{"type": "FeatureCollection", "features": []}', "the file has no annotations"),
        (json.dumps(feature({"type": "Point", "coordinates": [1, 2]})), "1 annotation without an area"),
        (asap(annotation([(0, 5, 5), (1, float("nan"), 8), (2, 9, 8)])), "not a finite number"),
        ('{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1e999, 0], [5, 5], [0, 0]]]}}',
         "not a finite number"),
        (asap(annotation([(0, 5, 5)], "Dot")), "1 annotation without an area"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, content: str, says: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(RegionError, match=says) as caught:
        read_regions(path, WHOLE)
    assert str(caught.value).startswith(f"{path}: ") and one_sentence(caught.value) and caught.value.path == path


def test_a_missing_file_a_folder_and_bytes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "b.geojson").write_bytes(b"\x89PNG\r\n\xff\xfe")
    for path in (tmp_path / "none.geojson", tmp_path, tmp_path / "b.geojson"):
        with pytest.raises(RegionError) as caught:
            read_regions(path, WHOLE)
        assert one_sentence(caught.value) and str(path) in str(caught.value)


# ---------------------------------------------------------------- round trip


def test_qupath_gets_annotations_in_its_own_frame(tmp_path: Path) -> None:
    geometry = shapely.transform(shapely.Polygon(L, [HOLE]), lambda at: at + np.array([120, 340]))
    regions = (Region("Tumor", geometry, (200, 10, 0)), box_region(BoxLevel0(121.25, 340, 7, 3), "pen: blue"))
    write_regions(tmp_path / "a.geojson", regions, BOUNDS)
    content = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    first, second = content["features"]
    assert content["type"] == "FeatureCollection" and first["type"] == "Feature"
    assert first["geometry"] == {"type": "Polygon", "coordinates": [L, HOLE]}
    assert first["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tumor", "color": [200, 10, 0]},
    }
    assert second["properties"]["classification"] == {"name": "pen: blue"}
    assert UUID(first["id"]) != UUID(second["id"])
    assert read_regions(tmp_path / "a.geojson", BOUNDS).regions == regions
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"], "no temporary left"


def test_two_equal_regions_have_two_ids_and_a_second_writing_the_same_bytes(tmp_path: Path) -> None:
    region = box_region(BoxLevel0(130, 350, 7, 3), "ß <µ>")
    for name in ("a.geojson", "b.geojson"):
        write_regions(tmp_path / name, [region, region], BOUNDS)
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    assert len({f["id"] for f in features}) == 2
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()


within_bounds = st.tuples(st.floats(120, 5120), st.floats(340, 4340))


@settings(deadline=None, max_examples=60)
@given(corners=st.lists(within_bounds, min_size=3, max_size=9, unique=True))
def test_a_round_trip_is_exact_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, corners: Any) -> None:
    try:
        region = Region("a", shapely.Polygon(corners))
    except RegionError:  # on one line
        return
    path = tmp_path_factory.mktemp("trip") / "a.geojson"
    write_regions(path, [region], BOUNDS)
    assert read_regions(path, BOUNDS).regions == (region,)


def test_outside_the_bounds_a_round_trip_is_exact_to_a_rounding(tmp_path: Path) -> None:
    region = box_region(BoxLevel0(0.1, 0.2, 40, 7), "a")
    write_regions(tmp_path / "a.geojson", [region], BOUNDS)
    (back,) = read_regions(tmp_path / "a.geojson", BOUNDS).regions
    assert back.geometry.equals_exact(region.geometry, 1e-10)


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.geojson"
    write_regions(path, [box_region(BoxLevel0(130, 350, 7, 3), "a")], BOUNDS)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("cable pulled")

    monkeypatch.setattr("napari_lrmil.core.atomic_files.os.replace", fail)
    with pytest.raises(OSError, match="cable pulled"):
        write_regions(path, [box_region(BoxLevel0(1, 2, 3, 4), "b")], BOUNDS)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


# ---------------------------------------------------------------- patches

SIZE = (6, 4)  # a patch in pixels of the raster, wider than high
CORNERS = np.array([(x, y) for y in range(0, 24, 4) for x in range(0, 36, 6)], dtype=np.int64)
boxes = st.tuples(st.integers(-3, 34), st.integers(-3, 22), st.integers(1, 17), st.integers(1, 11))


def painted(area: shapely.Geometry) -> np.ndarray:
    """Return which of 36 x 24 pixels have their centre in an area; exact for outlines that run along pixels."""
    x, y = np.meshgrid(np.arange(36) + 0.5, np.arange(24) + 0.5)
    return np.asarray(shapely.contains_xy(area, x, y))


def counted(raster: np.ndarray) -> np.ndarray:
    return np.array([raster[y : y + SIZE[1], x : x + SIZE[0]].sum() for x, y in CORNERS])


def brute(areas: list[shapely.Geometry]) -> np.ndarray:
    """Return the rule by counting pixels; areas off the raster count by their size."""
    patch, ground = SIZE[0] * SIZE[1], shapely.union_all(areas)
    taken = counted(painted(ground)) >= min(patch, ground.area) / 2
    for area in areas:
        if area.area < patch:
            taken |= counted(painted(area)) >= area.area / 2
    return taken


def rectangles(spans: list[tuple[int, int, int, int]]) -> shapely.Geometry:
    return shapely.union_all([shapely.box(x, y, x + w, y + h) for x, y, w, h in spans])


@settings(deadline=None, max_examples=300)
@given(drawn=st.lists(st.tuples(st.lists(boxes, min_size=1, max_size=3), st.lists(boxes, max_size=2)), max_size=3))
def test_patches_inside_are_those_that_a_raster_counts(drawn: Any) -> None:
    """Unions, holes, several parts, edges along patch borders, parts off the slide."""
    areas = [rectangles(solid).difference(rectangles(holes)) for solid, holes in drawn]
    areas = [area for area in areas if area.area > 0]
    regions = [Region(str(i), area) for i, area in enumerate(areas)]
    expected = brute(areas) if areas else np.zeros(len(CORNERS), dtype=bool)
    assert patches_in_regions(CORNERS, SIZE, regions).tolist() == expected.tolist()


def test_a_slanted_outline_with_a_hole_covers_what_a_fine_raster_counts() -> None:
    at = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    rim = np.c_[300 + 230 * np.cos(at) + 40 * np.cos(9 * at), 210 + 150 * np.sin(at)]
    area = shapely.Polygon(rim, [np.c_[330 + 60 * np.cos(at), 190 + 80 * np.sin(at)]])
    corners = np.array([(x, y) for y in range(0, 420, 42) for x in range(0, 600, 60)])
    x, y = np.meshgrid(np.arange(600) + 0.5, np.arange(420) + 0.5)
    raster = shapely.contains_xy(area, x, y)
    pixels = np.array([raster[b : b + 42, a : a + 60].sum() for a, b in corners])
    shared = overlap_areas(np.c_[corners, corners + np.array([60, 42])].astype(float), area)
    np.testing.assert_allclose(shared, pixels, atol=60)  # half a pixel along an outline of about 120
    assert 0.2 < (pixels > 0).mean() < 0.9
    assert shared.sum() == pytest.approx(area.area)


def test_a_region_smaller_than_a_patch_takes_the_patch_it_lies_in() -> None:
    corners = np.array([(0, 0), (512, 0), (0, 640), (512, 640)])
    dot = box_region(BoxLevel0(530, 700, 9, 5), "pen")
    assert patches_in_regions(corners, (512, 640), [dot]).tolist() == [False, False, False, True]


def test_many_small_regions_each_take_their_patch() -> None:
    """Together they are larger than a patch, and none covers half of one: ten dots are not nothing."""
    corners = np.array([(x, 0) for x in range(0, 5120, 512)])
    dots = [box_region(BoxLevel0(x + 40.0, 30, 200, 330), "cell") for x in range(0, 5120, 512)]
    assert patches_in_regions(corners, (512, 640), dots).all()
    assert patches_in_regions(corners, (512, 640), dots[3:4]).nonzero()[0].tolist() == [3]


def test_regions_that_are_small_all_together_take_the_patch_that_holds_half_of_them() -> None:
    """Three regions with a quarter to two fifths of each in the left patch; the rest of all three is one ground.

    In the left patch lie three times 20 x 20; beside it 15 x 60, which all three cover: 1200 of 2100. So the left patch
    holds more than half of what they cover together, and less than half of any one of them.
    """
    shared = shapely.box(100, 10, 115, 70)
    regions = [Region(str(y), shapely.union(shapely.box(80, y, 100, y + 20), shared)) for y in (0, 30, 60)]
    assert [region.geometry.area for region in regions] == [1300] * 3
    corners = np.array([(0, 0), (100, 0), (200, 0)])
    assert patches_in_regions(corners, (100, 100), regions).tolist() == [True, True, False]
    assert patches_in_regions(corners, (100, 100), regions[:1]).tolist() == [False, True, False]


def test_exactly_half_belongs_and_less_does_not() -> None:
    corners = np.array([(1000, 2000), (1512, 2000)])
    assert patches_in_regions(corners, (512, 640), [box_region(BoxLevel0(500, 1900, 756, 900), "a")]).tolist() == [
        True,
        False,
    ]
    assert not patches_in_regions(corners, (512, 640), [box_region(BoxLevel0(500, 1900, 755.9, 900), "a")]).any()


def test_no_regions_and_no_patches() -> None:
    assert patches_in_regions(CORNERS, SIZE, []).tolist() == [False] * len(CORNERS)
    assert patches_in_regions(np.empty((0, 2), np.int64), SIZE, [box_region(BoxLevel0(0, 0, 2, 3), "a")]).shape == (0,)


def test_ten_thousand_patches_and_a_long_outline_take_no_time() -> None:
    """CPU seconds; cutting every patch out of the whole outline takes some twenty times as long."""
    at = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    radius = 30_000 * (1 + 0.3 * np.sin(3 * at) + 0.02 * np.sin(900 * at))
    region = Region("a", shapely.Polygon(np.c_[50_000 + radius * np.cos(at), 40_000 + radius * np.sin(at)]))
    corners = np.array([(x * 1024, y * 819) for y in range(100) for x in range(100)])
    began = time.process_time()
    taken = patches_in_regions(corners, (1024, 819), [region])
    assert time.process_time() - began < 5
    assert taken.sum() * 1024 * 819 == pytest.approx(region.geometry.area, rel=0.01)


# ---------------------------------------------------------------- real files


def test_qupaths_own_files_are_read(shared_data: Path) -> None:
    folder = shared_data / "annotations" / "wsidicom_tests"
    files = {p.stem: p for p in sorted((folder / "qupath_geojson").glob("*.json"))}
    read = ("brush", "ellipse", "polygon", "rectangle", "wand")
    for kind in read:
        (region,) = read_regions(files.pop(f"qupath-{kind}"), BOUNDS).regions
        assert region.name == kind
    (rectangle,) = read_regions(folder / "qupath_geojson" / "qupath-rectangle.json", BOUNDS).regions
    assert rectangle.geometry.bounds == (26268 + 120, 15298 + 340, 26478 + 120, 15474 + 340)
    assert files, "points and lines are left"
    for path in files.values():
        with pytest.raises(RegionError, match="1 annotation without an area"):
            read_regions(path, BOUNDS)
    cells = read_regions(next((folder / "qupath_geojson_advanced").glob("*.json")), WHOLE).regions
    assert len(cells) == 4
    assert {(c.name, c.colour) for c in cells} == {("Cell", (0x7F, 0xDC, 0x3A)), ("Nucleus", (184, 115, 67))}


def test_asaps_own_files_are_read(shared_data: Path) -> None:
    folder = shared_data / "annotations" / "wsidicom_tests" / "asap"
    (region,) = read_regions(folder / "asap-polygon.xml", BOUNDS).regions
    assert region.name == "Annotation 0" and region.colour == (0xF4, 0xFA, 0x58)
    assert region.geometry.bounds == (22693.1875, 16551.1797, 23067.4531, 16710.6367)
    for name in ("asap-dot.xml", "asap-pointset.xml"):
        with pytest.raises(RegionError, match="1 annotation without an area"):
            read_regions(folder / name, BOUNDS)


def test_another_programs_json_is_told_apart(shared_data: Path) -> None:
    path = next((shared_data / "annotations" / "camelyon16_ncrf_json" / "valid").glob("*.json"))
    with pytest.raises(RegionError, match="JSON without Features"):
        read_regions(path, WHOLE)
