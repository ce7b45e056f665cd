"""Writer of the result files of one slide: all of them or none, ``prediction.json`` last."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from napari_lrmil.core.atomic_files import atomic_write, atomic_write_folder
from napari_lrmil.core.errors import LrmilError, StoredError
from napari_lrmil.core.events import Progress
from napari_lrmil.core.geometry import footprint_um, nominal_magnification
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_comparison import score_lesion_localisation
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.results.exports import write_attention_ome
from napari_lrmil.core.results.qupath import GEOJSON, write_attention_geojson
from napari_lrmil.core.results.schema import (
    AGREEMENT,
    PREDICTION,
    AgreementFile,
    ArtefactsResult,
    CohortDistanceResult,
    MissingTilesResult,
    OperatingPointResult,
    PredictionFile,
    PredictionSetResult,
    TeacherResult,
    require_replaceable,
)
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import MIRAX, path_in_cohort
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.visualize.overlay_picture import OVERLAY, draw_overlay
from napari_lrmil.core.visualize.slide_report import REPORT, ReportRequest, write_slide_report
from napari_lrmil.version import __version__

RESULT_FILES = (  # files that the new run does not write are deleted, because they belong to the old one
    PREDICTION,
    "attention.h5",
    "teacher_attention.h5",
    AGREEMENT,
    "attention.ome.tif",
    GEOJSON,
    OVERLAY,
    "compare.png",
    REPORT,
)


def write_prediction(
    out: Path, slide: Slide, prediction: Prediction, *, report: ReportRequest | None = None, overlay: bool = True
) -> Path:
    """Write all files of one slide into ``out/<slide>``, see `write_steps`. Return that folder."""
    for _ in write_steps(out, slide, prediction, report=report, overlay=overlay):
        pass
    return out / prediction.slide


def write_steps(
    out: Path,
    slide: Slide,
    prediction: Prediction,
    *,
    report: ReportRequest | None = None,
    also: Sequence[Callable[[Path], None]] = (),
    replace_newer: bool = False,
    overlay: bool = True,
    path: str = "",
) -> Iterator[Progress]:
    """Write all files of one slide into ``out/<slide>``; yield `Progress` before each file.

    Earlier results stay until all files are written. They also stay if a file cannot be written or the iterator is
    closed early.

    Parameters
    ----------
    out
        Folder of all slides.
    report
        Contents of the report; None writes none.
    also
        Writers of further files; each gets the folder.
    replace_newer
        Whether results of a newer schema version may be replaced.
    overlay
        Whether ``overlay.png`` is drawn.
    path
        Path of the slide for ``prediction.json``; if it is empty, the file name.

    Raises
    ------
    NewerSchemaError
        If ``out/<slide>`` has such results, and they may not be replaced.
    """
    if not replace_newer:
        require_replaceable(out / prediction.slide)
    steps = [*_steps(slide, prediction, report, overlay), *also]
    with atomic_write_folder(out / prediction.slide, RESULT_FILES, PREDICTION) as folder:
        for done, step in enumerate(steps):
            yield Progress("writing", done, len(steps), "files")
            step(folder)
        # Last, because resume takes this file as the sign of a complete folder.
        build_prediction_file(prediction, path).write(folder)
        yield Progress("writing", len(steps), len(steps), "files")


def require_result_folder(folder: Path, slide: Path) -> None:
    """Raise `StoredError` if a slide's results cannot be written to `folder`, or would lie among its own files."""
    is_tile_folder = slide.suffix.lower() == MIRAX and _same_path(folder, slide.with_suffix(""))
    if is_tile_folder or (slide.is_dir() and _same_path(folder, slide)):
        raise StoredError(folder, "the results would be written among the files of the slide; choose another --out")
    if os.path.lexists(folder) and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise StoredError(folder, "this is no folder that can be written to; move it away, or choose another --out")


def _same_path(first: Path, second: Path) -> bool:
    """Return whether two paths are the same file or folder."""
    return first.exists() and second.exists() and first.samefile(second)


def _steps(
    slide: Slide, prediction: Prediction, report: ReportRequest | None, overlay: bool
) -> Iterator[Callable[[Path], object]]:
    """Yield one function per file; each writes its file into the folder that it gets."""
    teacher = prediction.teacher
    yield lambda folder: write_attention(folder / "attention.h5", prediction, prediction.student)
    if teacher is not None:
        yield lambda folder: write_attention(folder / "teacher_attention.h5", prediction, teacher)
        yield lambda folder: build_agreement_file(prediction).write(folder)
    yield lambda folder: write_attention_ome(folder / "attention.ome.tif", prediction)
    yield lambda folder: write_attention_geojson(folder / GEOJSON, prediction, slide.bounds)
    if overlay:
        yield lambda folder: draw_overlay(folder / OVERLAY, slide, prediction)
    if report is not None:
        yield lambda folder: write_slide_report(folder / REPORT, slide, prediction, report)


