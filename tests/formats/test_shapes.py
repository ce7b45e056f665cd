"""The pins themselves notice a lost, an added and a retyped key."""

from __future__ import annotations

from typing import Any

import pytest

from support.shapes import mismatches

SHAPE = {"a": int, "b": (float, None), "c": [{"d": str}], "e": {str: bool}}
VALUE = {"a": 1, "b": None, "c": [{"d": "x"}], "e": {"any": True}}


def test_a_value_of_the_shape_has_no_mismatch() -> None:
    assert mismatches(VALUE, SHAPE) == mismatches(VALUE | {"b": 0.5, "c": [], "e": {}}, SHAPE) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"a": True}, ".a: True"),
        ({"a": 1.0}, ".a: 1.0"),
        ({"b": 1}, ".b: 1"),
        ({"c": [{"d": "x"}, {"d": None}]}, ".c[].d: None"),
        ({"c": [{}]}, ".c[].d is missing"),
        ({"c": {}}, ".c: {}"),
        ({"e": {"any": "yes"}}, ".e.any: 'yes'"),
        ({"f": 1}, ".f is not pinned"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], line: str) -> None:
    [found] = mismatches(VALUE | change, SHAPE)
    assert found.startswith(line)
