"""Public functions for scripts and notebooks: open a slide, load a model, predict, extract features, train.

Each function blocks until the work is done and returns a documented object. Progress goes to `on_event`. Everything
that the user should know goes to the logger ``napari_lrmil`` as a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_lrmil.core.events import Event, Failed, Finished, Notice, StageDone
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL

if TYPE_CHECKING:
    from lrmil_training.config import TrainConfig
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.features.bag import Bag
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.results.patient_answers import PatientAnswer, PatientSlide
    from napari_lrmil.core.results.reader import StoredPrediction
    from napari_lrmil.core.slides.slide import Slide

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class TrainingResult:
    """A finished training run.

    Attributes
    ----------
    folder
        The run folder, with ``report.html``.
    bundle
        Folder of the trained model, for `load_bundle`. None for a series of folds or seeds.
    metrics
        Content of ``metrics.json``: method -> split -> figures with intervals.
    """

    folder: Path
    bundle: Path | None
    metrics: dict[str, Any]


def open_slide(path: str | Path, *, mpp: float | None = None) -> Slide:
    """Open a whole-slide image.

    Parameters
    ----------
    path
        A slide file, or the folder of one DICOM slide.
    mpp
        µm per level-0 pixel. It overrides the resolution that the file states.

    Returns
    -------
    Slide
        An open slide. Use it as a context manager, or call its ``close``.

    Raises
    ------
    SlideError
        If the file cannot be opened as a slide.
    """
    from napari_lrmil.core.slides.slide import Slide

    return Slide(path, mpp=mpp)


def load_bundle(bundle: str | Path = PHANTOM_MODEL) -> Bundle:
    """Load a trained model.

    Parameters
    ----------
    bundle
        Folder of a bundle, or the name of a shipped one.

    Returns
    -------
    Bundle
        Card and networks. The weights are read on first use.

    Raises
    ------
    BundleError
        If the folder is not a bundle, or has another schema version.
    """
    from napari_lrmil.core.models.bundle import Bundle

    return Bundle(bundle)


def predict(
    slide: Slide | str | Path,
    bundle: Bundle | str | Path | None = None,
    *,
    teacher: str = "none",
    regions: str | Path | None = None,
    device: str = "auto",
    runtime: str = "auto",
    allow_missing: bool = False,
    exclude_artefacts: bool = False,
    on_event: OnEvent | None = None,
) -> Prediction:
    """Classify a slide with the low-resolution student.

    Parameters
    ----------
    slide
        An open slide, or the path of one.
    bundle
        A model from `load_bundle`, its folder, or the name of a shipped one. None takes the demo, which knows phantoms
        only; the prediction of another slide then has a warning.
    teacher
        Patches that the HR teacher reads too: ``none``, ``all``, or ``top-20`` for the student's 20 strongest.
    regions
        GeoJSON of QuPath, or XML of ASAP or ImageScope: predict these regions only. Their score is not calibrated.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    runtime
        ``torch``, ``openvino``, or ``auto``: the fastest one that agrees with torch.
    allow_missing
        Predict a slide even if more than a third of its tissue is not stored or damaged.
    exclude_artefacts
        Leave pen, air bubbles and blur out of the tissue; folds stay.
    on_event
        Called with every event, for a progress display.

    Returns
    -------
    Prediction
        ``student.probabilities`` by class; ``student.coords`` (N, 2) in level-0 pixels; ``student.attention`` (N,),
        which sums to 1; ``teacher`` and ``agreement`` if the teacher ran; ``cohort_distance`` from the training slides,
        if the model states how they lie; ``warnings``.

    Raises
    ------
    LrmilError
        If the slide, the model or an option cannot be used. The message says what to do.

    Examples
    --------
    >>> from napari_lrmil import open_slide, predict
    >>> with open_slide("slide.svs") as slide:  # doctest: +SKIP
    ...     prediction = predict(slide, "demo", teacher="top-20")
    """
    with _opened(slide) as (opened, seconds_open):
        model = _loaded(PHANTOM_MODEL if bundle is None else bundle)
        options = {"runtime": runtime, "allow_missing": allow_missing, "exclude_artefacts": exclude_artefacts}
        events = _predict_events(opened, model, teacher, regions, device, options | {"seconds_open": seconds_open})
        prediction: Prediction = run_to_end(events, on_event)
        return prediction if bundle is not None else _with_unnamed_model(prediction, opened)


def extract_features(
    slide: Slide | str | Path,
    bundle: Bundle | str | Path = "demo",
    *,
    network: Literal["student", "teacher"] = "student",
    device: str = "auto",
    allow_missing: bool = False,
    on_event: OnEvent | None = None,
) -> Bag:
    """Extract the features of a slide's tissue patches with one encoder of a model.

    Parameters
    ----------
    slide
        An open slide, or the path of one.
    bundle
        A model from `load_bundle`, its folder, or the name of a shipped one.
    network
        ``student`` reads low-resolution patches, ``teacher`` high-resolution ones.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    allow_missing
        Extract features even if more than a third of the tissue is not stored or damaged.
    on_event
        Called with every event, for a progress display.

    Returns
    -------
    Bag
        ``features`` (N, D) float32, ``coords`` (N, 2) level-0 corners, and ``origin``, which states how they were made.

    Raises
    ------
    LrmilError
        If the slide or the model cannot be used, or the slide has no tissue.
    ValueError
        If `network` is neither ``student`` nor ``teacher``.
    """
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.inference.bags import extract_bag

    if network not in ("student", "teacher"):
        raise ValueError(f"network is {network!r}, expected 'student' or 'teacher'")
    with _opened(slide) as (opened, _):
        events = extract_bag(opened, _loaded(bundle), network, resolve_device(device), allow_missing=allow_missing)
        bag: Bag = run_to_end(events, on_event)
    return bag


def read_prediction(folder: str | Path) -> StoredPrediction:
    """Read the results of one slide that ``predict`` or ``compare`` wrote.

    Parameters
    ----------
    folder
        The slide's folder, with ``prediction.json`` and ``attention.h5``.

    Returns
    -------
    StoredPrediction
        The summary and, per network, patch coordinates, attention and evidence.

    Raises
    ------
    StoredError
        If a file is missing, broken, or of a newer schema version.
    """
    from napari_lrmil.core.results.reader import read_prediction_folder

    return read_prediction_folder(Path(folder))


def predict_patients(
    table: str | Path,
    out: str | Path,
    bundle: Bundle | str | Path | None = None,
    *,
    device: str = "auto",
    runtime: str = "auto",
    allow_missing: bool = False,
    on_event: OnEvent | None = None,
) -> list[PatientAnswer]:
    """Classify the slides of a cohort table, and answer once for each patient.

    The same call goes on after an interruption: results of slides that match are kept.

    Parameters
    ----------
    table
        CSV with the columns ``slide`` and ``patient``, and optionally ``mpp``.
    out
        Folder of the results, with ``patients.csv``, ``patients.json`` and a folder for each slide.
    bundle
        A model from `load_bundle`, its folder, or the name of a shipped one. None takes the demo, as in `predict`.
    device, runtime, allow_missing, on_event
        As in `predict`.

    Returns
    -------
    list of PatientAnswer
        A patient each: ``slides``, ``left_out`` with reasons, ``probabilities``; empty if no slide is left.

    Raises
    ------
    LrmilError
        If table, model or an option cannot be used. A slide that fails is left out of its patient's answer.
    """
    from napari_lrmil.core.atomic_files import require_writable
    from napari_lrmil.core.cohort.patients import PatientTask, run_patients
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.runtimes.select import require_runtime

    folder = Path(out)
    require_writable(folder)
    require_runtime(runtime, resolve_device(device))  # a wrong option is one error, not one for each slide
    jobs, patients = _read_patients(Path(table))
    model = _loaded(PHANTOM_MODEL if bundle is None else bundle)
    task = PatientTask(model, folder, device, runtime, allow_missing, is_unnamed=bundle is None)
    answers: list[PatientAnswer] = run_to_end(run_patients(jobs, patients, task), on_event)
    return answers


def _read_patients(table: Path) -> tuple[list[SlideJob], dict[str, list[PatientSlide]]]:
    """Return the slides of a table, and patient -> slides."""
    from lrmil_training.data.cohort import read_slides
    from lrmil_training.data.patient_slides import read_patient_slides
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.slides.slide_files import SlideSearch, path_in_cohort

    rows = read_slides(table)
    for text in rows.notices:
        log_event(Notice(text, table.name))
    search, mpp = SlideSearch(), {slide.path: slide.mpp for slide in rows.slides}
    for path in mpp:
        search.add_listed(path)
    jobs = [SlideJob(path, mpp[path], path_in_cohort(path, table.parent)) for path in search.slides]
    return jobs, read_patient_slides(table, search.slides)


def train(
    cohort: str | Path,
    out: str | Path,
    config: TrainConfig | str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    device: str = "auto",
    full_paths: bool = False,
    on_event: OnEvent | None = None,
) -> TrainingResult:
    """Train teacher and student on a cohort, evaluate them, and write a bundle.

    The same call continues a run that was stopped.

    Parameters
    ----------
    cohort
        CSV with the columns slide, patient and label, and optionally split and mpp.
    out
        Run folder.
    config
        A configuration, a YAML file, or a preset: ``default``, ``paper`` or ``demo``.
    settings
        Single settings laid over it, such as ``"stage1.epochs=6"``. Not with a `TrainConfig`.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    full_paths
        Whether event log and report have absolute paths, which may name a user.
    on_event
        Called with every event, for a progress display.

    Returns
    -------
    TrainingResult
        Run folder, folder of the trained bundle, and metrics.

    Raises
    ------
    LrmilError
        If cohort, configuration or encoder cannot be used, or the run was stopped.
    """
    import json

    from lrmil_training.config import TrainConfig, load_config
    from lrmil_training.runs.event_log import BUNDLE, CONFIG, METRICS
    from lrmil_training.train import train as train_events
    from napari_lrmil.core.atomic_files import require_writable
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.features.devices import resolve_device

    if isinstance(config, TrainConfig) and settings:
        raise ConfigError("settings go with a file or a preset; change the TrainConfig itself, or pass its file")
    folder = Path(out)
    resolved = config if isinstance(config, TrainConfig) else load_config(config, settings, folder / CONFIG)
    require_writable(folder)
    events = train_events(Path(cohort), folder, resolved, resolve_device(device), full_paths=full_paths)
    run_to_end(events, on_event)
    bundle = folder / BUNDLE
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return TrainingResult(folder, bundle if bundle.is_dir() else None, metrics)


def run_to_end(events: Iterator[Event], on_event: OnEvent | None = None) -> Any:
    """Consume a stream of events and return the result it finishes with.

    Notices and failures are logged as warnings, the end of a stage as information.
    """
    result: Any = None
    with closing(events):  # type: ignore[type-var]  # generators close
        for event in events:
            log_event(event)
            if on_event is not None:
                on_event(event)
            if isinstance(event, Finished):
                result = event.result
    return result


def log_event(event: Event) -> None:
    """Log one event under ``napari_lrmil``."""
    match event:
        case Notice(message, subject) | Failed(message, subject):
            logger.warning("%s%s", f"{subject}: " if subject else "", message)
        case StageDone(stage, seconds):
            logger.info("%s: done in %.1f s", stage, seconds)


@contextmanager
def _opened(slide: Slide | str | Path) -> Iterator[tuple[Slide, float]]:
    """Open a slide given by its path and close it again. Yield the slide and the seconds that opening took."""
    if not isinstance(slide, str | Path):
        yield slide, 0.0  # it stays the caller's to close
        return
    began = time.perf_counter()
    with open_slide(slide) as opened:
        yield opened, time.perf_counter() - began


def _predict_events(
    slide: Slide, bundle: Bundle, teacher: str, regions: str | Path | None, device: str, options: Mapping[str, Any]
) -> Iterator[Event]:
    """Return the events of a prediction; `options` are further arguments of it."""
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.inference.predict import predict as predict_events
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.patching.roi import read_scope

    scope = read_scope({"roi": None if regions is None else Path(regions)}, slide.bounds)
    patches = TeacherPatches.parse(teacher)
    return predict_events(slide, bundle, device=resolve_device(device), teacher=patches, scope=scope, **options)


def _with_unnamed_model(prediction: Prediction, slide: Slide) -> Prediction:
    """Return the prediction, with a warning if the slide is tissue, which the model of phantoms does not know."""
    from napari_lrmil.core.models.model_choice import unnamed_model_warning

    warning = unnamed_model_warning(slide)
    if not warning:
        return prediction
    logger.warning("%s", warning)
    return replace(prediction, warnings=(warning, *prediction.warnings))


def _loaded(bundle: Bundle | str | Path) -> Bundle:
    return load_bundle(bundle) if isinstance(bundle, str | Path) else bundle
