"""Options ``--ladder`` and ``--cascade`` of ``predict``: one slide read by models of several resolutions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.cohort_options import ExecutionOptions, exit_if_failed, run_with_progress
from napari_lrmil.cli.console import (
    FEW_SLIDES,
    SOME_FAILED,
    load_networks,
    print_notice,
    print_result,
    show_progress,
    with_finished_event,
)
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL

if TYPE_CHECKING:
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.ladder.rungs import Ladder

MOST_TABLES = 3  # slides; above, one table over all of them

BundlesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bundle",
        help="folder of a bundle, name of a shipped one (breast-idc, demo), or hf:owner/name; if not given: demo, for "
        "phantoms only; with --ladder and --cascade several, or a folder of bundles or of training runs",
    ),
]
LadderOption = Annotated[
    bool, typer.Option("--ladder", help="read each slide with models of several resolutions: where the answer changes")
]
CascadeOption = Annotated[
    bool,
    typer.Option("--cascade", help="begin with the coarsest model; a finer one reads if the set has several classes"),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(min=0.0, metavar="S", help="with --cascade: seconds for a slide, within which finer models are used"),
]


def single_bundle(names: Sequence[str] | None) -> str | None:
    """Return the only bundle that was named; None if none was.

    Raises
    ------
    ConfigError
        If there are several.
    """
    from napari_lrmil.core.errors import ConfigError

    if names and len(names) > 1:
        raise ConfigError(f"{len(names)} bundles were given; use one, or add --ladder or --cascade")
    return names[0] if names else None


REFUSED = {  # options of `predict` that go with neither
    "tissue": "it is a mask on the raster of one model's patches",
    "report": "it is about one model",
    "by": "it joins slides of one model",
    "part": "job arrays share the slides of one model",
}
REGIONS_IN_CASCADE = "a cascade decides by sets of classes, which hold for whole slides alone; use --ladder"


def require_climb_options(
    *, ladder: bool = False, cascade: bool, budget: float | None, others: Mapping[str, object]
) -> None:
    """Raise `ConfigError` if options exclude one another; `others` are further options of the call."""
    from napari_lrmil.core.errors import ConfigError

    if ladder and cascade:
        raise ConfigError("--ladder reads every resolution and --cascade as few as it can; use one of them")
    if budget is not None and not cascade:
        raise ConfigError("--budget limits a cascade; add --cascade, or leave it out")
    option = "--cascade" if cascade else "--ladder"
    for name in (name for name, value in others.items() if value):
        if name in REFUSED:
            raise ConfigError(f"{option} reads a slide with several models; leave --{name} out: {REFUSED[name]}")
        if cascade:
            raise ConfigError(f"leave --{name} out: {REGIONS_IN_CASCADE}")


@dataclass(frozen=True)
class ClimbCall:
    """A call of ``predict`` with ``--ladder`` or ``--cascade``.

    Attributes
    ----------
    bundles
        Bundles that the caller named; None for none.
    teacher
        Value of ``--teacher``: ``none`` or ``all``.
    is_cascade
        Whether it is a cascade.
    folder, execution
        Where results go, and where the work is done.
    options
        Further fields of `napari_lrmil.core.ladder.task.ClimbTask`.
    """

    bundles: Sequence[str] | None
    teacher: str
    is_cascade: bool
    folder: Path
    execution: ExecutionOptions
    options: Mapping[str, Any]

    def run(self, jobs: Sequence[SlideJob], left_out: Sequence[str]) -> None:
        """Read the slides, write and print the tables; exit with the code of failures if there are any."""
        from napari_lrmil.core.ladder.task import ClimbTask

        ladder, notices = self._open()
        task = ClimbTask(
            bundles=tuple(self.execution.resolve_path(bundle.path) for bundle in ladder.bundles),
            ladder_sha256=ladder.sha256,
            teacher=ladder.rungs[-1].is_teacher,
            folder=self.execution.resolve_path(self.folder),
            is_cascade=self.is_cascade,
            **self.options,
            is_unnamed=not self.bundles,
        )
        write = _write_cascades if self.is_cascade else _write_ladders
        names = {job.name for job in jobs}
        progress = run_with_progress(
            "cascade" if self.is_cascade else "ladder",
            jobs,
            task,
            self.execution,
            self.folder,
            shown_notices=notices,
            write_tables=partial(write, self.folder, names),
            notices=left_out,
        )
        exit_if_failed(progress)

    def _open(self) -> tuple[Ladder, set[str]]:
        """Return the ladder with its networks loaded, and the notices that were printed."""
        from napari_lrmil.core.errors import ConfigError
        from napari_lrmil.core.inference.teacher_patches import TeacherPatches
        from napari_lrmil.core.ladder.rungs import open_ladder

        patches = TeacherPatches.parse(self.teacher)
        if patches not in (TeacherPatches.NONE, TeacherPatches.ALL):
            raise ConfigError(f"--teacher {patches}: as a rung the teacher reads the whole slide; use --teacher all")
        require_writable(self.folder)
        ladder = open_ladder(self.bundles or [PHANTOM_MODEL], teacher=patches == TeacherPatches.ALL)
        if self.is_cascade:
            ladder.require_sets()
        for text in ladder.notices:
            print_notice("", text)
        return ladder, {*ladder.notices, *_load(ladder, self.execution.load_device, self.options["runtime"])}


def _load(ladder: Ladder, device: str, runtime: str) -> set[str]:
    """Load the networks of a ladder and return the notices that were printed.

    A broken bundle must end the command: as an error of each slide it would be reported once per slide.
    """
    top, notices = ladder.rungs[-1], set[str]()
    for bundle in ladder.bundles:
        is_teachers = top.is_teacher and top.bundle is bundle
        notices |= load_networks(bundle, teacher=is_teachers, device=device, runtime=runtime)
    return notices


def _write_ladders(folder: Path, names: set[str]) -> None:
    """Write ``ladder.csv`` of all slides in a folder, and print the table of the slides of this call."""
    from napari_lrmil.cli.prediction_tables import write_table
    from napari_lrmil.core.ladder.table import (
        align,
        ladder_lines,
        read_ladder_files,
        summarize_ladders,
        summarize_rung_warnings,
        write_ladder_table,
    )

    files, errors = read_ladder_files(folder)
    for error in errors:
        print_notice("", f"not in ladder.csv: {error}")
    if files:
        write_ladder_table(folder, files)
    of_call = [file for file in files if file.slide in names]
    if len(of_call) > MOST_TABLES:
        print_result(align(summarize_ladders(of_call)))
        changed = sum(file.changes for file in of_call)
        print_result(f"the answer changes with the resolution on {changed} of {format_count(len(of_call), 'slide')}")
    else:
        for file in of_call:
            print_result(f"{file.slide}\n{align(ladder_lines(file))}")
    lines = list(summarize_rung_warnings(of_call)) if len(of_call) > 1 else []
    for line in lines:
        print_notice("", line)
    if lines:
        print_notice("", "ladder.csv lists the warnings of each resolution in its last column")
    write_table(folder, names)


def _write_cascades(folder: Path, names: set[str]) -> None:
    """Write ``cascade.csv`` of all slides in a folder, and print how far the slides of this call went up."""
    from napari_lrmil.cli.prediction_tables import write_table
    from napari_lrmil.core.ladder.table import read_cascade_files, write_cascade_table

    files, errors = read_cascade_files(folder)
    for error in errors:
        print_notice("", f"not in cascade.csv: {error}")
    if files:
        write_cascade_table(folder, files)
    if of_call := [file for file in files if file.slide in names]:
        up = sum(file.went_up for file in of_call)
        cpu = sum(file.cpu_seconds for file in of_call) / len(of_call)
        open_left = sum(not file.is_settled for file in of_call)
        text = f"{up} of {format_count(len(of_call), 'slide')} went up; {cpu:.2f} CPU-seconds a slide"
        print_result(f"{text}; {open_left} left open" if open_left else text)
    write_table(folder, names)


def evaluate_cascade_on(
    cohort: Path, folder: Path, bundles: Sequence[str] | None, teacher: bool | None, options: Mapping[str, Any]
) -> None:
    """Evaluate a cascade on a cohort, print its figures, and exit with the code of failures if there are any.

    Parameters
    ----------
    cohort, folder
        Table of slides, and folder of the results.
    bundles
        Bundles that the caller named; None for none.
    teacher
        Whether the teacher is the finest rung; None: if a bundle contains its weights.
    options
        Further fields of `lrmil_training.cascade_evaluation.CascadeEvaluation`.
    """
    from lrmil_training.cascade_evaluation import METRICS_FILE, PICTURE, CascadeEvaluation, evaluate_cascade
    from napari_lrmil.core.ladder.rungs import open_ladder

    ladder = open_ladder(bundles or [PHANTOM_MODEL], teacher=teacher)
    ladder.require_sets()
    evaluation = CascadeEvaluation(ladder, is_unnamed=not bundles, **options)
    notices = _load(ladder, options["device"], evaluation.runtime)
    failures: dict[str, str] = show_progress(
        with_finished_event(evaluate_cascade(cohort, folder, evaluation)), "evaluate", shown_notices=notices
    )
    _print_cascade(json.loads((folder / METRICS_FILE).read_text(encoding="utf-8")))
    print_result(f"{METRICS_FILE} and {PICTURE} -> {folder}")
    if failures:
        raise typer.Exit(SOME_FAILED)


def _print_cascade(metrics: Mapping[str, Any]) -> None:
    """Print AUROC and cost of each resolution and of the cascade, and the share of slides that went up."""
    from lrmil_training.evaluation.groups import describe_auroc
    from napari_lrmil.core.ladder.table import align

    cascade = metrics["cascade"]
    lines = [["", "AUROC", "CPU-s", "s", "sets hold"]]
    for name, entry in [*((rung["rung"], rung) for rung in metrics["rungs"]), ("cascade", cascade)]:
        share = entry["sets_hold"]["value"]
        cost = [f"{entry[f'{key}_per_slide']:.2f}" for key in ("cpu_seconds", "seconds")]
        lines.append([name, describe_auroc(entry["auroc"]), *cost, "no sets" if share is None else f"{share:.0%}"])
    print_result(align(lines))
    answered = ", ".join(f"{label} {share:.0%}" for label, share in cascade["share_answered"].items())
    slides = format_count(metrics["n_slides"], "slide")
    left = f"; {cascade['share_left_open']:.0%} left open" if cascade["share_left_open"] else ""
    print_result(f"{cascade['share_went_up']:.0%} of {slides} went up; answered at {answered}{left}")
    if metrics["n_slides"] < FEW_SLIDES:
        print_result(f"only {format_count(metrics['n_slides'], 'slide')}: figures are uncertain")
