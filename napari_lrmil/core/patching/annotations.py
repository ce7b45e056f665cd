"""Annotations of GeoJSON (RFC 7946, QuPath), ASAP's XML and ImageScope's XML, each judged for itself.

Coordinates of GeoJSON count from the corner of the scanned area, as in QuPath; those of both kinds of XML from the
corner of level 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from napari_lrmil.core.geometry import Bounds, Float
from napari_lrmil.core.patching.outlines import NOT_FINITE, OutlineError, require_numbers

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Rgb = tuple[int, int, int]

NAMELESS = "region"
# Reasons to leave an annotation or a part of it out; each completes "an annotation …".
NO_AREA = "without an area (points, lines)"
NO_GEOMETRY = "without a geometry"
BAD_CORNERS = "with corners that are not lists of numbers"
LONG_CORNERS = "with corners of more than three numbers (decimal commas?)"
CUT_AWAY = "cut away by holes"
# Others, and repairs and guesses, with "|" where the plural has an s.
NO_FEATURE = "item| other than Features and geometries"
NOT_CLOSED = "outline| closed (the last corner was not the first)"
DECIMAL_COMMAS = "number| with a decimal comma"
CROSSED = "outline| with crossings, repaired"
NO_ORDER = "outline| without a valid order of corners, taken as listed"
SPLINES = "spline| read as straight lines between the points"
ELLIPSES = "ellipse| read as a polygon"
CUT_OUT = "outline| cut out of others as a hole"
LOST_HOLES = "hole| (negative outline) outside all outlines"

LINES_AND_POINTS = ("Point", "MultiPoint", "LineString", "MultiLineString")
GEOMETRIES = (*LINES_AND_POINTS, "Polygon", "MultiPolygon", "GeometryCollection")
# Kind of an annotation -> points that it needs for an area; 0 for kinds without an area.
ASAP_KINDS = {"Polygon": 3, "Spline": 3, "Rectangle": 3, "Dot": 0, "PointSet": 0, "Measurement": 0, "None": 0}
# Groups of ASAP whose outlines are holes in those of other groups: the convention of CAMELYON16 and CAMELYON17.
HOLES_OF_GROUPS = {"_2": ("_0", "_1"), "normal": ("metastases",)}
OUTLINE, RECTANGLE, ELLIPSE = "0", "1", "2"
IMAGESCOPE_KINDS = {OUTLINE: 3, RECTANGLE: 2, ELLIPSE: 2, "3": 0, "4": 0, "5": 0}  # the last: arrow, ruler, counter
ELLIPSE_CORNERS = 128
NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*")
NOT_A_NUMBER = re.compile(r"\s*[+-]?(nan|inf|infinity)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Annotation:
    """An annotation with an outline, before its area is computed.

    Attributes
    ----------
    name, colour
        Class or name, and colour if there is one.
    geometry
        Polygon or MultiPolygon in level-0 pixels, possibly invalid.
    group
        Group of outlines in which holes are cut.
    cuts
        Groups in whose outlines this one is a hole; empty for an ordinary outline.
    is_region_elsewhere
        Whether a hole that meets none of these outlines is an ordinary one.
    """

    name: str
    geometry: BaseGeometry
    colour: Rgb | None = None
    group: str = ""
    cuts: tuple[str, ...] = ()
    is_region_elsewhere: bool = False


@dataclass
class Findings:
    """Annotations of a file, and the counts of what was left out, repaired and guessed.

    Attributes
    ----------
    annotations
        Annotations with an outline.
    count
        Number of annotations in the file, those that were left out included.
    omitted, changed
        Reason or repair, with "|" where the plural has an s -> count.
    """

    annotations: list[Annotation] = field(default_factory=list)
    count: int = 0
    omitted: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def omit(self, reason: str) -> None:
        """Count an annotation that is left out. `reason` completes "an annotation …"."""
        self.omitted[f"annotation| {reason}"] += 1


def read_annotations(text: str, bounds: Bounds) -> Findings:
    """Return the annotations of a text, whose format is detected by content.

    Raises
    ------
    ValueError
        If the text is neither GeoJSON nor XML of ASAP or ImageScope.
    """
    findings = Findings()
    if text.lstrip().startswith("<"):
        _read_xml(text, findings)
    else:
        _read_geojson(text, np.array([bounds.x, bounds.y], dtype=np.float64), findings)
    return findings


# ---------------------------------------------------------------- GeoJSON


def _read_geojson(text: str, offset: Float, findings: Findings) -> None:
    for properties, geometry in _features(_parse_json(text)):
        findings.count += 1
        if properties is NO_FEATURE:
            findings.omitted[NO_FEATURE] += 1
            continue
        reasons: Counter[str] = Counter()
        polygons = [] if geometry is None else list(_polygons(geometry, offset, reasons, findings.changed))
        if not polygons:
            findings.omit(next(iter(reasons), NO_GEOMETRY))
            continue
        name, colour = _label(properties)
        # A MultiPolygon of one part stays one, so that written regions are read back unchanged.
        is_single = len(polygons) == 1 and geometry["type"] != "MultiPolygon"
        shape = polygons[0] if is_single else shapely.MultiPolygon(polygons)
        findings.annotations.append(Annotation(name, shape, colour))
        for reason, count in reasons.items():
            findings.omitted[f"part| {reason}"] += count


def _parse_json(text: str) -> Any:
    """Return the content of JSON, or the list of contents of several JSON texts in a row (RFC 8142, JSON lines)."""
    decoder, at = json.JSONDecoder(), 0
    contents: list[Any] = []
    # RFC 8142 puts a record separator in front of each text.
    text = text.replace("\x1e", " ").strip()
    while at < len(text) or not contents:
        content, at = decoder.raw_decode(text, at)
        contents.append(content)
        while at < len(text) and text[at].isspace():
            at += 1
    content = contents if len(contents) > 1 else contents[0]
    if not (isinstance(content, list) or _is_collection(content) or _geojson_type(content) in ("Feature", *GEOMETRIES)):
        raise ValueError("JSON without Features")
    return content


def _geojson_type(content: object) -> str | None:
    kind = content.get("type") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None


def _is_collection(content: Any) -> bool:
    return _geojson_type(content) == "FeatureCollection" and isinstance(content.get("features"), list)


def _features(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield properties and geometry of the Features of lists and collections, nested too, and of bare geometries.

    A geometry of None is missing; what is no Feature has `NO_FEATURE` in place of the properties.
    """
    waiting = [content]  # not by recursion: files may nest deeper than Python calls
    while waiting:
        item = waiting.pop()
        kind = _geojson_type(item)
        if isinstance(item, list):
            waiting.extend(reversed(item))
        elif _is_collection(item):
            waiting.extend(reversed(item["features"]))
        elif kind == "Feature":
            geometry = item.get("geometry")
            yield item.get("properties"), geometry if isinstance(geometry, dict) else None
        elif kind in GEOMETRIES:
            yield None, item
        else:
            yield NO_FEATURE, None


