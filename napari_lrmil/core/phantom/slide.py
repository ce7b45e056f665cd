"""One phantom slide: paint it, and write it with the outlines of its lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.files import write_json
from napari_lrmil.core.phantom.composition import measure_composition
from napari_lrmil.core.phantom.layout import lay_out
from napari_lrmil.core.phantom.look import DEFAULT_LOOK, LESION, Field, Outline, PhantomLook, PhantomSlide, Pixels
from napari_lrmil.core.phantom.nuclei import populate
from napari_lrmil.core.phantom.pyramid import write_pyramid
from napari_lrmil.core.phantom.stain import develop
from napari_lrmil.core.phantom.stamps import stamp_all


@dataclass(frozen=True)
class Phantom:
    """A painted slide."""

    pixels: Pixels  # (height, width, 3)
    lesions: tuple[Outline, ...]  # level-0 px, empty on a normal slide
    composition: Field  # (rows, cols, len(COMPOSITION)): shares, then counts; the same whether lesional or not


def paint(slide: PhantomSlide, look: PhantomLook = DEFAULT_LOOK) -> Phantom:
    """Return the pixels, lesions and composition of a slide.

    The same seed under the other label gives a twin: the same tissue, with or without lesional nuclei in the foci.
    """
    rng = _streams(slide.seed)
    glands, plan = lay_out(slide, look, rng["plan"])
    nuclei, goblets = populate(plan, glands, slide, look, rng["nuclei"])
    foci = plan.foci if slide.label == LESION else ()
    layers = stamp_all(nuclei, goblets, foci, slide, look, rng["stamps"])
    pixels = develop(plan, layers, slide, look, rng["light"])
    lesions = tuple(focus.outline() / slide.mpp for focus in foci)
    return Phantom(pixels, lesions, measure_composition(plan, nuclei, slide))


def _streams(seed: int) -> dict[str, np.random.Generator]:
    """Return one random stream per step, so that a draw in one step moves nothing in another."""
    steps = ("plan", "nuclei", "stamps", "light")
    return {step: np.random.default_rng([seed, i]) for i, step in enumerate(steps)}


def write_slide(folder: Path, slide: PhantomSlide, look: PhantomLook = DEFAULT_LOOK) -> Path:
    """Paint a slide, write ``<name>.tif`` and ``<name>_lesions.geojson`` into `folder`, and return the slide's path."""
    phantom = paint(slide, look)
    path = Path(folder) / f"{slide.name}.tif"
    write_pyramid(path, phantom.pixels, slide.mpp)
    write_json(path.with_name(f"{slide.name}_lesions.geojson"), lesions_geojson(phantom.lesions))
    return path


def lesions_geojson(outlines: Sequence[Outline]) -> dict[str, Any]:
    """Return outlines (points, 2) in level-0 px as a QuPath feature collection of tumour annotations."""
    return {"type": "FeatureCollection", "features": [_feature(outline) for outline in outlines]}


def _feature(outline: Outline) -> dict[str, Any]:
    ring = [[round(float(x), 1), round(float(y), 1)] for x, y in (*outline, outline[0])]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
    }
