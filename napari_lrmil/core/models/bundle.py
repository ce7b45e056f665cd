"""A bundle: a folder with everything that inference needs, and the physics that a slide must match. Never pickle."""

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
    "calibrated on validation slides by one temperature, which does not restore the shares of classes that training "
    "weighed to count alike"
)
Prepared = dict[Any, Any]  # what a runtime is made from -> what it made
SHIPPED = Path(__file__).parents[2] / "bundles"


class NetworkCard(BaseModel):
    """How one of the two networks is built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: EncoderSpec  # architecture, name and licence of the encoder
    dim: int  # width of an instance as its MIL sees it
    hidden: int  # width of the attention's gate
    encoder_sha256: str = ""  # of an encoder that the bundle only names


class Card(BaseModel):
    """What ``lrmil.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    name: str
    about: str = ""  # a sentence or two: what it is, and what it is not
    version: str  # of napari-lrmil that wrote it
    classes: tuple[str, ...]
    hr_mpp: float  # µm per pixel of the teacher's patches
    lr_mpp: float  # µm per pixel of the student's patches
    hr_patch_px: int
    lr_patch_px: int
    student_input_px: int | None = None  # side to which LR patches are enlarged before encoding; None: as read
    normalisation: str = "RGB, (x / 255 - mean) / deviation, inside the encoder"
    licence: str = "unknown"  # of the encoders that it comes from, the teacher's included where that is left out
    tissue: TissueConfig = TissueConfig()  # the mask that training used
    temperature: float | None = Field(None, gt=0)  # divides the student's logits; None: not calibrated
    teacher_temperature: float | None = Field(None, gt=0)
    student: NetworkCard
    teacher: NetworkCard | None = None
    cohort: dict[str, Any] = Field(default_factory=dict)  # where it was trained: counts per split and class
    metrics: dict[str, Any] = Field(default_factory=dict)  # summary of metrics.json
    colour: CohortColour | None = None  # of the training slides; None: not measured, and no slide is called far from it
    hashes: dict[str, str]  # file name -> SHA-256

    @property
    def plan(self) -> PatchPlan:
        """The two resolutions."""
        return PatchPlan(self.hr_mpp, self.lr_mpp, self.hr_patch_px, self.lr_patch_px)


class StudentNetwork(nn.Module):
    """LR encoder, distilled, and its MIL."""

    def __init__(self, encoder: AlignedEncoder, mil: GatedAttentionMIL) -> None:
        super().__init__()
        self.encoder, self.mil = encoder, mil


class TeacherNetwork(nn.Module):
    """HR encoder, frozen, and its MIL."""

    def __init__(self, encoder: NetworkEncoder, mil: GatedAttentionMIL) -> None:
        super().__init__()
        self.encoder, self.mil = encoder, mil


