"""Commands of training: ``features``, ``train`` and ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.cli.cohort_options import (
    ExecutionOptions,
    MemoryOption,
    SchedulerOption,
    WorkersOption,
    exit_if_failed,
    run_with_progress,
)
from napari_lrmil.cli.cohort_part import PartOption, take_part
from napari_lrmil.cli.console import (
    SOME_FAILED,
    WRONG_CALL,
    AllowMissingOption,
    DeviceOption,
    FullPathsOption,
    OutOption,
    download_hub_bundles,
    load_networks,
    print_notice,
    print_result,
    select_device,
    show_progress,
    with_finished_event,
)
from napari_lrmil.cli.disk_check import (
    IgnoreDiskOption,
    require_conversion_disk,
    require_feature_disk,
    require_training_disk,
)
from napari_lrmil.cli.ladder import (
    BudgetOption,
    BundlesOption,
    CascadeOption,
    evaluate_cascade_on,
    require_climb_options,
    single_bundle,
)
from napari_lrmil.cli.metric_lines import print_metrics
from napari_lrmil.cli.predict import ArtefactsOption
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.extras import require_extra
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL

if TYPE_CHECKING:
    from lrmil_training.config import TrainConfig
    from lrmil_training.data.conversion import ConvertTask
    from lrmil_training.data.features import FeatureTask
    from napari_lrmil.core.cohort import CohortProgress, SlideJob, SlideTask
    from napari_lrmil.core.models.bundle import Bundle

HrFeaturesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="HR features of TRIDENT, CLAM, STAMP, Slideflow, LazySlide or this program, in place of HR patches",
    ),
]
HrMappingOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="what those files do not say, such as features=feats or patch_level0=512; repeat"
    ),
]

CohortArgument = Annotated[Path, typer.Argument(metavar="COHORT.csv")]


def features(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT.csv", help="a table of slides, or a folder of them")],
    folder: OutOption,
    encoder: Annotated[
        str | None, typer.Option(help="file, folder, hf:owner/name, lazyslide:NAME, or a bundle whose teacher is used")
    ] = None,
    convert: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="features of another program, written anew; with --encoder, which made them, a sample is checked",
        ),
    ] = None,
    hr_mapping: HrMappingOption = None,
    layout: Annotated[
        str, typer.Option("--format", help="trident, clam or stamp; from an encoder in addition to trident")
    ] = "trident",
    mpp: Annotated[float, typer.Option(help="µm per pixel of the patches")] = 0.5,
    patch_px: Annotated[int, typer.Option("--patch-px", min=32, help="side of a patch in pixels of that size")] = 256,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    allow_missing: AllowMissingOption = False,
    exclude_artefacts: ArtefactsOption = False,
    part: PartOption = None,
    ignore_disk: IgnoreDiskOption = False,
) -> None:
    """Extract the features of a cohort, one HDF5 file per slide in TRIDENT's layout. Existing files are kept."""
    from lrmil_training.data.conversion import ConvertTask
    from lrmil_training.data.features import FeatureTask
    from lrmil_training.runs.event_log import WITHOUT_ARTEFACTS
    from napari_lrmil.core.features.layouts.writers import require_format

    require_format(layout)
    if encoder is None and convert is None:
        raise typer.BadParameter("expected --encoder, or --convert, or both")
    execution = ExecutionOptions(workers, scheduler, memory, device)
    require_writable(folder)
    if convert is not None:
        if exclude_artefacts:
            raise typer.BadParameter("--exclude-artefacts chooses patches, and those of --convert are chosen already")
        name, sha256 = ("", "") if encoder is None else _load_encoder(encoder, execution)
        source, target = execution.resolve_path(convert), execution.resolve_path(folder)
        conversion = ConvertTask(source, tuple(hr_mapping or ()), target, layout, name, sha256, device)
        _convert(cohort, folder, conversion, execution, part, ignore_disk=ignore_disk)
        return
    assert encoder is not None
    folder = folder / WITHOUT_ARTEFACTS if exclude_artefacts else folder  # other patches, as in the folder of a run
    jobs, left_out = _slide_jobs(cohort, execution, part)
    name, sha256 = _load_encoder(encoder, execution)
    place = execution.resolve_path(folder)
    task = FeatureTask(name, sha256, mpp, patch_px, place, device, allow_missing, layout, exclude_artefacts)
    _extract(jobs, folder, task, execution, left_out, part, ignore_disk=ignore_disk)


