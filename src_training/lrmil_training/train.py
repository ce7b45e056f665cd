"""Training run: checks the call, runs the pipeline or a series, and writes events and report to the run folder.

A run folder has one writer at a time. What is done already is not done again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from lrmil_training.config import TrainConfig, describe_differences, dump_config, load_config
from lrmil_training.cross_validation import is_series, list_parts, run_series
from lrmil_training.data.calibration_split import set_calibration_aside
from lrmil_training.data.cohort import Cohort, read_cohort, require_classes
from lrmil_training.data.features import find_encoder
from lrmil_training.data.hr_features import check_hr_features, encoder_of_features
from lrmil_training.data.lesion_targets import LesionTargets, require_outlines_on_slides
from lrmil_training.data.mil_head import MilHead
from lrmil_training.data.patient_bags import require_one_label
from lrmil_training.data.splits import require_inner_folds
from lrmil_training.data.validation_patients import validation_notice
from lrmil_training.evaluation.evaluate import note_lesion_files
from lrmil_training.fitting.loggers import require_loggers
from lrmil_training.fitting.plan import RESUME_ADVICE, StoppedError
from lrmil_training.recipes import all_layers, list_layers
from lrmil_training.report.report import write_report
from lrmil_training.runs.event_log import ALLOW_MISSING, CALL, COHORT, CONFIG, EventLog
from lrmil_training.runs.lock import STOP_FILE, acquire_run_lock, clear_stop_request, is_stop_requested
from lrmil_training.stages.given_teacher import (
    fit_head_to_cohort,
    label_notices,
    read_given_head,
    require_encoder_of_head,
    settings_without_labels,
    unlabelled_classes,
)
from lrmil_training.stages.patch_distillation import require_matching_encoders
from lrmil_training.stages.pca import require_reducible
from lrmil_training.stages.pipeline import run_stages
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.undistilled import frozen_encoder_notice
from napari_lrmil.core.atomic_files import remove_stale_partials, write_json, write_text
from napari_lrmil.core.encoders import FROZEN, TRAINABLE, LoadedEncoder, encoder_notice, pool_layers
from napari_lrmil.core.encoders.spec import ABSENT
from napari_lrmil.core.errors import ConfigError, LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Progress

ALLOWS_MISSING = "slides are used even if missing tiles hide more than a third of their tissue (--allow-missing)"


def train(
    cohort_csv: Path,
    out: Path,
    config: TrainConfig,
    device: str | torch.device,
    *,
    full_paths: bool = False,
    allow_missing: bool = False,
) -> Iterator[Event]:
    """Train teacher and student, or a student alone, into the run folder; finished stages in it are reused.

    Parameters
    ----------
    cohort_csv
        Table of slides, patients and labels; see `read_cohort`.
    out
        The run folder.
    config, device
        What to train, and the device of all fits.
    full_paths
        Whether ``events.jsonl`` and ``report.html`` have absolute paths, which may name a user.
    allow_missing
        Use slides even if more than a third of their tissue is not stored or damaged. Like slides that cannot be read,
        those that are refused are left out; another call with the other value goes on with the other slides.

    Yields
    ------
    Event
        The events of every stage, which also go to ``events.jsonl``. The last is `Finished` with the run folder.

    Raises
    ------
    LrmilError
        If cohort, configuration or encoder cannot be used, a class is left without slides, or another process writes
        to the folder.
    StoppedError
        If the file ``stop`` appeared in the folder. The same call goes on from the last complete epoch.
    """
    # Licence terms come first, before anything is downloaded or computed with such an encoder.
    for name in encoder_names(config):
        licence_notice = encoder_notice(name)
        if licence_notice:
            yield Notice(licence_notice)
    if notice := frozen_encoder_notice(config):
        yield Notice(notice)
    context = _prepare(cohort_csv, out, config, torch.device(device), allow_missing=allow_missing)
    context = replace(context, full_paths=full_paths)
    stages = run_series(context) if is_series(config) else run_stages(context)
    # The generator is closed before the lock is released, so that no fit writes to a folder of another run.
    with acquire_run_lock(out) as lock, EventLog(out, context.hidden_folders) as log, closing(stages) as events:
        clear_stop_request(out)
        _remove_leftovers(out)
        notices = [*context.cohort.notices, *([ALLOWS_MISSING] if allow_missing else [])]
        for event in chain((Notice(text, cohort_csv.name) for text in notices), events):
            lock.check()  # another process may have taken over a lock that seemed dead
            log.write(event)
            _raise_if_stopped(out, event)
            if isinstance(event, Finished):
                write_report(out, cohort_csv, full_paths=full_paths)  # after the last event: the report shows the log
            yield event


def _remove_leftovers(out: Path) -> None:
    """Remove the half-written files of attempts that were killed; the lock of the run is held."""
    for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
        remove_stale_partials(folder)


def _raise_if_stopped(out: Path, event: Event) -> None:
    """Raise `StoppedError` between batches of features; a fit checks for the file itself, after every batch."""
    if isinstance(event, Progress) and event.unit in ("patches", "slides") and is_stop_requested(out):
        raise StoppedError(f"reading slides was stopped because the file {out / STOP_FILE} is there; {RESUME_ADVICE}")


@dataclass(frozen=True)
class RunInputs:
    """What a run starts from.

    Attributes
    ----------
    cohort
        The slides, with notices on lesion files and on a given teacher.
    config
        The configuration; of a cohort without labels without what needs them.
    head
        The MIL of a given teacher, see `RunContext`.
    """

    cohort: Cohort
    config: TrainConfig
    head: MilHead | None


def check_inputs(cohort_csv: Path, out: Path, config: TrainConfig) -> RunInputs:
    """Return cohort, configuration and given teacher of a run. Nothing is written.

    Raises
    ------
    LrmilError
        If the table, a lesion file, a given teacher or a logger cannot be used, or the folder `out` holds another run.
    """
    head = read_given_head(config)
    cohort = read_cohort(cohort_csv, seed=config.seed, unlabelled=unlabelled_classes(config, head))
    cohort, config = note_lesion_files(cohort), settings_without_labels(config, cohort)
    if head is not None:
        head = fit_head_to_cohort(head, config, cohort)
        cohort = replace(cohort, notices=(*cohort.notices, *label_notices(config, cohort, head)))
    if config.lambda_patch:
        LesionTargets(cohort)  # raises if an outline contradicts the label of its slide
    if config.bag == "patient":
        require_one_label(cohort)
    require_loggers(config.loggers)
    _refuse_another_run(out, config, cohort)
    return RunInputs(cohort, config, head)


def check_encoders(config: TrainConfig, head: MilHead | None = None) -> LoadedEncoder:
    """Return the encoder of a run after a check that student and `head` fit it. Weights of the hub may be downloaded.

    Its embedding joins the layers of all candidates for the teacher's, if there are several.

    Raises
    ------
    LrmilError
        If an encoder cannot be used, or both do not fit each other.
    """
    names, is_absent = encoder_names(config), config.distil and config.encoder.teacher == ABSENT
    own = encoder_of_features(config) if is_absent else find_encoder(names[0])
    encoder = pool_layers(own, all_layers(config))
    student = find_encoder(names[-1]) if is_absent or len(names) > 1 else None
    for layers in list_layers(config) or [()]:  # without candidates the encoder stays as it is
        candidate = pool_layers(encoder, layers)
        _require_usable(candidate, student or candidate, config)
    if head is not None:
        require_encoder_of_head(head, encoder)
    return encoder


def _require_usable(teacher: LoadedEncoder, student: LoadedEncoder, config: TrainConfig) -> None:
    """Raise `LrmilError` if an embedding cannot be reduced as configured, or a student cannot learn from it."""
    require_reducible(teacher, config.encoder.pca)
    if student.spec.family == FROZEN:
        raise ConfigError(
            f"{student.spec.name} can be a frozen teacher only; set encoder.student to a file, folder or configuration "
            f"of {', '.join(TRAINABLE)}"
        )
    if config.distil:
        require_matching_encoders(student.encoder, teacher.encoder, config)


def _prepare(
    cohort_csv: Path, out: Path, config: TrainConfig, device: torch.device, *, allow_missing: bool
) -> RunContext:
    """Check everything that can be checked before any work, and write the run's settings.

    A wrong call thus leaves no half-written folder, and a missing package is reported now, not after an hour.
    """
    require_gpus(config.devices, device)
    inputs = check_inputs(cohort_csv, out, config)
    cohort, config = inputs.cohort, inputs.config
    if config.lambda_patch:
        require_outlines_on_slides(cohort)
    encoder = check_encoders(config, inputs.head)
    check_hr_features(config, cohort, encoder)
    context = RunContext(config, cohort, out, device, encoder, allow_missing=allow_missing, head=inputs.head)
    context = _check_splits(context)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG, dump_config(config))
    write_text(out / COHORT, cohort.sha256)
    call = {"cohort": _path_from(out, cohort_csv), "device": str(device)}
    write_json(out / CALL, call | ({ALLOW_MISSING: True} if allow_missing else {}))
    return context


def _check_splits(context: RunContext) -> RunContext:
    """Return the context with the splits that are dealt here, and a notice if validation has few patients.

    Raises
    ------
    CohortError
        If the cohort cannot be divided into folds or inner folds, or a side lacks a class.
    """
    config, cohort = context.config, context.cohort
    if is_series(config):  # each part deals its own splits
        splits = [part.cohort for part in list_parts(context) if part.seed == config.seed]
    else:
        cohort = set_calibration_aside(cohort, config.split.calibration, config.seed)
        require_classes(cohort, ("train", "val"))
        require_inner_folds(cohort, config.selection.inner_folds, config.seed, by_site=config.by_site)
        splits = [cohort]
    notices = filter(None, [validation_notice(splits)])
    return replace(context, cohort=replace(cohort, notices=(*cohort.notices, *notices)))


def encoder_names(config: TrainConfig) -> tuple[str, ...]:
    """Return the encoders of a run: the teacher's and the student's, if they differ; without a teacher one alone.

    A teacher's encoder that is not at hand is left out.
    """
    teacher, student = config.encoder.teacher, config.encoder.student
    if not config.distil:
        return (teacher if student == "teacher" else student,)
    if teacher == ABSENT:
        return (student,)
    return (teacher,) if student == "teacher" else (teacher, student)


def _path_from(folder: Path, file: Path) -> str:
    """Return the path of a file as seen from a folder: it names fewer folders, and holds when both move together."""
    try:
        return os.path.relpath(file.resolve(), folder.resolve())
    except ValueError:  # another drive of Windows
        return str(file.resolve())


def require_gpus(devices: int, device: torch.device) -> None:
    """Raise `ConfigError` if there are more processes than GPUs, which the first fit would find out after an hour."""
    if device.type == "cuda" and devices > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"devices={devices}, but this machine has {count} GPUs; set devices={count}")


def _refuse_another_run(out: Path, config: TrainConfig, cohort: Cohort) -> None:
    """Raise `ConfigError` if the folder holds a run with other settings or slides.

    Settings are compared by value, not as text: a field that the version of the stored run did not have counts as its
    default.
    """
    problem = "the folder holds a run with another"
    advice = "choose another --out, or delete this folder with all its features"
    settings, slides = out / CONFIG, out / COHORT
    if settings.exists() and (stored := _stored_config(settings)) != config:
        raise ConfigError(f"{out}: {problem} configuration ({describe_differences(stored, config)}); {advice}")
    if slides.exists() and slides.read_text(encoding="utf-8") != cohort.sha256:
        raise ConfigError(f"{out}: {problem} cohort table; {advice}")


def _stored_config(file: Path) -> TrainConfig:
    try:
        return load_config(file)
    except LrmilError as error:
        raise ConfigError(
            f"{file}: this version cannot read the settings of the run in this folder ({error}); "
            "resume it with the version that began it, or choose another --out"
        ) from error
