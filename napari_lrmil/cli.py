"""The command line: a loop over the same events that the window consumes. Heavy libraries load inside the commands."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Caution, Event, Failed, Finished, Metric, Progress, StageDone

if TYPE_CHECKING:
    import torch

    from napari_lrmil.core.predict import Prediction

app = typer.Typer(
    name="napari-lrmil",
    help="Low-resolution MIL for whole-slide images, distilled from a high-resolution teacher. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(), Console(stderr=True)

SOME_FAILED, WRONG_CALL, FAILED, CANCELLED = 3, 2, 1, 130
FEW_SLIDES = 30  # in a split, below which figures are more luck than measure
SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".tif", ".tiff", ".dcm")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
MppOption = Annotated[
    float | None, typer.Option("--mpp", min=0.0, help="µm per level-0 pixel, where the slide does not say")
]
BundleOption = Annotated[str, typer.Option("--bundle", help="folder of a bundle, or a shipped one (demo)")]
Out = Annotated[Path, typer.Option("--out", help="folder for the results")]


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show a traceback on errors")] = False,
) -> None:
    context.obj = debug


# ---------------------------------------------------------------- slides


@app.command()
def info(
    slide: Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")],
    mpp: MppOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a slide is: vendor, levels, resolution and where it came from, bounds, ICC, associated images."""
    from napari_lrmil.core.slide import Slide

    with Slide(slide, mpp=mpp) as opened:
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


@app.command()
def predict(
    slides: Annotated[list[Path], typer.Argument(help="slides, a folder of slides, or a cohort CSV")],
    bundle: BundleOption = "demo",
    folder: Out = Path("predictions"),
    device: Device = "auto",
    mpp: MppOption = None,
    teacher: Annotated[str, typer.Option(help="none, or all: run the HR teacher beside the student")] = "none",
) -> None:
    """Run the LR student on slides: probabilities, attention, overlay. One bad slide stops nobody."""
    from napari_lrmil.core.bundle import Bundle
    from napari_lrmil.core.predict import require_choice
    from napari_lrmil.core.tables import write_failures, write_predictions

    model, chosen = Bundle(bundle), _device(device)
    require_choice(teacher)
    _ = model.student, model.teacher if teacher != "none" else None  # a broken bundle is no slide's fault: load it now
    _usable(folder)
    failures: dict[str, str] = {}
    named: dict[str, Path] = {}
    told: set[str] = set()
    chosen_slides = expand(slides)
    try:
        for path, own_mpp in chosen_slides:
            try:
                _refuse_same_name(named, path)
                _predict_one(path, model, chosen, mpp or own_mpp, teacher, folder, told)
            except (LrmilError, OSError) as error:
                failures[path.name] = str(error)
                err.print(f"[red]{escape(path.name)}[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    finally:  # also after Ctrl-C: what is done stays, and is listed
        write_predictions(folder)
        write_failures(folder, "predict", failures, {path.name for path, _ in chosen_slides})
    if failures:
        raise typer.Exit(SOME_FAILED)


def _usable(folder: Path) -> None:
    """Raise `ConfigError` where results cannot be written, before any work is done."""
    from napari_lrmil.core.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: no folder can be made there ({error.strerror}); choose another") from error


def _refuse_same_name(named: dict[str, Path], path: Path) -> None:
    """Raise `SlideError` where a slide's results would overwrite those of another slide of this call."""
    from napari_lrmil.core.errors import SlideError

    name = path.name if path.is_dir() else path.stem
    if name in named:
        raise SlideError(path, f"its results would overwrite those of {named[name]}; rename one, or use another --out")
    named[name] = path


def _predict_one(
    path: Path, model: Any, device: Any, mpp: float | None, teacher: str, folder: Path, told: set[str]
) -> None:
    from napari_lrmil.core.predict import predict as run
    from napari_lrmil.core.results import write_prediction
    from napari_lrmil.core.slide import Slide

    began = time.perf_counter()
    with Slide(path, mpp=mpp) as slide:
        opened = time.perf_counter() - began
        prediction: Prediction = follow(
            run(slide, model, device=device, teacher=teacher, seconds_open=opened), path.name, told=told
        )
        where = write_prediction(folder, slide, prediction)
    shown = ", ".join(f"{c} {p:.3f}" for c, p in prediction.student.probabilities.items())
    agreement = prediction.agreement
    beside = f"; with the teacher: ρ {agreement.spearman:.2f}" if agreement and agreement.spearman is not None else ""
    patches = f"{len(prediction.grid.lr_index)} LR patches in place of {len(prediction.grid.hr_index)} HR"
    out.print(f"{path.name}: {shown} ({patches}{beside}) -> {where}", highlight=False, soft_wrap=True)


def expand(slides: Sequence[Path]) -> list[tuple[Path, float | None]]:
    """Return the slides meant by files, folders and cohort tables, each with the resolution that a table gives.

    A folder of DICOM files is one slide.
    """
    found: list[tuple[Path, float | None]] = []
    for path in slides:
        if path.suffix.lower() == ".csv":
            found += _cohort_slides(path)
        elif path.is_dir() and not any(path.glob("*.dcm")):
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SLIDE_ENDINGS)
            if not inside:
                raise typer.BadParameter(
                    f"{path} holds no slide; expected files such as {', '.join(SLIDE_ENDINGS[:5])}"
                )
            found += [(p, None) for p in inside]
        else:
            found.append((path, None))
    return found


