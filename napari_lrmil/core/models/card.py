"""Card of a bundle: what inference needs to know about a model, ``lrmil.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.errors import BundleError, EncoderError, GeometryError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.color import CohortColour
from napari_lrmil.core.patching.tissue import TissueConfig

SCHEMA_VERSION = 1
CARD, STUDENT, TEACHER, README = "lrmil.json", "student.safetensors", "teacher.safetensors", "README.md"
CALIBRATED = (
    "calibrated on validation slides with a single temperature; if training gave the classes equal weight, "
    "calibration does not restore their true shares"
)


class NetworkCard(BaseModel):
    """Architecture of one of the two networks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: EncoderSpec  # architecture, name and licence of the encoder
    dim: int  # width of an instance of the MIL
    hidden: int  # width of the attention gate
    encoder_sha256: str = ""  # hash of an encoder that the bundle only names


class Card(BaseModel):
    """Content of ``lrmil.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    name: str
    about: str = ""  # a sentence or two: what the model is, and what it is not
    version: str  # of napari-lrmil that wrote it
    classes: tuple[str, ...]
    hr_mpp: float  # µm per pixel of the teacher's patches
    lr_mpp: float  # µm per pixel of the student's patches
    hr_patch_px: int
    lr_patch_px: int
    student_input_px: int | None = None  # side to which LR patches are resized for the encoder; None: not resized
    normalisation: str = "RGB, (x / 255 - mean) / deviation, inside the encoder"
    licence: str = "unknown"  # of all encoders that the model derives from, even if the bundle leaves the teacher out
    tissue: TissueConfig = TissueConfig()  # tissue mask of training
    temperature: float | None = Field(None, gt=0)  # divides the student's logits; None: not calibrated
    teacher_temperature: float | None = Field(None, gt=0)
    student: NetworkCard
    teacher: NetworkCard | None = None
    cohort: dict[str, Any] = Field(default_factory=dict)  # training cohort: counts per split and class
    metrics: dict[str, Any] = Field(default_factory=dict)  # summary of metrics.json
    colour: CohortColour | None = None  # stain of the training slides; None: not measured, so no slide is flagged
    hashes: dict[str, str]  # file name -> SHA-256

    @property
    def plan(self) -> PatchPlan:
        """The two resolutions."""
        return PatchPlan(self.hr_mpp, self.lr_mpp, self.hr_patch_px, self.lr_patch_px)


def read_card(path: Path) -> Card:
    """Read the card of the bundle in folder `path`.

    Raises
    ------
    BundleError
        If it is missing, damaged, or of another schema version.
    """
    file = path / CARD
    if not file.is_file():
        raise BundleError(path, CARD, f"the folder has no {CARD}; expected the folder of a trained bundle")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                path,
                "schema_version",
                f"the bundle has schema version {version}, this program reads {SCHEMA_VERSION}; "
                "train or export it again, or install the version that wrote it",
            )
        card = Card(**content)
        _ = card.plan  # raises GeometryError if the resolutions do not nest
        return card
    except (ValidationError, ValueError, AttributeError, EncoderError, GeometryError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BundleError(
            path, CARD, f"{CARD} cannot be read ({reason}); the bundle is damaged, copy it again"
        ) from error


def card_text(card: Card) -> str:
    """Return the model card in Markdown."""
    teacher = card.teacher
    lines = [
        f"# {card.name}",
        "",
        "A model of napari-lrmil: an LR student distilled from an HR teacher (arXiv 2606.06864).",
        "**Research use only. Not a diagnosis.**",
        "",
        *([card.about, ""] if card.about else []),
        f"- Classes: {', '.join(card.classes)}",
        f"- Student: {card.lr_mpp:g} µm per pixel, patches of {card.lr_patch_px} px ({card.plan.lr_um:g} µm)",
        f"- Teacher: {card.hr_mpp:g} µm per pixel, patches of {card.hr_patch_px} px ({card.plan.hr_um:g} µm)",
        f"- Encoders: student {card.student.encoder.name}; teacher {teacher.encoder.name if teacher else 'left out'}",
        f"- Licence: {card.licence}. The student was distilled from its teacher's encoder, whose terms also apply to "
        "the student, even if the teacher is left out.",
        f"- Probabilities: {CALIBRATED if card.temperature else 'not calibrated'}",
        "",
        *_summary("Cohort", card.cohort),
        *_summary("Figures", card.metrics),
    ]
    return "\n".join(lines)


def _summary(title: str, values: Mapping[str, Any]) -> list[str]:
    return [f"## {title}", "", *(f"- {key}: {value}" for key, value in values.items()), ""] if values else []
