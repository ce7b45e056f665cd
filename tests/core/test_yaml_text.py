"""YAML as people write it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from napari_lrmil.core.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3), ("-7", -7), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("1.0e-3", 0.001), ("true", True), ("False", False),
        ("null", None), ("~", None), ("", None),
        ("1:30", "1:30"), ("04:00:00", "04:00:00"), ("1:30.5", "1:30.5"), ("yes", "yes"), ("no", "no"), ("on", "on"),
        ("2024-01-02", "2024-01-02"), ("08", "08"), ("'010'", "010"), ("1e-4", "1e-4"), ("0x10", "0x10"), ("=", "="),
    ],
)  # fmt: skip
def test_unquoted_values_are_numbers_truth_values_or_text(written: str, value: Any) -> None:
    found = parse_yaml(f"key: {written}")["key"]
    assert found == value and type(found) is type(value)
    as_text = parse_yaml(f"key: {written}", numbers=False)["key"]
    assert as_text == (written if isinstance(value, int | float) and not isinstance(value, bool) else value)


def test_keys_lists_and_merges_stay_yaml() -> None:
    text = "base: &base {a: 1, b: [2, x]}\non: {<<: *base, a: 3}\nnan: .nan"
    content = parse_yaml(text)
    assert content["on"] == {"a": 3, "b": [2, "x"]} and math.isnan(content["nan"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 010", r"^line 1, column 4: 010 is 8-based to YAML; write 10"),
        ("a: 1\na: 2", "the key 'a' is written twice"),
        ("a: [", r"^line 1, column 5"),
        ("a: !!python/name:os.system x", "could not determine a constructor"),
        ("[" * 5000, "^nested too deeply$"),
        (b"\xff\xfea", "truncated data at position"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
