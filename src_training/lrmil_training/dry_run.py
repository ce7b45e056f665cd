"""Dry run of a training: plan, cost and checks, before anything is computed and without writing anything."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lrmil_training.config import TrainConfig
from lrmil_training.data.calibration_split import set_calibration_aside
from lrmil_training.data.cohort import CALIBRATION, SPLITS, Cohort, CohortSlide, require_classes
from lrmil_training.data.hr_features import (
    CheckedFeatures,
    check_features_of_slide,
    check_hr_features,
    encoder_of_features,
    find_hr_folder,
    intake_notices,
)
from lrmil_training.data.lesion_targets import outline_problem
from lrmil_training.data.patient_groups import count_patients
from lrmil_training.data.splits import make_folds, require_inner_folds
from lrmil_training.data.validation_patients import validation_notice
from lrmil_training.estimate import WorkloadEstimate, estimate_run
from lrmil_training.recipes import list_recipes
from lrmil_training.stages.undistilled import frozen_encoder_notice
from lrmil_training.train import check_encoders, check_inputs, encoder_names, require_gpus
from napari_lrmil.core.encoders import LoadedEncoder, encoder_notice
from napari_lrmil.core.encoders.spec import ABSENT
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Progress
from napari_lrmil.core.formatting import format_count, format_size
from napari_lrmil.core.patching.grid import find_tissue_grid, require_resolution
from napari_lrmil.core.results.warning_summary import name_slides
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore

COUNTED_SLIDES = 12  # whose tissue is segmented to count patches: about a second each, if slides are large
REMOTE = ("hf:", "lazyslide:")  # encoders whose weights may be downloaded

CheckGiven = Callable[[CohortSlide, Slide], CheckedFeatures]


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run.

    Attributes
    ----------
    plan, cost
        Lines on what would be trained, and on time and disk space.
    passed
        Checks that hold.
    problems
        Sentences on what would fail; empty if the training can start.
    """

    plan: tuple[str, ...]
    cost: tuple[str, ...]
    passed: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _SlideFacts:
    """What was seen of a slide; patches are None if they were not counted, notices are on given HR features.

    The reason is the problem without the file, which slides share.
    """

    problem: str = ""
    has_outlines: bool = False
    hr_patches: int | None = None
    lr_patches: int | None = None
    notices: tuple[str, ...] = ()
    reason: str = ""


def dry_run(cohort_csv: Path, out: Path, config: TrainConfig, device: str) -> Iterator[Event]:
    """Check a training and estimate its cost. Every slide is opened, and the patches of some are counted.

    Yields
    ------
    Event
        Notices and progress. The last is `Finished` with a `DryRun`.

    Raises
    ------
    LrmilError
        If table, configuration, encoder or folder cannot be used, as `train` raises it.
    """
    require_gpus(config.devices, torch.device(device))
    inputs = check_inputs(cohort_csv, out, config)
    cohort, config = inputs.cohort, inputs.config
    parts = make_folds(cohort, config.folds, config.seed, by_site=config.by_site) if config.folds else [cohort]
    parts = [set_calibration_aside(part, config.split.calibration, config.seed) for part in parts]
    for part in parts:
        require_classes(part, ("train", "val"))
        for seed in range(config.seed, config.seed + config.seeds):
            require_inner_folds(part, config.selection.inner_folds, seed, by_site=config.by_site)
    if not config.folds:
        (cohort,) = parts
    of_folds = [text for part in parts[:1] for text in part.notices if text not in cohort.notices]
    notices = filter(None, (*cohort.notices, *of_folds, frozen_encoder_notice(config), validation_notice(parts)))
    yield from (Notice(text, cohort_csv.name) for text in notices)
    names = encoder_names(config)
    yield from (Notice(text) for text in map(encoder_notice, names) if text)
    if config.hr_features is not None:
        yield from (Notice(text) for text in intake_notices(config))
    passed = [
        "the table has labels, patients and both classes in train and val of every run"
        if cohort.is_labelled
        else "the table has patients, and slides in train and val of every run; no labels, which the teacher replaces"
    ]
    remote = [name for name in names if name.startswith(REMOTE)]
    encoder = None if remote else check_encoders(config, inputs.head)
    if remote:
        passed.append(f"not checked: the encoder {', '.join(remote)}, whose weights may have to be downloaded")
    else:
        passed.append("the encoders load and fit each other")
    facts = yield from _look_at_slides(cohort, config, _given_features(config, cohort, encoder))
    yield Finished(_report(cohort, out, config, device, facts, passed))