def _cohort_slides(path: Path) -> list[tuple[Path, float | None]]:
    from lrmil_training.cohort import read_cohort

    return [(slide.path, slide.mpp) for slide in read_cohort(path).slides]


# ---------------------------------------------------------------- training


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the cohort")],
    slides: Annotated[int, typer.Option(min=1, help="how many")] = 20,
    size: Annotated[str, typer.Option(help="width x height in px at 20x")] = "4096x3072",
    seed: Annotated[int, typer.Option(help="fixes every pixel")] = 0,
    split: Annotated[str | None, typer.Option(help="train, val or test for all; left out: 60/20/20 by patient")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
) -> None:
    """Make synthetic slides with known lesions: pyramids, cohort.csv, lesion outlines."""
    from napari_lrmil.core.phantom import make_cohort

    if split not in (None, "train", "val", "test"):
        raise typer.BadParameter(f"--split {split}: expected train, val or test")
    table = follow(make_cohort(folder, slides, _size(size), seed, split=split, workers=workers), "phantom slides")
    out.print(f"{slides} slides -> {table}", highlight=False, soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"--size {text}: expected width x height in pixels, such as 4096x3072")
    return int(width), int(height)


@app.command()
def features(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT.csv")],
    encoder: Annotated[str, typer.Option(help=".safetensors file, or a shipped bundle whose teacher's encoder to use")],
    folder: Out,
    mpp: Annotated[float, typer.Option(help="µm per pixel of the patches")] = 0.5,
    patch_px: Annotated[int, typer.Option("--patch-px", min=32, help="side of a patch in those pixels")] = 256,
    device: Device = "auto",
) -> None:
    """Embed the patches of a cohort, one HDF5 file per slide in TRIDENT's layout. Files that are there stay."""
    from lrmil_training.cohort import read_cohort
    from lrmil_training.features import FeatureRequest, find_encoder, make_features
    from napari_lrmil.core.geometry import PatchPlan
    from napari_lrmil.core.tables import write_failures

    table, loaded, chosen = read_cohort(cohort), find_encoder(encoder), _device(device)
    plan = PatchPlan(hr_mpp=mpp, lr_mpp=mpp, hr_patch_px=patch_px, lr_patch_px=patch_px)
    network = loaded.encoder.to(chosen)
    request = FeatureRequest(network, loaded.spec.name, loaded.sha256, plan, high=False, folder=folder)
    failures: dict[str, str] = follow(_returned(make_features(table.slides, request, chosen)), "features")
    write_failures(folder, "features", failures, {slide.name for slide in table.slides})
    out.print(
        f"{len(table.slides) - len(failures)} of {len(table.slides)} slides -> {folder}",
        highlight=False,
        soft_wrap=True,
    )
    if failures:
        raise typer.Exit(SOME_FAILED)


