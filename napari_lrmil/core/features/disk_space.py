"""Check of free disk space before features are computed, by the patches of a few slides of the cohort."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.formatting import format_size
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Slide

SAMPLED_SLIDES = 4  # whose tissue is segmented: about a second each, if slides are large
FLOAT_BYTES, COORDINATE_BYTES = 4, 16  # of a stored number, and of the corner of a patch
FILE_BYTES = 20_000  # of an HDF5 file without its arrays, as measured on empty bags

OpenSlide = Callable[[], Slide]


@dataclass(frozen=True)
class PatchCounts:
    """Mean number of HR and LR patches of a slide, and the number of slides that were counted."""

    hr: float
    lr: float
    slides: int


def count_sample_patches(
    slides: Sequence[OpenSlide], plan: PatchPlan, config: TissueConfig | None = None
) -> PatchCounts | None:
    """Return the patches of a few slides, evenly taken from a cohort; None if none of them can be read."""
    step = max(1, len(slides) // SAMPLED_SLIDES)
    counts: list[tuple[int, int]] = []
    for open_slide in slides[::step][:SAMPLED_SLIDES]:
        try:
            with open_slide() as slide:
                grid = find_tissue_grid(slide, plan, config).grid
        except LrmilError:  # it is reported with its reason when its features are computed
            continue
        counts.append((len(grid.hr_index), len(grid.lr_index)))
    if not counts:
        return None
    hr, lr = (sum(column) / len(counts) for column in zip(*counts, strict=True))
    return PatchCounts(hr, lr, len(counts))


def feature_bytes(patches: float, width: int, slides: int) -> float:
    """Return the size of the feature files of `slides` slides with `patches` patches each, `width` numbers a patch."""
    return slides * (patches * (width * FLOAT_BYTES + COORDINATE_BYTES) + FILE_BYTES)


def require_disk_space(folder: Path, needed: float, basis: str) -> None:
    """Raise `ConfigError` if a folder's disk cannot hold `needed` bytes; `basis` says how they were estimated.

    Quotas are not seen: the free space is that of the file system.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(
            f"the features need about {format_size(needed)} ({basis}), but {format_size(free)} are free at {existing}; "
            "free some space, name another folder with --out, or go on with --ignore-disk"
        )