def build_prediction_file(prediction: Prediction, path: str = "") -> PredictionFile:
    """Return the content of ``prediction.json``, see `write_steps`."""
    student, grid, reader, finest = prediction.student, prediction.grid, prediction.reader, prediction.finest_read
    missing, limits, distance = prediction.missing_tiles, prediction.limits, prediction.cohort_distance
    return PredictionFile(
        slide=prediction.slide,
        path=printable(path or path_in_cohort(prediction.path, prediction.path)),
        slide_fingerprint=prediction.slide_fingerprint,
        bundle=prediction.bundle,
        bundle_sha256=prediction.bundle_sha256,
        classes=prediction.classes,
        probabilities=student.probabilities,
        calibrated=prediction.calibrated,
        logits=student.logits,
        predicted=student.predicted,
        mpp=grid.lattice.mpp.mean,
        lr_mpp=student.target_mpp,
        patch_um=grid.lattice.lr_um,
        n_patches=len(grid.lr_index),
        n_hr_patches=prediction.n_hr_patches,
        pixels_decoded=student.pixels_decoded,
        reader=reader.name if reader else None,
        reader_reason=reader.reason if reader else None,
        finest_mpp_read=finest.mpp if finest else None,
        finest_mpp_reason=finest.reason if finest else None,
        scope=prediction.scope.text,
        device=prediction.device,
        runtime=student.runtime.name,
        precision=student.runtime.precision,
        runtime_reason=student.runtime.reason,
        seconds=student.seconds,
        warnings=prediction.warnings,
        missing_tiles=MissingTilesResult(**asdict(missing)) if missing.sentences else None,
        operating_point=OperatingPointResult(**asdict(limits.side)) if limits.side else None,
        prediction_set=PredictionSetResult(**asdict(limits.classes)) if limits.classes else None,
        limits_cautions=limits.cautions or None,
        cohort_distance=CohortDistanceResult(**asdict(distance)) if distance else None,
        artefacts=ArtefactsResult(**asdict(prediction.artefacts)) if prediction.artefacts else None,
        attention_mass=student.attention_mass,
        patches_from_cache=_patches_from_cache(prediction),
        version=__version__,
        teacher=_teacher_result(prediction),
    )


def _patches_from_cache(prediction: Prediction) -> dict[str, int] | None:
    """Return network -> patches that were not encoded for this prediction; None if all were."""
    counts = {"student": prediction.student.patches_from_cache}
    if prediction.teacher is not None:
        counts["teacher"] = prediction.teacher.patches_from_cache
    return counts if any(counts.values()) else None


def _teacher_result(prediction: Prediction) -> TeacherResult | None:
    teacher = prediction.teacher
    if teacher is None:
        return None
    return TeacherResult(
        probabilities=teacher.probabilities,
        calibrated=prediction.calibrated and not prediction.partly_compared,
        logits=teacher.logits,
        n_lr_patches=prediction.teacher_patches.count(len(prediction.grid.lr_index)),
        n_patches=len(teacher.attention),
        pixels_decoded=teacher.pixels_decoded,
        runtime=teacher.runtime.name,
        precision=teacher.runtime.precision,
        runtime_reason=teacher.runtime.reason,
        seconds=teacher.seconds,
    )


def build_agreement_file(prediction: Prediction, lesions: Sequence[Region] = ()) -> AgreementFile:
    """Return the content of ``agreement.json``, with lesion localisation if lesions are given.

    Raises
    ------
    LrmilError
        If the teacher did not run.
    """
    student, teacher, agreement = prediction.student, prediction.teacher, prediction.agreement
    if teacher is None or agreement is None:
        raise LrmilError(
            f"{prediction.slide}: the teacher did not run, so there is nothing to compare; run the teacher first"
        )
    metrics = score_lesion_localisation(prediction, lesions) if lesions else None
    return AgreementFile(
        spearman=agreement.spearman,
        jaccard_top10=agreement.jaccard_top10,
        js_divergence=agreement.js_divergence,
        n_patches=agreement.n_patches,
        probability_student=student.probabilities,
        probability_teacher=teacher.probabilities,
        seconds_student=student.seconds["total"],
        seconds_teacher=teacher.seconds["total"],
        pixels_student=student.pixels_decoded,
        pixels_teacher=teacher.pixels_decoded,
        lesion_auroc_student=metrics.lesion_auroc_student if metrics else None,
        lesion_auroc_teacher=metrics.lesion_auroc_teacher if metrics else None,
        pointing_student=metrics.pointing_student if metrics else None,
        pointing_teacher=metrics.pointing_teacher if metrics else None,
        n_lesion_patches=metrics.n_lesion_patches if metrics else None,
        patches_from_cache=_patches_from_cache(prediction),
    )


def write_attention(path: Path, prediction: Prediction, network: NetworkPrediction) -> None:
    """Write coordinates, attention and evidence of one network as HDF5, with the attributes that TRIDENT reads."""
    import h5py

    mpp = prediction.grid.lattice.mpp
    width, height = prediction.level0_size
    # TRIDENT's attributes, so that its tools can read the file, and our own.
    attributes = {
        "patch_size": round(footprint_um(network.patch_level0, mpp.mean) / network.target_mpp),
        "patch_size_level0": network.patch_level0[0],
        "patch_level0_xy": network.patch_level0,
        "level0_magnification": nominal_magnification(mpp.mean),
        "target_magnification": 10 / network.target_mpp,
        "overlap": 0,
        "level0_width": width,
        "level0_height": height,
        "name": prediction.slide,
        "savetodir": "None",
        "mpp0": mpp.mean,
        "target_mpp": network.target_mpp,
        "patch_um": footprint_um(network.patch_level0, mpp.mean),
        "slide_fingerprint": prediction.slide_fingerprint,
        "bundle_sha256": prediction.bundle_sha256,
    }
    content = io.BytesIO()  # in memory first: HDF5 does not recover from a disk that fills up while it writes
    with h5py.File(content, "w") as file:
        coords = file.create_dataset("coords", data=network.coords)
        coords.attrs.update(attributes)
        file.create_dataset("attention", data=network.attention)
        evidence = file.create_dataset("evidence", data=network.evidence)
        evidence.attrs["classes"] = list(prediction.classes)
        if network.embedding is not None and network.attention_mass is not None:  # for the answer by patient
            file.create_dataset("embedding", data=network.embedding)
        if network.patch_logits is not None:
            file.create_dataset("patch_logits", data=network.patch_logits).attrs["classes"] = list(prediction.classes)
    with atomic_write(path) as partial:
        partial.write_bytes(content.getbuffer())
