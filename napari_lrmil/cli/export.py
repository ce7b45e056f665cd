"""Commands ``export`` and ``export-model``: results and models in the formats of other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from napari_lrmil.cli.console import SOME_FAILED, BundleOption, print_notice, print_result
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.text_escapes import printable

ExportFormat = Literal["qupath", "wsinfer", "dicom"]
SlideWriter = Callable[[Path, Path], str]  # (folder of one slide's results, --out) -> what was written, as text
STEP = "export"  # in failures.csv


def export(
    results: Annotated[list[Path], typer.Argument(help="folders that predict or compare wrote, or of single slides")],
    export_format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="qupath: tiles and a script; wsinfer: class probabilities of patches as CSV; dicom: parametric maps",
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", help="folder for the files")] = Path("export"),
    slides: Annotated[
        Path | None, typer.Option(help="dicom: folder of the slides, if they are not where the results say")
    ] = None,
    keep_patient: Annotated[
        bool, typer.Option("--keep-patient", help="dicom: copy the tags of patient, study and specimen from the slide")
    ] = False,
) -> None:
    """Write results for other programs. No model is opened, and the results are not changed."""
    folders = find_result_folders(results)
    _require_options(export_format, slides, keep_patient)
    _require_other_folder(folder, folders)
    require_writable(folder)
    failures = _write_slides(folders, folder, _slide_writer(export_format, slides, keep_patient))
    if export_format == "qupath":
        from napari_lrmil.core.results.qupath import write_heatmap_script

        print_result(f"script for QuPath -> {write_heatmap_script(folder)}")
    if failures:
        raise typer.Exit(SOME_FAILED)


def export_model(
    bundle: BundleOption,
    folder: Annotated[Path, typer.Option("--out", help="folder for the model; its name is the model's in QuPath")],
) -> None:
    """Write a student's patch classifier as TorchScript with config.json, for WSInfer and its QuPath extension."""
    require_writable(folder)
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.models.wsinfer_model import write_wsinfer_model

    for text in write_wsinfer_model(folder, Bundle(bundle)):
        print_notice("", text)
    print_result(f"{bundle} for WSInfer -> {folder}")


def find_result_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the folders of slides' results at these paths: each is one, or holds several.

    Raises
    ------
    ConfigError
        If a path has no results, or two folders have the same name and would be written to the same file.
    """
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.results.schema import PREDICTION

    folders: list[Path] = []
    for path in paths:
        inside = [path] if (path / PREDICTION).is_file() else sorted(p.parent for p in path.glob(f"*/{PREDICTION}"))
        if not inside:
            raise ConfigError(f"{path}: no results (*/{PREDICTION}); expected the --out folder of predict or compare")
        folders += inside
    names = Counter(path.resolve().name for path in folders)
    doubled = next((name for name, count in names.items() if count > 1), None)
    if doubled is not None:
        raise ConfigError(f"two results are named {printable(doubled)}; export each to a folder of its own")
    return folders


def _require_other_folder(out: Path, results: Sequence[Path]) -> None:
    """Raise `ConfigError` if the files would lie among the results, whose ``failures.csv`` is of another command."""
    from napari_lrmil.core.errors import ConfigError

    places = {place.resolve() for result in results for place in (result, result.parent)}
    if out.resolve() in places:
        raise ConfigError(f"--out {out}: this is a folder of results; choose another one for the export")


def _require_options(export_format: ExportFormat, slides: Path | None, keep_patient: bool) -> None:
    """Raise `ConfigError` for options of another format, a folder that does not exist, and a missing library."""
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.extras import require_extra

    if export_format == "dicom":
        require_extra("dicom", "the export to DICOM")
    elif slides is not None or keep_patient:
        raise ConfigError(f"--slides and --keep-patient belong to --format dicom, and the format is {export_format}")
    if slides is not None and not slides.is_dir():
        raise ConfigError(f"--slides {slides}: no such folder; expected the folder of the slides")


def _slide_writer(export_format: ExportFormat, slides: Path | None, keep_patient: bool) -> SlideWriter:
    """Return what writes one slide."""
    writers: dict[ExportFormat, SlideWriter] = {
        "qupath": _write_qupath,
        "wsinfer": _write_wsinfer,
        "dicom": partial(_write_dicom, slides, keep_patient),
    }
    return writers[export_format]


def _write_qupath(result: Path, out: Path) -> str:
    from napari_lrmil.core.results.qupath import copy_attention_geojson

    return str(copy_attention_geojson(result, out))


def _write_wsinfer(result: Path, out: Path) -> str:
    from napari_lrmil.core.results.reader import read_prediction_folder
    from napari_lrmil.core.results.wsinfer import write_patch_probabilities

    return ", ".join(map(str, write_patch_probabilities(out, read_prediction_folder(result))))


def _write_dicom(slides: Path | None, keep_patient: bool, result: Path, out: Path) -> str:
    from napari_lrmil.core.results.dicom import write_dicom_maps
    from napari_lrmil.core.results.dicom_frame import find_slide_frame
    from napari_lrmil.core.results.reader import read_prediction_folder

    stored = read_prediction_folder(result)
    frame = find_slide_frame(stored, [slides] if slides is not None else [], keep_patient=keep_patient)
    path, _ = write_dicom_maps(out / result.resolve().name, stored, frame)
    where = f"own frame of reference: {frame.own_reason}" if frame.own_reason else "the slide's frame of reference"
    return f"{path.parent} ({where})"


def _write_slides(results: Sequence[Path], out: Path, write: SlideWriter) -> dict[str, str]:
    """Write each slide and print where; return slide -> reason of those that failed, which are in ``failures.csv``."""
    from napari_lrmil.core.errors import DiskFullError, LrmilError
    from napari_lrmil.core.results.cohort_tables import write_failures

    failures: dict[str, str] = {}
    for result in results:
        name = result.resolve().name
        try:
            print_result(f"{name} -> {write(result, out)}")
        except DiskFullError:
            raise
        except LrmilError as error:
            failures[name] = str(error)
            print_notice(name, str(error))
    write_failures(out, STEP, failures, {path.resolve().name for path in results})
    return failures
