"""Bundle: a folder with the networks of a model and a card that states what inference needs. No pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from napari_lrmil.core.atomic_files import atomic_write, write_json, write_text
from napari_lrmil.core.encoders import (
    FROZEN,
    AlignedEncoder,
    EncoderSpec,
    NetworkEncoder,
    build_encoder,
    encoder_notice,
    file_sha256,
    half_tensors,
    load_weights,
    module_sha256,
    resolve_encoder,
)
from napari_lrmil.core.errors import BundleError, EncoderError, GeometryError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.patching.color import CohortColour
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.version import __version__

SCHEMA_VERSION = 1
CARD, STUDENT, TEACHER, README = "lrmil.json", "student.safetensors", "teacher.safetensors", "README.md"
CALIBRATED = (
    "calibrated on validation slides with a single temperature; if training gave the classes equal weight, "
    "calibration does not restore their true shares"
)
Prepared = dict[Any, Any]  # key of a runtime -> compiled encoder
SHIPPED = Path(__file__).parents[2] / "bundles"


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


class StudentNetwork(nn.Module):
    """Distilled LR encoder and its MIL."""

    def __init__(self, encoder: AlignedEncoder, mil: GatedAttentionMIL) -> None:
        super().__init__()
        self.encoder, self.mil = encoder, mil


class TeacherNetwork(nn.Module):
    """Frozen HR encoder and its MIL."""

    def __init__(self, encoder: NetworkEncoder, mil: GatedAttentionMIL) -> None:
        super().__init__()
        self.encoder, self.mil = encoder, mil


class Bundle:
    """An open bundle. Weights are read on first use, so a run of the student never reads the teacher's file.

    Parameters
    ----------
    where
        A folder, or the name of a shipped bundle (``demo``).

    Raises
    ------
    BundleError
        If the folder is not a bundle, or has another schema version.
    """

    def __init__(self, where: str | Path) -> None:
        self.path = find_bundle(where)
        self.card = _read_card(self.path)
        self.prepared: Prepared = {}  # compiled encoders of this process

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": {}}  # compiled encoders cannot be pickled

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.card.name

    @property
    def sha256(self) -> str:
        """Hash that identifies the model: of the weights' hashes and of all that inference depends on.

        Metrics, cohort and colour are left out. Colour changes a warning, never a probability, and bundles written
        before it was measured keep their hash.
        """
        content = self.card.model_dump(mode="json", exclude={"metrics", "cohort", "version", "colour"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def has_teacher(self) -> bool:
        """Whether the bundle has an HR teacher."""
        return self.card.teacher is not None

    @property
    def names_teacher(self) -> bool:
        """Whether the bundle only names its teacher's encoder, so that loading it can download weights."""
        return self.card.teacher is not None and self.card.teacher.encoder.family == FROZEN

    @property
    def teacher_notice(self) -> str | None:
        """Licence and terms of an encoder that the bundle only names. They must be shown before it is loaded.

        Raises
        ------
        EncoderError
            If the encoder is unknown because the extra `encoders` is not installed.
        """
        return encoder_notice(self.require_teacher().encoder.name) if self.names_teacher else None

    def require_teacher(self) -> NetworkCard:
        """Return the teacher's card; raise `BundleError` if the bundle has none."""
        if self.card.teacher is None:
            raise BundleError(self.path, "teacher", "the bundle has no teacher; run without --teacher")
        return self.card.teacher

    @cached_property
    def student(self) -> StudentNetwork:
        """The student, in evaluation mode on the CPU.

        Raises
        ------
        BundleError
            If the weights are missing, do not match their hash, or do not fit the card.
        """
        card = self.card.student
        encoder = AlignedEncoder(build_encoder(card.encoder), card.dim)
        network = StudentNetwork(encoder, GatedAttentionMIL(card.dim, len(self.card.classes), card.hidden))
        self._fill(network, STUDENT)
        return network

    @cached_property
    def teacher(self) -> TeacherNetwork:
        """The HR teacher, in evaluation mode on the CPU.

        Raises
        ------
        BundleError
            If the bundle has none, or its weights are missing, do not match their hash, or do not fit the card.
        """
        card = self.require_teacher()
        mil = GatedAttentionMIL(card.dim, len(self.card.classes), card.hidden)
        if card.encoder.family == FROZEN:  # weights that may not be shared: the bundle only names the encoder
            self._fill(nn.ModuleDict({"mil": mil}), TEACHER)
            return TeacherNetwork(self._named_encoder(card), mil)
        network = TeacherNetwork(build_encoder(card.encoder), mil)
        self._fill(network, TEACHER)
        return network

    def _named_encoder(self, card: NetworkCard) -> NetworkEncoder:
        loaded = resolve_encoder(card.encoder.name)
        if loaded is None or loaded.sha256 != card.encoder_sha256:
            reason = f"{card.encoder.name} is not the encoder that this bundle was trained with; run without --teacher"
            raise BundleError(self.path, TEACHER, reason)
        return loaded.encoder

    def _fill(self, network: nn.Module, file: str) -> None:
        try:
            load_weights(network, self.tensors(file))
        except EncoderError as error:
            raise BundleError(self.path, file, f"{file}: {error}; the bundle is damaged, copy it again") from error
        network.eval().requires_grad_(False)

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Return the tensors of one of the bundle's files.

        Raises
        ------
        BundleError
            If the file is missing or does not match its hash.
        """
        from safetensors.torch import load_file

        path = self.path / file
        if not path.is_file():
            raise BundleError(self.path, file, f"{file} is missing; the bundle is incomplete, copy it again")
        if file_sha256(path) != self.card.hashes.get(file):
            raise BundleError(
                self.path, file, f"{file} does not match the hash in {CARD}; it was altered, copy it again"
            )
        return load_file(path)


def find_bundle(where: str | Path) -> Path:
    """Return the folder of a bundle, given as a folder or as the name of a shipped one.

    Raises
    ------
    BundleError
        If there is none.
    """
    path = Path(where)
    for folder in (path, SHIPPED / path):  # a folder with the name of a shipped bundle counts only if it has a card
        if (folder / CARD).is_file():
            return folder
    if path.is_dir():
        return path
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
    raise BundleError(
        path,
        CARD,
        f"no bundle with this path or name; expected a folder with {CARD}, or a shipped bundle ({shipped or 'none'})",
    )


def _read_card(path: Path) -> Card:
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


def write_bundle(
    folder: Path, card: Mapping[str, Any], student: StudentNetwork, teacher: TeacherNetwork | None
) -> Bundle:
    """Write a bundle and open it. `lrmil.json` is written last, so a folder with it is complete.

    Parameters
    ----------
    folder
        Target folder.
    card
        Fields of `Card` without versions, networks and hashes.
    student, teacher
        The networks. Their weights are stored as float16 (see `round_to_half`).
    """
    from safetensors.torch import save_file

    networks: dict[str, StudentNetwork | TeacherNetwork] = {STUDENT: student}
    if teacher is not None:
        networks[TEACHER] = teacher
    folder.mkdir(parents=True, exist_ok=True)
    for old in (CARD, STUDENT, TEACHER):
        (folder / old).unlink(missing_ok=True)
    for file, network in networks.items():
        shared = nn.ModuleDict({"mil": network.mil}) if network.encoder.spec.family == FROZEN else network
        with atomic_write(folder / file) as partial:
            save_file(half_tensors(shared), partial)
    full = Card(
        schema_version=SCHEMA_VERSION,
        version=__version__,
        hashes={file: file_sha256(folder / file) for file in networks},
        student=_network_card(student),
        teacher=_network_card(teacher) if teacher is not None else None,
        **({"licence": _licences(student, teacher)} | dict(card)),
    )
    write_text(folder / README, card_text(full))
    write_json(folder / CARD, full.model_dump(mode="json"))
    return Bundle(folder)


def _licences(*networks: StudentNetwork | TeacherNetwork | None) -> str:
    return ", ".join(sorted({network.encoder.spec.licence for network in networks if network is not None}))


def _network_card(network: StudentNetwork | TeacherNetwork) -> NetworkCard:
    spec = network.encoder.spec
    sha256 = module_sha256(network.encoder.get_submodule("net")) if spec.family == FROZEN else ""
    return NetworkCard(encoder=spec, dim=network.mil.dim, hidden=network.mil.hidden, encoder_sha256=sha256)


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


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the models that are shipped with the package."""
    return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