def _polygons(
    geometry: dict[str, Any], offset: Float, omitted: Counter[str], changed: Counter[str]
) -> Iterator[shapely.Polygon]:
    """Yield the polygons of a geometry in level-0 pixels, and count the parts without an area."""
    waiting: list[Any] = [geometry]
    while waiting:
        part = waiting.pop()
        kind = _geojson_type(part)
        children = part.get("geometries" if kind == "GeometryCollection" else "coordinates") if kind else None
        if kind in LINES_AND_POINTS:
            omitted[NO_AREA] += 1
        elif kind not in GEOMETRIES:
            omitted[f"of the unknown type {kind!r}" if kind else NO_GEOMETRY] += 1
        elif not isinstance(children, list):
            omitted[BAD_CORNERS] += 1
        elif kind == "GeometryCollection":
            waiting.extend(reversed(children))
        elif kind == "MultiPolygon":
            waiting.extend({"type": "Polygon", "coordinates": rings} for rings in reversed(children))
        else:
            try:
                yield _polygon([_corners(ring, changed) + offset for ring in children], changed)
            except OutlineError as error:
                omitted[error.fault] += 1


def _polygon(rings: Sequence[Float], changed: Counter[str]) -> shapely.Polygon:
    """Return the polygon of a shell and its holes; rings of fewer than three corners have no area."""
    if not rings or len(rings[0]) < 3:
        raise OutlineError(NO_AREA)
    rings = [ring for ring in rings if len(ring) >= 3]
    for ring in rings:
        require_numbers(ring)
    changed[NOT_CLOSED] += any((ring[0] != ring[-1]).any() for ring in rings)
    return shapely.Polygon(rings[0], rings[1:])


