"""Self-test on synthetic slides with planted squares: lattice, readers and attention.

Expected values are computed here from the planted positions and from OpenSlide alone, not by the code under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.doctor.check import FAILED, Check
from napari_lrmil.core.geometry import BoxLevel0, PatchPlan
from napari_lrmil.core.patching.grid import NestedGrid, find_nested_grid
from napari_lrmil.core.phantom import CONTAINERS, write_pyramid
from napari_lrmil.core.slides.slide import Slide

PLAN = PatchPlan(0.5, 2.0, 64, 64)  # HR patches of 32 µm, LR patches of 128 µm
SIZE_UM = (896, 640)  # of the tissue
SQUARE_UM = 90
CELLS = ((1, 1), (4, 2), (5, 3))  # LR cells, column and row, with one square each
WITHIN_CELL_UM = (15, 22)  # corner of the square within its cell
GLASS, TISSUE, DARK, NOISE = 243, (214, 120, 176), (60, 20, 80), 12
TOLERANCE = 2  # grey levels, as between two decoders of JPEG
REMEDY = "do not rely on results of this installation: install napari-lrmil anew, run doctor again, and report this"


@dataclass(frozen=True)
class Kind:
    """Kind of slide on which the self-test runs."""

    name: str
    mpp: float
    container: str = "aperio"


KINDS = (Kind("20x", 0.5), Kind("40x", 0.25), Kind("0.2649 µm", 0.2649), Kind("bounds", 0.5, "leica"))


@dataclass(frozen=True)
class Planted:
    """Slide file with the level-0 centres (x, y) of its squares, and the corner of the scanned area."""

    path: Path
    kind: Kind
    centres: tuple[tuple[float, float], ...]
    origin: tuple[int, int]


def plant(folder: Path, kind: Kind) -> Planted:
    """Write a slide with one dark square in each of `CELLS`, on tissue with noise that shows a shift of one pixel."""
    width, height = (round(side / kind.mpp) for side in SIZE_UM)
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (height, width, 1))
    picture = np.clip(np.asarray(TISSUE) + noise, 0, 255).astype(np.uint8)
    origin, side = CONTAINERS[kind.container].offset, round(SQUARE_UM / kind.mpp)
    centres = []
    for column, row in CELLS:
        x, y = (
            round((cell * PLAN.lr_um + inside) / kind.mpp)
            for cell, inside in zip((column, row), WITHIN_CELL_UM, strict=True)
        )
        picture[y : y + side, x : x + side] = DARK
        centres.append((origin[0] + x + side / 2, origin[1] + y + side / 2))
    path = folder / f"{kind.name.replace(' ', '_')}{CONTAINERS[kind.container].suffix}"
    write_pyramid(path, picture, kind.mpp, container=kind.container, levels=3)
    return Planted(path, kind, tuple(centres), origin)


def check_squares(planted: Planted) -> Check:
    """Return whether the darkest patches are those of the squares, in cells where the lattice must have them."""
    name = f"planted squares, {planted.kind.name}"
    with Slide(planted.path) as slide:
        grid = find_nested_grid(slide, PLAN)
        pixels = slide.read_patches(grid.lr_corners, grid.lattice.lr_cell, PLAN.lr_patch_px)
    side = round(PLAN.hr_um / planted.kind.mpp) * PLAN.n  # whole pixels for an HR patch, and n of them
    darkest = np.argsort(pixels.mean(axis=(1, 2, 3)))[: len(CELLS)]
    corners = grid.lr_corners[darkest]
    distances = [float(np.abs(corners + side / 2 - centre).max(axis=1).min()) for centre in planted.centres]
    text = f"farthest of {len(CELLS)}: {max(distances) / side:.2f} patches from the middle of its patch"
    if max(distances) > side / 2:
        return Check(name, f"{text}; expected at most 0.50", FAILED, REMEDY)
    shift = float(np.abs((corners - planted.origin + side / 2) % side - side / 2).max())
    if shift > 0 or not _is_nested(grid, side):
        return Check(name, f"{text}, but the lattice is shifted by {shift:g} px or not nested", FAILED, REMEDY)
    return Check(name, text)


def _is_nested(grid: NestedGrid, side: int) -> bool:
    """Return whether every HR patch lies within its LR patch."""
    inside = grid.hr_corners - grid.lr_corners[grid.parent]
    return bool(inside.min() >= 0 and inside.max() <= side - side // PLAN.n)


def check_readers(planted: Planted) -> Check:
    """Return whether the pixels of the program's readers are those of OpenSlide, on two levels."""
    import openslide

    worst, names = 0, set()
    with openslide.OpenSlide(planted.path) as reference:
        for reader in ("auto", "openslide"):
            with Slide(planted.path, reader=reader) as slide:
                for level in (0, 1):
                    for theirs, ours in _windows(planted, reference, slide, level):
                        worst = max(worst, int(np.abs(theirs.astype(int) - ours).max()))
                names.add(slide.reader.name)
    name, text = f"readers, {planted.kind.name}", f"{' and '.join(sorted(names))} differ by {worst} grey levels"
    if worst > TOLERANCE:
        return Check(name, f"{text} from OpenSlide; expected at most {TOLERANCE}", FAILED, REMEDY)
    return Check(name, f"{text} from OpenSlide")


def _windows(
    planted: Planted, reference: Any, slide: Slide, level: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield OpenSlide's and our pixels of a window around each square."""
    scale, side = 2**level, 160
    for x, y in planted.centres:
        left, top = (int(value) // 64 * 64 - 64 for value in (x, y))  # whole pixels of every level
        picture = reference.read_region((left, top), level, (side, side))
        theirs = np.asarray(picture)[..., :3]  # opaque: the window lies within the tissue
        ours = slide.read(BoxLevel0(left, top, side * scale, side * scale), (side, side))
        yield theirs, ours


def check_attention(planted: Planted) -> Check:
    """Return whether the attention of the shipped model sums to 1, and its evidence to the logits."""
    from napari_lrmil.core.events import Finished
    from napari_lrmil.core.inference.predict import predict
    from napari_lrmil.core.models.bundle import Bundle

    bundle = Bundle("demo")
    with Slide(planted.path) as slide:
        last = list(predict(slide, bundle, device="cpu"))[-1]
    assert isinstance(last, Finished)
    student = last.result.student
    total = float(student.attention.sum(dtype=np.float64))
    logits, bias = np.array(list(student.logits.values())), bundle.student_mil.bias
    expected = logits - logits.mean() - (bias - bias.mean())
    difference = float(np.abs(student.evidence.sum(axis=0) - expected).max()) / max(1.0, float(np.abs(expected).max()))
    text = (
        f"sums to {total:.6f} over {len(student.attention)} patches; evidence differs from logits by {difference:.1e}"
    )
    if not (abs(total - 1) < 1e-4 and difference < 1e-3):
        return Check("attention", f"{text}; expected 1, and below 1e-3", FAILED, REMEDY)
    return Check("attention", text)
