"""Readers of stored results: one slide with or without slide and model, and one row per slide of a cohort."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import Int64, Lattice
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.slide_limits import slide_limits
from napari_lrmil.core.metrics.agreement import few_patches_caution, measure_agreement
from napari_lrmil.core.models.cohort_distance import CohortDistance
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.missing_tissue import NOTHING_MISSING, MissingTiles
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, WORDS, Kind, RegionOfInterest
from napari_lrmil.core.results.schema import PREDICTION, AgreementFile, PredictionFile, TeacherResult, unreadable_error
from napari_lrmil.core.runtimes.select import REFERENCE, RuntimeChoice
from napari_lrmil.core.slides.slide import FinestRead
from napari_lrmil.core.slides.tile_reader import ReaderChoice

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.slide import Slide

SUM_TOLERANCE = 1e-3  # attention is a float32 sum of many small shares
MAX_FOLDERS_UP = 4  # between results and the folder above the cohort; more could reach the slides of others
STORED_MPP_TOLERANCE = 1e-4  # relative; rounding of a stored value is far below this, another resolution far above


@dataclass(frozen=True)
class StoredPatches:
    """Attention of one network, as ``attention.h5`` or ``teacher_attention.h5`` stores it.

    Attributes
    ----------
    coords
        (N, 2) level-0 corner of each patch, x then y.
    attention
        (N,) sums to 1.
    evidence
        (N, C) contribution of each patch to the centred logit of each class, classes as in ``prediction.json``.
    attributes
        Attributes of the coordinates, such as ``mpp0`` (µm per level-0 pixel) and the size of a patch.
    patch_logits
        (N, C) raw class scores of each patch alone; None in files of versions that did not store them.
    """

    coords: Int64
    attention: Features
    evidence: Features
    attributes: Mapping[str, Any]
    patch_logits: Features | None = None


@dataclass(frozen=True)
class StoredPrediction:
    """Results of one slide, read without the slide and without the model.

    Attributes
    ----------
    folder
        Folder of the files.
    summary
        ``prediction.json``: classes, probabilities, warnings, resolution, costs.
    student
        Attention and evidence of the student's patches.
    teacher
        The same of the HR teacher; None if it did not run.
    agreement
        ``agreement.json``; None if the teacher did not run.
    """

    folder: Path
    summary: PredictionFile
    student: StoredPatches
    teacher: StoredPatches | None = None
    agreement: AgreementFile | None = None

    @property
    def probabilities(self) -> dict[str, float]:
        """Class -> probability of the student."""
        return self.summary.probabilities

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.summary.predicted


def read_prediction_folder(folder: Path) -> StoredPrediction:
    """Return the results of one slide, checked as far as possible without slide and model.

    Raises
    ------
    StoredError
        If a file is missing, broken, or of a newer schema version.
    """
    summary = PredictionFile.read(folder)
    n_classes = len(summary.classes)
    student = _read_patches(folder / "attention.h5", n_classes)
    if summary.teacher is None:
        return StoredPrediction(folder, summary, student)
    teacher = _read_patches(folder / "teacher_attention.h5", n_classes)
    return StoredPrediction(folder, summary, student, teacher, AgreementFile.read(folder))


def find_result_folder(folder: Path, slide: Slide) -> Path:
    """Return the folder of one slide's results: `folder` itself, or its subfolder named after the slide.

    Raises
    ------
    StoredError
        If neither holds results.
    """
    # The subfolder first: `folder` is usually the --out folder of a whole cohort.
    for candidate in (folder / slide.name, folder):
        if (candidate / PREDICTION).is_file():
            return candidate
    raise StoredError(
        folder, f"no results of {slide.name} ({PREDICTION}) here; choose the folder that `predict` or `compare` wrote"
    )


def restore_prediction(folder: Path, slide: Slide, bundle: Bundle) -> Prediction:
    """Return the stored prediction of both networks, as `predict` returned it.

    Only HR patches that the teacher read are stored, so the grid holds no others. Of a region only the patches are
    stored, not the drawn outline.

    Parameters
    ----------
    folder
        Results of the slide, written by ``predict --teacher`` or ``compare``.
    slide, bundle
        Slide and model to which the results must belong.

    Raises
    ------
    StoredError
        If the results are of another slide or model, lack the teacher, or are broken.
    """
    file = PredictionFile.read(folder)
    _require_match(folder, file, slide, bundle)
    teacher = file.teacher
    if teacher is None or not (folder / "teacher_attention.h5").is_file():
        raise StoredError(folder, "no teacher (HR) ran in these results; run `compare`, or `predict --teacher all`")
    names = ("attention.h5", "teacher_attention.h5")
    lr, hr = (_read_checked_patches(folder / name, slide, bundle) for name in names)
    lattice = bundle.card.plan.lattice(slide.bounds, slide.mpp)
    grid = _restore_grid(folder, lattice, lr, hr)
    card, cached = bundle.card, file.patches_from_cache or {}
    networks = (
        _restore_network(file, lr, lattice.lr_cell, card.lr_mpp, card.classes, cached.get("student", 0)),
        _restore_network(teacher, hr, lattice.cell, card.hr_mpp, card.classes, cached.get("teacher", 0)),
    )
    return _join_networks(file, slide, bundle, grid, *networks)


def restore_answer(folder: Path, slide: Slide, bundle: Bundle) -> Prediction:
    """Return the stored prediction: of both networks if the teacher ran, else of the student alone.

    HR patches of a student alone are not stored, so its grid holds none.

    Parameters
    ----------
    folder
        Results of the slide.
    slide, bundle
        Slide and model to which the results must belong.

    Raises
    ------
    StoredError
        If the results are of another slide or model, or are broken.
    """
    file = PredictionFile.read(folder)
    if file.teacher is not None:
        return restore_prediction(folder, slide, bundle)
    _require_match(folder, file, slide, bundle)
    lr = _read_checked_patches(folder / "attention.h5", slide, bundle)
    lattice = bundle.card.plan.lattice(slide.bounds, slide.mpp)
    lr_index = _cell_index(folder / "attention.h5", lattice, lr.coords, lattice.lr_cell)
    grid = NestedGrid(lattice, np.empty((0, 2), np.int64), lr_index, np.empty(0, np.int64))
    card, n_cached = bundle.card, (file.patches_from_cache or {}).get("student", 0)
    student = _restore_network(file, lr, lattice.lr_cell, card.lr_mpp, card.classes, n_cached)
    return _join_networks(file, slide, bundle, grid, student, None)


def _require_match(folder: Path, file: PredictionFile, slide: Slide, bundle: Bundle) -> None:
    if file.slide_fingerprint != slide.fingerprint:
        raise StoredError(
            folder,
            f"these results are of another slide ({file.slide}, whose pixels differ from those of "
            f"{slide.name}); choose the results of this slide, or open the other one",
        )
    if file.bundle_sha256 != bundle.sha256:
        raise StoredError(
            folder,
            f"these results are of another model ({file.bundle}), and the chosen one is {bundle.name}; "
            "choose the other model, or run this one",
        )
    if file.classes != bundle.card.classes:
        reason = f"the classes are {list(file.classes)}, expected {list(bundle.card.classes)}"
        raise unreadable_error(folder / PREDICTION, reason)


def _read_checked_patches(path: Path, slide: Slide, bundle: Bundle) -> StoredPatches:
    """Return the patches of one network; raise `StoredError` if they were computed at another slide resolution."""
    patches = _read_patches(path, len(bundle.card.classes))
    # If the attribute is missing, the check that patches lie on the grid must suffice.
    mpp = float(patches.attributes.get("mpp0", slide.mpp.mean))
    if abs(mpp / slide.mpp.mean - 1) > STORED_MPP_TOLERANCE:
        raise StoredError(
            path,
            f"these results were computed at {mpp:.4g} µm per pixel, and the slide is open at {slide.mpp.mean:.4g}; "
            "open it with the same resolution",
        )
    return patches


def _read_patches(path: Path, n_classes: int) -> StoredPatches:
    """Return the content of an HDF5 file of attention, checked; raises `StoredError`."""
    import h5py

    try:
        with h5py.File(path) as file:
            patches = StoredPatches(
                np.asarray(file["coords"][:], np.int64),
                np.asarray(file["attention"][:], np.float32),
                np.asarray(file["evidence"][:], np.float32),
                dict(file["coords"].attrs),
                np.asarray(file["patch_logits"][:], np.float32) if "patch_logits" in file else None,
            )
        _require_valid(patches, n_classes)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise unreadable_error(path, str(error) or type(error).__name__) from error
    return patches


def _require_valid(patches: StoredPatches, n_classes: int) -> None:
    """Raise `ValueError` if arrays do not fit together or attention is not a distribution."""
    n = len(patches.coords)
    shapes = {"coords": (n, 2), "attention": (n,), "evidence": (n, n_classes)}
    if patches.patch_logits is not None:
        shapes["patch_logits"] = (n, n_classes)
    for name, expected in shapes.items():
        if (shape := getattr(patches, name).shape) != expected:
            raise ValueError(f"{name} has the shape {shape}, expected {expected}")
    if n == 0 or not np.isfinite(patches.attention).all() or (patches.attention < 0).any():
        raise ValueError("attention has no patch, or a value that is negative or not a number")
    if abs(float(patches.attention.sum(dtype=np.float64)) - 1) > SUM_TOLERANCE:
        raise ValueError(f"attention sums to {patches.attention.sum():.3f}, expected 1")


def _restore_grid(folder: Path, lattice: Lattice, lr: StoredPatches, hr: StoredPatches) -> NestedGrid:
    """Return the grid of the stored patches; raises `StoredError` if they do not lie on the lattice."""
    lr_index = _cell_index(folder / "attention.h5", lattice, lr.coords, lattice.lr_cell)
    hr_index = _cell_index(folder / "teacher_attention.h5", lattice, hr.coords, lattice.cell)
    # An HR cell lies in the LR cell of its index divided by n, the number of HR cells per side.
    rows = {cell: row for row, cell in enumerate(map(tuple, lr_index.tolist()))}
    parent = np.array([rows.get(cell, -1) for cell in map(tuple, (hr_index // lattice.n).tolist())], dtype=np.int64)
    if (parent < 0).any():
        path = folder / "teacher_attention.h5"
        raise StoredError(path, "a patch of the teacher lies in no patch of the student; run the analysis again")
    return NestedGrid(lattice, hr_index, lr_index, parent)


def _cell_index(path: Path, lattice: Lattice, coords: Int64, cell: tuple[int, int]) -> Int64:
    """Return (N, 2) column and row of (N, 2) level-0 corners; raises `StoredError` if one is not a cell's corner."""
    index, rest = np.divmod(coords - np.asarray(lattice.origin), np.asarray(cell))
    if rest.any() or (index < 0).any():
        raise StoredError(
            path, "the patches do not lie on the grid of this model on this slide; run the analysis again"
        )
    return np.asarray(index, dtype=np.int64)


