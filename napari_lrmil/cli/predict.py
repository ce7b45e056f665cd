"""Commands on slides: ``info``, ``predict`` and ``compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.by_patient import ByOption, PatientRequest, require_patient_table
from napari_lrmil.cli.cohort_options import (
    ExecutionOptions,
    MemoryOption,
    SchedulerOption,
    WorkersOption,
    exit_if_failed,
    run_with_progress,
    start_imports_of_workers,
)
from napari_lrmil.cli.cohort_part import PartOption, take_part
from napari_lrmil.cli.console import (
    AllowMissingOption,
    DeviceOption,
    FullPathsOption,
    MppOption,
    OutOption,
    RuntimeOption,
    SlideBundleOption,
    download_hub_bundles,
    load_networks,
    out,
    print_notice,
    print_result,
    show_progress,
    with_finished_event,
)
from napari_lrmil.cli.ladder import (
    BudgetOption,
    BundlesOption,
    CascadeOption,
    ClimbCall,
    LadderOption,
    require_climb_options,
    single_bundle,
)
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from napari_lrmil.core.cohort import SlideJob, SlideTask
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches

PREDICT_IMPORTS = "napari_lrmil.core.cohort.predict_imports"  # modules of the workers

SlideArgument = Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")]
SlidesArgument = Annotated[list[Path], typer.Argument(help="slides, a folder of slides, or a cohort CSV")]
TeacherOption = Annotated[
    str, typer.Option(help="run the HR teacher too: none, all, or top-K for the patches with most student attention")
]
ComparedOption = Annotated[
    str, typer.Option(help="patches of the teacher: all, or top-K for those with most student attention")
]
RoiOption = Annotated[
    Path | None, typer.Option(help="analyse these regions only: GeoJSON of QuPath, or XML of ASAP or ImageScope")
]
KeepOption = Annotated[Path | None, typer.Option(help="leave out everything outside these regions")]
ExcludeOption = Annotated[Path | None, typer.Option(help="leave out these regions")]
TissueOption = Annotated[Path | None, typer.Option(help="a tissue mask (PNG) that was saved from the window")]
ArtefactsOption = Annotated[
    bool,
    typer.Option("--exclude-artefacts", help="leave pen, folds, air bubbles and blur out of the tissue"),
]
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
        print_result(f"{key:12} {'not known' if text is None else text}")


def slide_facts(slide: Any) -> dict[str, Any]:
    """Return the facts that ``info`` prints, ready for JSON."""
    mpp = slide.mpp if slide.has_mpp else None
    return {
        "slide": printable(slide.path.name),
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
    bundles: BundlesOption = None,
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
    full_paths: FullPathsOption = False,
    allow_missing: AllowMissingOption = False,
    by: ByOption = None,
    exclude_artefacts: ArtefactsOption = False,
    ladder: LadderOption = False,
    cascade: CascadeOption = False,
    budget: BudgetOption = None,
    part: PartOption = None,
) -> None:
    """Run the LR student on slides: probabilities, attention, overlay. A failed slide does not stop the others."""
    execution = ExecutionOptions(workers, scheduler, memory, device)
    files = {"roi": roi, "keep": keep, "exclude": exclude, "tissue": tissue}
    options = {"device": device, "runtime": runtime, "reader": reader, "overlay": overlay}
    options |= {"full_paths": full_paths, "allow_missing": allow_missing, "resume": resume}
    if ladder or cascade or budget is not None:
        others = files | {"part": part, "by": by, "report": report}
        require_climb_options(ladder=ladder, cascade=cascade, budget=budget, others=others)
        options |= {"budget": budget, "files": files, "exclude_artefacts": exclude_artefacts}
        _climb(slides, mpp, ClimbCall(bundles, teacher, cascade, folder, execution, options))
        return
    bundle = single_bundle(bundles)
    _require_found_mask(tissue, exclude_artefacts)
    has_server = start_imports_of_workers(PREDICT_IMPORTS, slides, workers, scheduler)

    from napari_lrmil.core.inference.teacher_patches import TeacherPatches

    # Wrong options fail first, before the model is loaded.
    patches = TeacherPatches.parse(teacher)
    _require_whole_patients(by, part)
    by_table = require_patient_table(by, slides, files)
    download_hub_bundles(bundle)
    name = bundle or PHANTOM_MODEL
    # The terms of a teacher are printed before it is loaded, by this process.
    is_apart = has_server and patches == TeacherPatches.NONE
    apart = _check_model_apart(name, execution, reader, runtime) if is_apart else None
    if apart is not None:
        require_writable(folder)
    model = apart or _check_model(name, execution, reader, runtime, patches, folder)
    given, left_out = expand_slides(slides)
    given = take_part(given, part)
    _require_one_slide(len(given), files)
    options |= {"report": report, "files": files, "teacher": patches}
    options |= {"is_unnamed": bundle is None, "exclude_artefacts": exclude_artefacts}
    task, jobs = model.task(name, execution.resolve_path(folder), options), _slide_jobs(given, mpp, execution)
    table = partial(_write_tables, folder, _patient_request(by_table, given, model.path))
    progress = run_with_progress(
        "predict",
        jobs,
        task,
        execution,
        folder,
        shown_notices=model.notices,
        write_tables=table,
        notices=left_out,
        is_part=part is not None,
    )
    exit_if_failed(progress)


def _require_whole_patients(by: str | None, part: str | None) -> None:
    """Raise `ConfigError` if answers of patients would lack the slides that other parts have."""
    from napari_lrmil.core.errors import ConfigError

    if by is not None and part is not None:
        raise ConfigError(
            "--by patient needs all slides of a patient, and --part takes some; predict the parts first, then call "
            "predict --by patient on the whole table, which reuses their results"
        )


def _require_found_mask(tissue: Path | None, exclude_artefacts: bool) -> None:
    """Raise `ConfigError` if artefacts would be left out of a mask that the user has edited."""
    from napari_lrmil.core.errors import ConfigError

    if tissue is not None and exclude_artefacts:
        raise ConfigError("--tissue is a mask of your own, which is taken as it is; leave --exclude-artefacts out")


def _climb(slides: Sequence[Path], mpp: float | None, call: ClimbCall) -> None:
    """Run a ladder or a cascade, after checks of the options that it shares with an ordinary prediction."""
    from napari_lrmil.core.slides.tile_reader import require_reader

    require_reader(call.options["reader"])
    _require_available(call.execution, call.options["runtime"])
    download_hub_bundles(*(call.bundles or ()))
    given, left_out = expand_slides(slides)
    _require_one_slide(len(given), call.options["files"])
    call.run(_slide_jobs(given, mpp, call.execution), left_out)


def _slide_jobs(given: Sequence[GivenSlide], mpp: float | None, execution: ExecutionOptions) -> list[SlideJob]:
    """Return the slides as jobs. ``--mpp`` overrides the column of a cohort table."""
    from napari_lrmil.core.cohort import SlideJob

    return [SlideJob(execution.resolve_path(slide.path), mpp or slide.mpp, slide.path_in_cohort) for slide in given]


@dataclass(frozen=True)
class _CheckedModel:
    """A bundle that was found to be whole.

    Attributes
    ----------
    path, sha256
        Its folder and hash.
    notices
        Notices that were printed.
    """

    path: Path
    sha256: str
    notices: set[str]

    def task(self, bundle: str, folder: Path, options: Mapping[str, Any]) -> SlideTask:
        """Return the task of a cohort: `bundle` as the caller named it, folder of the results, further arguments."""
        from napari_lrmil.core.cohort.worker_task import WorkerTask

        arguments = {"bundle": self.path, "bundle_sha256": self.sha256, "bundle_name": str(bundle), "folder": folder}
        arguments = {**arguments, **options}
        return WorkerTask("napari_lrmil.core.cohort.predict_task", "PredictTask", arguments, (PREDICT_IMPORTS,))


def _check_model(
    bundle: str, execution: ExecutionOptions, reader: str, runtime: str, patches: TeacherPatches, folder: Path
) -> _CheckedModel:
    """Return a model that this process has loaded, after checks of options and of the folder of results."""
    from napari_lrmil.core.slides.tile_reader import require_reader

    require_reader(reader)
    _require_available(execution, runtime)
    require_writable(folder)
    return _load_model(bundle, patches, execution.load_device, runtime)


def _check_model_apart(bundle: str, execution: ExecutionOptions, reader: str, runtime: str) -> _CheckedModel | None:
    """Return a model that a process forked for that has loaded, or None if it must be checked in this process.

    This process then imports neither NumPy nor OpenVINO: it only watches the workers, which have them already.
    """
    from napari_lrmil.core.processes import Child, ChildEndedError

    child = Child("model", _send_model, bundle, execution, reader, runtime, shared_imports=(PREDICT_IMPORTS,))
    try:
        model: _CheckedModel | None = child.receive()
    except ChildEndedError:
        return None
    finally:
        child.close()
    return model


def _send_model(pipe: Connection, bundle: str, execution: ExecutionOptions, reader: str, runtime: str) -> None:
    """Check a model and options in a forked process, and send the model, or None for what is wrong with them."""
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.slides.tile_reader import require_reader

    try:
        require_reader(reader)
        _require_available(execution, runtime)
        model = _load_model(bundle, TeacherPatches.NONE, execution.load_device, runtime)
    except Exception:  # the parent repeats the checks, and raises the error with its traceback
        pipe.send(None)
    else:
        pipe.send(model)


def _load_model(bundle: str, patches: TeacherPatches, device: str, runtime: str) -> _CheckedModel:
    """Return a bundle with its networks loaded or checked.

    A broken bundle must end the command: as an error of each slide it would be reported once per slide.
    """
    from napari_lrmil.core.cohort.predict_task import open_bundle_once
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.models.bundle import Bundle

    opened = Bundle(bundle)
    _ = opened.limits  # damaged ones would fail every slide
    _ = opened.embedding_statistics  # damaged ones would fail every slide
    model = open_bundle_once(opened.path.absolute(), opened.sha256)  # the object that tasks in this process use
    notices = load_networks(model, teacher=patches != TeacherPatches.NONE, device=device, runtime=runtime)
    return _CheckedModel(model.path, model.sha256, notices)


def _require_available(execution: ExecutionOptions, runtime: str) -> None:
    """Raise `ConfigError` if this machine lacks the device or runtime. For a cluster only their names are checked."""
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.runtimes.select import require_runtime

    execution.require_device()
    require_runtime(runtime, None if execution.is_remote else resolve_device(execution.device))


def _require_one_slide(n_slides: int, files: Mapping[str, Path | None]) -> None:
    """Raise `ConfigError` if regions of one slide would be applied to several."""
    from napari_lrmil.core.errors import ConfigError

    options = [f"--{name}" for name, file in files.items() if file is not None]
    if options and n_slides > 1:
        raise ConfigError(
            f"{', '.join(options)} is about one slide, and {n_slides} were given; run predict for each slide"
        )


def compare(
    slide: SlideArgument,
    bundle: SlideBundleOption = None,
    folder: OutOption = Path("predictions"),
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    mpp: MppOption = None,
    teacher: ComparedOption = "all",
    roi: RoiOption = None,
    lesions: LesionsOption = None,
    allow_missing: AllowMissingOption = False,
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
    require_writable(folder)
    download_hub_bundles(bundle)
    name = bundle or PHANTOM_MODEL
    model = _load_model(name, patches, execution.load_device, runtime)
    files = {"roi": roi, "lesions": lesions}
    options = {"teacher": patches, "device": device, "files": files, "compare": True, "runtime": runtime}
    options |= {"allow_missing": allow_missing, "is_unnamed": bundle is None}
    task = model.task(name, folder, options)
    # Without run_cohort: one slide needs no retry, no failures.csv and no cohort.json.
    events = with_finished_event(task(SlideJob(slide, mpp)))
    result = show_progress(events, slide.name, shown_notices=model.notices)
    print_result(f"{slide.name}: {result.text} -> {result.path}")
    write_table(folder)


def _patient_request(table: Path | None, given: Sequence[GivenSlide], bundle: Path) -> PatientRequest | None:
    """Return the patients whose answers are written; None without ``--by patient``."""
    if table is None:
        return None
    from lrmil_training.data.patient_slides import read_patient_slides

    return PatientRequest(read_patient_slides(table, {slide.path for slide in given}), bundle)


def _write_tables(folder: Path, patients: PatientRequest | None) -> None:
    """Write the tables of slides and, if asked for, of patients."""
    write_table(folder)
    if patients is not None:
        patients.write(folder)


def write_table(folder: Path) -> None:
    """Write ``predictions.csv``, and print the results that are left out with their reasons."""
    from napari_lrmil.core.results.cohort_tables import write_predictions_table

    for error in write_predictions_table(folder):
        print_notice("", f"not in predictions.csv: {error}")


@dataclass(frozen=True)
class GivenSlide:
    """A slide that a command was called for.

    Attributes
    ----------
    path
        Slide file, or folder of a DICOM slide.
    mpp
        µm per level-0 pixel, if a cohort table states it.
    path_in_cohort
        Path without the folders above the cohort, see `path_in_cohort`.
    """

    path: Path
    mpp: float | None
    path_in_cohort: str


def expand_slides(paths: Sequence[Path]) -> tuple[list[GivenSlide], list[str]]:
    """Return the slides in files, folders and cohort tables, in the given order, and notices.

    A DICOM series is one slide. The notices say what is left out, or read in another way than a table has it. They are
    printed here.

    Raises
    ------
    typer.BadParameter
        If nothing of what was given is a slide.
    """
    from napari_lrmil.core.slides.slide_files import SLIDE_ENDINGS, SlideSearch, is_table, path_in_cohort

    search, slides, notices = SlideSearch(), list[GivenSlide](), list[str]()
    for path in paths:
        resolutions, root = dict[Path, float | None](), path
        if path.is_dir():
            search.add_folder(path)
        elif is_table(path):
            resolutions, root = _read_table(path, notices), path.parent
            for slide in resolutions:
                search.add_listed(slide)
        else:
            search.add_file(path, is_only=len(paths) == 1)
        new = search.slides[len(slides) :]
        slides += [GivenSlide(slide, resolutions.get(slide), path_in_cohort(slide, root)) for slide in new]
    places = ", ".join(printable(path) for path in paths)
    if not slides:
        expected = f"expected files such as {', '.join(SLIDE_ENDINGS[:5])}"
        raise typer.BadParameter("; ".join(filter(None, [f"{places} holds no slide", expected, search.notice])))
    if search.notice:
        print_notice(places if len(paths) == 1 else "", search.notice)
        notices.append(search.notice)
    return slides, notices


def _read_table(table: Path, notices: list[str]) -> dict[Path, float | None]:
    """Return the slides of a cohort table with the resolutions that it states; print its notices and add them."""
    from lrmil_training.data.cohort import read_slides

    slides = read_slides(table)
    for notice in slides.notices:
        print_notice(printable(table.name), notice)
        notices.append(f"{table.name}: {notice}")
    return {slide.path: slide.mpp for slide in slides.slides}
