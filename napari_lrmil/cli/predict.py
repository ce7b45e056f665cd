"""Commands that run networks on slides: ``predict`` and ``compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.by_patient import ByOption, PatientRequest, patient_request, require_patient_table
from napari_lrmil.cli.checked_model import (
    PREDICT_IMPORTS,
    CheckedModel,
    check_model,
    check_model_apart,
    load_model,
    require_available,
)
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
    SlideArgument,
    SlideBundleOption,
    download_hub_bundles,
    print_result,
    show_progress,
    with_finished_event,
)
from napari_lrmil.cli.given_slides import GivenSlide, expand_slides, slide_jobs
from napari_lrmil.cli.ladder import (
    BudgetOption,
    BundlesOption,
    CascadeOption,
    ClimbCall,
    LadderOption,
    require_climb_options,
    single_bundle,
)
from napari_lrmil.cli.prediction_tables import announce_replacements, write_table
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL

if TYPE_CHECKING:
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches

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
    typer.Option("--exclude-artefacts", help="leave pen, air bubbles and blur out of the tissue; folds stay"),
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
    options |= {"files": files, "exclude_artefacts": exclude_artefacts}
    if ladder or cascade or budget is not None:
        others = files | {"part": part, "by": by, "report": report}
        require_climb_options(ladder=ladder, cascade=cascade, budget=budget, others=others)
        options |= {"budget": budget}
        _climb(slides, mpp, ClimbCall(bundles, teacher, cascade, folder, execution, options))
        return
    bundle = single_bundle(bundles)
    _require_found_mask(tissue, exclude_artefacts)
    options |= {"report": report, "is_unnamed": bundle is None}
    _PredictCall(slides, mpp, bundle, folder, execution, options).run(teacher, by, part)


@dataclass(frozen=True)
class _PredictCall:
    """Call of ``predict`` on whole slides or parts of one, each at one resolution.

    Attributes
    ----------
    slides, mpp
        Files, folders and tables; µm per level-0 pixel if it was given.
    bundle
        Model that the caller named; None for none.
    folder, execution
        Where results go, and where the work is done.
    options
        Further fields of `napari_lrmil.core.cohort.predict_task.PredictTask`.
    """

    slides: Sequence[Path]
    mpp: float | None
    bundle: str | None
    folder: Path
    execution: ExecutionOptions
    options: dict[str, Any]

    def run(self, teacher: str, by: str | None, part: str | None) -> None:
        """Predict the slides; exit with the code of failures if there are any."""
        execution = self.execution
        has_server = start_imports_of_workers(PREDICT_IMPORTS, self.slides, execution.workers, execution.scheduler)

        from napari_lrmil.core.inference.teacher_patches import TeacherPatches

        # Wrong options fail first, before the model is loaded.
        patches = TeacherPatches.parse(teacher)
        _require_whole_patients(by, part)
        by_table = require_patient_table(by, self.slides, self.options["files"])
        model = self._check_model(patches, has_server)
        given, left_out = expand_slides(self.slides)
        given = take_part(given, part)
        _require_one_slide(len(given), self.options["files"])
        options = self.options | {"teacher": patches}
        announce_replacements(self.folder, self._names(given), model.sha256)
        patients = patient_request(by_table, (slide.path for slide in given), model.path)
        progress = run_with_progress(
            "predict",
            slide_jobs(given, self.mpp, execution),
            model.task(self._model_name, execution.resolve_path(self.folder), options),
            execution,
            self.folder,
            shown_notices=model.notices,
            write_tables=partial(self._write_tables, given, patients),
            notices=left_out,
            is_part=part is not None,
        )
        exit_if_failed(progress)

    @property
    def _model_name(self) -> str:
        return self.bundle or PHANTOM_MODEL

    def _check_model(self, patches: TeacherPatches, has_server: bool) -> CheckedModel:
        """Return the model, checked in a process of its own if there is a server to fork it."""
        from napari_lrmil.core.inference.teacher_patches import TeacherPatches

        download_hub_bundles(self.bundle)
        reader, runtime = self.options["reader"], self.options["runtime"]
        # The terms of a teacher are printed before it is loaded, by this process.
        if has_server and patches == TeacherPatches.NONE:
            apart = check_model_apart(self._model_name, self.execution, reader, runtime)
            if apart is not None:
                require_writable(self.folder)
                return apart
        return check_model(self._model_name, self.execution, reader, runtime, patches, self.folder)

    def _names(self, given: Sequence[GivenSlide]) -> set[str]:
        return {job.name for job in slide_jobs(given, self.mpp, self.execution)}

    def _write_tables(self, given: Sequence[GivenSlide], patients: PatientRequest | None) -> None:
        """Write the tables of slides and, if asked for, of patients."""
        write_table(self.folder, self._names(given))
        if patients is not None:
            patients.write(self.folder)


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
    require_available(call.execution, call.options["runtime"])
    download_hub_bundles(*(call.bundles or ()))
    given, left_out = expand_slides(slides)
    _require_one_slide(len(given), call.options["files"])
    call.run(slide_jobs(given, mpp, call.execution), left_out)


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
    require_available(execution, runtime)
    require_writable(folder)
    download_hub_bundles(bundle)
    name = bundle or PHANTOM_MODEL
    model = load_model(name, patches, execution.load_device, runtime)
    files = {"roi": roi, "lesions": lesions}
    options = {"teacher": patches, "device": device, "files": files, "compare": True, "runtime": runtime}
    options |= {"allow_missing": allow_missing, "is_unnamed": bundle is None}
    task = model.task(name, folder, options)
    # Without run_cohort: one slide needs no retry, no failures.csv and no cohort.json.
    events = with_finished_event(task(SlideJob(slide, mpp)))
    result = show_progress(events, slide.name, shown_notices=model.notices)
    print_result(f"{slide.name}: {result.text} -> {result.path}")
    write_table(folder, ())
