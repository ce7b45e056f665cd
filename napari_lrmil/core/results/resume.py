"""Resume: reuse a stored result if slide, model, scope, teacher, reader and runtime match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.errors import NewerSchemaError, StoredError
from napari_lrmil.core.inference.slide_limits import OperatingSide, PredictionSet, slide_limits
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.missing_tissue import MOST_SHARE
from napari_lrmil.core.patching.roi import WHOLE_SLIDE
from napari_lrmil.core.results.reader import STORED_MPP_TOLERANCE
from napari_lrmil.core.results.schema import PREDICTION, PredictionFile
from napari_lrmil.core.runtimes.select import RuntimeChoice
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.overlay_picture import OVERLAY
from napari_lrmil.core.visualize.slide_report import REPORT


@dataclass(frozen=True)
class ResultRequirements:
    """Requirements that a stored result must meet to be reused.

    Attributes
    ----------
    bundle_sha256
        Hash of the model.
    teacher
        LR patches that the teacher must have read.
    report
        Whether ``report.html`` is required too.
    reader
        Reader that must have decoded the slide; None for any.
    runtime
        Runtime and precision that must have run the encoder; None for any.
    overlay
        Whether ``overlay.png`` is required too.
    allow_missing
        Whether a result is reused that hides more of the tissue than is predicted without a word of the user.
    exclude_artefacts
        Whether artefacts must have been left out of the tissue, if there are any.
    """

    bundle_sha256: str
    teacher: TeacherPatches = TeacherPatches.NONE
    report: bool = False
    reader: str | None = None
    runtime: RuntimeChoice | None = None
    overlay: bool = False
    allow_missing: bool = False
    exclude_artefacts: bool = False


def find_reusable_result(folder: Path, slide: Slide, required: ResultRequirements) -> PredictionFile | None:
    """Return the ``prediction.json`` in a slide's `folder` if it meets the requirements, else None.

    Slide (fingerprint of its pixels, and resolution), model, scope and teacher must match. A result with a teacher is
    also reused for the student alone, because computing it again would delete the teacher's part.

    Raises
    ------
    NewerSchemaError
        If a newer version of this program wrote the file: its keys may mean something else.
    """
    if not (folder / PREDICTION).is_file():
        return None
    try:
        file = PredictionFile.read(folder)
    except NewerSchemaError:
        raise
    except StoredError:  # broken: the slide is predicted again
        return None
    matches = (
        file.slide_fingerprint == slide.fingerprint
        and file.bundle_sha256 == required.bundle_sha256
        # Regions are not stored, so only results of whole slides can be matched.
        and file.scope == WHOLE_SLIDE.text
        and _resolution_matches(file, slide)
        and _teacher_matches(file, required.teacher)
        and required.reader in (None, file.reader)
        and _runtime_matches(file, required.runtime)
        and _artefacts_match(file, required.exclude_artefacts)
        and (required.allow_missing or file.missing_tiles is None or file.missing_tiles.tissue_share <= MOST_SHARE)
    )
    files = ("attention.h5", *([REPORT] if required.report else []), *([OVERLAY] if required.overlay else []))
    is_complete = all((folder / name).is_file() for name in files)
    return file if matches and is_complete else None


def has_limits_of(file: PredictionFile, bundle: Bundle) -> bool:
    """Return whether a result of a whole slide states the limits that the bundle has now."""
    limits = slide_limits(bundle, file.probabilities)
    side, classes = file.operating_point, file.prediction_set
    return (None if side is None else OperatingSide(**side.model_dump())) == limits.side and (
        None if classes is None else PredictionSet(**classes.model_dump())
    ) == limits.classes


def _resolution_matches(file: PredictionFile, slide: Slide) -> bool:
    return file.mpp is not None and slide.has_mpp and abs(file.mpp / slide.mpp.mean - 1) <= STORED_MPP_TOLERANCE


def _artefacts_match(file: PredictionFile, exclude_artefacts: bool) -> bool:
    # Results of versions that did not look for artefacts do not say whether there are any.
    return file.artefacts.excluded == exclude_artefacts if file.artefacts is not None else not exclude_artefacts


def _teacher_matches(file: PredictionFile, patches: TeacherPatches) -> bool:
    if patches == TeacherPatches.NONE:
        return True
    # By number: the top K of a slide with fewer than K patches are all of them.
    return file.teacher is not None and file.teacher.n_lr_patches == patches.count(file.n_patches)


def _runtime_matches(file: PredictionFile, runtime: RuntimeChoice | None) -> bool:
    return runtime is None or (file.runtime, file.precision) == (runtime.name, runtime.precision)