def _corners(ring: Any, changed: Counter[str]) -> Float:
    """Return (N, 2) corners of a ring in 2D, 3D or both."""
    if not isinstance(ring, list):
        raise OutlineError(BAD_CORNERS)
    try:
        array = np.asarray(ring)
    except ValueError:  # 2D and 3D mixed
        array = np.asarray(None)
    if array.dtype.kind in "iuf" and array.ndim == 2 and array.shape[1] in (2, 3):
        return array[:, :2].astype(np.float64)
    corners = [_corner(corner, changed) for corner in ring]
    return np.array(corners, dtype=np.float64).reshape(-1, 2)


def _corner(corner: Any, changed: Counter[str]) -> tuple[float, float]:
    if not isinstance(corner, list) or len(corner) < 2:
        raise OutlineError(BAD_CORNERS)
    if len(corner) > 3:
        raise OutlineError(LONG_CORNERS)
    return _number(corner[0], changed), _number(corner[1], changed)


def _number(value: Any, changed: Counter[str]) -> float:
    """Return a number from JSON or from text, with a decimal point or comma."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        changed[DECIMAL_COMMAS] += "," in value
        value = float(value.replace(",", "."))
    elif isinstance(value, str) and NOT_A_NUMBER.fullmatch(value):
        raise OutlineError(NOT_FINITE)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OutlineError(BAD_CORNERS)
    try:
        return float(value)
    except OverflowError:
        raise OutlineError(NOT_FINITE) from None


def _label(properties: Any) -> tuple[str, Rgb | None]:
    """Return name and colour from the properties of a Feature, as any version of QuPath writes them."""
    properties = properties if isinstance(properties, dict) else {}
    label = properties.get("classification")
    label = label if isinstance(label, dict) else {"name": label}
    names = label.get("names")
    joined = ": ".join(map(str, names)) if isinstance(names, list) else ""
    name = next((n for n in (joined, label.get("name"), properties.get("name")) if n not in (None, "")), NAMELESS)
    colours = (label.get("color"), label.get("colorRGB"), properties.get("color"))
    return str(name), next((rgb for rgb in map(parse_rgb, colours) if rgb is not None), None)


def parse_rgb(value: object) -> Rgb | None:
    """Return a colour from [r, g, b], [r, g, b, a], Java's packed number (QuPath before 0.4) or #rrggbb, else None."""
    if isinstance(value, str) and value.startswith("#") and len(value) == 7:
        try:
            value = int(value[1:], 16)
        except ValueError:
            return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value >> 16 & 255, value >> 8 & 255, value & 255]
    match value:
        case [int(r), int(g), int(b), *opacity] if all(0 <= c <= 255 for c in (r, g, b)) and len(opacity) < 2:
            return r, g, b
    return None


# ---------------------------------------------------------------- XML


def _read_xml(text: str, findings: Findings) -> None:
    from xml.etree import ElementTree

    # Neither program writes entities, and a few nested ones expand to gigabytes.
    if "<!ENTITY" in text:
        raise ValueError("XML with entity definitions, which neither ASAP nor ImageScope writes")
    try:
        # As a string: the text is decoded already, and what it declares may be wrong.
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    readers = {"ASAP_Annotations": _read_asap, "Annotations": _read_imagescope}
    if root.tag not in readers:
        raise ValueError(f"XML of another program: <{root.tag}> instead of <ASAP_Annotations> or <Annotations>")
    readers[root.tag](root, findings)


