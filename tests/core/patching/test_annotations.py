"""Annotation files as many writers leave them: the right area, or what was left out or repaired, with its reason."""

from __future__ import annotations

import gzip
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from napari_lrmil.core.errors import RegionError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.patching import annotation_text
from napari_lrmil.core.patching.outlines import estimate_crossings
from napari_lrmil.core.patching.regions import RegionFile, read_regions
from support.fake_slides import one_sentence

BOUNDS = Bounds(0, 0, 3000, 2000)
SQUARE = [[200, 200], [712, 200], [712, 712], [200, 712], [200, 200]]
AREA = 512**2
POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}
LINE = {"type": "LineString", "coordinates": [[1, 2], [4, 9]]}
POINT = {"type": "Point", "coordinates": [1, 2]}
ASAP_POINTS = [(200.0, 200.0), (712.0, 200.0), (712.0, 712.0), (200.0, 712.0)]


def box(left: float, top: float, width: float, height: float) -> dict[str, Any]:
    right, bottom = left + width, top + height
    return {
        "type": "Polygon",
        "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]],
    }


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def read(folder: Path, content: Any, name: str = "a.geojson") -> RegionFile:
    data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_regions(folder / name, BOUNDS)


def area(file: RegionFile) -> float:
    return sum(region.geometry.area for region in file.regions)


def asap(points: str, kind: str = "Polygon", group: str = "None") -> str:
    return (
        f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>{points}'
        "</Coordinates></Annotation>"
    )


def asap_file(*annotations: str, head: str = '<?xml version="1.0"?>') -> str:
    return f"{head}<ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations></ASAP_Annotations>"


def points_of(corners: Any, form: str = '<Coordinate Order="{i}" X="{x:.4f}" Y="{y:.4f}"/>') -> str:
    return "".join(form.format(i=i, x=x, y=y) for i, (x, y) in enumerate(corners))


# ---------------------------------------------------------------- GeoJSON


@pytest.mark.parametrize(
    "geometry",
    [
        POLYGON,
        {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
        {"type": "GeometryCollection", "geometries": [POLYGON]},
        {"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection", "geometries": [POLYGON]}]},
        {"type": "Polygon", "coordinates": [[[*corner, 3.5] for corner in SQUARE]]},
        {"type": "Polygon", "coordinates": [[SQUARE[0], *([*corner, 0] for corner in SQUARE[1:])]]},
        {"type": "Polygon", "coordinates": [[[str(x), f" {y}.0e0 "] for x, y in SQUARE]]},
    ],
)
@pytest.mark.parametrize("wrap", ["feature", "bare", "list", "nested", "lines", "sequence"])
def test_an_area_is_read_from_every_geometry_and_container(tmp_path: Path, geometry: Any, wrap: str) -> None:
    one = feature(geometry)
    content: Any = {
        "feature": one,
        "bare": geometry,
        "list": [geometry],
        "nested": [{"type": "FeatureCollection", "features": [{"type": "FeatureCollection", "features": [one]}]}],
        "lines": json.dumps(one) + "\n\n",
        "sequence": f"\x1e{json.dumps(one)}\n",
    }[wrap]
    file = read(tmp_path, content)
    assert (len(file.regions), area(file), file.warnings) == (1, AREA, ())


def test_lines_of_features_are_all_read(tmp_path: Path) -> None:
    features = [feature(box(300 * i, 10, 100, 50)) for i in range(3)]
    file = read(tmp_path, "\n".join(map(json.dumps, features)))
    assert [region.geometry.bounds[0] for region in file.regions] == [0, 300, 600]


def test_a_collection_gives_one_region_and_its_lines_are_counted(tmp_path: Path) -> None:
    members = [box(0, 0, 30, 40), LINE, {"type": "GeometryCollection", "geometries": [box(20, 0, 30, 40), POINT]}]
    file = read(tmp_path, feature({"type": "GeometryCollection", "geometries": members}))
    assert (len(file.regions), area(file), file.skipped) == (1, 50 * 40, 2), "overlapping members count once"
    assert "2 parts without an area (points, lines)" in file.warnings[0]