@app.command()
def train(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT.csv")],
    folder: Annotated[Path, typer.Option("--out", help="run folder; the same call goes on where it stopped")],
    config: Annotated[
        Path | None, typer.Option(help="YAML with configuration keys, or a preset: default, paper")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, such as stage1.epochs=6")] = None,
    device: Device = "auto",
) -> None:
    """Train teacher and student through both distillation stages, evaluate, and write a bundle."""
    from lrmil_training.config import load_config
    from lrmil_training.run import train as run

    resolved = load_config(config, settings or ())
    where = follow(run(cohort, folder, resolved, _device(device)), "train", quiet=False)
    _show_metrics(where)
    out.print(f"metrics, checkpoints and bundle -> {where}", highlight=False, soft_wrap=True)


def _show_metrics(run: Path) -> None:
    """Print AUROC by method and split, and say where slides were too few to tell."""
    import json

    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    if "summary" in found:
        _show_summary(found["summary"])
        return
    for split in ("val", "test"):
        for method, splits in found.items():
            if split not in splits:
                continue
            a = splits[split]["auroc"]
            span = f" ({a['low']:.3f} to {a['high']:.3f})" if a["low"] is not None else ""
            value = "undefined" if a["value"] is None else f"{a['value']:.3f}{span}"
            out.print(f"{split:5} {method:12} AUROC {value}, {a['n_slides']} slides", highlight=False)
            if a["n_slides"] < FEW_SLIDES and method == "student":
                out.print(f"      {a['n_slides']} slides tell little: expect these figures to move", highlight=False)


def _show_summary(found: dict[str, Any]) -> None:
    """Print mean and spread of AUROC over the runs of a series, by method."""
    for method, splits in found.items():
        for split, figures in splits.items():
            a = figures["auroc"]
            spread = "" if a["sd"] is None else f" ± {a['sd']:.3f}"
            value = "undefined" if a["mean"] is None else f"{a['mean']:.3f}{spread}"
            out.print(f"{split:5} {method:12} AUROC {value}, mean ± sd over {a['n_runs']} runs", highlight=False)


# ---------------------------------------------------------------- window


@app.command()
def view(
    slides: Annotated[list[Path] | None, typer.Argument(help="slides to open")] = None,
    bundle: BundleOption = "demo",
    mpp: MppOption = None,
) -> None:
    """Open napari with slides and the dock."""
    from napari_lrmil.plugin.launch import view as launch

    launch(slides or [], bundle, mpp)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="folder for the phantom slide, the results and demo.png")
    ] = Path("demo"),
    headless: Annotated[bool, typer.Option("--headless", help="render off-screen to OUT/demo.png")] = False,
    slide: Annotated[Path | None, typer.Option(help="your own slide instead of the phantom")] = None,
    bundle: BundleOption = "demo",
) -> None:
    """Show where the LR student looks beside its HR teacher, on a phantom slide or on yours."""
    from napari_lrmil.plugin.launch import demo as launch

    picture = launch(folder, slide, bundle, headless)
    if picture is not None:
        out.print(f"picture -> {picture}", highlight=False, soft_wrap=True)


def _device(name: str) -> torch.device:
    """Return the device to work on; one core stays free for everything else."""
    from napari_lrmil.core.embed import leave_a_core, resolve_device

    leave_a_core()
    return resolve_device(name)


# ---------------------------------------------------------------- events


def follow(events: Iterator[Event], title: str, *, quiet: bool = True, told: set[str] | None = None) -> Any:
    """Print a stream of events and return what it finished with; figures of training are printed unless `quiet`.

    Cautions in `told` are not said again, and those said are added to it: a model's own holds for every slide.
    """
    told = set() if told is None else told
    result: Any = None
    try:
        with closing(events), _bars() as bars:  # type: ignore[type-var]  # generators close
            for event in events:
                if isinstance(event, Finished):
                    result = event.result
                elif not (isinstance(event, Caution) and event.message in told):
                    _show(event, title, bars, quiet)
                    told |= {event.message} if isinstance(event, Caution) else set()
    except KeyboardInterrupt:
        err.print("cancelled")
        raise typer.Exit(CANCELLED) from None
    return result


def _show(event: Event, title: str, bars: _Bars, quiet: bool) -> None:
    match event:
        case Progress(stage, done, total, unit):
            bars.show(f"{title} · {stage}", done, total, unit)
        case Caution(message, subject) | Failed(message, subject):
            err.print(f"[yellow]{escape(subject)}[/yellow] {escape(message)}", highlight=False, soft_wrap=True)
        case Metric(stage, name, value, step) if not quiet and name.startswith("val/"):
            err.print(f"{stage} epoch {step + 1}: {name} {value:.4f}", highlight=False)
        case StageDone(stage, seconds) if not quiet:
            err.print(f"{stage}: done in {seconds:.1f} s", highlight=False)


def _returned(work: Any) -> Iterator[Event]:
    """Turn what a generator returns into its last event."""
    result = yield from work
    yield Finished(result)


class _Bars:
    """One line of progress per stage on a terminal; nothing but notes where output goes to a file."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
        )
        self.tasks: dict[str, Any] = {}

    def show(self, stage: str, done: int, total: int, unit: str) -> None:
        if stage not in self.tasks:
            for old in self.tasks.values():
                self.progress.update(old, visible=False)
            self.tasks[stage] = self.progress.add_task(stage, total=total, unit=unit)
        self.progress.update(self.tasks[stage], completed=done, total=total, unit=unit)


@contextmanager
def _bars() -> Iterator[_Bars]:
    bars = _Bars()
    with bars.progress:
        yield bars


def main() -> None:
    """Run the command line; errors are one sentence and an exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched unless asked
    try:
        app()
    except LrmilError as error:
        _report(error, str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        _report(
            error, f"{type(error).__name__}: {error}; this was not expected; run napari-lrmil --debug … and report it"
        )
        sys.exit(FAILED)


def _report(error: Exception, sentence: str) -> None:
    if "--debug" in sys.argv:
        raise error
    err.print(f"[red]error:[/red] {escape(sentence)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