def _given_features(config: TrainConfig, cohort: Cohort, encoder: LoadedEncoder | None) -> CheckGiven | None:
    """Return what checks the given HR features of a slide and counts them; None if HR patches are encoded.

    Raises
    ------
    ConfigError
        If they are not those of the cohort, or of `encoder` if it is loaded.
    """
    if config.hr_features is None:
        return None
    encoder = encoder or encoder_of_features(config)
    check_hr_features(config, cohort, encoder)
    return partial(check_features_of_slide, folder=find_hr_folder(config), config=config, dim=encoder.encoder.dim)


def _look_at_slides(
    cohort: Cohort, config: TrainConfig, given: CheckGiven | None
) -> Generator[Event, None, list[_SlideFacts]]:
    step = max(1, len(cohort.slides) // COUNTED_SLIDES)
    facts = []
    for i, slide in enumerate(cohort.slides):
        yield Progress("slides", i, len(cohort.slides), "slides")
        facts.append(_look_at(slide, config, given, count=i % step == 0))
        yield from (Notice(text, slide.name) for text in facts[-1].notices)
    return facts


def _look_at(row: CohortSlide, config: TrainConfig, given: CheckGiven | None, *, count: bool) -> _SlideFacts:
    """Return what is seen of a slide: whether it opens, its features fit, its outlines, and patches if counted."""
    try:
        with row.open() as slide:
            reader = "teacher (HR)" if config.distil else "student (LR)"
            require_resolution(slide, config.plan.hr_mpp, reader)
            checked = None if given is None else given(row, slide)
            problem = outline_problem(row, slide)
            grid = find_tissue_grid(slide, config.plan, config.tissue).grid if count else None
    except LrmilError as error:
        reason = str(error).removeprefix(f"{getattr(error, 'path', '')}: ")
        return _SlideFacts(str(error).replace(str(row.path), row.path.name), reason=reason)
    has_outlines = row.lesions.exists()
    notices = () if checked is None else checked.notices
    if grid is None:
        return _SlideFacts(problem, has_outlines, notices=notices)
    hr_patches = len(grid.hr_index) if checked is None else checked.n_patches
    return _SlideFacts(problem, has_outlines, hr_patches, len(grid.lr_index), notices)


def _outline_use(config: TrainConfig, n_outlines: int) -> str:
    if config.lambda_patch == 0:
        return ""
    return f"; lambda_patch {config.lambda_patch:g}" if n_outlines else "; lambda_patch has no effect without outlines"


# ---------------------------------------------------------------- report


def _report(
    cohort: Cohort, out: Path, config: TrainConfig, device: str, facts: Sequence[_SlideFacts], passed: list[str]
) -> DryRun:
    problems = list(_slide_problems(cohort, facts))
    if not problems:
        passed.append(f"all {len(facts)} slides open, with a resolution that is fine enough")
        if config.hr_features is not None:
            passed.append(
                "every slide has HR features of its own places; their values are checked when training reads them"
            )
    n_outlines = sum(fact.has_outlines for fact in facts)
    outlines = (
        f"outlines   beside {n_outlines} of {format_count(len(facts), 'slide')}{_outline_use(config, n_outlines)}"
    )
    cost, needed = _cost(cohort, config, device, facts)
    free = shutil.disk_usage(_existing_folder(out)).free
    if needed > free:
        problems.append(f"the run needs about {format_size(needed)}, but {format_size(free)} are free at --out")
    else:
        passed.append(f"the disk has {format_size(free)} free")
    return DryRun((*_plan_lines(cohort, config), outlines), cost, tuple(passed), tuple(problems))


def _slide_problems(cohort: Cohort, facts: Sequence[_SlideFacts]) -> Iterator[str]:
    """Yield a sentence for each problem; slides with the same one share it."""
    problems_by_reason: dict[str, dict[str, str]] = {}  # reason -> slide -> problem
    for row, fact in zip(cohort.slides, facts, strict=True):
        if fact.problem:
            problems_by_reason.setdefault(fact.reason or fact.problem, {})[row.name] = fact.problem
    for reason, problems in problems_by_reason.items():
        names = list(problems)
        yield f"{name_slides(names, len(facts))}: {reason}" if len(names) > 1 else problems[names[0]]


def _existing_folder(folder: Path) -> Path:
    return next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())