def _extract(
    jobs: Sequence[SlideJob],
    folder: Path,
    task: FeatureTask,
    execution: ExecutionOptions,
    left_out: Sequence[str],
    part: str | None,
    *,
    ignore_disk: bool,
) -> None:
    """Extract the features of every slide; nothing is written over files of another program or onto a full disk."""
    from lrmil_training.data.features import cached_encoder, refuse_foreign_features, unlabelled_slide

    request = task.request(cached_encoder(task.encoder))
    files = [request.path(unlabelled_slide(job)) for job in jobs]
    for file in files:
        refuse_foreign_features(file, request)  # before any work: they would be overwritten
    if not ignore_disk:
        require_feature_disk(folder, jobs, files, request)
    progress = _run_features(jobs, task, execution, folder, left_out, part)
    count = progress.done + progress.reused
    print_result(f"{count} of {format_count(progress.total, 'slide')} -> {folder}")
    exit_if_failed(progress)


def _load_encoder(encoder: str, execution: ExecutionOptions) -> tuple[str, str]:
    """Load an encoder and return its name for all workers, and the hash of its weights.

    It is loaded here first, so that a broken encoder fails once and not once per slide.
    """
    from lrmil_training.data.features import cached_encoder
    from napari_lrmil.core.encoders import encoder_notice

    # The terms of use are printed before weights are downloaded.
    if notice := encoder_notice(encoder):
        print_notice("", notice)
    # Only a file has a path to resolve; other encoders are names that every worker can look up.
    name = str(execution.resolve_path(Path(encoder))) if Path(encoder).is_file() else encoder
    loaded = cached_encoder(name)
    execution.require_device()
    return name, loaded.sha256


def _slide_jobs(cohort: Path, execution: ExecutionOptions, part: str | None) -> tuple[list[SlideJob], Sequence[str]]:
    """Return the slides of a table or folder, or a part of them, as jobs, and what was left out of it."""
    from napari_lrmil.cli.given_slides import expand_slides
    from napari_lrmil.core.cohort import SlideJob

    slides, left_out = expand_slides([cohort])
    slides = take_part(slides, part)
    jobs = [SlideJob(execution.resolve_path(slide.path), slide.mpp, slide.path_in_cohort) for slide in slides]
    return jobs, left_out


def _run_features(
    jobs: Sequence[SlideJob],
    task: SlideTask,
    execution: ExecutionOptions,
    folder: Path,
    left_out: Sequence[str],
    part: str | None,
) -> CohortProgress:
    """Run a task that writes features, and remove the partial files of killed calls, in whatever layout."""
    from lrmil_training.data.features import unlabelled_slide
    from napari_lrmil.core.features.layouts.writers import possible_files

    results = possible_files(folder, [unlabelled_slide(job).name for job in jobs])
    is_part = part is not None
    return run_with_progress(
        "features", jobs, task, execution, folder, results=results, notices=left_out, is_part=is_part
    )


