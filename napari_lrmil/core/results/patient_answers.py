"""One answer for each patient, from the stored results of its slides: ``patients.csv`` and ``patients.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.inference.slide_limits import NO_LIMITS, SlideLimits, network_limits
from napari_lrmil.core.models.cohort_distance import CohortDistance, EmbeddingStatistics
from napari_lrmil.core.models.limits import NetworkLimits
from napari_lrmil.core.models.patient_bag import ONE_BAG, attention_shares
from napari_lrmil.core.results.cohort_tables import LIMIT_COLUMNS, limit_cells, read_failures
from napari_lrmil.core.results.schema import PredictionFile, unreadable_error

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle

PATIENTS_TABLE, PATIENTS_FILE = "patients.csv", "patients.json"
SCHEMA_VERSION = 1
MEAN_OF_LOGITS = "mean of the logits of the slides"
NOT_PREDICTED = "not predicted yet; the same call goes on"


@dataclass(frozen=True)
class PatientSlide:
    """A slide of a patient.

    Attributes
    ----------
    name
        Name of its results.
    file_name
        Name of the slide file, as ``failures.csv`` has it.
    """

    name: str
    file_name: str


@dataclass(frozen=True)
class PatientModel:
    """What an answer needs to know about the model.

    Attributes
    ----------
    name, sha256
        Name and hash of the bundle. Results of another one are not used.
    classes
        Its classes in order.
    temperature
        Calibration temperature of the student; None if it has none.
    bag
        What had a label in training, ``slide`` or ``patient``.
    limits
        Limits of the student for patients; None if the model has none, or those of slides.
    embeddings
        Statistics of the training patients; None if the model has none.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    temperature: float | None
    bag: str = "slide"
    limits: NetworkLimits | None = None
    embeddings: EmbeddingStatistics | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Return what answers need of a bundle."""
        card, limits = bundle.card, bundle.limits
        of_patients = limits.student if limits is not None and limits.level == "patient" else None
        statistics = bundle.patient_embedding_statistics
        return cls(bundle.name, bundle.sha256, card.classes, card.temperature, card.bag, of_patients, statistics)


@dataclass(frozen=True)
class PatientAnswer:
    """The answer for one patient.

    Attributes
    ----------
    patient
        Name of the patient.
    slides
        Names of the slides that the answer is about.
    left_out
        Slide -> reason why it is not part of the answer.
    logits, probabilities
        Class -> value; empty if no slide is left.
    predicted
        The most probable class; empty if no slide is left.
    calibrated
        Whether the probabilities are calibrated, with the temperature of the model.
    pooling
        How the answer was made of the slides.
    attention_shares
        Slide -> share of the attention of one bag of all slides, together 1; empty for means of logits. The attention
        of a slide's own result sums to 1 over the slide: times this share it is that of the patient.
    limits
        Side of the operating point and set of classes, of models that state them of patients.
    cohort_distance
        Distance of the mean embedding of all patches from those of the training patients; None if it was not measured.
    """

    patient: str
    slides: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    logits: Mapping[str, float] = field(default_factory=dict)
    probabilities: Mapping[str, float] = field(default_factory=dict)
    predicted: str = ""
    calibrated: bool = False
    pooling: str = MEAN_OF_LOGITS
    attention_shares: Mapping[str, float] = field(default_factory=dict)
    limits: SlideLimits = NO_LIMITS
    cohort_distance: CohortDistance | None = None

    @property
    def reason(self) -> str:
        """Why there is no answer, or on which slides it does not rest; empty if all slides were used."""
        total = len(self.slides) + len(self.left_out)
        if not self.slides:
            return f"none of {total} slides has a result" if total > 1 else "its slide has no result"
        return f"from {len(self.slides)} of {total} slides" if self.left_out else ""


def answer_patients(
    folder: Path, patients: Mapping[str, Sequence[PatientSlide]], model: PatientModel
) -> list[PatientAnswer]:
    """Return the answer for each patient, from the results of its slides in `folder`.

    Parameters
    ----------
    folder
        Folder of the results.
    patients
        Patient -> slides.
    model
        The model that must have made the results.
    """
    failures = {slide: reason for slide, _, reason in read_failures(folder)}
    return [_answer_patient(folder, patient, slides, model, failures) for patient, slides in patients.items()]


def _answer_patient(
    folder: Path, patient: str, slides: Sequence[PatientSlide], model: PatientModel, failures: Mapping[str, str]
) -> PatientAnswer:
    files, left_out = [], dict[str, str]()
    for slide in slides:
        file = failures.get(slide.file_name) or _read_result(folder / slide.name, model)
        if isinstance(file, str):
            left_out[slide.name] = file
        else:
            files.append(file)
    if not files:
        return PatientAnswer(patient, (), left_out)
    pooling, shares = _slide_weights(files, model)
    weights = list(shares.values())
    logits = {name: _weighted([file.logits[name] for file in files], weights) for name in model.classes}
    probabilities = _softmax(logits, model.temperature)
    return PatientAnswer(
        patient,
        tuple(file.slide for file in files),
        left_out,
        logits,
        probabilities,
        predicted=max(probabilities, key=lambda name: probabilities[name]),
        calibrated=model.temperature is not None,
        pooling=pooling,
        attention_shares=shares if pooling == ONE_BAG else {},
        limits=NO_LIMITS if model.limits is None else network_limits(model.limits, model.classes, probabilities),
        cohort_distance=_patient_distance(folder, files, model.embeddings),
    )


def _patient_distance(
    folder: Path, files: Sequence[PredictionFile], statistics: EmbeddingStatistics | None
) -> CohortDistance | None:
    """Return the distance of all patches of a patient's slides; None if a result has no embedding."""
    if statistics is None:
        return None
    embeddings = [_read_embedding(folder / file.slide) for file in files]
    if any(embedding is None for embedding in embeddings):
        return None
    weights = np.array([file.n_patches for file in files], np.float64)
    return statistics.measure(np.average(np.array(embeddings, np.float64), axis=0, weights=weights))


