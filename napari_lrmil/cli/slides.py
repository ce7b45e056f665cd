"""Commands on slides: what they are, and what the student says of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from napari_lrmil.cli.console import (
    SOME_FAILED,
    BundleOption,
    Device,
    MppOption,
    Out,
    chosen_device,
    err,
    follow,
    load_networks,
    out,
)
from napari_lrmil.core.errors import DiskFullError, LrmilError

if TYPE_CHECKING:
    import torch

    from napari_lrmil.core.bundle import Bundle
    from napari_lrmil.core.grid import Ground
    from napari_lrmil.core.prediction import Prediction
    from napari_lrmil.core.slide import Slide
    from napari_lrmil.core.slidereport import ReportRequest

SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".tif", ".tiff", ".dcm")


def info(
    slide: Annotated[Path, typer.Argument(help="slide, or folder of one DICOM slide")],
    mpp: MppOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a slide is: vendor, levels, resolution and where it came from, bounds, ICC, associated images."""
    from napari_lrmil.core.remembered import Remembered
    from napari_lrmil.core.slide import Slide

    with Slide(slide, mpp=mpp, remembered=Remembered().remembered_mpp) as opened:
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
    folder: Out = Path("predictions"),
    device: Device = "auto",
    mpp: MppOption = None,
    teacher: Annotated[
        str, typer.Option(help="none, all, or top-K: the HR teacher beside it, everywhere or where it looked most")
    ] = "none",
    roi: Annotated[Path | None, typer.Option(help="only these regions: GeoJSON of QuPath, or ASAP's XML")] = None,
    keep: Annotated[Path | None, typer.Option(help="leave out all but these regions")] = None,
    exclude: Annotated[Path | None, typer.Option(help="leave these regions out")] = None,
    tissue: Annotated[Path | None, typer.Option(help="a tissue mask (PNG) saved from the window")] = None,
    report: Annotated[bool, typer.Option("--report", help="write report.html for each slide too")] = False,
) -> None:
    """Run the LR student on slides: probabilities, attention, overlay. One bad slide stops nobody."""
    from napari_lrmil.core.bundle import Bundle
    from napari_lrmil.core.tables import write_failures, write_predictions
    from napari_lrmil.core.teacherchoice import require_choice

    require_choice(teacher)
    model, files = Bundle(bundle), {"roi": roi, "keep": keep, "exclude": exclude, "tissue": tissue}
    told = load_networks(model, teacher=teacher != "none")  # a broken bundle is no slide's fault: load it now
    asked = _Asked(model, str(bundle), chosen_device(device), folder, teacher, report, files, told)
    _usable(folder)
    failures: dict[str, str] = {}
    named: dict[str, Path] = {}
    chosen_slides = expand(slides)
    _one_slide_for_parts(chosen_slides, files)
    try:
        for path, own_mpp in chosen_slides:
            try:
                _refuse_same_name(named, path)
                _predict_one(path, mpp or own_mpp, asked)
            except DiskFullError:
                raise
            except (LrmilError, OSError) as error:
                failures[path.name] = str(error).removeprefix(f"{path}: ")
                reason = escape(failures[path.name])
                err.print(f"[red]{escape(path.name)}[/red]: {reason}", highlight=False, soft_wrap=True)
    finally:  # also after Ctrl-C: what is done stays, and is listed
        write_predictions(folder)
        write_failures(folder, "predict", failures, {path.name for path, _ in chosen_slides})
    if failures:
        raise typer.Exit(SOME_FAILED)


@dataclass(frozen=True)
class _Asked:
    """What every slide of a call is asked: by which model, where, with what beside it, about which part."""

    model: Bundle
    named: str
    device: torch.device
    folder: Path
    teacher: str
    report: bool
    files: Mapping[str, Path | None]
    told: set[str]  # cautions that were said already
    compare: bool = False  # whether student and teacher are to be drawn side by side


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
    folder: Out = Path("predictions"),
    device: Device = "auto",
    mpp: MppOption = None,
    teacher: Annotated[str, typer.Option(help="all, or top-K: only where the student looked most")] = "all",
    roi: Annotated[Path | None, typer.Option(help="only these regions: GeoJSON of QuPath, or ASAP's XML")] = None,
    lesions: Annotated[
        Path | None, typer.Option(help="annotated lesions; left out: SLIDE_lesions.geojson beside the slide, if any")
    ] = None,
) -> None:
    """Run student and HR teacher on a slide: how far they agree, where they differ, what each costs."""
    from napari_lrmil.core.bundle import Bundle
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.tables import write_predictions
    from napari_lrmil.core.teacherchoice import NONE, require_choice

    require_choice(teacher)
    if teacher == NONE:
        raise ConfigError("--teacher none leaves nothing to compare; expected all or top-K, as in top-20")
    model = Bundle(bundle)
    model.require_teacher()
    told, files = load_networks(model, teacher=True), {"roi": roi, "lesions": lesions}
    _usable(folder)
    asked = _Asked(model, str(bundle), chosen_device(device), folder, teacher, False, files, told, compare=True)
    _predict_one(slide, mpp, asked)
    write_predictions(folder)


