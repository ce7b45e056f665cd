"""What a prediction leaves on disk: JSON, attention, overlay; each file whole, `prediction.json` last."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from napari_lrmil.core.exports import write_attention_geojson, write_attention_ome
from napari_lrmil.core.files import whole, write_json
from napari_lrmil.core.gallery import top_and_bottom
from napari_lrmil.core.geometry import footprint_um, nominal_magnification
from napari_lrmil.core.overlay import draw_overlay
from napari_lrmil.core.predict import Prediction, Reading
from napari_lrmil.core.slide import Slide
from napari_lrmil.core.slidereport import REPORT, ReportRequest, write_slide_report

STALE = (  # an earlier run's must not stay beside
    "prediction.json",
    "teacher_attention.h5",
    "agreement.json",
    "attention.ome.tif",
    "attention.geojson",
    REPORT,
)


def write_prediction(out: Path, slide: Slide, prediction: Prediction, *, report: ReportRequest | None = None) -> Path:
    """Write everything about one slide into ``out/<slide>``, its report where asked, and return that folder."""
    folder = out / prediction.slide
    folder.mkdir(parents=True, exist_ok=True)
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    write_attention(folder / "attention.h5", prediction, prediction.student)
    if prediction.teacher is not None:
        write_attention(folder / "teacher_attention.h5", prediction, prediction.teacher)
        write_json(folder / "agreement.json", agreement_json(prediction))
    write_attention_ome(folder / "attention.ome.tif", prediction)
    write_attention_geojson(folder / "attention.geojson", prediction, slide.bounds)
    draw_overlay(folder / "overlay.png", slide, prediction)
    if report is not None:
        patches = top_and_bottom(prediction, report.k)
        write_slide_report(folder / REPORT, slide, prediction, patches, report.command, hr_mpp=report.hr_mpp)
    write_json(folder / "prediction.json", prediction.as_json())
    return folder


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
    needed = sum(array.nbytes for array in (reading.coords, reading.attention, reading.evidence))
    with whole(path, needed) as partial, h5py.File(partial, "w") as file:
        coords = file.create_dataset("coords", data=reading.coords)
        coords.attrs.update(attributes)
        file.create_dataset("attention", data=reading.attention)
        evidence = file.create_dataset("evidence", data=reading.evidence)
        evidence.attrs["classes"] = list(prediction.classes)


def agreement_json(prediction: Prediction) -> dict[str, Any]:
    """Return the content of ``agreement.json``; the teacher must have run."""
    student, teacher, agreement = prediction.student, prediction.teacher, prediction.agreement
    if teacher is None or agreement is None:
        raise ValueError("no agreement without a teacher's reading")
    return asdict(agreement) | {
        "probability_student": student.probabilities,
        "probability_teacher": teacher.probabilities,
        "seconds_student": student.seconds["total"],
        "seconds_teacher": teacher.seconds["total"],
    }