def test_numbers_that_are_not_finite_matter_in_coordinates_only(tmp_path: Path) -> None:
    good = json.dumps(feature(POLYGON, measurements={"Area": 1, "Solidity": None, "Ratio": None}))
    good = good.replace("null", "NaN", 1).replace("null", "-Infinity", 1)
    file = read(tmp_path, good)
    assert (len(file.regions), area(file), file.warnings) == (1, AREA, ())
    bad = json.dumps(feature(POLYGON)).replace("712", "NaN", 1)
    file = read(tmp_path, f"[{good}, {bad}, {bad.replace('NaN', '1e999')}, {bad.replace('NaN', '1' + '0' * 400)}]")
    assert (len(file.regions), area(file), file.skipped) == (1, AREA, 3), "a bad outline leaves the others standing"
    assert "3 annotations with a corner that is not a finite number; 1 read" in file.warnings[0]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (3, "1 item other than Features and geometries"),
        ({"type": "Topology"}, "1 item other than Features and geometries"),
        ({"type": "Feature", "geometry": None}, "1 annotation without a geometry"),
        (feature({"type": "Circle", "coordinates": [3, 4]}), "1 annotation of the unknown type 'Circle'"),
        (feature({"coordinates": [SQUARE]}), "1 annotation without a geometry"),
        (feature({"type": "Polygon", "coordinates": "x"}), "1 annotation with corners that are not lists of numbers"),
        (feature({"type": "Polygon", "coordinates": [3]}), "1 annotation with corners that are not lists of numbers"),
        (feature({"type": "Polygon", "coordinates": [[None, 3, 4]]}), "corners that are not lists of numbers"),
        (feature({"type": "Polygon", "coordinates": [[[1, None]] * 4]}), "corners that are not lists of numbers"),
        (
            feature({"type": "Polygon", "coordinates": [[["1.234,5", "2"]] * 4]}),
            "corners that are not lists of numbers",
        ),
        (feature({"type": "Polygon", "coordinates": [[[1, 5, 2, 5], [7, 5, 2, 5], [7, 5, 9, 5]]]}), "decimal commas?"),
        (feature({"type": "Polygon", "coordinates": [[["NaN", 2], [3, 4], [5, 9]]]}), "not a finite number"),
        (
            feature({"type": "Polygon", "coordinates": [[[1e300, 2], [3, 4], [5, 9]]]}),
            "further than 1,000,000,000 pixels",
        ),
        (feature({"type": "Polygon", "coordinates": []}), "1 annotation without an area"),
        (feature({"type": "MultiPolygon", "coordinates": [[], [[[1, 2], [3, 4]]]]}), "1 annotation without an area"),
        (feature(box(5, 5, 40, 0)), "1 annotation without an area"),
    ],
)
def test_what_is_no_area_is_left_out_with_its_reason(tmp_path: Path, bad: Any, says: str) -> None:
    file = read(tmp_path, [bad, feature(POLYGON)])
    assert (len(file.regions), area(file), file.skipped) == (1, AREA, 1)
    (warning,) = file.warnings
    assert says in warning and warning.startswith("a.geojson: left out: 1 ") and warning.endswith("; 1 read")


def test_a_bad_part_of_an_annotation_leaves_the_good_parts(tmp_path: Path) -> None:
    parts = [[SQUARE], [[[0, 0], [None, 3], [9, 9]]]]
    file = read(tmp_path, feature({"type": "MultiPolygon", "coordinates": parts}))
    assert area(file) == AREA and "1 part with corners that are not lists of numbers" in file.warnings[0]


def test_repairs_are_told(tmp_path: Path) -> None:
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [40, 30], [40, 0], [0, 30], [0, 0]]]}
    comma = {"type": "Polygon", "coordinates": [[["0,5", "0"], ["40,5", "0"], ["40,5", "30"]]]}
    file = read(tmp_path, [feature(bow_tie), feature(comma)])
    assert [region.geometry.area for region in file.regions] == [600, 600]
    (warning,) = file.warnings
    for part in ("1 outline with crossings", "1 outline closed", "3 numbers with a decimal comma"):
        assert part in warning


# ---------------------------------------------------------------- text

NAMED = json.dumps(feature(POLYGON, classification={"name": "Größe"}), ensure_ascii=False)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_unicode_in_any_form_is_read(tmp_path: Path, encoding: str) -> None:
    for text in (NAMED, asap_file(asap(points_of(ASAP_POINTS), group="Größe"))):
        file = read(tmp_path, text.encode(encoding))
        assert [region.name for region in file.regions] == ["Größe"] and area(file) == AREA and not file.warnings


def test_western_letters_are_guessed_and_told(tmp_path: Path) -> None:
    file = read(tmp_path, NAMED.encode("cp1252"))
    assert file.regions[0].name == "Größe" and "letters read as Windows-1252" in file.warnings[0]


