"""Shapes of JSON: a literal that names the keys and types, and what in a value differs from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STORED = Path(__file__).parents[1] / "formats" / "v0_1"  # see the README there


def mismatches(value: Any, shape: Any, at: str = "") -> list[str]:
    """Return a line for each place where a JSON value differs from a shape.

    Parameters
    ----------
    value
        As `json.loads` returns it.
    shape
        A type or None; a tuple of alternatives; ``[shape]`` for a list of such values; ``{str: shape}`` for an object
        with any keys; else an object with exactly these keys.
    at
        Where `value` is in the whole.
    """
    if isinstance(shape, tuple):
        found = [mismatches(value, alternative, at) for alternative in shape]
        return [] if [] in found else min(found, key=len)
    if isinstance(shape, list) and isinstance(value, list):
        return [line for item in value for line in mismatches(item, shape[0], f"{at}[]")]
    if isinstance(shape, dict) and isinstance(value, dict):
        return _in_object(value, shape, at)
    expected = type(None) if shape is None else shape
    return [] if type(value) is expected else [f"{at}: {value!r:.60} where {expected} is expected"]


def _in_object(value: dict[str, Any], shape: dict[Any, Any], at: str) -> list[str]:
    if list(shape) == [str]:
        return [line for key, item in value.items() for line in mismatches(item, shape[str], f"{at}.{key}")]
    lines = [f"{at}.{key} is missing" for key in shape.keys() - value.keys()]
    lines += [f"{at}.{key} is not pinned" for key in value.keys() - shape.keys()]
    return lines + [
        line for key in shape.keys() & value.keys() for line in mismatches(value[key], shape[key], f"{at}.{key}")
    ]
