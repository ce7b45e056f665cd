"""Schemas of the JSON result files: one pydantic model per file, shared by its writer and its readers.

An added key keeps the schema version: readers ignore keys that they do not know. A file without ``schema_version`` has
version 1. A file of a newer version is refused, because a key that this program knows may mean something else in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.errors import NewerSchemaError, StoredError
from napari_lrmil.version import __version__

PREDICTION, AGREEMENT, COHORT = "prediction.json", "agreement.json", "cohort.json"
LESION_KEYS = frozenset(
    {"lesion_auroc_student", "lesion_auroc_teacher", "pointing_student", "pointing_teacher", "n_lesion_patches"}
)
MAX_REASON_CHARS = 200  # of a library's message; longer ones would bury the advice at the end of the sentence


class _Part(BaseModel):
    """Base of all models. NaN and infinity are refused on writing and on reading: JSON has neither."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ResultFile(_Part):
    """Base of the file models. The order of the fields is the order of the keys on disk.

    Attributes
    ----------
    schema_version
        Version in which the file was written.
    """

    FILE_NAME: ClassVar[str]
    NEWEST: ClassVar[int] = 1  # the version that is written, and the newest that is read

    schema_version: int = Field(default=NEWEST, ge=1, strict=True)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the content of the file in `folder`.

        Raises
        ------
        NewerSchemaError
            If a newer version of this program wrote it.
        StoredError
            If it cannot be read; the message names the first wrong field.
        """
        path = folder / cls.FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError(f"it holds a {type(content).__name__}, expected an object")
            # The first files had no version, and theirs is 1.
            content = {"schema_version": 1} | content
            # Before validation: a newer file may have other types, and "update" is the better advice.
            _require_known_version(path, content["schema_version"], cls.NEWEST)
            return cls.model_validate(content)
        except ValidationError as error:
            raise unreadable_error(path, _first_error(error)) from error
        # RecursionError: JSON that is nested too deeply for the parser.
        except (OSError, ValueError, RecursionError) as error:
            raise unreadable_error(path, str(error) or type(error).__name__) from error

    def write(self, folder: Path) -> None:
        """Write the file into `folder` atomically."""
        write_json(folder / self.FILE_NAME, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file, key by key in the order of the fields."""
        return self.model_dump(mode="json", exclude=self._absent_keys())

    def _absent_keys(self) -> set[str]:
        """Return the keys that are left out of the file instead of being written as null."""
        return set()


class TeacherResult(_Part):
    """The HR teacher's part of ``prediction.json``.

    Attributes
    ----------
    probabilities, logits
        Class -> value.
    calibrated
        Whether the probabilities are calibrated.
    n_lr_patches
        LR patches that the teacher read.
    n_patches
        HR patches in them.
    pixels_decoded
        Native pixels requested for the teacher.
    runtime, precision, runtime_reason
        Runtime of the encoder, see `RuntimeChoice`.
    seconds
        Step -> wall seconds; ``total`` is the time of all steps.
    """

    probabilities: dict[str, float]
    calibrated: bool | None = None
    logits: dict[str, float]
    n_lr_patches: int | None = None
    n_patches: int | None = None
    pixels_decoded: int
    runtime: str | None = None
    precision: str | None = None
    runtime_reason: str | None = None
    seconds: dict[str, float]

    @model_validator(mode="after")
    def _has_total(self) -> Self:
        _require_total(self.seconds)
        return self


class MissingTilesResult(_Part):
    """Missing and damaged tiles in ``prediction.json``, see `MissingTiles`."""

    not_stored: int
    damaged: int
    not_stored_on_tissue: int
    damaged_on_tissue: int
    tissue_share: float
    levels: tuple[int, ...]
    not_read_on_tissue: int


class OperatingPointResult(_Part):
    """Side of the operating point in ``prediction.json``, see `OperatingSide`."""

    positive: str
    threshold: float
    reached: bool


class PredictionSetResult(_Part):
    """Set of classes in ``prediction.json``, see `PredictionSet`."""

    coverage: float
    classes: tuple[str, ...]


class CohortDistanceResult(_Part):
    """Distance from the training slides in ``prediction.json``, see `CohortDistance`."""

    distance: float
    quantile: float
    slides: int


