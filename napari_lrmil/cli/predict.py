"""Commands on slides: ``info``, ``predict`` and ``compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.cohort_options import (
    ExecutionOptions,
    MemoryOption,
    SchedulerOption,
    WorkersOption,
    exit_if_failed,
    require_writable,
    run_with_progress,
    start_imports_of_workers,
)
from napari_lrmil.cli.console import (
    BundleOption,
    DeviceOption,
    MppOption,
    OutOption,
    RuntimeOption,
    err,
    load_networks,
    out,
    show_progress,
    with_finished_event,
)

if TYPE_CHECKING:
    from napari_lrmil.core.cohort.predict_task import PredictTask
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches

SlideArgument = Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")]
SlidesArgument = Annotated[list[Path], typer.Argument(help="slides, a folder of slides, or a cohort CSV")]
TeacherOption = Annotated[
    str, typer.Option(help="run the HR teacher too: none, all, or top-K for the patches with most student attention")
]
ComparedOption = Annotated[
    str, typer.Option(help="patches of the teacher: all, or top-K for those with most student attention")
]
RoiOption = Annotated[Path | None, typer.Option(help="analyse these regions only: GeoJSON of QuPath, or XML of ASAP")]
KeepOption = Annotated[Path | None, typer.Option(help="leave out everything outside these regions")]
ExcludeOption = Annotated[Path | None, typer.Option(help="leave out these regions")]
TissueOption = Annotated[Path | None, typer.Option(help="a tissue mask (PNG) that was saved from the window")]
ReportOption = Annotated[bool, typer.Option("--report", help="also write report.html for each slide")]
OverlayOption = Annotated[bool, typer.Option("--overlay/--no-overlay", help="draw overlay.png for each slide, or not")]
ReaderOption = Annotated[
    str,
    typer.Option(help="auto, openslide or tiles; tiles reads JPEG tiles directly if OpenSlide gives the same pixels"),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="keep matching results of earlier calls, or compute them again")
]
LesionsOption = Annotated[
    Path | None,
    typer.Option(help="annotated lesions; if not given: SLIDE_lesions.geojson beside the slide, if it exists"),
]


def info(
    slide: SlideArgument,
    mpp: MppOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the facts of a slide: vendor, levels, resolution and its source, bounds, ICC profile, associated images."""
    from napari_lrmil.core.slides.slide import Slide
    from napari_lrmil.core.user_settings import SettingsStore

    # A resolution that the user once gave in the window holds here too.
    with Slide(slide, mpp=mpp, remembered=SettingsStore().remembered_mpp) as opened:
        facts = slide_facts(opened)
    if json:
        out.print_json(data=facts)
        return
    for key, value in facts.items():
        text = ("; ".join(map(str, value)) or "none") if isinstance(value, list) else value
        out.print(f"{key:12} {'not known' if text is None else text}", highlight=False, soft_wrap=True)


def slide_facts(slide: Any) -> dict[str, Any]:
    """Return the facts that ``info`` prints, ready for JSON."""
    mpp = slide.mpp if slide.has_mpp else None
    return {
        "slide": slide.path.name,
        "vendor": slide.vendor,
        "size": f"{slide.width} x {slide.height} px",
        "mpp": [mpp.x, mpp.y] if mpp else None,
        "mpp source": mpp.source if mpp else None,
        "objective": slide.objective_power,
        "levels": [
            f"{level.width} x {level.height}"
            + (f" at {level.mpp(mpp):.4g} µm" if mpp else f" ({level.downsample:.4g} times)")
            for level in slide.levels
        ],
        "bounds": [slide.bounds.x, slide.bounds.y, slide.bounds.width, slide.bounds.height],
        "icc profile": bool(slide.properties.get("openslide.icc-size")),
        "associated": list(slide.associated),
        "fingerprint": slide.fingerprint,
        "warnings": list(slide.warnings),
    }


def predict(
    slides: SlidesArgument,
    bundle: BundleOption = "demo",
    folder: OutOption = Path("predictions"),
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    mpp: MppOption = None,
    teacher: TeacherOption = "none",
    roi: RoiOption = None,
    keep: KeepOption = None,
    exclude: ExcludeOption = None,
    tissue: TissueOption = None,
    report: ReportOption = False,
    reader: ReaderOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    resume: ResumeOption = True,
    overlay: OverlayOption = True,
) -> None:
    """Run the LR student on slides: probabilities, attention, overlay. A failed slide does not stop the others."""
    start_imports_of_workers("napari_lrmil.core.cohort.predict_imports", slides, workers, scheduler)

    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.slides.tile_reader import require_reader

    # Wrong options fail first, before the model is loaded.
    patches = TeacherPatches.parse(teacher)
    require_reader(reader)
    execution = ExecutionOptions(workers, scheduler, memory, device)
    _require_available(execution, runtime)
    task, notices = _load_task(bundle, execution.resolve_path(folder), patches, execution.load_device, runtime)
    require_writable(folder)
    paths, files = expand_slides(slides), {"roi": roi, "keep": keep, "exclude": exclude, "tissue": tissue}
    _require_one_slide(paths, files)
    task = replace(task, device=device, report=report, files=files, resume=resume, runtime=runtime, reader=reader)
    task = replace(task, overlay=overlay)
    # --mpp overrides the column of a cohort table.
    jobs = [SlideJob(execution.resolve_path(path), mpp or table_mpp) for path, table_mpp in paths]
    table = partial(_write_table, folder)
    progress = run_with_progress("predict", jobs, task, execution, folder, shown_notices=notices, write_tables=table)
    exit_if_failed(progress)