def _join_networks(
    file: PredictionFile,
    slide: Slide,
    bundle: Bundle,
    grid: NestedGrid,
    student: NetworkPrediction,
    teacher: NetworkPrediction | None,
) -> Prediction:
    """Return the prediction; agreement is computed from the stored attention, without ``agreement.json``."""
    compared, agreement = None, None
    if teacher is not None:
        # Only HR patches that the teacher read are stored, so a parent without any was not compared.
        compared = np.bincount(grid.parent, minlength=len(grid.lr_index)) > 0
        part = grid if compared.all() else grid.select(compared)
        agreement = measure_agreement(part, student.attention[compared], teacher.attention)
    return Prediction(
        slide=slide.name,
        path=slide.path,
        slide_fingerprint=slide.fingerprint,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        classes=file.classes,
        calibrated=file.calibrated,
        grid=grid,
        level0_size=(slide.width, slide.height),
        student=student,
        device=file.device,
        warnings=file.warnings,
        scope=_scope(file.scope or WHOLE_SLIDE.text, grid),
        teacher=teacher,
        compared=compared,
        agreement=agreement,
        reader=ReaderChoice(file.reader, file.reader_reason or "") if file.reader else None,
        finest_read=FinestRead(file.finest_mpp_read, file.finest_mpp_reason or "") if file.finest_mpp_read else None,
        missing_tiles=MissingTiles(**dict(file.missing_tiles)) if file.missing_tiles else NOTHING_MISSING,
        # By the model's present limits, as those in the file may be of an earlier calibration.
        limits=slide_limits(bundle, student.probabilities, is_whole_slide=file.scope == WHOLE_SLIDE.text),
        cohort_distance=CohortDistance(**dict(file.cohort_distance)) if file.cohort_distance else None,
        stated_hr_patches=file.n_hr_patches,
    )


