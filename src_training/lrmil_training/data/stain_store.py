"""Stored colour statistics of slides, so that a training that is started again does not measure them again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lrmil_training.data.cohort import CohortSlide
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.color import CELLS, OVERVIEW_MPP
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.stain import ENOUGH_PIXELS, StainStatistics, measure_stain
from napari_lrmil.core.patching.tissue import TissueConfig, without_unset
from napari_lrmil.core.slides.slide import Slide

STAIN_FOLDER = "stain"  # beside the features, one JSON file for each slide
_STATISTICS = TypeAdapter(StainStatistics)


def stored_stain(
    folder: Path, row: CohortSlide, plan: PatchPlan, tissue: TissueConfig | None = None
) -> StainStatistics:
    """Return the colour statistics of a slide: those in its file, or measured and stored.

    A file of another slide, resolution, tissue mask or way of measuring is measured again, and so is a damaged one.

    Parameters
    ----------
    folder
        Folder of the features.
    row
        The slide.
    plan
        The two resolutions.
    tissue
        Parameters of the tissue mask; None for the usual ones.

    Raises
    ------
    LrmilError
        If the slide cannot be opened or measured, or the file cannot be written.
    """
    file = folder / STAIN_FOLDER / f"{row.name}.json"
    with row.open() as slide:
        source = _source(slide, plan, tissue or TissueConfig())
        statistics = _read_statistics(file, source)
        if statistics is None:
            statistics = measure_stain(slide, find_tissue_grid(slide, plan, tissue).grid)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"source": source, "statistics": asdict(statistics)})
    return statistics


def _source(slide: Slide, plan: PatchPlan, tissue: TissueConfig) -> dict[str, Any]:
    """Return what the statistics depend on."""
    source = {
        "slide_fingerprint": slide.fingerprint,
        "mpp": [slide.mpp.x, slide.mpp.y],
        "plan": asdict(plan),
        "tissue": without_unset(asdict(tissue)),
        "measure": [CELLS, OVERVIEW_MPP, ENOUGH_PIXELS],
    }
    stored: dict[str, Any] = json.loads(json.dumps(source))  # as it is read back
    return stored


def _read_statistics(file: Path, source: dict[str, Any]) -> StainStatistics | None:
    """Return the statistics of a file; None if there is none, or it is damaged or of another source."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _STATISTICS.validate_python(content["statistics"]) if content["source"] == source else None
    except (OSError, ValueError, KeyError, TypeError, ValidationError, RecursionError):
        return None  # it holds nothing that cannot be measured again