def _load_task(
    bundle: str, folder: Path, patches: TeacherPatches, device: str, runtime: str
) -> tuple[PredictTask, set[str]]:
    """Return a task with its model loaded, and the notices that were printed.

    A broken bundle must end the command: as an error of each slide it would be reported once per slide.
    """
    from napari_lrmil.core.cohort.predict_task import PredictTask, open_bundle_once
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.models.bundle import Bundle

    opened = Bundle(bundle)
    model = open_bundle_once(opened.path.absolute(), opened.sha256)  # the object that tasks in this process use
    notices = load_networks(model, teacher=patches != TeacherPatches.NONE, device=device, runtime=runtime)
    return PredictTask(model.path, model.sha256, str(bundle), folder, teacher=patches), notices


def _require_available(execution: ExecutionOptions, runtime: str) -> None:
    """Raise `ConfigError` if this machine lacks the device or runtime. For a cluster only their names are checked."""
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.runtimes.select import require_runtime

    execution.require_device()
    require_runtime(runtime, None if execution.is_remote else resolve_device(execution.device))


def _require_one_slide(slides: Sequence[tuple[Path, float | None]], files: Mapping[str, Path | None]) -> None:
    """Raise `ConfigError` if regions of one slide would be applied to several."""
    from napari_lrmil.core.errors import ConfigError

    options = [f"--{name}" for name, file in files.items() if file is not None]
    if options and len(slides) > 1:
        raise ConfigError(
            f"{', '.join(options)} is about one slide, and {len(slides)} were given; run predict for each slide"
        )


def compare(
    slide: SlideArgument,
    bundle: BundleOption = "demo",
    folder: OutOption = Path("predictions"),
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    mpp: MppOption = None,
    teacher: ComparedOption = "all",
    roi: RoiOption = None,
    lesions: LesionsOption = None,
) -> None:
    """Run student and HR teacher on a slide: their agreement, the difference of their attention, the cost of each."""
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches

    patches = TeacherPatches.parse(teacher)
    if patches == TeacherPatches.NONE:
        raise ConfigError("--teacher none leaves nothing to compare; expected all or top-K, as in top-20")
    execution = ExecutionOptions(None, None, None, device)
    _require_available(execution, runtime)
    task, notices = _load_task(bundle, folder, patches, execution.load_device, runtime)
    require_writable(folder)
    task = replace(task, device=device, files={"roi": roi, "lesions": lesions}, compare=True, runtime=runtime)
    # Without run_cohort: one slide needs no retry, no failures.csv and no cohort.json.
    events = with_finished_event(task(SlideJob(slide, mpp)))
    result = show_progress(events, slide.name, shown_notices=notices)
    out.print(f"{slide.name}: {result.text} -> {result.path}", highlight=False, soft_wrap=True)
    _write_table(folder)


def _write_table(folder: Path) -> None:
    """Write ``predictions.csv``, and print the results that are left out with their reasons."""
    from napari_lrmil.core.results.cohort_tables import write_predictions_table

    for error in write_predictions_table(folder):
        err.print(f"not in predictions.csv: {error}", markup=False, highlight=False, soft_wrap=True)


def expand_slides(paths: Sequence[Path]) -> list[tuple[Path, float | None]]:
    """Return the slides in files, folders and cohort tables, each with the resolution that a table states.

    A folder of DICOM files is one slide.

    Raises
    ------
    typer.BadParameter
        If a folder has no slide.
    """
    from napari_lrmil.core.slides.openslide_handle import SLIDE_ENDINGS, dicom_files, has_slide_ending

    slides: list[tuple[Path, float | None]] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            slides += _cohort_slides(path)
        elif path.is_dir() and not dicom_files(path):
            files = sorted(filter(has_slide_ending, path.iterdir()))
            if not files and has_slide_ending(path):
                files = [path]  # a folder named like a slide: it fails as a slide, and the others go on
            elif not files:
                raise typer.BadParameter(
                    f"{path} holds no slide; expected files such as {', '.join(SLIDE_ENDINGS[:5])}"
                )
            slides += [(file, None) for file in files]
        else:
            slides.append((path, None))
    return slides


def _cohort_slides(table: Path) -> list[tuple[Path, float | None]]:
    from lrmil_training.data.cohort import read_slides

    return [(slide.path, slide.mpp) for slide in read_slides(table)]