def _cost(
    cohort: Cohort, config: TrainConfig, device: str, facts: Sequence[_SlideFacts]
) -> tuple[tuple[str, ...], float]:
    """Return lines on time and disk space, and the bytes of the run; 0 if nothing could be counted."""
    counted = [
        (row, fact.hr_patches, fact.lr_patches)
        for row, fact in zip(cohort.slides, facts, strict=True)
        if fact.hr_patches is not None and fact.lr_patches is not None
    ]
    usable = sum(not fact.problem for fact in facts)
    if not counted:
        return ("unknown, because no slide could be measured",), 0.0
    hr = sum(high for _, high, _ in counted) / len(counted)
    lr = sum(low for _, _, low in counted) / len(counted)
    workload = WorkloadEstimate(hr * usable, lr * usable, lr * len(cohort.of("train")), usable, len(counted))
    estimate = estimate_run(workload, config, device, SettingsStore())
    return tuple(estimate.text.split("\n")), estimate.size


def _plan_lines(cohort: Cohort, config: TrainConfig) -> Iterator[str]:
    patients = format_count(count_patients(slide.patient for slide in cohort.slides), "patient")
    yield f"cohort     {format_count(len(cohort.slides), 'slide')} of {patients}; classes {', '.join(cohort.classes)}"
    for split in (*SPLITS, *([CALIBRATION] if cohort.of(CALIBRATION) else [])):
        slides = cohort.of(split)
        labels = Counter(slide.label for slide in slides)
        patients = format_count(count_patients(slide.patient for slide in slides), "patient")
        counts = ", ".join(f"{label} {labels[label]}" for label in cohort.classes if cohort.is_labelled)
        yield f"{split:10} {format_count(len(slides), 'slide')} of {patients} ({counts or 'no labels'})"
    runs = config.seeds * max(1, config.folds)
    if runs > 1:
        folds = (
            f"{config.folds} folds by {'site' if config.by_site else 'patient'}"
            if config.folds
            else "the table's split"
        )
        yield f"runs       {runs}: {folds}, {config.seeds} seeds"
    if config.selection.inner_folds:
        inner, candidates = config.selection.inner_folds, len(list_recipes(config))
        recipes = "recipe" if candidates == 1 else "recipes"
        yield f"selection  {candidates} {recipes} of the teacher x {inner} inner folds = {candidates * inner} fits"
    yield from _network_lines(config)
    yield f"baselines  {', '.join(config.baselines) or 'none'}"
    if config.compare:
        yield f"compare    HR teachers with {', '.join(config.compare)}"


def _network_lines(config: TrainConfig) -> Iterator[str]:
    layers, pca = config.encoder.teacher_layers, config.encoder.pca
    if layers or pca or config.selection.layers:
        source = f"pooled maps of {' and '.join(layers)}" if layers else "the encoder's own"
        if config.selection.layers:
            source = f"pooled maps of one of {', '.join(config.selection.layers)}, chosen by the inner folds"
        yield f"embedding  {source}{f', reduced to {pca} dimensions' if pca else ''}"
    if not config.distil:
        yield "teacher    none: the student learns from labels alone and is not distilled"
        yield f"encoder    {encoder_names(config)[0]}"
        yield f"patches    LR {config.lr_patch_px} px at {config.lr_mpp:g} µm per pixel"
        # Without stage 3 a MIL on the frozen encoder is fitted, as the teacher's.
        yield f"epochs     {config.stage3.epochs or config.teacher.epochs}"
        return
    yield f"encoders   teacher {config.encoder.teacher}, student {config.encoder.student}"
    yield (
        f"patches    HR {config.hr_patch_px} px at {config.hr_mpp:g} µm per pixel, LR {config.lr_patch_px} px at "
        f"{config.lr_mpp:g}"
    )
    if config.hr_features is not None:
        count = 0 if config.encoder.teacher == ABSENT else config.hr_check
        yield f"HR         features of {config.hr_features}; {count or 'no'} patches of each slide are encoded again"
    epochs = config.teacher.epochs if config.teacher.mil is None else "given"
    yield (
        f"epochs     teacher {epochs}, stage 1 {config.stage1.epochs}, stage 2 {config.stage2.epochs}, "
        f"stage 3 {config.stage3.epochs}"
    )
