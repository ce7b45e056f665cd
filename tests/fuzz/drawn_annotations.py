"""Annotations that Hypothesis draws: GeoJSON with geometries of every kind, right and wrong, always the same ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

NUMBERS = st.one_of(st.floats(-5000, 5000), st.integers(-10, 3000), st.floats(), st.sampled_from(["1,5", None, "x"]))
GOOD = st.tuples(st.integers(0, 1500), st.integers(0, 1500))
CORNERS = st.lists(st.one_of(GOOD, GOOD, GOOD, st.lists(NUMBERS, max_size=4)), max_size=8)
RINGS = st.lists(CORNERS, max_size=3)
KINDS = {
    "Point": st.lists(NUMBERS, max_size=3),
    "MultiPoint": CORNERS,
    "LineString": CORNERS,
    "MultiLineString": RINGS,
    "Polygon": RINGS,
    "MultiPolygon": st.lists(RINGS, max_size=3),
    "Curve": RINGS,
}
PLAIN = st.sampled_from(sorted(KINDS)).flatmap(
    lambda kind: st.fixed_dictionaries({"type": st.just(kind), "coordinates": KINDS[kind]})
)
GEOMETRIES = st.recursive(
    PLAIN,
    lambda inner: st.fixed_dictionaries({"type": st.just("GeometryCollection"), "geometries": st.lists(inner)}),
    max_leaves=4,
)
LABELS = st.dictionaries(
    st.sampled_from(["name", "color", "classification", "colorRGB"]),
    st.one_of(st.text(max_size=8), st.integers(), st.none(), st.lists(st.integers(-1, 300), max_size=4)),
)
FEATURES = st.fixed_dictionaries(
    {
        "type": st.just("Feature"),
        "geometry": st.one_of(GEOMETRIES, st.none()),
        "properties": st.one_of(LABELS, st.none()),
    }
)
WHOLE = "whole square"  # name of a Feature that must be read, whatever is beside it
SQUARE = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [300, 0], [300, 300], [0, 300], [0, 0]]]},
    "properties": {"name": WHOLE},
}
MIXED = st.permutations([SQUARE, *range(3)]).flatmap(
    lambda order: st.tuples(*(FEATURES if isinstance(item, int) else st.just(item) for item in order))
)
FILES = st.one_of(
    st.fixed_dictionaries({"type": st.just("FeatureCollection"), "features": MIXED}),
    MIXED,
    st.fixed_dictionaries({"type": st.just("FeatureCollection"), "features": st.lists(FEATURES, max_size=6)}),
    FEATURES,
    GEOMETRIES,
)


def draw_annotations(number: int) -> list[bytes]:
    """Return the first files that Hypothesis draws from a fixed seed."""
    drawn: list[bytes] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(FILES)
    def collect(file: Any) -> None:
        drawn.append(json.dumps(file).encode())

    collect()
    return drawn