@pytest.mark.parametrize(
    ("declared", "written", "is_told"),
    [
        ("ISO-8859-1", "latin-1", False),
        ("windows-1252", "cp1252", False),
        ("UTF-16", "utf-16", False),
        ("UTF-16", "utf-8", False),  # .NET declares UTF-16 where it writes UTF-8
        ("UTF-8", "cp1252", True),
        ("no-such-set", "utf-8", False),
        ("unicode_escape", "utf-8", False),
    ],
)
def test_declared_encodings_of_xml(tmp_path: Path, declared: str, written: str, is_told: bool) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>'
    text = asap_file(asap(points_of(ASAP_POINTS), group="Größe"), head=head)
    file = read(tmp_path, text.encode(written), "a.xml")
    assert file.regions[0].name == "Größe" and area(file) == AREA and bool(file.warnings) == is_told


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def test_packed_files_are_read_by_content(tmp_path: Path) -> None:
    data = NAMED.encode("utf-16")
    for packed in (gzip.compress(data), zipped({"x/a.GeoJSON": data, "__MACOSX/x/._a.geojson": b"\0", "r.txt": b""})):
        assert area(read(tmp_path, packed, "whatever.name")) == AREA


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (gzip.compress(NAMED.encode(), mtime=0)[:-12], "gzip data is damaged"),
        (gzip.compress(NAMED.encode(), mtime=0)[:12] + b"garbage of some length", "gzip data is damaged"),
        (zipped({"a.json": b"{}", "b.json": b"{}"}), "the zip holds 2 annotation files"),
        (zipped({"a.txt": b""}), "the zip holds no annotation files"),
        (zipped({"a.json": NAMED.encode()})[:-9], "the zip cannot be unpacked"),
    ],
)
def test_what_is_packed_badly_is_one_sentence(tmp_path: Path, packed: bytes, says: str) -> None:
    with pytest.raises(RegionError, match=says) as caught:
        read(tmp_path, packed)
    assert one_sentence(caught.value)


def test_a_packed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_text, "MAX_BYTES", 2**20)
    for packed in (gzip.compress(b" " * 2**22), zipped({"a.json": b" " * 2**22}), b" " * 2**21):
        with pytest.raises(RegionError, match="more than 1 MiB of text"):
            read(tmp_path, packed)


# ---------------------------------------------------------------- XML


@pytest.mark.parametrize(
    ("form", "warns"),
    [
        ('<Coordinate Order="{i}" X="{x:.4f}" Y="{y:.4f}"/>', ""),
        ('<Coordinate Order="{i}" X="{x:e}" Y="{y:e}"/>', ""),
        ('<Coordinate X="{x}" Y="{y}"/>', "1 outline without a valid order of corners"),
        ('<Coordinate Order="7" X="{x}" Y="{y}"/>', "1 outline without a valid order of corners"),
    ],
)
def test_numbers_and_order_of_asap(tmp_path: Path, form: str, warns: str) -> None:
    file = read(tmp_path, asap_file(asap(points_of(ASAP_POINTS, form))), "a.xml")
    assert area(file) == AREA and bool(warns) == bool(file.warnings) and warns in (file.caution or "")


def test_decimal_commas_and_splines_of_asap_are_told(tmp_path: Path) -> None:
    points = points_of(ASAP_POINTS).replace(".", ",")
    file = read(tmp_path, asap_file(asap(points), asap(points, "Spline"), asap("", "Dot")), "a.xml")
    assert [region.geometry.area for region in file.regions] == [AREA, AREA] and file.skipped == 1
    assert "16 numbers with a decimal comma" in file.warnings[1] and "1 spline read as" in file.warnings[1]


def test_holes_of_camelyon_are_cut_out(tmp_path: Path) -> None:
    hole = points_of([(300, 300), (600, 300), (600, 600), (300, 600)])
    file = read(tmp_path, asap_file(asap(hole, group="_2"), asap(points_of(ASAP_POINTS), group="_0")), "a.xml")
    assert (len(file.regions), area(file)) == (1, AREA - 300**2) and "1 outline cut out" in file.warnings[0]
    alone = read(tmp_path, asap_file(asap(hole, group="_2")), "a.xml")
    assert (len(alone.regions), area(alone), alone.warnings) == (1, 300**2, ()), (
        "a group of that name alone is a region"
    )


def imagescope(*regions: str, layer: str = 'Name="" LineColor="65280"') -> str:
    inner = f"<Annotation {layer}><Regions>{''.join(regions)}</Regions></Annotation>"
    return f'<Annotations MicronsPerPixel="0.5">{inner}</Annotations>'