class ArtefactsResult(_Part):
    """Artefacts on the tissue in ``prediction.json``, see `ArtefactShares`."""

    shares: dict[str, float]
    excluded: bool


class PredictionFile(ResultFile):
    """``prediction.json``. Fields that default to None are missing from files of early builds of 0.1.0.

    Attributes
    ----------
    slide, path, slide_fingerprint
        Name of the slide, its file from the folder of the cohort on, and the hash of its pixels.
    bundle, bundle_sha256
        Name and hash of the model.
    classes
        The classes in the model's order.
    probabilities, logits
        Class -> value, of the student.
    calibrated
        Whether the probabilities are calibrated.
    predicted
        The most probable class.
    mpp, lr_mpp
        µm per pixel of the slide's level 0, and of what the student sees.
    patch_um
        Width of an LR patch in µm.
    n_patches, n_hr_patches
        LR patches that the student read, and the HR patches in them.
    pixels_decoded
        Native pixels requested for the student.
    reader, reader_reason
        Reader of the slide, see `ReaderChoice`.
    finest_mpp_read, finest_mpp_reason
        µm per pixel of the finest level that was read for the student, and whether and why it is finer than `lr_mpp`.
    scope
        Part of the slide, as text.
    device
        Device of the encoder.
    runtime, precision, runtime_reason
        Runtime of the encoder, see `RuntimeChoice`.
    seconds
        Step -> wall seconds; ``total`` is the time of all steps.
    warnings
        Sentences on why the result may be wrong.
    missing_tiles
        Tiles that the file does not store or that do not decode; None if there are none on tissue and none damaged.
    operating_point, prediction_set
        Side of the operating point and set of classes; None if the model has none, or for a part of a slide.
    limits_cautions
        Why one of them is absent or uncertain, in words.
    cohort_distance
        Distance from the training slides; None if the model does not state how they lie, or for a region.
    artefacts
        Artefacts on the tissue; None if there are none, or for a region.
    attention_mass
        The slide's weight in a bag of all slides of its patient; only of a model that was trained on such bags.
    patches_from_cache
        Network -> patches that an earlier run had encoded, so that costs are of the rest only; None if there are none.
    version
        Version of napari-lrmil that wrote the file.
    teacher
        The HR teacher's part; None if it did not run.
    """

    FILE_NAME: ClassVar[str] = PREDICTION

    slide: str
    path: str | None = None
    slide_fingerprint: str
    bundle: str
    bundle_sha256: str
    classes: tuple[str, ...]
    probabilities: dict[str, float]
    calibrated: bool
    logits: dict[str, float]
    predicted: str
    mpp: float | None = None
    lr_mpp: float
    patch_um: float
    n_patches: int
    n_hr_patches: int
    pixels_decoded: int
    reader: str | None = None
    reader_reason: str | None = None
    finest_mpp_read: float | None = None
    finest_mpp_reason: str | None = None
    scope: str | None = None
    device: str
    runtime: str | None = None
    precision: str | None = None
    runtime_reason: str | None = None
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    missing_tiles: MissingTilesResult | None = None
    operating_point: OperatingPointResult | None = None
    prediction_set: PredictionSetResult | None = None
    limits_cautions: tuple[str, ...] | None = None
    cohort_distance: CohortDistanceResult | None = None
    artefacts: ArtefactsResult | None = None
    attention_mass: float | None = None
    patches_from_cache: dict[str, int] | None = None
    version: str
    teacher: TeacherResult | None = None

    def _absent_keys(self) -> set[str]:
        # Absent in files of 0.1.0.
        names = (
            "teacher",
            "finest_mpp_read",
            "finest_mpp_reason",
            "missing_tiles",
            "cohort_distance",
            "patches_from_cache",
        )
        names_of_limits = ("operating_point", "prediction_set", "limits_cautions", "attention_mass", "artefacts")
        return {name for name in (*names, *names_of_limits) if getattr(self, name) is None}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _require_total(self.seconds)
        if self.reader is not None and self.reader_reason is None:
            raise ValueError("reader_reason is missing")
        values = {"probabilities": self.probabilities, "logits": self.logits}
        if self.teacher is not None:
            values |= {"teacher.probabilities": self.teacher.probabilities, "teacher.logits": self.teacher.logits}
        for name, by_class in values.items():
            if missing := [c for c in self.classes if c not in by_class]:
                raise ValueError(f"{name} has no value for {', '.join(missing)}, one of the classes")
        return self