def _write_comparison(folder: Path, slide: Slide, prediction: Prediction, lesions: Path | None) -> None:
    from napari_lrmil.core.comparepicture import draw_comparison
    from napari_lrmil.core.comparison import comparison_json, lesions_beside
    from napari_lrmil.core.files import write_json
    from napari_lrmil.core.regions import read_regions

    known = (
        read_regions(lesions, slide.bounds, may_be_empty=True).regions
        if lesions
        else lesions_beside(slide.path, slide.bounds)
    )
    draw_comparison(folder / "compare.png", slide, prediction, known)
    write_json(folder / "agreement.json", comparison_json(prediction, known))


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


def _predict_one(path: Path, mpp: float | None, asked: _Asked) -> None:
    from napari_lrmil.core.comparepicture import agreement_text
    from napari_lrmil.core.predict import predict as run
    from napari_lrmil.core.remembered import Remembered
    from napari_lrmil.core.results import write_prediction
    from napari_lrmil.core.scope import read_scope
    from napari_lrmil.core.slide import Slide

    began = time.perf_counter()
    with Slide(path, mpp=mpp, remembered=Remembered().remembered_mpp) as slide:
        opened = time.perf_counter() - began
        stream = run(
            slide,
            asked.model,
            device=asked.device,
            teacher=asked.teacher,
            seconds_open=opened,
            scope=read_scope({k: v for k, v in asked.files.items() if k in ("roi", "keep", "exclude")}, slide.bounds),
            ground=_edited(slide, asked),
        )
        prediction: Prediction = follow(stream, path.name, told=asked.told)
        where = write_prediction(asked.folder, slide, prediction, report=_report_request(path, mpp, asked))
        if asked.compare:
            _write_comparison(where, slide, prediction, asked.files.get("lesions"))
    shown = ", ".join(f"{c} {p:.3f}" for c, p in prediction.student.probabilities.items())
    agreement = prediction.agreement
    beside = f"; with the teacher: {agreement_text(prediction)}" if agreement else ""
    patches = f"{len(prediction.grid.lr_index)} LR patches in place of {len(prediction.grid.hr_index)} HR"
    part = "" if prediction.scope.whole else f"{prediction.scope.text}, region score: "
    out.print(f"{path.name}: {part}{shown} ({patches}{beside}) -> {where}", highlight=False, soft_wrap=True)


def _edited(slide: Slide, asked: _Asked) -> Ground | None:
    """Return the tissue of a mask that was changed by hand; None where there is none."""
    from napari_lrmil.core.grid import edited_ground, ground_of
    from napari_lrmil.core.tissue import read_mask

    file, card = asked.files.get("tissue"), asked.model.card
    if file is None:
        return None
    found = ground_of(slide, card.plan, card.tissue)
    return edited_ground(slide.path, found, read_mask(file, found.tissue), card.tissue)


def _report_request(path: Path, mpp: float | None, asked: _Asked) -> ReportRequest | None:
    """Return what a slide's report needs; the device is the one that was chosen, so that the numbers come again."""
    from napari_lrmil.core.commandline import predict_command
    from napari_lrmil.core.slidereport import ReportRequest

    if not asked.report:
        return None
    words = {"bundle": asked.named, "out": asked.folder.absolute(), "device": str(asked.device), "mpp": mpp}
    files = {name: file.absolute() for name, file in asked.files.items() if file is not None}
    command = predict_command(path, teacher=asked.teacher, report=True, **words, **files)  # type: ignore[arg-type]  # a type each
    return ReportRequest(command, asked.model.card.hr_mpp)


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