def _convert(
    cohort: Path, folder: Path, task: ConvertTask, execution: ExecutionOptions, part: str | None, *, ignore_disk: bool
) -> None:
    """Write the features of another program anew, for every slide of a table or folder, or a part of them."""
    from lrmil_training.data.features import unlabelled_slide
    from napari_lrmil.core.features.layouts.find import find_feature_folder
    from napari_lrmil.core.features.layouts.plain import parse_mapping

    source = find_feature_folder(task.source, parse_mapping(task.mapping))  # a wrong folder fails once
    jobs, left_out = _slide_jobs(cohort, execution, part)
    if not ignore_disk:
        require_conversion_disk(folder, source, [unlabelled_slide(job).name for job in jobs], task.layout)
    if not task.encoder:
        print_notice("", "no patch is encoded again; to check a sample, name the encoder of the features by --encoder")
    progress = _run_features(jobs, task, execution, folder, left_out, part)
    count, slides = progress.done + progress.reused, format_count(progress.total, "slide")
    print_result(f"{count} of {slides}, from {source.layout} to {task.layout} -> {folder}")
    exit_if_failed(progress)


def train(
    cohort: CohortArgument,
    folder: Annotated[Path, typer.Option("--out", help="run folder; the same call continues a run that was stopped")],
    config: Annotated[
        Path | None, typer.Option(help="YAML with configuration keys, or a preset: default, paper, demo")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, such as stage1.epochs=6")] = None,
    hr_features: HrFeaturesOption = None,
    hr_mapping: HrMappingOption = None,
    teacher_mil: Annotated[
        Path | None,
        typer.Option(
            "--teacher-mil",
            metavar="FILE",
            help="attention MIL of another program as the teacher, frozen: CLAM_SB, torchmil, STAMP; the same as "
            "--set teacher.mil=FILE; slides need no labels then",
        ),
    ] = None,
    no_teacher: Annotated[
        bool, typer.Option("--no-teacher", help="train the student from labels alone, without a teacher: distil=false")
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="HR teachers of other aggregators to compare, such as abmil,transmil; all: six published ones",
        ),
    ] = None,
    device: DeviceOption = "auto",
    full_paths: FullPathsOption = False,
    allow_missing: AllowMissingOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print plan, cost and checks, and end before anything is computed")
    ] = False,
    ignore_disk: IgnoreDiskOption = False,
) -> None:
    """Train teacher and student through both distillation stages, evaluate, and write a bundle."""
    require_extra("train", "training")
    from lrmil_training.config import load_config
    from lrmil_training.fitting.plan import RESUME_ADVICE
    from lrmil_training.runs.event_log import CONFIG
    from lrmil_training.train import train as train_events

    require_writable(folder)
    short = _short_settings(no_teacher, compare, teacher_mil)
    given = [*(settings or ()), *short, *_hr_settings(hr_features, hr_mapping)]
    resolved = load_config(config, given, folder / CONFIG)
    if dry_run:
        _print_dry_run(cohort, folder, resolved, select_device(device))
        return
    if not ignore_disk:
        require_training_disk(cohort, folder, resolved, device)
    options = {"full_paths": full_paths, "allow_missing": allow_missing}
    events = train_events(cohort, folder, resolved, select_device(device), **options)
    run_folder = show_progress(events, "train", quiet=False, cancel_text=f"training was cancelled; {RESUME_ADVICE}")
    print_metrics(run_folder)
    products = "metrics, comparison.csv, checkpoints" if resolved.compare else "metrics, checkpoints"
    print_result(f"{products}, bundle and report.html -> {run_folder}")
    _exit_if_slides_failed(run_folder)


def _exit_if_slides_failed(run_folder: Path) -> None:
    """End with the exit code of `predict` if the run is complete, but without some slides."""
    from napari_lrmil.core.results.cohort_tables import FAILURES, read_failures

    n_failed = len({slide for slide, *_ in read_failures(run_folder)})
    if n_failed:
        text = f"{n_failed} slide{'s' if n_failed > 1 else ''} could not be used; see {run_folder / FAILURES}"
        print_notice("", text)
        raise typer.Exit(SOME_FAILED)


def _short_settings(no_teacher: bool, compare: str | None, teacher_mil: Path | None) -> list[str]:
    """Return the settings that have an option of their own as ``--set`` takes them."""
    short = [*(["distil=false"] if no_teacher else []), *([] if compare is None else [f"compare={compare}"])]
    return short + ([f"teacher.mil={json.dumps(str(teacher_mil))}"] if teacher_mil is not None else [])


