"""One answer for each patient, from the stored results of its slides: ``patients.csv`` and ``patients.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.models.patient_bag import ONE_BAG, attention_shares
from napari_lrmil.core.results.cohort_tables import read_failures
from napari_lrmil.core.results.schema import PredictionFile

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
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    temperature: float | None
    bag: str = "slide"

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Return what answers need of a bundle."""
        return cls(bundle.name, bundle.sha256, bundle.card.classes, bundle.card.temperature, bundle.card.bag)


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
    )


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
    header += ("n_slides", "n_left_out", "slides", "left_out", "pooling", "calibrated", "reason")
    write_csv(folder / PATIENTS_TABLE, [header, *(_table_row(answer, model.classes) for answer in answers)])
    content = {
        "schema_version": SCHEMA_VERSION,
        "bundle": model.name,
        "bundle_sha256": model.sha256,
        "classes": list(model.classes),
        "patients": [_as_json(answer) for answer in answers],
    }
    write_json(folder / PATIENTS_FILE, content)


def _table_row(answer: PatientAnswer, classes: Sequence[str]) -> list[Any]:
    probabilities = [f"{answer.probabilities[name]:.6f}" if answer.slides else "" for name in classes]
    left_out = "; ".join(f"{slide}: {reason}" for slide, reason in answer.left_out.items())
    counts = (len(answer.slides), len(answer.left_out))
    origin = (answer.pooling, answer.calibrated) if answer.slides else ("", "")
    return [
        *(answer.patient, answer.predicted, *probabilities, *counts, "; ".join(answer.slides), left_out),
        *(*origin, answer.reason),
    ]


def _as_json(answer: PatientAnswer) -> dict[str, Any]:
    counts = {"n_slides": len(answer.slides), "n_left_out": len(answer.left_out)}
    content: dict[str, Any] = json.loads(json.dumps(asdict(answer)))
    return content | counts | {"reason": answer.reason, "predicted": answer.predicted or None}
