"""Painting and writing of one phantom slide, band by band, with the outlines of its lesions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.phantom.composition import CELL_UM, compose
from napari_lrmil.core.phantom.containers import CONTAINERS
from napari_lrmil.core.phantom.look import DEFAULT_LOOK, Field, Outline, PhantomLook, PhantomSlide, Pixels
from napari_lrmil.core.phantom.pieces import Piece, find_spots, make_piece, random_streams
from napari_lrmil.core.phantom.pyramid import write_bands
from napari_lrmil.core.phantom.stain import Exposure
from napari_lrmil.core.phantom.strokes import pen_stroke
from napari_lrmil.core.phantom.variants import combine_variants

DEFAULT_CONTAINER = "aperio"
_BAND = 256  # rows painted at a time, which bounds memory


@dataclass(frozen=True)
class Phantom:
    """Painted slide with its ground truth."""

    pixels: Pixels  # (height, width, 3)
    lesions: tuple[Outline, ...]  # level-0 px, empty on a normal slide
    composition: Field  # (rows, cols, len(COMPOSITION)): shares, then counts; the same whether lesional or not


@dataclass(frozen=True)
class Band:
    """Consecutive rows of a slide, and the pieces of tissue that begin in them."""

    pixels: Pixels  # (rows, width, 3)
    begun: tuple[Piece, ...]


def paint(slide: PhantomSlide, look: PhantomLook = DEFAULT_LOOK) -> Phantom:
    """Return the pixels, lesions and composition of a slide.

    The same seed under the other label gives a twin: the same tissue, with or without lesional nuclei in the foci.
    """
    bands = list(paint_bands(slide, look))
    pieces = [piece for band in bands for piece in band.begun]
    cells = (math.ceil(slide.size[1] * slide.mpp / CELL_UM), math.ceil(slide.size[0] * slide.mpp / CELL_UM))
    lesions = tuple(outline for piece in pieces for outline in piece.lesions)
    pixels = np.concatenate([band.pixels for band in bands])
    return Phantom(pixels, lesions, compose(cells, [piece.composition() for piece in pieces]))


def paint_bands(slide: PhantomSlide, look: PhantomLook = DEFAULT_LOOK) -> Iterator[Band]:
    """Yield a slide from top to bottom; memory holds one band and the plans of the pieces that it crosses."""
    rng = random_streams(slide.seed)["light"]
    exposure = Exposure.draw(slide, look, rng)
    waiting = find_spots(slide, look)
    pieces: list[Piece] = []
    halo = look.halo(slide.mpp)
    for top in range(0, slide.size[1], _BAND):
        rows = slice(top, min(top + _BAND, slide.size[1]))
        pieces = [piece for piece in pieces if piece.spot.rows.stop > top - halo]
        begun = [make_piece(spot, look) for spot in waiting if spot.rows.start < rows.stop + halo]
        waiting = waiting[len(begun) :]
        pieces += begun
        yield Band(exposure.develop(pieces, rows, rng), tuple(begun))


def write_slide(
    folder: Path, slide: PhantomSlide, look: PhantomLook = DEFAULT_LOOK, *, variants: Sequence[str] = ()
) -> Path:
    """Paint a slide, write it into `folder` band by band, and return its path.

    ``<stem>_lesions.geojson`` is written next to it. With a fold or a pen stroke, so is ``<stem>_artefacts.geojson``.

    Parameters
    ----------
    folder
        Folder of the files; it is created.
    slide
        Slide to paint, at 20x.
    look
        Appearance of the tissue.
    variants
        Names of `VARIANTS`, each of which changes one property of the slide or its file.
    """
    variant = combine_variants(variants)
    slide, look = slide.zoomed(variant.zoom), variant.apply(look)
    container, outlines = variant.container or DEFAULT_CONTAINER, _Outlines([], [], [])
    path = Path(folder) / f"{slide.name}{CONTAINERS[variant.container].suffix if variant.container else '.tif'}"
    mpp = slide.mpp if variant.states_mpp else None
    write_bands(path, outlines.collect(paint_bands(slide, look)), slide.size, mpp, container=container)
    if look.pen:
        width, height = (n * slide.mpp for n in slide.size)
        outlines.pens.append(pen_stroke(width, height).outline() / slide.mpp)
    shifted = outlines.shifted(CONTAINERS[container].offset)
    write_json(path.with_name(f"{path.stem}_lesions.geojson"), lesions_geojson(shifted.lesions))
    if shifted.folds or shifted.pens:
        write_json(path.with_name(f"{path.stem}_artefacts.geojson"), artefacts_geojson(shifted.folds, shifted.pens))
    return path


@dataclass(frozen=True)
class _Outlines:
    """Outlines of lesions and artefacts, collected while the slide is painted; level-0 px."""

    lesions: list[Outline]
    folds: list[Outline]
    pens: list[Outline]

    def collect(self, bands: Iterable[Band]) -> Iterator[Pixels]:
        """Yield the pixels of bands, and collect the outlines of the pieces that begin in them."""
        for band in bands:
            for piece in band.begun:
                self.lesions.extend(piece.lesions)
                self.folds.extend(piece.folds)
            yield band.pixels

    def shifted(self, offset: tuple[int, int]) -> _Outlines:
        """Return the outlines shifted by `offset` px."""
        return _Outlines(*([outline + offset for outline in kind] for kind in (self.lesions, self.folds, self.pens)))


def lesions_geojson(outlines: Sequence[Outline]) -> dict[str, Any]:
    """Return outlines (points, 2) in level-0 px as a QuPath feature collection of tumour annotations."""
    return _collection([_feature(outline, "Tumor", (200, 0, 0)) for outline in outlines])


def artefacts_geojson(folds: Sequence[Outline], pens: Sequence[Outline]) -> dict[str, Any]:
    """Return outlines of folds and pen strokes as annotations of the classes Fold and Pen."""
    features = [_feature(outline, "Fold", (120, 0, 160)) for outline in folds]
    return _collection([*features, *(_feature(outline, "Pen", (0, 120, 60)) for outline in pens)])


def _collection(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": features}


def _feature(outline: Outline, name: str, colour: tuple[int, int, int]) -> dict[str, Any]:
    ring = [[round(float(x), 1), round(float(y), 1)] for x, y in (*outline, outline[0])]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": list(colour)}},
    }