def _hr_settings(folder: Path | None, mapping: Sequence[str] | None) -> list[str]:
    """Return the settings of HR features from elsewhere as ``--set`` takes them."""
    settings = [] if folder is None else [f"hr_features={json.dumps(str(folder))}"]  # JSON: a path may hold a colon
    return settings + ([f"hr_mapping={json.dumps(list(mapping))}"] if mapping else [])


def _print_dry_run(cohort: Path, folder: Path, config: TrainConfig, device: str) -> None:
    """Print plan, cost and checks of a training. Exit with the code of a wrong call if a check fails."""
    from lrmil_training.dry_run import dry_run

    result = show_progress(dry_run(cohort, folder, config, device), "dry run")
    for title, lines in (("Plan", result.plan), ("Cost", result.cost)):
        print_result("\n".join((title, *(f"  {line}" for line in lines))))
    checks = [*(f"  ok       {text}" for text in result.passed), *(f"  problem  {text}" for text in result.problems)]
    print_result("\n".join(("Checks", *checks)))
    if result.problems:
        raise typer.Exit(WRONG_CALL)


def evaluate(
    cohort: CohortArgument,
    folder: Annotated[Path, typer.Option("--out", help="folder for metrics.json and report.html")],
    bundles: BundlesOption = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all slides of the table")] = "test",
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="figures for each value of a column of the table too, such as site; repeat"
        ),
    ] = None,
    teacher: Annotated[
        bool | None,
        typer.Option(
            "--teacher/--no-teacher",
            help="evaluate the HR teacher too; if not given: if the bundle contains the teacher's weights",
        ),
    ] = None,
    device: DeviceOption = "auto",
    full_paths: FullPathsOption = False,
    allow_missing: AllowMissingOption = False,
    cascade: CascadeOption = False,
    budget: BudgetOption = None,
) -> None:
    """Evaluate a bundle on a cohort: metrics with intervals, agreement with its teacher, cost, and a report."""
    require_extra("train", "evaluation")
    from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
    from napari_lrmil.core.models.bundle import Bundle

    require_writable(folder)
    download_hub_bundles(*(bundles or ()))
    if cascade or budget is not None:
        require_climb_options(cascade=cascade, budget=budget, others={"by": by})
        options = {"split": split, "device": select_device(device), "budget": budget, "allow_missing": allow_missing}
        evaluate_cascade_on(cohort, folder, bundles, teacher, options)
        return
    bundle = single_bundle(bundles)
    model = Bundle(bundle or PHANTOM_MODEL)
    with_teacher = _use_teacher(model, teacher)
    notices = load_networks(model, teacher=with_teacher)
    evaluation = ExternalEvaluation(
        model,
        split,
        with_teacher,
        select_device(device),
        full_paths=full_paths,
        allow_missing=allow_missing,
        by=tuple(by or ()),
        is_unnamed=bundle is None,
    )
    failures: dict[str, str] = show_progress(
        with_finished_event(evaluate_bundle(cohort, folder, evaluation)), "evaluate", shown_notices=notices
    )
    print_metrics(folder)
    print_result(f"metrics and report -> {folder / 'report.html'}")
    if failures:
        raise typer.Exit(SOME_FAILED)


def _use_teacher(model: Bundle, option: bool | None) -> bool:
    """Return whether the teacher is evaluated too. Its weights are downloaded only if the option requests it."""
    if option is False:
        return False
    if not model.has_teacher:
        reason = "the bundle has no teacher" if model.card.distilled else "not distilled: no teacher to compare with"
        print_notice("", f"{reason}; the student is evaluated alone")
        return False
    # Downloading hundreds of MB is not a default.
    if option is None and model.names_teacher:
        name = model.require_teacher().encoder.name
        text = f"the bundle names its teacher's encoder, {name}, without its weights: the student is evaluated alone"
        print_notice("", f"{text}; --teacher downloads them")
        return False
    return True
