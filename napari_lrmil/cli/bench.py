"""Command ``bench``: measure what a slide costs, step by step, and what each part of the method saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.console import (
    AllowMissingOption,
    DeviceOption,
    MppOption,
    SlideArgument,
    download_hub_bundles,
    load_networks,
    out,
    print_notice,
    print_result,
    show_progress,
    with_finished_event,
)
from napari_lrmil.core.atomic_files import require_writable

if TYPE_CHECKING:
    from napari_lrmil.core.benchmark import Measurement, MeasurementSpec
    from napari_lrmil.core.models.bundle import Bundle

BENCH, TABLE = "bench.json", "bench.md"
BundlesOption = Annotated[
    list[str] | None, typer.Option("--bundle", help="a bundle; several are measured one after the other")
]
FolderOption = Annotated[Path, typer.Option("--out", help="folder for bench.json, bench.md and pareto.png")]
CohortOption = Annotated[Path | None, typer.Option(help="labelled cohort CSV, to plot AUROC against cost")]
SplitOption = Annotated[str, typer.Option(help="split of the cohort: train, val, test, or all")]
BaselineOption = Annotated[
    bool, typer.Option("--baseline/--no-baseline", help="measure a usual pipeline too: ResNet-50 at HR through PIL")
]
TeacherOption = Annotated[bool, typer.Option("--teacher/--no-teacher", help="measure the HR teacher of the bundle too")]
RepeatsOption = Annotated[int, typer.Option(min=1, help="passes over the slide; medians are reported")]
MostPatchesOption = Annotated[
    int, typer.Option("--most-patches", min=64, help="above this number, a sample is measured and scaled up")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="threads of the encoder")]


def bench(
    slide: SlideArgument,
    bundles: BundlesOption = None,
    folder: FolderOption = Path("bench"),
    cohort: CohortOption = None,
    split: SplitOption = "all",
    baseline: BaselineOption = True,
    teacher: TeacherOption = False,
    repeats: RepeatsOption = 3,
    most: MostPatchesOption = 2048,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    mpp: MppOption = None,
    allow_missing: AllowMissingOption = False,
) -> None:
    """Measure the cost of a slide step by step, LR and HR, and what resolution, encoder, reader and runtime save."""
    from napari_lrmil.core.benchmark import MeasurementSpec
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.models.bundle import Bundle

    resolve_device(device)
    require_writable(folder)
    download_hub_bundles(*(bundles or ()))
    models = [Bundle(name) for name in bundles or ["demo"]]
    _require_readable(slide, mpp, cohort)
    notices: set[str] = set()
    # A broken bundle fails here, before anything is measured.
    for model in models:
        notices |= load_networks(model, teacher=teacher)  # a broken bundle fails here, before anything is measured
    folder.mkdir(parents=True, exist_ok=True)
    shared = (mpp, device, threads, repeats, most, allow_missing)
    specs = [MeasurementSpec(slide, model.path, *shared) for model in models]
    _measure_models(models, specs, folder, notices, baseline=baseline, teacher=teacher)
    if cohort is not None:
        _write_pareto(models, cohort, folder, split, device, teacher=teacher)
    print_result(f"{BENCH}, {TABLE}{', pareto.png' if cohort else ''} -> {folder}")


def _require_readable(slide: Path, mpp: float | None, cohort: Path | None) -> None:
    """Raise `LrmilError` if slide or cohort cannot be used, before anything is measured."""
    from lrmil_training.data.cohort import read_cohort
    from napari_lrmil.core.slides.slide import Slide

    if cohort is not None:
        read_cohort(cohort)
    with Slide(slide, mpp=mpp) as opened:
        _ = opened.mpp  # raises if the slide does not state its resolution


def _measure_models(
    models: list[Bundle],
    specs: list[MeasurementSpec],
    folder: Path,
    notices: set[str],
    *,
    baseline: bool,
    teacher: bool,
) -> None:
    """Measure every model; write and print the tables after each, so that a cancelled call keeps what it has."""
    from napari_lrmil.core.atomic_files import write_json, write_text
    from napari_lrmil.core.benchmark import (
        benchmark_json,
        factor_table,
        measure_all,
        measurement_notes,
        step_table,
        told_notices,
    )

    contents: list[dict[str, Any]] = []
    pages: list[str] = []
    for model, spec in zip(models, specs, strict=True):
        setups = _setups(baseline=baseline and not contents, teacher=teacher)  # the baseline is the same for all
        measurements = show_progress(measure_all(spec, setups), model.name, shown_notices=notices)
        contents.append({"model": model.name, **benchmark_json(spec, measurements)})
        pages += [f"## {spec.slide.name}, {model.name}", measurement_notes(spec), *told_notices(measurements)]
        pages += [step_table(measurements), factor_table(measurements)]
        write_json(folder / BENCH, {"measured": contents})
        write_text(folder / TABLE, "\n\n".join(pages) + "\n")
        _print_measurements(model.name, measurements)


def _setups(*, baseline: bool, teacher: bool) -> list[Any]:
    """Return the setups to measure, from the usual pipeline to the defaults of ``predict``."""
    from napari_lrmil.core.benchmark import BASELINE, CHAIN, REFERENCE_SETUPS, TEACHER

    chain = [setup for setup in CHAIN if baseline or setup != BASELINE]
    return [*chain, *REFERENCE_SETUPS, *([TEACHER] if teacher else [])]


def _print_measurements(name: str, measurements: list[Measurement]) -> None:
    """Print the seconds of each setup and the factors between them."""
    from rich.table import Table

    from napari_lrmil.core.benchmark import LR, speedup_factors

    table = Table(title=f"{name}: what a slide costs")
    for column in ("setup", "patches", "MPix", "CPU-s", "s", "peak MB"):
        table.add_column(column, justify="left" if column == "setup" else "right")
    for m in measurements:
        figures = (f"{m.patches:,}", f"{m.pixels / 1e6:,.1f}", f"{m.cpu['total']:.2f}", f"{m.wall['total']:.2f}")
        table.add_row(m.setup.name, *figures, f"{m.peak_mb:,.0f}")
    out.print(table)
    for f in speedup_factors(measurements):
        patches = f" for {f.patches:.1f} times fewer patches" if f.changed == LR.changed else ""
        text = f"{f.changed}: {f.cpu:.1f} times fewer CPU-seconds{patches}  ({f.before} -> {f.after})"
        print_result(text)
    default = next((m for m in measurements if m.whole_cpu is not None and m.setup.runtime == "auto"), None)
    if default is not None:
        text = f"predict as a whole: {default.whole_cpu:.2f} CPU-s, {default.whole_wall:.2f} s"
        text += f"; its files: {default.cpu['write']:.2f} CPU-s, {default.wall['write']:.2f} s"
        runtime = f"runtime {default.runtime.name} {default.runtime.precision}"
        print_result(f"{text}; reader {default.reader}, {runtime}")


def _write_pareto(models: list[Bundle], cohort: Path, folder: Path, split: str, device: str, *, teacher: bool) -> None:
    """Evaluate every model on the cohort and plot AUROC against CPU-seconds."""
    from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
    from lrmil_training.runs.event_log import METRICS
    from napari_lrmil.core.benchmark import cost_points, write_pareto
    from napari_lrmil.core.features.devices import resolve_device

    points = []
    for i, model in enumerate(models):
        results = folder / f"{i}-{model.name}"
        with_teacher = teacher and model.has_teacher
        # runtime="auto" is the default of predict, so the cost is that of an ordinary call.
        evaluation = ExternalEvaluation(model, split, with_teacher, resolve_device(device), runtime="auto")
        failures = show_progress(with_finished_event(evaluate_bundle(cohort, results, evaluation)), model.name)
        for name, reason in failures.items():
            print_notice("", f"{name}: {reason}")
        points += cost_points(model.name, results / METRICS)
    if points:
        write_pareto(folder, points)
    else:
        print_notice("", "no AUROC is defined on this cohort, so there is nothing to plot: both classes are needed")
