"""Card of a bundle: what inference needs to know about a model, ``lrmil.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from napari_lrmil.core.encoders.spec import FROZEN, EncoderSpec, without_defaults
from napari_lrmil.core.errors import BundleError, EncoderError, GeometryError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.color import CohortColour
from napari_lrmil.core.patching.stain import StainTarget
from napari_lrmil.core.patching.tissue import TissueConfig, without_unset

SCHEMA_VERSION = 1
CARD, STUDENT, TEACHER, README = "lrmil.json", "student.safetensors", "teacher.safetensors", "README.md"
BUNDLE_OF_RUN = "bundle"  # folder of the model in that of a training run
DISTILLED = "an LR student distilled from an HR teacher (arXiv 2606.06864)"
NOT_DISTILLED = "an LR student that learned from labels alone, not distilled from a teacher"
CALIBRATED = (
    "calibrated on validation slides with a single temperature; if training gave the classes equal weight, "
    "calibration does not restore their true shares"
)

# Sizes beyond any network, slide or screen: a damaged or hostile card must not fill the memory.
MAX_WIDTH, MAX_SIDE_PX, MAX_BLOCKS, MAX_CLASSES, MAX_NAME = 65_536, 8_192, 1_024, 1_000, 200
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
SidePx = Annotated[int, Field(ge=8, le=MAX_SIDE_PX)]
PatchMpp = Annotated[float, Field(ge=0.01, le=1_000)]  # µm per pixel
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]  # training searches 0.25 to 10


Aggregator = Literal["gated_attention", "linear_topk", "mean", "max", "abmil", "clam_sb", "dsmil", "transmil"]
GATED: Aggregator = "gated_attention"
LINEAR: Aggregator = "linear_topk"
MEAN: Aggregator = "mean"
MAX: Aggregator = "max"
ABMIL: Aggregator = "abmil"
CLAM_SB: Aggregator = "clam_sb"
DSMIL: Aggregator = "dsmil"
TRANSMIL: Aggregator = "transmil"
IN_TORCH = (ABMIL, CLAM_SB, DSMIL, TRANSMIL)  # those without a form in NumPy
PUBLISHED = (MEAN, MAX, *IN_TORCH)  # what HR teachers are compared with
OF_STUDENTS = (GATED, LINEAR)  # the others pool HR patches only
ONE_PATCH = 1e-9  # a top share that is one patch of any slide, see `pooling.top_count`
POOLED_SHARES = {MEAN: 1.0, MAX: ONE_PATCH}  # mean and max pooling are linear_topk with these shares
AGGREGATOR_NAMES: dict[Aggregator, str] = {
    GATED: "gated attention",
    LINEAR: "linear top-k",
    MEAN: "mean pooling",
    MAX: "max pooling",
    ABMIL: "ABMIL",
    CLAM_SB: "CLAM-SB",
    DSMIL: "DSMIL",
    TRANSMIL: "TransMIL",
}
_NO_ATTENTION = "it has no attention, so the score of a patch is its class score, weighted by the slide's probabilities"
ATTENTION_NOTES: dict[Aggregator, str] = {  # what stands for the attention of a patch
    GATED: "the score of a patch is its attention before the softmax",
    LINEAR: _NO_ATTENTION,
    MEAN: _NO_ATTENTION,
    MAX: _NO_ATTENTION,
    ABMIL: "the score of a patch is its attention before the softmax",
    CLAM_SB: "the score of a patch is its attention before the softmax",
    DSMIL: "it has an attention for each class; that of a patch is their mean, weighted by the slide's probabilities",
    TRANSMIL: "the attention of a patch is that of the class token in the last layer, the mean over heads, where it is "
    "above 0; it is not what the logits were made of, and there is no evidence by class",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeadOrigin(_Frozen):
    """File of a MIL that another program trained."""

    layout: str = Field(min_length=1, max_length=MAX_NAME)  # such as CLAM_SB
    file: str = Field(min_length=1, max_length=MAX_NAME)  # its name, without folders
    sha256: str = Field(min_length=1, max_length=MAX_NAME)


class NetworkCard(_Frozen):
    """Architecture of one of the two networks."""

    encoder: EncoderSpec  # architecture, name and licence of the encoder
    dim: Width  # width of an instance of the MIL
    hidden: Width  # width of the attention gate
    encoder_sha256: str = ""  # hash of an encoder that the bundle only names
    aggregator: Aggregator = GATED  # left out of the file if it is gated attention, the only one of earlier versions
    top_share: float | None = Field(None, gt=0, le=1)  # of linear_topk: share of the patches that make a logit
    projection: Width | None = None  # width to which instances are projected; left out of the file if they are not
    origin: HeadOrigin | None = None  # of a MIL that was not trained here; left out of the file if it was

    @model_validator(mode="after")
    def _require_share_of_its_aggregator(self) -> NetworkCard:
        if (self.aggregator == LINEAR) != (self.top_share is not None):
            raise ValueError(
                f"aggregator {self.aggregator} with top_share {self.top_share}; expected one of linear_topk"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_gated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        values["encoder"] = without_defaults(values["encoder"])
        if self.aggregator == GATED:
            del values["aggregator"]
        if self.aggregator != LINEAR:
            del values["top_share"]
        for name in ("projection", "origin"):
            if getattr(self, name) is None:
                values.pop(name, None)  # a caller may have excluded it
        return values

    @property
    def pooled_share(self) -> float | None:
        """Share of the patches whose mean score is a logit; None if the aggregator pools otherwise."""
        return POOLED_SHARES.get(self.aggregator, self.top_share)

    @field_validator("encoder")
    @classmethod
    def _require_possible_encoder(cls, spec: EncoderSpec) -> EncoderSpec:
        if min(spec.deviation) <= 0:
            raise ValueError(f"the deviations {spec.deviation} must be above 0")
        for name, number in _numbers("settings", spec.settings):
            limit = MAX_BLOCKS if ".num_" in name or ".depths" in name else MAX_WIDTH
            if not -1 <= number <= limit:  # the comparison is false for NaN too
                raise ValueError(f"{name} is {number}, expected 0 to {limit}")
        return spec


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested settings, with their names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, int | float):
        yield name, value


def class_name_problem(classes: Sequence[str]) -> str:
    """Return what is wrong with the names of a model's classes; empty if nothing is."""
    for name in classes:
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            return f"{name[:40]!r} is no name of a class; expected up to {MAX_NAME} printable characters"
    names = [name.strip() for name in classes]
    doubled = next((name for name in names if names.count(name) > 1), None)
    return f"class {doubled!r} is named twice, so that its probability would be lost" if doubled else ""