class AgreementFile(ResultFile):
    """``agreement.json``: attention of student and teacher over the LR patches that both read.

    Attributes
    ----------
    spearman, jaccard_top10, js_divergence, n_patches
        See `Agreement`.
    probability_student, probability_teacher
        Class -> probability.
    seconds_student, seconds_teacher
        Wall seconds of each network alone.
    pixels_student, pixels_teacher
        Native pixels requested for each.
    lesion_auroc_student, lesion_auroc_teacher, pointing_student, pointing_teacher
        See `LesionMetrics`; None if undefined, and the keys are absent if no lesions are known.
    n_lesion_patches
        Patches with a quarter or more of lesion; None if no lesions are known.
    patches_from_cache
        As in `PredictionFile`: seconds and pixels are then of the other patches only.
    """

    FILE_NAME: ClassVar[str] = AGREEMENT

    spearman: float | None
    jaccard_top10: float
    js_divergence: float
    n_patches: int
    probability_student: dict[str, float]
    probability_teacher: dict[str, float]
    seconds_student: float
    seconds_teacher: float
    pixels_student: int | None = None
    pixels_teacher: int | None = None
    lesion_auroc_student: float | None = None
    lesion_auroc_teacher: float | None = None
    pointing_student: bool | None = None
    pointing_teacher: bool | None = None
    n_lesion_patches: int | None = None
    patches_from_cache: dict[str, int] | None = None

    def _absent_keys(self) -> set[str]:
        absent = set(LESION_KEYS) if self.n_lesion_patches is None else set()
        return absent if self.patches_from_cache else absent | {"patches_from_cache"}


class WorkerSummary(_Part):
    """One worker in ``cohort.json``: slides that it attempted, and its peak resident memory in MB."""

    tries: int
    peak_memory_mb: float


class CohortFile(ResultFile):
    """``cohort.json``: summary of the last call on a cohort.

    Attributes
    ----------
    engine
        Description of the backend.
    slides, done, already_there, failed, retried
        Number of slides: in total, computed by this call, reused, failed, and attempted twice.
    seconds
        Wall seconds of the call.
    slides_per_hour
        Rate of the slides that this call computed; None if it computed none.
    workers
        Name of the worker -> its summary.
    notices
        Sentences on what was left out of the folders and tables that the call was given.
    """

    FILE_NAME: ClassVar[str] = COHORT

    engine: str
    slides: int
    done: int
    already_there: int
    failed: int
    retried: int
    seconds: float
    slides_per_hour: float | None
    workers: dict[str, WorkerSummary]
    notices: tuple[str, ...] = ()

    def _absent_keys(self) -> set[str]:
        return set() if self.notices else {"notices"}


def require_replaceable(folder: Path) -> None:
    """Raise `NewerSchemaError` if a slide's `folder` has a file of a newer version, which writing would delete."""
    kinds: tuple[type[ResultFile], ...] = (PredictionFile, AgreementFile)
    for kind in kinds:
        try:
            kind.read(folder)
        except NewerSchemaError:
            raise
        except StoredError:  # absent or broken: nothing is lost
            continue


def unreadable_error(path: Path, reason: str) -> StoredError:
    """Return the error for a result file that cannot be read."""
    shown = " ".join(reason.split()).rstrip(".")[:MAX_REASON_CHARS]
    return StoredError(path, f"cannot be read as stored results ({shown}); run the analysis again")


def _require_known_version(path: Path, version: object, newest: int) -> None:
    """Raise `NewerSchemaError` if a version is above `newest`. A version that is no number fails validation later."""
    # float too: 2.0 is newer than 1, although it is not a valid version.
    if isinstance(version, int | float) and version > newest:
        raise NewerSchemaError(
            path,
            f"the file has schema version {version}, and napari-lrmil {__version__} reads versions up to {newest}; "
            "update napari-lrmil, or choose another folder",
        )


def _require_total(seconds: dict[str, float]) -> None:
    if "total" not in seconds:
        raise ValueError("seconds.total is missing")


def _first_error(error: ValidationError) -> str:
    """Return the first validation error of a file, with the name of its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{field} is missing"
    message = first["msg"].removeprefix("Value error, ")  # pydantic's prefix for errors of our own validators
    return f"{field}: {message}" if field else message
