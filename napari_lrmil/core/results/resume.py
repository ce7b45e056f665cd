"""Whether an earlier call left the very result that is asked for now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.errors import NewerSchemaError, StoredError
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.roi import WHOLE_SLIDE
from napari_lrmil.core.results.reader import STORED_MPP_TOLERANCE
from napari_lrmil.core.results.schema import PREDICTION, PredictionFile
from napari_lrmil.core.runtimes.select import RuntimeChoice
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.slide_report import REPORT


@dataclass(frozen=True)
class ResultRequirements:
    """What a result has to be about.

    Attributes
    ----------
    bundle_sha256
        The model.
    teacher
        LR patches that the teacher has to have read.
    report
        Whether ``report.html`` has to be there too.
    reader
        What has to have decoded the slide; None for any.
    runtime
        Name and precision of what has to have run the encoder; None for any.
    """

    bundle_sha256: str
    teacher: TeacherPatches = TeacherPatches.NONE
    report: bool = False
    reader: str | None = None
    runtime: RuntimeChoice | None = None


def find_reusable_result(folder: Path, slide: Slide, wanted: ResultRequirements) -> PredictionFile | None:
    """Return the ``prediction.json`` of a slide's `folder` where it answers what is asked; None where it does not.

    The slide (by its pixels' fingerprint and its resolution), the model, the scope and the teacher have to be the same.
    A result with a teacher answers for the student alone too: to make it again would take the teacher's away.

    Raises
    ------
    NewerSchemaError
        If a newer version of this program wrote the file, so that nothing can be said about the result.
    """
    if not (folder / PREDICTION).is_file():
        return None
    try:
        file = PredictionFile.read(folder)
    except NewerSchemaError:
        raise
    except StoredError:  # broken: it is made again
        return None
    same = (
        file.slide_fingerprint == slide.fingerprint
        and file.bundle_sha256 == wanted.bundle_sha256
        and file.scope == WHOLE_SLIDE.text
        and _same_resolution(file, slide)
        and _teacher_as_wanted(file, wanted.teacher)
        and wanted.reader in (None, file.reader)
        and _runtime_as_wanted(file, wanted.runtime)
    )
    whole = (folder / "attention.h5").is_file() and ((folder / REPORT).is_file() or not wanted.report)
    return file if same and whole else None


def _same_resolution(file: PredictionFile, slide: Slide) -> bool:
    return file.mpp is not None and slide.has_mpp and abs(file.mpp / slide.mpp.mean - 1) <= STORED_MPP_TOLERANCE


def _teacher_as_wanted(file: PredictionFile, patches: TeacherPatches) -> bool:
    if patches == TeacherPatches.NONE:
        return True
    return file.teacher is not None and file.teacher.n_lr_patches == patches.count(file.n_patches)


def _runtime_as_wanted(file: PredictionFile, runtime: RuntimeChoice | None) -> bool:
    return runtime is None or (file.runtime, file.precision) == (runtime.name, runtime.precision)