def _read_embedding(folder: Path) -> NDArray[np.float64] | None:
    """Return the (D,) mean embedding of a slide's patches; None if the result is of a version that did not store it.

    Raises
    ------
    StoredError
        If the file is missing or damaged.
    """
    import h5py

    path = folder / "attention.h5"
    try:
        with h5py.File(path) as file:
            return np.asarray(file["embedding"][:], np.float64) if "embedding" in file else None
    except (OSError, ValueError) as error:
        raise unreadable_error(path, str(error)) from error


def _slide_weights(files: Sequence[PredictionFile], model: PatientModel) -> tuple[str, dict[str, float]]:
    """Return how the slides are joined, and slide -> weight of its logits; the weights sum to 1."""
    if model.bag == "slide":
        return MEAN_OF_LOGITS, {file.slide: 1 / len(files) for file in files}
    shares = attention_shares([file.attention_mass for file in files if file.attention_mass is not None])
    return ONE_BAG, {file.slide: float(share) for file, share in zip(files, shares, strict=True)}


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True))


def _read_result(folder: Path, model: PatientModel) -> PredictionFile | str:
    """Return the result of a slide, or why it cannot be part of an answer."""
    from napari_lrmil.core.patching.roi import WHOLE_SLIDE  # here, because it loads NumPy and Shapely

    if not (folder / PredictionFile.FILE_NAME).is_file():
        return NOT_PREDICTED
    try:
        file = PredictionFile.read(folder)
    except StoredError as error:
        return str(error)
    # A result that is left of another call, with another model or of a region.
    is_current = file.bundle_sha256 == model.sha256 and file.scope in (None, WHOLE_SLIDE.text)
    return file if is_current else NOT_PREDICTED


def _softmax(logits: Mapping[str, float], temperature: float | None) -> dict[str, float]:
    greatest = max(logits.values())
    weights = {name: math.exp((value - greatest) / (temperature or 1.0)) for name, value in logits.items()}
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def write_patient_answers(folder: Path, answers: Sequence[PatientAnswer], model: PatientModel) -> None:
    """Write ``patients.csv`` and ``patients.json``, an entry for each patient of the table, also without an answer."""
    header = ("patient", "predicted", *(f"probability_{name}" for name in model.classes))
    header += ("n_slides", "n_left_out", "slides", "left_out", "pooling", "calibrated")
    header += (*LIMIT_COLUMNS, "distance_quantile") if _states_limits(model) else ()
    header += ("reason",)
    write_csv(folder / PATIENTS_TABLE, [header, *(_table_row(answer, model) for answer in answers)])
    content = {
        "schema_version": SCHEMA_VERSION,
        "bundle": model.name,
        "bundle_sha256": model.sha256,
        "classes": list(model.classes),
        "patients": [_as_json(answer) for answer in answers],
    }
    write_json(folder / PATIENTS_FILE, content)


def _states_limits(model: PatientModel) -> bool:
    return model.limits is not None or model.embeddings is not None


def _table_row(answer: PatientAnswer, model: PatientModel) -> list[Any]:
    probabilities = [f"{answer.probabilities[name]:.6f}" if answer.slides else "" for name in model.classes]
    left_out = "; ".join(f"{slide}: {reason}" for slide, reason in answer.left_out.items())
    counts = (len(answer.slides), len(answer.left_out))
    origin = (answer.pooling, answer.calibrated) if answer.slides else ("", "")
    distance = answer.cohort_distance
    quantile = "" if distance is None else f"{distance.quantile:.4f}"
    limits = (
        (*limit_cells(answer.limits.side, answer.limits.classes, answer.predicted), quantile)
        if _states_limits(model)
        else ()
    )
    return [
        *(answer.patient, answer.predicted, *probabilities, *counts, "; ".join(answer.slides), left_out),
        *(*origin, *limits, answer.reason),
    ]


def _as_json(answer: PatientAnswer) -> dict[str, Any]:
    counts = {"n_slides": len(answer.slides), "n_left_out": len(answer.left_out)}
    content: dict[str, Any] = json.loads(json.dumps(asdict(answer)))
    limits = content.pop("limits")
    # As in prediction.json: what a model does not state has no key.
    stated = {
        "operating_point": limits["side"],
        "prediction_set": limits["classes"],
        "limits_cautions": limits["cautions"] or None,
        "cohort_distance": content.pop("cohort_distance"),
    }
    content |= {key: value for key, value in stated.items() if value is not None}
    return content | counts | {"reason": answer.reason, "predicted": answer.predicted or None}