class Bundle:
    """An opened bundle. Weights are read when first asked for: a student's run never touches the teacher's file.

    Parameters
    ----------
    where
        A folder, or the name of a shipped bundle (``demo``).

    Raises
    ------
    BundleError
        Where the folder is no bundle, or one of another schema version.
    """

    def __init__(self, where: str | Path) -> None:
        self.path = find_bundle(where)
        self.card = _read_card(self.path)
        self.prepared: Prepared = {}  # runtimes of its encoders, for as long as this process has it open

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": {}}  # compiled for this process alone

    @property
    def name(self) -> str:
        """The bundle's own name."""
        return self.card.name

    @property
    def sha256(self) -> str:
        """Hash over the weights' hashes and all else that inference depends on: tells this model from any other.

        Colour is left out as figures and cohort are: it changes a warning, never a probability, and a bundle that was
        written before it was measured keeps its hash.
        """
        told = self.card.model_dump(mode="json", exclude={"metrics", "cohort", "version", "colour"})
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def has_teacher(self) -> bool:
        """Whether the bundle brings its HR teacher."""
        return self.card.teacher is not None

    @property
    def names_teacher(self) -> bool:
        """Whether the bundle only names its teacher's encoder, so that loading it may fetch weights."""
        return self.card.teacher is not None and self.card.teacher.encoder.family == FROZEN

    @property
    def teacher_notice(self) -> str | None:
        """Licence and terms of an encoder that the bundle only names, to be told before it is loaded.

        Raises
        ------
        EncoderError
            Where it is not known here: the extra `encoders` is not installed.
        """
        return encoder_notice(self.require_teacher().encoder.name) if self.names_teacher else None

    def require_teacher(self) -> NetworkCard:
        """Return the teacher's card; raise `BundleError` where the bundle brings none."""
        if self.card.teacher is None:
            raise BundleError(self.path, "teacher", "the bundle brings no teacher; run without --teacher")
        return self.card.teacher

    @cached_property
    def student(self) -> StudentNetwork:
        """The student, in evaluation mode on the CPU.

        Raises
        ------
        BundleError
            Where the weights are missing, do not match their hash, or do not fit.
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
            Where the bundle has none, or its weights are missing, do not match their hash, or do not fit.
        """
        card = self.require_teacher()
        mil = GatedAttentionMIL(card.dim, len(self.card.classes), card.hidden)
        if card.encoder.family == FROZEN:  # its weights are not ours to share: the bundle names them
            self._fill(nn.ModuleDict({"mil": mil}), TEACHER)
            return TeacherNetwork(self._pointed_at(card), mil)
        network = TeacherNetwork(build_encoder(card.encoder), mil)
        self._fill(network, TEACHER)
        return network

    def _pointed_at(self, card: NetworkCard) -> NetworkEncoder:
        found = resolve_encoder(card.encoder.name)
        if found is None or found.sha256 != card.encoder_sha256:
            told = f"{card.encoder.name} is not the encoder that this bundle was made with; run without --teacher"
            raise BundleError(self.path, TEACHER, told)
        return found.encoder

    def _fill(self, network: nn.Module, file: str) -> None:
        try:
            load_weights(network, self.tensors(file))
        except EncoderError as error:
            raise BundleError(self.path, file, f"{file}: {error}; the bundle is damaged, copy it again") from error
        network.eval().requires_grad_(False)

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Return the tensors of one of the bundle's files, after checking its hash."""
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
    """Return the folder of a bundle given as a folder or as the name of a shipped one."""
    path = Path(where)
    for folder in (path, SHIPPED / path):  # a folder that only happens to be called like a shipped bundle is none
        if (folder / CARD).is_file():
            return folder
    if path.is_dir():
        return path
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
    raise BundleError(
        path, CARD, f"no bundle here; expected a folder with {CARD}, or a shipped bundle ({shipped or 'none'})"
    )


def _read_card(path: Path) -> Card:
    file = path / CARD
    if not file.is_file():
        raise BundleError(path, CARD, f"a folder without {CARD}; expected the folder of a trained bundle")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content.get("schema_version")
        if found != SCHEMA_VERSION:
            raise BundleError(
                path,
                "schema_version",
                f"the bundle has schema version {found}, this program reads {SCHEMA_VERSION}; "
                "train or export it again, or install the version that wrote it",
            )
        card = Card(**content)
        _ = card.plan  # built, hence checked
        return card
    except (ValidationError, ValueError, AttributeError, EncoderError, GeometryError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BundleError(
            path, CARD, f"{CARD} cannot be read ({reason}); the bundle is damaged, copy it again"
        ) from error


def write_bundle(
    folder: Path, card: Mapping[str, Any], student: StudentNetwork, teacher: TeacherNetwork | None
) -> Bundle:
    """Write a bundle and return it opened; `lrmil.json` comes last, so a folder that has it is complete.

    Parameters
    ----------
    folder
        Where to write.
    card
        Fields of `Card`, without version, networks and hashes, which are filled in here.
    student, teacher
        The networks; their weights are stored as float16 (see `round_to_half`).
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
    pointed_at = module_sha256(network.encoder.get_submodule("net")) if spec.family == FROZEN else ""
    return NetworkCard(encoder=spec, dim=network.mil.dim, hidden=network.mil.hidden, encoder_sha256=pointed_at)


def card_text(card: Card) -> str:
    """Return the model card that people read."""
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
        f"- Licence: {card.licence}. The student was distilled from its teacher's encoder, whose terms hold for it, "
        "even where the teacher is left out.",
        f"- Probabilities: {CALIBRATED if card.temperature else 'not calibrated'}",
        "",
        *_summary("Cohort", card.cohort),
        *_summary("Figures", card.metrics),
    ]
    return "\n".join(lines)


def _summary(title: str, values: Mapping[str, Any]) -> list[str]:
    return [f"## {title}", "", *(f"- {key}: {value}" for key, value in values.items()), ""] if values else []


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the models that come with the program; loads torch."""
    return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
