"""The mark by which a phantom slide is told from tissue, in each of the formats that phantoms are written in."""

from __future__ import annotations

from collections.abc import Mapping

PHANTOM_MARK = "(phantom)"
PHANTOM_MODEL = "demo"  # shipped model that knows phantoms
_PROPERTIES = ("openslide.comment", "tiff.ImageDescription", "leica.device-model")


def has_phantom_mark(properties: Mapping[str, str]) -> bool:
    """Return whether the properties of a slide say that it is a phantom."""
    return any(PHANTOM_MARK in properties.get(name, "") for name in _PROPERTIES)