class Card(_Frozen):
    """Content of ``lrmil.json``."""

    schema_version: int
    name: str = Field(min_length=1, max_length=MAX_NAME)
    about: str = ""  # a sentence or two: what the model is, and what it is not
    intended_use: str = Field("", max_length=MAX_NAME)  # a few words for lists of models: stain, organ and question
    version: str  # of napari-lrmil that wrote it
    classes: tuple[str, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    hr_mpp: PatchMpp  # of the teacher's patches
    lr_mpp: PatchMpp  # of the student's patches
    hr_patch_px: SidePx
    lr_patch_px: SidePx
    student_input_px: SidePx | None = None  # side to which LR patches are resized for the encoder; None: not resized
    normalisation: str = "RGB, (x / 255 - mean) / deviation, inside the encoder"
    licence: str = "unknown"  # of all encoders that the model derives from, even if the bundle leaves the teacher out
    tissue: TissueConfig = TissueConfig()  # tissue mask of training
    temperature: Temperature | None = None  # divides the student's logits; None: not calibrated
    teacher_temperature: Temperature | None = None
    student: NetworkCard
    teacher: NetworkCard | None = None
    distilled: bool = True  # False: no teacher ever was, the student learned from labels alone
    cohort: dict[str, Any] = Field(default_factory=dict)  # training cohort: counts per split and class
    metrics: dict[str, Any] = Field(default_factory=dict)  # summary of metrics.json
    colour: CohortColour | None = None  # stain of the training slides; None: not measured, so no slide is flagged
    stain: StainTarget | None = None  # colour to which slides are brought; left out of the file if they are not
    bag: Literal["slide", "patient"] = "slide"  # what had a label in training; left out of the file if a slide
    hashes: dict[str, str]  # file name -> SHA-256

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.stain is None:
            del values["stain"]
        values["tissue"] = without_unset(values["tissue"])
        if not self.intended_use:
            values.pop("intended_use", None)  # a caller may have excluded it
        if self.bag == "slide":
            values.pop("bag", None)
        return values

    @field_validator("stain")
    @classmethod
    def _require_possible_stain(cls, stain: StainTarget | None) -> StainTarget | None:
        if stain is not None and min(stain.statistics.density) <= 0:
            raise ValueError(f"the target's optical densities {stain.statistics.density} must be above 0")
        return stain

    @field_validator("classes")
    @classmethod
    def _require_distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if problem := class_name_problem(classes):
            raise ValueError(problem)
        return classes

    @field_validator("tissue")
    @classmethod
    def _require_possible_tissue(cls, tissue: TissueConfig) -> TissueConfig:
        if min(astuple(tissue)) < 0 or tissue.mask_um == 0 or tissue.min_share > 1:
            raise ValueError(f"{tissue}: expected numbers of 0 or above, mask_um above 0, min_share up to 1")
        return tissue

    @model_validator(mode="after")
    def _require_trainable_student(self) -> Card:
        if self.student.encoder.family == FROZEN:
            raise ValueError(f"the student's encoder is of family {FROZEN}, which only a teacher can have")
        return self

    @model_validator(mode="after")
    def _require_aggregator_of_students(self) -> Card:
        if self.student.aggregator not in OF_STUDENTS:
            raise ValueError(
                f"the student's aggregator is {self.student.aggregator}, which only a teacher can have; "
                f"expected {' or '.join(OF_STUDENTS)}"
            )
        return self

    @model_validator(mode="after")
    def _refuse_teacher_of_undistilled(self) -> Card:
        if self.teacher is not None and not self.distilled:
            raise ValueError("the card has a teacher and says that the student was not distilled")
        return self

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
    if not file.is_file() and (path / BUNDLE_OF_RUN / CARD).is_file():
        raise BundleError(path, CARD, f"this is a training run; its model is {path / BUNDLE_OF_RUN}")
    if not file.is_file():
        raise BundleError(path, CARD, f"the folder has no {CARD}; expected the folder of a trained bundle")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"expected keys and values, found {type(content).__name__}")
        _require_version(path, content.get("schema_version"))
        card = Card(**content)
        _ = card.plan  # raises GeometryError if the resolutions do not nest
        return card
    except (ValidationError, ValueError, TypeError, RecursionError, OSError, EncoderError, GeometryError) as error:
        raise BundleError(
            path, CARD, f"{CARD} cannot be read ({_reason(error)}); the bundle is damaged, copy it again"
        ) from error


