"""Commands on slides: what they are, and what the student says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lrmil.cli.cohort_options import (
    ExecutionOptions,
    MemoryOption,
    SchedulerOption,
    WorkersOption,
    exit_if_failed,
    require_writable,
    run_with_progress,
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


def info(
    slide: Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")],
    mpp: MppOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a slide is: vendor, levels, resolution and where it came from, bounds, ICC, associated images."""
    from napari_lrmil.core.slides.slide import Slide
    from napari_lrmil.core.user_settings import SettingsStore

    with Slide(slide, mpp=mpp, remembered=SettingsStore().remembered_mpp) as opened:
        facts = slide_facts(opened)
    if json:
        out.print_json(data=facts)
        return
    for key, value in facts.items():
        shown = ("; ".join(map(str, value)) or "none") if isinstance(value, list) else value
        out.print(f"{key:12} {'not known' if shown is None else shown}", highlight=False, soft_wrap=True)


def slide_facts(slide: Any) -> dict[str, Any]:
    """Return what `info` tells, ready for JSON."""
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
    slides: Annotated[list[Path], typer.Argument(help="slides, a folder of slides, or a cohort CSV")],
    bundle: BundleOption = "demo",
    folder: OutOption = Path("predictions"),
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    mpp: MppOption = None,
    teacher: Annotated[
        str, typer.Option(help="none, all, or top-K: the HR teacher beside it, everywhere or where it looked most")
    ] = "none",
    roi: Annotated[Path | None, typer.Option(help="only these regions: GeoJSON of QuPath, or ASAP's XML")] = None,
    keep: Annotated[Path | None, typer.Option(help="leave out all but these regions")] = None,
    exclude: Annotated[Path | None, typer.Option(help="leave these regions out")] = None,
    tissue: Annotated[Path | None, typer.Option(help="a tissue mask (PNG) saved from the window")] = None,
    report: Annotated[bool, typer.Option("--report", help="write report.html for each slide too")] = False,
    reader: Annotated[
        str, typer.Option(help="auto, openslide or tiles: JPEG tiles are read directly where OpenSlide shows the same")
    ] = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="leave results that are there, or make them again")
    ] = True,
) -> None:
    """Run the LR student on slides: probabilities, attention, overlay. One bad slide stops nobody."""
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.cohort.predict_task import PredictTask, open_bundle_once
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.tile_reader import require_reader

    teacher_patches = TeacherPatches.parse(teacher)
    require_reader(reader)
    found = Bundle(bundle)
    model = open_bundle_once(found.path.absolute(), found.sha256)  # the one that this process will work with
    reads = teacher_patches != TeacherPatches.NONE
    told = load_networks(model, teacher=reads)  # a broken bundle is no slide's fault: load it now
    where = ExecutionOptions(workers, scheduler, memory, device)
    _require(where, runtime)
    require_writable(folder)
    chosen, files = expand_slides(slides), {"roi": roi, "keep": keep, "exclude": exclude, "tissue": tissue}
    _one_slide_for_parts(chosen, files)
    task = PredictTask(
        model.path,
        model.sha256,
        bundle_name=str(bundle),
        folder=where.place(folder),
        device=device,
        teacher=teacher_patches,
        report=report,
        files=files,
        resume=resume,
        runtime=runtime,
        reader=reader,
    )
    works = [SlideJob(where.place(path), mpp or own) for path, own in chosen]
    exit_if_failed(run_with_progress("predict", works, task, where, folder, told, tables=lambda: _write_table(folder)))


def _require(where: ExecutionOptions, runtime: str) -> None:
    """Raise `ConfigError` where device or runtime are not here; of a cluster's machines only the names are checked."""
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.runtimes.select import require_runtime

    where.require_device()
    require_runtime(runtime, None if where.far else resolve_device(where.device))


def _one_slide_for_parts(slides: Sequence[tuple[Path, float | None]], files: Mapping[str, Path | None]) -> None:
    """Raise `ConfigError` where regions of one slide would be taken for those of another."""
    from napari_lrmil.core.errors import ConfigError

    given = [f"--{name}" for name, file in files.items() if file is not None]
    if given and len(slides) > 1:
        raise ConfigError(
            f"{', '.join(given)} is about one slide, and {len(slides)} were given; call it for each slide"
        )


def compare(
    slide: Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")],
    bundle: BundleOption = "demo",
    folder: OutOption = Path("predictions"),
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    mpp: MppOption = None,
    teacher: Annotated[str, typer.Option(help="all, or top-K: only where the student looked most")] = "all",
    roi: Annotated[Path | None, typer.Option(help="only these regions: GeoJSON of QuPath, or ASAP's XML")] = None,
    lesions: Annotated[
        Path | None, typer.Option(help="annotated lesions; left out: SLIDE_lesions.geojson beside the slide, if any")
    ] = None,
) -> None:
    """Run student and HR teacher on a slide: how far they agree, where they differ, what each costs."""
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.cohort.predict_task import PredictTask, open_bundle_once
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.models.bundle import Bundle

    teacher_patches = TeacherPatches.parse(teacher)
    if teacher_patches == TeacherPatches.NONE:
        raise ConfigError("--teacher none leaves nothing to compare; expected all or top-K, as in top-20")
    found = Bundle(bundle)
    found.require_teacher()
    model = open_bundle_once(found.path.absolute(), found.sha256)
    told, files = load_networks(model, teacher=True), {"roi": roi, "lesions": lesions}
    require_writable(folder)
    _require(ExecutionOptions(None, None, None, device), runtime)
    task = PredictTask(
        model.path,
        model.sha256,
        bundle_name=str(bundle),
        folder=folder,
        device=device,
        teacher=teacher_patches,
        files=files,
        compare=True,
        runtime=runtime,
    )
    done = show_progress(with_finished_event(task(SlideJob(slide, mpp))), slide.name, shown_notices=told)
    out.print(f"{slide.name}: {done.text} -> {done.path}", highlight=False, soft_wrap=True)
    _write_table(folder)


def _write_table(folder: Path) -> None:
    """Write ``predictions.csv``, and print which results it leaves out and why."""
    from napari_lrmil.core.results.cohort_tables import write_predictions_table

    for error in write_predictions_table(folder):
        err.print(f"not in predictions.csv: {error}", markup=False, highlight=False, soft_wrap=True)


def expand_slides(slides: Sequence[Path]) -> list[tuple[Path, float | None]]:
    """Return the slides meant by files, folders and cohort tables, each with the resolution that a table gives.

    A folder of DICOM files is one slide.
    """
    from napari_lrmil.core.slides.openslide_handle import SLIDE_ENDINGS, dicom_files, has_slide_ending

    found: list[tuple[Path, float | None]] = []
    for path in slides:
        if path.suffix.lower() == ".csv":
            found += _cohort_slides(path)
        elif path.is_dir() and not dicom_files(path):
            inside = sorted(filter(has_slide_ending, path.iterdir()))
            if not inside and has_slide_ending(path):
                inside = [path]  # in the place of a slide: it fails as one, and the others go on
            elif not inside:
                raise typer.BadParameter(
                    f"{path} holds no slide; expected files such as {', '.join(SLIDE_ENDINGS[:5])}"
                )
            found += [(p, None) for p in inside]
        else:
            found.append((path, None))
    return found


def _cohort_slides(path: Path) -> list[tuple[Path, float | None]]:
    from lrmil_training.data.cohort import read_slides

    return [(slide.path, slide.mpp) for slide in read_slides(path)]
