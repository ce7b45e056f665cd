"""Commands on cohorts: phantoms, features, training, evaluation."""

from __future__ import annotations

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
)
from napari_lrmil.cli.console import (
    SOME_FAILED,
    BundleOption,
    DeviceOption,
    OutOption,
    err,
    load_networks,
    out,
    select_device,
    show_progress,
    with_finished_event,
)

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle

FEW_SLIDES = 30  # in a split, below which figures are more luck than measure


def phantom(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the cohort")],
    slides: Annotated[int, typer.Option(min=1, help="how many")] = 20,
    size: Annotated[str, typer.Option(help="width x height in px at 20x")] = "4096x3072",
    seed: Annotated[int, typer.Option(help="fixes every pixel")] = 0,
    split: Annotated[str | None, typer.Option(help="train, val or test for all; left out: 60/20/20 by patient")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="40x, no-mpp, fold, pen, pen-blue, pen-black, bounds, svs, generic, ome; several combine"),
    ] = None,
    tissue_share: Annotated[
        float | None, typer.Option(help="share of the slide that is tissue, in pieces; left out: one piece, or 0.5")
    ] = None,
) -> None:
    """Make synthetic slides with known lesions: pyramids, cohort.csv, lesion outlines."""
    from napari_lrmil.core.phantom import PhantomLook, make_cohort

    if split not in (None, "train", "val", "test"):
        raise typer.BadParameter(f"--split {split}: expected train, val or test")
    look = PhantomLook(tissue_share=tissue_share)
    made = make_cohort(
        folder, slides, _size(size), seed, split=split, workers=workers, look=look, variants=variant or ()
    )
    table = show_progress(made, "phantom slides")
    out.print(f"{slides} slides -> {table}", highlight=False, soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"--size {text}: expected width x height in pixels, such as 4096x3072")
    return int(width), int(height)


def features(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT.csv", help="a table of slides, or a folder of them")],
    encoder: Annotated[
        str, typer.Option(help="file, folder, hf:owner/name, lazyslide:NAME, or a bundle whose teacher's to use")
    ],
    folder: OutOption,
    mpp: Annotated[float, typer.Option(help="µm per pixel of the patches")] = 0.5,
    patch_px: Annotated[int, typer.Option("--patch-px", min=32, help="side of a patch in those pixels")] = 256,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
) -> None:
    """Embed the patches of a cohort, one HDF5 file per slide in TRIDENT's layout. Files that are there stay."""
    from lrmil_training.data.features import FeatureTask, cached_encoder, refuse_foreign_features, unlabelled_slide
    from napari_lrmil.cli.predict import expand_slides
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.encoders import encoder_notice

    told = encoder_notice(encoder)
    if told:
        err.print(told, highlight=False)
    where = ExecutionOptions(workers, scheduler, memory, device)
    works = [SlideJob(where.place(path), own) for path, own in expand_slides([cohort])]
    name = str(where.place(Path(encoder))) if Path(encoder).is_file() else encoder
    loaded = cached_encoder(name)
    where.require_device()
    task = FeatureTask(name, loaded.sha256, mpp, patch_px, where.place(folder), device)
    request = task.request(loaded)
    for work in works:
        refuse_foreign_features(request.path(unlabelled_slide(work)), request)
    require_writable(folder)
    files = [request.path(unlabelled_slide(work)) for work in works]
    tally = run_with_progress("features", works, task, where, folder, results=files)
    there = tally.done + tally.reused
    out.print(f"{there} of {tally.total} slides -> {folder}", highlight=False, soft_wrap=True)
    exit_if_failed(tally)


def train(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT.csv")],
    folder: Annotated[Path, typer.Option("--out", help="run folder; the same call goes on where it stopped")],
    config: Annotated[
        Path | None, typer.Option(help="YAML with configuration keys, or a preset: default, paper")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, such as stage1.epochs=6")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train teacher and student through both distillation stages, evaluate, and write a bundle."""
    from lrmil_training.config import load_config
    from lrmil_training.train import train as run
    from napari_lrmil.core.results.cohort_tables import FAILURES, read_failures

    resolved = load_config(config, settings or ())
    where = show_progress(run(cohort, folder, resolved, select_device(device)), "train", quiet=False)
    _show_metrics(where)
    out.print(f"metrics, checkpoints, bundle and report.html -> {where}", highlight=False, soft_wrap=True)
    failed = len({slide for slide, *_ in read_failures(where)})
    if failed:
        told = f"{failed} slide{'s' if failed > 1 else ''} could not be used; see {where / FAILURES}"
        err.print(told, highlight=False, soft_wrap=True)
        raise typer.Exit(SOME_FAILED)


def evaluate(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT.csv")],
    folder: Annotated[Path, typer.Option("--out", help="folder for metrics.json and report.html")],
    bundle: BundleOption = "demo",
    split: Annotated[str, typer.Option(help="train, val, test, or all slides of the table")] = "test",
    teacher: Annotated[
        bool | None,
        typer.Option(
            "--teacher/--no-teacher",
            help="measure the HR teacher beside the student; left out: where the bundle brings it whole",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a bundle on a cohort: figures with intervals, agreement with its teacher, cost, and a report."""
    from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
    from napari_lrmil.core.models.bundle import Bundle

    model = Bundle(bundle)
    both = _with_teacher(model, teacher)
    told = load_networks(model, teacher=both)
    question = ExternalEvaluation(model, split, both, select_device(device))
    failures: dict[str, str] = show_progress(
        with_finished_event(evaluate_bundle(cohort, folder, question)), "evaluate", shown_notices=told
    )
    _show_metrics(folder)
    out.print(f"metrics and report -> {folder / 'report.html'}", highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _with_teacher(model: Bundle, asked: bool | None) -> bool:
    """Return whether the teacher is measured too: nothing is fetched for it unless it was asked for."""
    if asked is False:
        return False
    if not model.has_teacher:
        err.print("the bundle brings no teacher; the student is measured alone")
        return False
    if asked is None and model.names_teacher:
        name = model.require_teacher().encoder.name
        told = f"the bundle names its teacher's encoder, {name}, and does not bring it: the student is measured alone"
        err.print(f"{told}; --teacher looks for the encoder, and fetches it", highlight=False, soft_wrap=True)
        return False
    return True


def _show_metrics(run: Path) -> None:
    """Print AUROC by method and split, and say where slides were too few to tell."""
    import json

    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    if "summary" in found:
        _show_summary(found["summary"])
        return
    for split in ("train", "val", "test", "all"):
        for method, splits in found.items():
            if split not in splits:
                continue
            a = splits[split]["auroc"]
            span = f" ({a['low']:.3f} to {a['high']:.3f})" if a["low"] is not None else ""
            value = "undefined" if a["value"] is None else f"{a['value']:.3f}{span}"
            out.print(f"{split:5} {method:21} AUROC {value}, {a['n_slides']} slides", highlight=False)
            if a["n_slides"] < FEW_SLIDES and method == "student":
                out.print(f"      {a['n_slides']} slides tell little: expect these figures to move", highlight=False)


def _show_summary(found: dict[str, Any]) -> None:
    """Print mean and spread of AUROC over the runs of a series, by method."""
    for method, splits in found.items():
        for split, figures in splits.items():
            a = figures["auroc"]
            spread = "" if a["sd"] is None else f" ± {a['sd']:.3f}"
            value = "undefined" if a["mean"] is None else f"{a['mean']:.3f}{spread}"
            out.print(f"{split:5} {method:21} AUROC {value}, mean ± sd over {a['n_runs']} runs", highlight=False)
