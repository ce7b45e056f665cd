"""What a prediction leaves on disk: JSON, attention, overlay; all of it or nothing, `prediction.json` last."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from napari_lrmil.core.comparison import comparison_json
from napari_lrmil.core.events import Progress
from napari_lrmil.core.exports import write_attention_geojson, write_attention_ome
from napari_lrmil.core.files import whole, whole_folder, write_json
from napari_lrmil.core.geometry import footprint_um, nominal_magnification
from napari_lrmil.core.overlay import draw_overlay
from napari_lrmil.core.prediction import Prediction, Reading
from napari_lrmil.core.slide import Slide
from napari_lrmil.core.slidereport import REPORT, ReportRequest, write_slide_report

PREDICTION = "prediction.json"
TOGETHER = (  # of one run: those that a later run does not write must not stay beside its own
    PREDICTION,
    "attention.h5",
    "teacher_attention.h5",
    "agreement.json",
    "attention.ome.tif",
    "attention.geojson",
    "overlay.png",
    "compare.png",
    REPORT,
)


def write_prediction(out: Path, slide: Slide, prediction: Prediction, *, report: ReportRequest | None = None) -> Path:
    """Write everything about one slide into ``out/<slide>``, its report where asked, and return that folder."""
    for _ in write_steps(out, slide, prediction, report=report):
        pass
    return out / prediction.slide


def write_steps(
    out: Path,
    slide: Slide,
    prediction: Prediction,
    *,
    report: ReportRequest | None = None,
    also: Sequence[Callable[[Path], None]] = (),
) -> Iterator[Progress]:
    """Write everything about one slide into ``out/<slide>``, and yield how far it is before every file.

    What was there before stays whole until all files are written; where they cannot be, or the iterator is closed
    before its end, it stays for good.

    Parameters
    ----------
    out
        Folder of all slides.
    slide
        The slide, open.
    prediction
        What was found out about it.
    report
        What the report needs; None writes none.
    also
        Write more files into the folder that they are given.
    """
    steps = [*_steps(slide, prediction, report), *also]
    with whole_folder(out / prediction.slide, TOGETHER, PREDICTION) as folder:
        for done, step in enumerate(steps):
            yield Progress("writing", done, len(steps), "files")
            step(folder)
        write_json(folder / PREDICTION, prediction.as_json())
        yield Progress("writing", len(steps), len(steps), "files")


def _steps(slide: Slide, prediction: Prediction, report: ReportRequest | None) -> Iterator[Callable[[Path], object]]:
    """Yield what writes the files of a run into a folder, one or two each."""
    teacher = prediction.teacher
    yield lambda folder: write_attention(folder / "attention.h5", prediction, prediction.student)
    if teacher is not None:
        yield lambda folder: write_attention(folder / "teacher_attention.h5", prediction, teacher)
        yield lambda folder: write_json(folder / "agreement.json", comparison_json(prediction))
    yield lambda folder: write_attention_ome(folder / "attention.ome.tif", prediction)
    yield lambda folder: write_attention_geojson(folder / "attention.geojson", prediction, slide.bounds)
    yield lambda folder: draw_overlay(folder / "overlay.png", slide, prediction)
    if report is not None:
        yield lambda folder: write_slide_report(folder / REPORT, slide, prediction, report)


def write_attention(path: Path, prediction: Prediction, reading: Reading) -> None:
    """Write coordinates, attention and evidence of one network as HDF5."""
    import h5py

    mpp = prediction.grid.lattice.mpp
    width, height = prediction.level0_size
    attributes = {
        "patch_size": round(footprint_um(reading.patch_level0, mpp.mean) / reading.target_mpp),
        "patch_size_level0": reading.patch_level0[0],
        "patch_level0_xy": reading.patch_level0,
        "level0_magnification": nominal_magnification(mpp.mean),
        "target_magnification": 10 / reading.target_mpp,
        "overlap": 0,
        "level0_width": width,
        "level0_height": height,
        "name": prediction.slide,
        "savetodir": "None",
        "mpp0": mpp.mean,
        "target_mpp": reading.target_mpp,
        "patch_um": footprint_um(reading.patch_level0, mpp.mean),
        "slide_fingerprint": prediction.slide_fingerprint,
        "bundle_sha256": prediction.bundle_sha256,
    }
    content = io.BytesIO()  # made in memory, for HDF5 does not survive a disk that fills up while it writes
    with h5py.File(content, "w") as file:
        coords = file.create_dataset("coords", data=reading.coords)
        coords.attrs.update(attributes)
        file.create_dataset("attention", data=reading.attention)
        evidence = file.create_dataset("evidence", data=reading.evidence)
        evidence.attrs["classes"] = list(prediction.classes)
    with whole(path) as partial:
        partial.write_bytes(content.getbuffer())
