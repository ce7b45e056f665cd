"""Report of a slide: one HTML file that loads nothing from outside, for screen and paper.

Its pictures come from the slide's pixels only, never from its label or macro image: labels can show patients' names.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.formatting import format_probability, format_signed
from napari_lrmil.core.geometry import BoxLevel0, nominal_magnification
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.models.limits import SET_COVERAGE
from napari_lrmil.core.slides.slide import Pixels, Slide
from napari_lrmil.core.visualize.overlay import (
    COLORMAP,
    RESEARCH_USE,
    blend_heatmap,
    calibration_text,
    color_limits,
    make_heatmap,
    slide_thumbnail,
)
from napari_lrmil.core.visualize.picture_text import load_font
from napari_lrmil.core.visualize.top_patches import GalleryPatch, read_patch, select_top_and_bottom
from napari_lrmil.core.visualize.view_export import ColourLegend, compose_view
from napari_lrmil.version import __version__

REPORT = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
PANEL_LEGEND = "attention, times the average"
PANEL_PX, PANEL_HEIGHT_PX = 470, 640  # largest width and height of a thumbnail on the page, CSS pixels
PANEL_TEXT_PX = 12
JPEG_QUALITY = 85
NOT_STATED = "not stated by this model"
EVIDENCE_CLASSES = 4  # classes named beside a patch: those with the most evidence for or against
STEP_LABELS = {
    "open": "opening the slide",
    "tissue": "finding tissue",
    "read": "reading patches",
    "encode": "encoding",
    "mil": "attention and prediction",
    "total": "total",
}

Context = dict[str, Any]


@dataclass(frozen=True)
class ReportRequest:
    """Contents of a report beside the prediction.

    Attributes
    ----------
    command
        Command line that gives the same numbers.
    hr_mpp
        µm per pixel of the teacher's patches, for the gallery.
    k
        Number of patches with the highest attention, and with the lowest.
    """

    command: str
    hr_mpp: float
    k: int = 6


def write_slide_report(path: Path, slide: Slide, prediction: Prediction, request: ReportRequest) -> None:
    """Write the report of one prediction as a single HTML file, atomically."""
    write_text(path, render_slide_report(slide, prediction, request))


def render_slide_report(slide: Slide, prediction: Prediction, request: ReportRequest) -> str:
    """Return the report of one prediction as HTML. The slide must be open."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Names of slides and classes come from files of others.
        autoescape=True,
        # A misspelled name in the template is an error, not a gap on the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": format_signed,
        "grouped": format_grouped,
        "significant": format_significant,
        "probability": format_probability,
    }
    patches = select_top_and_bottom(prediction, request.k)
    page: str = environment.get_template("slide_report.html.j2").render(
        _context(slide, prediction, patches, request.command),
        gallery=_gallery(slide, prediction, patches, request.hr_mpp),
    )
    return page


def format_grouped(value: float) -> str:
    """Return a number rounded to an integer, with its thousands separated."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def format_significant(value: float) -> str:
    """Return a number with three significant digits, never in scientific notation."""
    # The power of ten of the first digit decides how many decimals follow.
    digits = 2 if value == 0 else max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{min(digits, 6)}f}"


def probability_margin(probabilities: Mapping[str, float]) -> float:
    """Return the difference between the two largest probabilities; with one class, its probability."""
    first, second, *_ = *sorted(probabilities.values(), reverse=True), 0.0
    return first - second


def _context(slide: Slide, prediction: Prediction, gallery: Sequence[GalleryPatch], command: str) -> Context:
    """Return the values of the template, apart from the gallery."""
    student, teacher, grid = prediction.student, prediction.teacher, prediction.grid
    scope = prediction.scope
    region = not scope.is_whole_slide
    return {
        "name": prediction.slide,
        "research_use": RESEARCH_USE,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "prediction": prediction,
        "scope": scope.text if scope is not None and region else None,
        "score": "Region score" if region else "Probability",
        "calibration": calibration_text(prediction),
        "margin": probability_margin(student.probabilities),
        "limits": [row for row in _limit_rows(prediction) if row["value"] or not region],
        "cautions": prediction.limits.cautions,
        "has_limits": bool(prediction.limits.texts or prediction.limits.by_patient or prediction.cohort_distance),
        "lr_um": grid.lattice.lr_um,
        "n_lr": len(grid.lr_index),
        "n_hr": prediction.n_hr_patches,
        "ratio": prediction.n_hr_patches / len(grid.lr_index),
        "networks": [
            {"name": name, "reading": r, "rows": _class_rows(r, prediction.classes), "pixels": r.pixels_decoded / 1e6}
            for name, r in (("Student (LR)", student), ("Teacher (HR)", teacher))
            if r is not None
        ],
        "steps": {step: text for step, text in STEP_LABELS.items() if step in student.seconds},
        "panels": _panels(slide, prediction, gallery),
        "mpp": slide.mpp,
        "magnification": nominal_magnification(slide.mpp.mean),
        "size_mm": (slide.width * slide.mpp.x / 1000, slide.height * slide.mpp.y / 1000),
        "slide": slide,
        "command": command,
    }


def _limit_rows(prediction: Prediction) -> list[Context]:
    """Return a row for each limit of the answer; one without ``value`` says why it is not stated."""
    missing = "stated of all slides of a patient together" if prediction.limits.by_patient else NOT_STATED
    side, classes, distance = prediction.limits.side, prediction.limits.classes, prediction.cohort_distance
    counted = side and f"{side.text}: counts as {side.positive if side.reached else f'not {side.positive}'}"
    return [
        {
            "name": "Operating point",
            "value": counted and "; ".join(filter(None, (counted, prediction.limits.conflict))),
            "help": "The threshold was chosen on validation slides of the training.",
            "missing": missing,
        },
        {
            "name": f"Set of classes at {100 * (classes.coverage if classes else SET_COVERAGE):g} %",
            "value": classes and " or ".join(classes.classes),
            "help": "Sets hold the true class in this share of slides of new patients like the calibration patients.",
            "missing": missing,
        },
        {
            "name": "Distance from the training slides",
            "value": distance and f"{distance.text} ({distance.distance:.1f} times the usual distance)",
            "help": "Slides of other stain, scanner or tissue lie far away; there the probabilities mean little.",
            "missing": NOT_STATED,
        },
    ]


def _class_rows(network: NetworkPrediction, classes: Sequence[str]) -> list[Context]:
    """Return a row per class, the most probable first. Evidence and rest (the bias) sum to the centred logit."""
    evidence = dict(zip(classes, network.evidence.sum(axis=0, dtype=np.float64).tolist(), strict=True))
    mean = sum(network.logits.values()) / len(network.logits)
    rest = {c: logit - mean - evidence[c] for c, logit in network.logits.items()}
    by_probability = sorted(network.probabilities.items(), key=lambda item: -item[1])
    return [{"name": c, "probability": p, "evidence": evidence[c], "rest": rest[c]} for c, p in by_probability]


# ---------------------------------------------------------------- pictures


def _panels(slide: Slide, prediction: Prediction, gallery: Sequence[GalleryPatch]) -> list[str]:
    """Return the thumbnail, and a copy with each network's attention over it, as data URIs."""
    # Read once and used for all panels.
    thumbnail, box = slide_thumbnail(slide)
    um_per_px = box.width * slide.mpp.x / thumbnail.shape[1]
    text_px = _text_px(thumbnail)
    networks = [n for n in (prediction.student, prediction.teacher) if n is not None]
    low, high = color_limits(networks)
    legend = ColourLegend(low, high, COLORMAP, PANEL_LEGEND)
    pictures = [compose_view(thumbnail, um_per_px, None, prediction.slide, "", text_px=text_px)]
    for title, network in zip(("Student attention", "Teacher attention"), networks, strict=False):
        pixels = blend_heatmap(thumbnail, box, make_heatmap(network), (low, high))
        pixels = _mark_patches(pixels, box, gallery, text_px)
        pictures.append(compose_view(pixels, um_per_px, legend, title, "", text_px=text_px))
    return [image_data_uri(picture) for picture in pictures]