def _restore_network(
    result: PredictionFile | TeacherResult,
    patches: StoredPatches,
    cell: tuple[int, int],
    mpp: float,
    classes: Sequence[str],
    n_cached: int,
) -> NetworkPrediction:
    return NetworkPrediction(
        coords=patches.coords,
        patch_level0=cell,
        attention=patches.attention,
        evidence=patches.evidence,
        logits={name: result.logits[name] for name in classes},
        probabilities={name: result.probabilities[name] for name in classes},
        target_mpp=mpp,
        pixels_decoded=result.pixels_decoded,
        seconds=result.seconds,
        cpu_seconds=0.0,  # not stored
        runtime=_runtime(result),
        patches_encoded=len(patches.coords) - n_cached,
        attention_mass=result.attention_mass if isinstance(result, PredictionFile) else None,
        patch_logits=patches.patch_logits,
    )


def _runtime(result: PredictionFile | TeacherResult) -> RuntimeChoice:
    """Return the runtime of the encoder; files without it are of early versions, which had torch alone."""
    if result.runtime is None or result.precision is None:
        return REFERENCE
    return RuntimeChoice(result.runtime, result.precision, result.runtime_reason or "")


def _scope(text: str, grid: NestedGrid) -> RegionOfInterest:
    """Return the scope from its text. The region of a part is the union of its patches."""
    if text == WHOLE_SLIDE.text:
        return WHOLE_SLIDE
    corners, (width, height) = grid.lr_corners, grid.lattice.lr_cell
    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + width, corners[:, 1] + height)
    area: Any = shapely.union_all(boxes)  # a union of rectangles has no points or lines
    kind: Kind = "view" if text.startswith(WORDS["view"]) else "region"
    return RegionOfInterest(kind, (Region("stored", area),), edited="tissue edited" in text)