def _require_version(path: Path, version: object) -> None:
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            path,
            "schema_version",
            f"the bundle has schema version {str(version)[:20]}, this program reads {SCHEMA_VERSION}; "
            "train or export it again, or install the version that wrote it",
        )


def _reason(error: Exception) -> str:
    """Return one line on what is wrong: of a failed check the key, the reason and the value."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    first = error.errors()[0]
    key, value, message = (
        ".".join(map(str, first["loc"])),
        repr(first["input"]),
        first["msg"].removeprefix("Value error, "),
    )
    seen = f", got {value}" if len(value) <= 80 else ""
    return f"{key}: {message}{seen}" if key else str(message)


def card_values(card: Card) -> dict[str, Any]:
    """Return the content of ``lrmil.json``. Of a distilled student it has the keys of the first version alone."""
    # An older program refuses a key that it does not know, and would not show that no teacher ever was.
    return card.model_dump(mode="json", exclude={"distilled"} if card.distilled else None)


def card_sha256(card: Card) -> str:
    """Return the hash that identifies a model, see `Bundle.sha256`."""
    unhashed = {"metrics", "cohort", "version", "colour", "distilled", "intended_use"}
    content = card.model_dump(mode="json", exclude=unhashed)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def card_text(card: Card, limits: Sequence[str] = ()) -> str:
    """Return the model card in Markdown; `limits` are the lines of `limits_lines`."""
    lines = [
        f"# {card.name}",
        "",
        f"A model of napari-lrmil: {DISTILLED if card.distilled else NOT_DISTILLED}.",
        "**Research use only. Not a diagnosis.**",
        "",
        *([card.about, ""] if card.about else []),
        *([f"- Intended use: {card.intended_use}"] if card.intended_use else []),
        f"- Classes: {', '.join(card.classes)}",
        f"- Student: {card.lr_mpp:g} µm per pixel, patches of {card.lr_patch_px} px ({card.plan.lr_um:g} µm)",
        *(_distilled_lines(card) if card.distilled else _undistilled_lines(card)),
        *(
            [f"- Aggregator: linear scores, mean of the top {card.student.top_share:.0%} of the patches of each class"]
            if card.student.top_share is not None
            else []
        ),
        *([f"- Colour: slides are normalised by {card.stain.method}"] if card.stain else []),
        *(["- Tissue: without pen, air bubbles and blur"] if card.tissue.exclude_artefacts else []),
        f"- Probabilities: {CALIBRATED if card.temperature else 'not calibrated'}",
        "",
        *_summary("Cohort", card.cohort),
        *_summary("Figures", card.metrics),
        *limits,
    ]
    return "\n".join(lines)


def _distilled_lines(card: Card) -> list[str]:
    teacher = card.teacher.encoder.name if card.teacher else "left out"
    return [
        f"- Teacher: {card.hr_mpp:g} µm per pixel, patches of {card.hr_patch_px} px ({card.plan.hr_um:g} µm)",
        *_origin_lines(card.teacher),
        *_aggregator_lines(card.teacher),
        f"- Encoders: student {card.student.encoder.name}; teacher {teacher}",
        *_embedding_lines(card.teacher or card.student),
        f"- Licence: {card.licence}. The student was distilled from its teacher's encoder, whose terms also apply to "
        "the student, even if the teacher is left out.",
    ]


def _origin_lines(teacher: NetworkCard | None) -> list[str]:
    """Return a line on a teacher whose MIL another program trained."""
    origin = teacher.origin if teacher else None
    if origin is None:
        return []
    return [
        f"- Teacher's MIL: {origin.layout}, read from {origin.file} (SHA-256 {origin.sha256}), not trained by this "
        "program; its own terms also apply"
    ]


def _aggregator_lines(teacher: NetworkCard | None) -> list[str]:
    """Return a line on a teacher that pools otherwise than its student."""
    if teacher is None or teacher.aggregator in OF_STUDENTS:
        return []
    return [f"- Teacher's aggregator: {AGGREGATOR_NAMES[teacher.aggregator]}; {ATTENTION_NOTES[teacher.aggregator]}"]


def _embedding_lines(network: NetworkCard) -> list[str]:
    """Return a line on an embedding that is not the encoder's own."""
    pooled, pca = network.encoder.pooled, network.encoder.pca
    source = f"pooled maps of {' and '.join(pooled)}" if pooled else "the encoder's own"
    reduced = "" if pca is None else f", reduced to {pca} dimensions by principal component analysis"
    return [f"- Embedding: {source}{reduced}"] if pooled or pca else []


def _undistilled_lines(card: Card) -> list[str]:
    return [
        "- Teacher: none, the student was not distilled",
        f"- Encoder: {card.student.encoder.name}",
        *_embedding_lines(card.student),
        f"- Licence: {card.licence}. The terms of the encoder that the student started from also apply to the student.",
    ]


def _summary(title: str, values: Mapping[str, Any]) -> list[str]:
    return [f"## {title}", "", *(f"- {key}: {value}" for key, value in values.items()), ""] if values else []