def region(corners: Any, kind: int = 0, negative: int = 0) -> str:
    vertices = points_of(corners, '<Vertex X="{x}" Y="{y}" Z="0"/>')
    return f'<Region Type="{kind}" NegativeROA="{negative}" Text="T"><Vertices>{vertices}</Vertices></Region>'


def test_imagescope_counts_from_level_0_and_knows_kinds_and_holes(tmp_path: Path) -> None:
    hole = [(300, 300), (600, 300), (600, 600), (300, 600)]
    lost = [(2300, 300), (2600, 300), (2600, 600)]
    ellipse, arrow = [(1000, 100), (1400, 300)], [(5, 5), (9, 9)]
    text = imagescope(
        region(ASAP_POINTS), region(hole, negative=1), region(lost, negative=1), region(ellipse, 2), region(ellipse, 1),
        region(arrow, 3), region(arrow, 9),
    )  # fmt: skip
    path = tmp_path / "a.xml"
    path.write_text(text)
    file = read_regions(path, Bounds(70, 90, 3000, 2000))
    areas = [region.geometry.area for region in file.regions]
    assert areas == pytest.approx([AREA - 300**2, np.pi * 200 * 100, 400 * 200], rel=1e-3)
    assert file.regions[0].geometry.bounds == (200, 200, 712, 712) and file.regions[0].colour == (0, 255, 0)
    assert file.regions[0].name == "T" and file.skipped == 3
    for part in ("1 hole (negative outline) outside", "1 annotation without an area", "unknown type '9'"):
        assert part in file.warnings[0]
    assert "1 outline cut out" in file.warnings[1] and "1 ellipse read as a polygon" in file.warnings[1]


def test_a_region_that_is_cut_away_is_told(tmp_path: Path) -> None:
    text = imagescope(region(ASAP_POINTS), region([(0, 0), (900, 0), (900, 900), (0, 900)], negative=1))
    with pytest.raises(RegionError, match="1 annotation cut away by holes"):
        read(tmp_path, text, "a.xml")


@pytest.mark.parametrize("tail", ["</ASAP_Annotations>", "<broken", "&lol9;</ASAP_Annotations>"])
def test_an_xml_bomb_is_refused_before_it_expands(tmp_path: Path, tail: str) -> None:
    entities = "".join(f'<!ENTITY lol{i} "{f"&lol{i - 1};" * 10}">' for i in range(1, 10))
    text = f'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol0 "lol">{entities}]><ASAP_Annotations>&lol9;{tail}'
    began = time.process_time()
    with pytest.raises(RegionError, match="entity definitions") as caught:
        read(tmp_path, text, "a.xml")
    assert one_sentence(caught.value) and time.process_time() - began < 2


# ---------------------------------------------------------------- outlines that cross themselves


def test_crossings_are_estimated() -> None:
    assert estimate_crossings(shapely.Polygon([(0, 0), (40, 30), (40, 0), (0, 30)])) == 1
    assert estimate_crossings(shapely.Polygon(SQUARE)) == 0
    corners = np.random.default_rng(3).uniform(0, 1000, (2000, 2))
    # Two random edges of a square cross with a probability of about 0.23.
    assert estimate_crossings(shapely.Polygon(corners)) == pytest.approx(0.23 * 2000**2 / 2, rel=0.25)


def test_twenty_thousand_random_corners_are_refused_and_the_others_stand(tmp_path: Path) -> None:
    """A repair would take half an hour; CPU seconds."""
    corners = np.random.default_rng(5).uniform(0, 20_000, (20_000, 2)).round(1).tolist()
    wild = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    began = time.process_time()
    file = read(tmp_path, [feature(wild), feature(POLYGON)])
    assert time.process_time() - began < 10
    assert area(file) == AREA and "1 annotation that crosses itself too often to be repaired" in file.warnings[0]


def test_a_long_scribble_is_repaired(tmp_path: Path) -> None:
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 10_000
    shaken = (rim + np.random.default_rng(5).normal(0, 5, rim.shape)).tolist()
    began = time.process_time()
    file = read(tmp_path, feature({"type": "Polygon", "coordinates": [[*shaken, shaken[0]]]}))
    assert time.process_time() - began < 10
    assert area(file) == pytest.approx(np.pi * 10_000**2, rel=1e-3) and "with crossings, repaired" in file.warnings[0]