def _text_px(thumbnail: Pixels) -> int:
    """Return the text height that becomes `PANEL_TEXT_PX` once the browser has scaled the picture to the page."""
    height, width = thumbnail.shape[:2]
    scale: float = min(PANEL_PX / width, PANEL_HEIGHT_PX / height, 1.0)
    return max(1, round(PANEL_TEXT_PX / scale))


def _mark_patches(pixels: Pixels, box: BoxLevel0, gallery: Sequence[GalleryPatch], text_px: int) -> Pixels:
    """Return a picture of `box` with the top patches outlined and numbered by rank."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    across, down = image.width / box.width, image.height / box.height
    # In proportion to the text, so that they keep their look on the scaled page.
    edge, halo = max(2, text_px // 7), max(2, text_px // 8)
    for patch in [p for p in gallery if p.side == "top"][::-1]:  # rank 1 is drawn last, on top of the others
        left, top = (patch.box.x - box.x) * across, (patch.box.y - box.y) * down
        width, height = patch.box.width * across, patch.box.height * down
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline="white", width=edge)
        middle, number = (left + width / 2, top + height / 2), str(patch.rank)
        draw.text(
            middle, number, "white", load_font(round(1.25 * text_px)), "mm", stroke_width=halo, stroke_fill="black"
        )
    return np.asarray(image)


def _gallery(
    slide: Slide, prediction: Prediction, gallery: Sequence[GalleryPatch], hr_mpp: float
) -> dict[str, list[Context]]:
    """Return ``top`` and ``bottom`` -> values of the template for each patch."""
    sides: dict[str, list[Context]] = {"top": [], "bottom": []}
    for patch in gallery:
        lr, hr = (
            Image.fromarray(read_patch(slide, prediction, patch.row, mpp=mpp))
            for mpp in (prediction.student.target_mpp, hr_mpp)
        )
        sides[patch.side].append(
            {
                "patch": patch,
                # Lossless, because the page shows exactly what the student read.
                "lr": image_data_uri(lr, lossless=True),
                "hr": image_data_uri(hr),
                "hr_mpp": patch.box.width * slide.mpp.x / hr.width,
                "evidence": _strongest_evidence(patch.evidence, prediction.student.probabilities),
            }
        )
    return sides


def _strongest_evidence(evidence: Mapping[str, float], probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the classes with the most evidence for or against, the most probable first."""
    strongest = sorted(evidence, key=lambda c: -abs(evidence[c]))[:EVIDENCE_CLASSES]
    return [(c, evidence[c]) for c in sorted(strongest, key=lambda c: -probabilities[c])]


def image_data_uri(picture: Image.Image, *, lossless: bool = False) -> str:
    """Return a picture as a ``data:`` URI: JPEG, or PNG if it must be lossless."""
    target = io.BytesIO()
    if lossless:
        picture.save(target, "PNG", optimize=True)
    else:
        picture.save(target, "JPEG", quality=JPEG_QUALITY, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(target.getvalue()).decode()}"
