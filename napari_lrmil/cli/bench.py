"""The command that measures what an answer costs, and where the cost goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.console import (
    DeviceOption,
    MppOption,
    err,
    load_networks,
    out,
    show_progress,
    with_finished_event,
)

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle

BENCH, TABLE = "bench.json", "bench.md"
Bundles = Annotated[list[str] | None, typer.Option("--bundle", help="a bundle; several are measured one by one")]


def bench(
    slide: Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")],
    bundles: Bundles = None,
    folder: Annotated[Path, typer.Option("--out", help="folder for bench.json, bench.md and pareto.png")] = Path(
        "bench"
    ),
    cohort: Annotated[Path | None, typer.Option(help="labelled cohort CSV: AUROC against cost, as a picture")] = None,
    split: Annotated[str, typer.Option(help="of the cohort: train, val, test, or all")] = "all",
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="ResNet-50 at HR through PIL, as most pipelines have it")
    ] = True,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="the bundle's HR teacher too")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="passes over the slide; medians are told")] = 3,
    most: Annotated[
        int, typer.Option("--most-patches", min=64, help="of more patches a sample is measured, and scaled up")
    ] = 2048,
    threads: Annotated[int, typer.Option(min=1, help="of the encoder")] = 1,
    device: DeviceOption = "cpu",
    mpp: MppOption = None,
) -> None:
    """Measure a slide's cost step by step, LR against HR, and what resolution, encoder, reader and runtime save."""
    from lrmil_training.data.cohort import read_cohort
    from napari_lrmil.core.atomic_files import write_json, write_text
    from napari_lrmil.core.benchmark import (
        MeasurementSpec,
        benchmark_json,
        factor_table,
        measure_all,
        measurement_notes,
        step_table,
    )
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.slide import Slide

    resolve_device(device)
    models = [Bundle(name) for name in bundles or ["demo"]]
    if cohort is not None:
        read_cohort(cohort)  # a table that cannot be used is found before anything is measured
    with Slide(slide, mpp=mpp) as opened:
        _ = opened.mpp  # so is one that cannot be read, or does not say its resolution
    told: set[str] = set()
    for model in models:
        told |= load_networks(model, teacher=teacher)  # a broken bundle is found before anything is measured
    folder.mkdir(parents=True, exist_ok=True)
    measured: list[dict[str, Any]] = []
    pages: list[str] = []
    for model in models:
        question = MeasurementSpec(slide, model.path, mpp, device, threads, repeats, most)
        setups = _setups(baseline=baseline and not measured, teacher=teacher)  # the baseline knows no bundle
        found = show_progress(measure_all(question, setups), model.name, shown_notices=told)
        measured.append({"model": model.name, **benchmark_json(question, found)})
        pages += [f"## {slide.name}, {model.name}", measurement_notes(question), step_table(found), factor_table(found)]
        write_json(folder / BENCH, {"measured": measured})
        write_text(folder / TABLE, "\n\n".join(pages) + "\n")
        _print(model.name, found)
    if cohort is not None:
        _pareto(models, cohort, folder, split, device, teacher=teacher)
    out.print(f"{BENCH}, {TABLE}{', pareto.png' if cohort else ''} -> {folder}", highlight=False, soft_wrap=True)


def _setups(*, baseline: bool, teacher: bool) -> list[Any]:
    from napari_lrmil.core.benchmark import BASELINE, CHAIN, REFERENCE_SETUPS, TEACHER

    chain = [setup for setup in CHAIN if baseline or setup != BASELINE]
    return [*chain, *REFERENCE_SETUPS, *([TEACHER] if teacher else [])]


def _print(name: str, found: list[Any]) -> None:
    """Print what matters: seconds of each setup, and the factors."""
    from rich.table import Table

    from napari_lrmil.core.benchmark import LR, speedup_factors

    table = Table(title=f"{name}: what a slide costs")
    for head in ("setup", "patches", "MPix", "CPU-s", "s", "peak MB"):
        table.add_column(head, justify="left" if head == "setup" else "right")
    for m in found:
        figures = (f"{m.patches:,}", f"{m.pixels / 1e6:,.1f}", f"{m.cpu['total']:.2f}", f"{m.wall['total']:.2f}")
        table.add_row(m.setup.name, *figures, f"{m.peak_mb:,.0f}")
    out.print(table)
    for f in speedup_factors(found):
        patches = f" for {f.patches:.1f} times fewer patches" if f.changed == LR.changed else ""
        told = f"{f.changed}: {f.cpu:.1f} times fewer CPU-seconds{patches}  ({f.before} -> {f.after})"
        out.print(told, highlight=False, soft_wrap=True)
    last = next((m for m in found if m.whole_cpu is not None and m.setup.runtime == "auto"), None)
    if last is not None:
        told = f"predict as a whole: {last.whole_cpu:.2f} CPU-s, {last.whole_wall:.2f} s"
        out.print(
            f"{told}; reader {last.reader}, runtime {last.runtime.name} {last.runtime.precision}", highlight=False
        )


def _pareto(models: list[Bundle], cohort: Path, folder: Path, split: str, device: str, *, teacher: bool) -> None:
    """Evaluate every model on the cohort and draw AUROC against CPU-seconds."""
    from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
    from lrmil_training.runs.event_log import METRICS
    from napari_lrmil.core.benchmark import cost_points, write_pareto
    from napari_lrmil.core.features.devices import resolve_device

    found = []
    for i, model in enumerate(models):
        where = folder / f"{i}-{model.name}"
        both = teacher and model.has_teacher
        question = ExternalEvaluation(model, split, both, resolve_device(device), runtime="auto")
        failures = show_progress(with_finished_event(evaluate_bundle(cohort, where, question)), model.name)
        for name, reason in failures.items():
            err.print(f"{name}: {reason}", highlight=False, soft_wrap=True)
        found += cost_points(model.name, where / METRICS)
    if found:
        write_pareto(folder, found)
    else:
        err.print("no AUROC is defined on this cohort, so there is nothing to draw: both classes are needed")