# ---------------------------------------------------------------- a cohort


@dataclass(frozen=True)
class StoredResult:
    """One row of a cohort's table.

    Attributes
    ----------
    name
        Name of the slide.
    folder
        Folder of its results.
    path
        File of the slide, see `locate_slide`; as it was stored if the file cannot be located, and None if none was.
    student, teacher
        Class -> probability; None if the network did not run.
    spearman, js_divergence
        Agreement of both networks; None if it is undefined or no teacher ran.
    problem
        Reason why the row cannot be used; empty if it can.
    caution
        Reason why the agreement is uncertain; empty if it rests on enough patches.
    """

    name: str
    folder: Path
    path: Path | None = None
    student: Mapping[str, float] | None = None
    teacher: Mapping[str, float] | None = None
    spearman: float | None = None
    js_divergence: float | None = None
    problem: str = ""
    caution: str = ""

    @property
    def picture(self) -> Path | None:
        """Picture of the slide with its attention maps, if there is one."""
        candidates = (self.folder / name for name in ("overlay.png", "compare.png"))
        return next((path for path in candidates if path.is_file()), None)


def locate_slide(stored: Path, folders: Iterable[Path]) -> Path | None:
    """Return the file of a slide from its path in ``prediction.json``; None if it cannot be located.

    Results state the path from the folder of the cohort on, so that it holds no names of users. It is looked up from
    the working directory, and from `folders` and the folders above them, whole and without its first parts. Slides are
    thus located after they moved together with their results. A path that old results state in full is tried first.

    Parameters
    ----------
    folders
        Folders that may lie near the slide: that of the results, or one where another slide of the cohort is.
    """
    # The slide's fingerprint is compared before results are shown on it, so another slide of this name does no harm.
    if stored.exists():
        return stored
    parts = stored.parts[1:] if stored.is_absolute() else stored.parts
    starts = [Path(os.path.abspath(folder)) for folder in folders]
    near = [above for start in starts for above in (start, *start.parents)[: MAX_FOLDERS_UP + 1]]
    # The whole path first. The results of a DICOM folder lie in a folder of its name.
    paths = (above.joinpath(*parts[first:]) for first in range(len(parts)) for above in near)
    return next((path for path in paths if path.exists() and not (path / PREDICTION).exists()), None)


def list_result_folders(folder: Path) -> list[Path]:
    """Return the subfolders of `folder` that hold results of a slide, sorted by name.

    Raises
    ------
    StoredError
        If there is none.
    """
    folders = sorted(path.parent for path in folder.glob(f"*/{PREDICTION}"))
    if not folders:
        raise StoredError(folder, f"no slide's results (*/{PREDICTION}) here; choose the --out folder of `predict`")
    return folders


def read_result_summary(folder: Path) -> StoredResult:
    """Return the row of one slide in a cohort's table. Faults of its files go to `StoredResult.problem`."""
    # One broken slide must not hide the others: its fault becomes part of the row.
    try:
        file = PredictionFile.read(folder)
    except StoredError as error:
        return StoredResult(folder.name, folder, problem=str(error))
    stored = Path(file.path) if file.path else None
    path = stored and (locate_slide(stored, [folder]) or stored)
    row = StoredResult(file.slide, folder, path, file.probabilities)
    if file.teacher is None:
        return replace(row, problem="no teacher (HR) ran")
    try:
        agreement = AgreementFile.read(folder)
    except StoredError as error:
        return replace(row, problem=str(error))
    rho, js = agreement.spearman, agreement.js_divergence
    caution = few_patches_caution(agreement.n_patches)
    return replace(row, teacher=file.teacher.probabilities, spearman=rho, js_divergence=js, caution=caution)