def _read_asap(root: Element, findings: Findings) -> None:
    elements = root.findall("Annotations/Annotation")
    groups = {_asap_group(element) for element in elements}
    for element in elements:
        group, name = _asap_group(element), element.get("Name", "")
        cuts = tuple(solid for solid in HOLES_OF_GROUPS.get(group, ()) if solid in groups)
        geometry = _asap_outline(element, findings)
        if geometry is not None:
            label, colour = group or name or NAMELESS, parse_rgb(element.get("Color"))
            findings.annotations.append(Annotation(label, geometry, colour, group, cuts, is_region_elsewhere=True))


def _asap_group(element: Element) -> str:
    group = element.get("PartOfGroup", "")
    return "" if group == "None" else group


def _asap_outline(element: Element, findings: Findings) -> shapely.Polygon | None:
    """Return the polygon through an annotation's points in their stated order; None, counted, without one."""
    kind, points = element.get("Type", ""), element.findall("Coordinates/Coordinate")
    order = [_order(point) for point in points]
    is_ordered = None not in order and len(set(order)) == len(order)
    if is_ordered:
        points = [points[i] for i in np.argsort(np.array(order, dtype=np.float64), kind="stable")]
    corners = _xml_corners(points, kind, ASAP_KINDS, findings)
    if corners is None:
        return None
    findings.changed[NO_ORDER] += not is_ordered
    findings.changed[SPLINES] += kind == "Spline"
    return shapely.Polygon(corners)


def _order(point: Element) -> float | None:
    text = point.get("Order", "")
    return float(text.replace(",", ".")) if NUMBER.fullmatch(text) else None


def _xml_corners(points: Sequence[Element], kind: str, kinds: Mapping[str, int], findings: Findings) -> Float | None:
    """Return (N, 2) corners from the attributes X and Y of points; None, counted, if they enclose no area.

    Parameters
    ----------
    kinds
        Kind of an annotation -> number of points that it needs for an area; 0 if it has none.
    """
    findings.count += 1
    try:
        if kind not in kinds:
            raise OutlineError(f"of the unknown type {kind!r}")
        if not kinds[kind] or len(points) < kinds[kind]:
            raise OutlineError(NO_AREA)
        # An attribute that is missing is no number.
        corners = [[_number(point.get(axis, ""), findings.changed) for axis in "XY"] for point in points]
    except OutlineError as error:
        findings.omit(error.fault)
        return None
    return np.array(corners, dtype=np.float64)


def _read_imagescope(root: Element, findings: Findings) -> None:
    for layer, annotation in enumerate(root.iterfind("Annotation")):
        colour = _imagescope_rgb(annotation.get("LineColor", ""))
        for region in annotation.iterfind("Regions/Region"):
            geometry = _imagescope_outline(region, findings)
            if geometry is not None:
                name = annotation.get("Name") or region.get("Text") or NAMELESS
                is_hole, group = region.get("NegativeROA", "0") not in ("0", ""), str(layer)
                cuts = (group,) if is_hole else ()
                findings.annotations.append(Annotation(name, geometry, colour, group, cuts))


def _imagescope_outline(region: Element, findings: Findings) -> shapely.Polygon | None:
    """Return the polygon of a region. Ellipses are stored as corners of their box, rectangles sometimes too."""
    kind, points = region.get("Type", OUTLINE), region.findall("Vertices/Vertex")
    corners = _xml_corners(points, kind, IMAGESCOPE_KINDS, findings)
    if corners is None:
        return None
    low, high = corners.min(axis=0), corners.max(axis=0)
    if kind == RECTANGLE and len(corners) == 2:
        corners = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
    if kind == ELLIPSE and len(corners) in (2, 4):
        findings.changed[ELLIPSES] += 1
        angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
        corners = (low + high) / 2 + np.stack([np.cos(angle), np.sin(angle)], axis=1) * (high - low) / 2
    return shapely.Polygon(corners) if len(corners) > 2 else shapely.Polygon()


def _imagescope_rgb(value: str) -> Rgb | None:
    """Return a colour from Windows' packed number, in which red is the lowest byte."""
    if not value.isascii() or not value.isdigit():
        return None
    number = int(value[:10])
    return number & 255, number >> 8 & 255, number >> 16 & 255
