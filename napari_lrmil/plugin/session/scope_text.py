"""Words of the window for a part of a slide. Result files have words of their own, which stay. No Qt, no napari."""

from __future__ import annotations

from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.patching.roi import WORDS, RegionOfInterest


def scope_words(scope: RegionOfInterest) -> str:
    """Return a part of a slide in words, as in ``whole slide, 1 region excluded``."""
    base = f"{len(scope.regions)} drawn regions" if len(scope.regions) > 1 else WORDS[scope.kind]
    parts = [base]
    parts += [f"{count_regions(len(scope.included))} kept"] if scope.included else []
    parts += [f"{count_regions(len(scope.excluded))} excluded"] if scope.excluded else []
    parts += ["tissue mask edited"] if scope.edited else []
    return ", ".join(parts)


def count_regions(n: int) -> str:
    """Return a number of regions in words."""
    return format_count(n, "region")


def count_patches(n: int) -> str:
    """Return a number of patches in words."""
    return format_count(n, "patch", "patches")
