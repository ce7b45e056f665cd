"""What a run stored about a slide, read back: a prediction that the window can show without computing anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from napari_lrmil.core.bag import Features
from napari_lrmil.core.compare import measure_agreement
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.geometry import Int64, Lattice
from napari_lrmil.core.grid import NestedGrid
from napari_lrmil.core.prediction import Prediction, Reading
from napari_lrmil.core.regions import Region
from napari_lrmil.core.scope import WHOLE, WORDS, Kind, Scope

if TYPE_CHECKING:
    from napari_lrmil.core.bundle import Bundle
    from napari_lrmil.core.slide import Slide
from napari_lrmil.core.tilereader import ReaderChoice

PREDICTION = "prediction.json"
SUM_TOLERANCE = 1e-3  # float32 sums of many small shares
MPP_DIFFERS = 1e-4  # relative


@dataclass(frozen=True)
class _Patches:
    """One network's file: (N, 2) level-0 corners, (N,) attention, (N, C) evidence; what is said about the corners."""

    coords: Int64
    attention: Features
    evidence: Features
    about: Mapping[str, Any]


def find_stored(folder: Path, slide: Slide) -> Path:
    """Return the folder of one slide's results: `folder` itself, or the one in it that is named after the slide.

    Raises
    ------
    StoredError
        Where neither holds results.
    """
    for place in (folder / slide.name, folder):
        if (place / PREDICTION).is_file():
            return place
    raise StoredError(
        folder, f"no results of {slide.name} ({PREDICTION}) here; choose the folder that `predict` or `compare` wrote"
    )


def read_stored(folder: Path, slide: Slide, bundle: Bundle) -> Prediction:
    """Return what both networks said of a slide when it was stored.

    HR patches into which the teacher did not look are not stored, so the grid holds those that it looked into. Of a
    question about a part of the slide the patches that were asked about are known, not the drawn outline.

    Parameters
    ----------
    folder
        What `predict --teacher` or `compare` wrote about this slide.
    slide, bundle
        What it has to be about, and what has to have said it.

    Raises
    ------
    StoredError
        Where it is about another slide or by another model, has no teacher in it, or is broken.
    """
    told = read_told(folder)
    _require_same(folder, told, slide, bundle)
    if "teacher" not in told or not (folder / "teacher_attention.h5").is_file():
        raise StoredError(folder, "no teacher (HR) ran in these results; run `compare`, or `predict --teacher all`")
    lr, hr = (_read_patches(folder / name, slide, bundle) for name in ("attention.h5", "teacher_attention.h5"))
    lattice = bundle.card.plan.lattice(slide.bounds, slide.mpp)
    grid = _grid(folder, lattice, lr, hr)
    try:
        return _prediction(told, slide, bundle, grid, (lr, hr))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(folder / PREDICTION, error) from error


def read_told(folder: Path) -> dict[str, Any]:
    """Return the content of ``prediction.json``; raises `StoredError` where it cannot be read."""
    path = folder / PREDICTION
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    if not isinstance(told, dict):
        raise _broken(path, ValueError(f"it holds a {type(told).__name__}"))
    return told


def _broken(path: Path, error: BaseException) -> StoredError:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    reason = f"{said} is missing" if isinstance(error, KeyError) else said
    return StoredError(path, f"cannot be read as stored results ({reason[:200]}); run the analysis again")


def _require_same(folder: Path, told: Mapping[str, Any], slide: Slide, bundle: Bundle) -> None:
    if told.get("slide_fingerprint") != slide.fingerprint:
        raise StoredError(
            folder,
            f"these results are of another slide ({told.get('slide', 'unnamed')}: its pixels differ from those of "
            f"{slide.name}); choose the results of this slide, or open that one",
        )
    if told.get("bundle_sha256") != bundle.sha256:
        raise StoredError(
            folder,
            f"these results are of another model ({told.get('bundle', 'unnamed')}), and {bundle.name} is chosen; "
            "choose that model, or run this one",
        )


def _read_patches(path: Path, slide: Slide, bundle: Bundle) -> _Patches:
    import h5py

    try:
        with h5py.File(path) as file:
            about = dict(file["coords"].attrs)
            found = _Patches(
                np.asarray(file["coords"][:], np.int64),
                np.asarray(file["attention"][:], np.float32),
                np.asarray(file["evidence"][:], np.float32),
                about,
            )
        _check(found, len(bundle.card.classes))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _broken(path, error) from error
    mpp = float(about.get("mpp0", slide.mpp.mean))
    if abs(mpp / slide.mpp.mean - 1) > MPP_DIFFERS:
        raise StoredError(
            path,
            f"these results took the slide for {mpp:.4g} µm per pixel, and it is open with {slide.mpp.mean:.4g}; "
            "open it with the same resolution",
        )
    return found


def _check(found: _Patches, n_classes: int) -> None:
    n = len(found.coords)
    shapes = {"coords": (n, 2), "attention": (n,), "evidence": (n, n_classes)}
    for name, wanted in shapes.items():
        if (seen := getattr(found, name).shape) != wanted:
            raise ValueError(f"{name} has the shape {seen}, expected {wanted}")
    if n == 0 or not np.isfinite(found.attention).all() or (found.attention < 0).any():
        raise ValueError("attention is not a number at or above 0 for each of one or more patches")
    if abs(float(found.attention.sum(dtype=np.float64)) - 1) > SUM_TOLERANCE:
        raise ValueError(f"attention sums to {found.attention.sum():.3f}, expected 1")


def _grid(folder: Path, lattice: Lattice, lr: _Patches, hr: _Patches) -> NestedGrid:
    """Return the grid on which the stored patches lie; raises `StoredError` where they lie on none."""
    lr_index = _cells(folder / "attention.h5", lattice, lr.coords, lattice.lr_cell)
    hr_index = _cells(folder / "teacher_attention.h5", lattice, hr.coords, lattice.cell)
    rows = {place: row for row, place in enumerate(map(tuple, lr_index.tolist()))}
    parent = np.array([rows.get(place, -1) for place in map(tuple, (hr_index // lattice.n).tolist())], dtype=np.int64)
    if (parent < 0).any():
        path = folder / "teacher_attention.h5"
        raise StoredError(path, "a patch of the teacher lies in none of the student's; run the analysis again")
    return NestedGrid(lattice, hr_index, lr_index, parent)


def _cells(path: Path, lattice: Lattice, coords: Int64, cell: tuple[int, int]) -> Int64:
    index, rest = np.divmod(coords - np.asarray(lattice.origin), np.asarray(cell))
    if rest.any() or (index < 0).any():
        raise StoredError(
            path, "the patches do not lie on the grid of this model on this slide; run the analysis again"
        )
    return np.asarray(index, dtype=np.int64)


def _prediction(
    told: Mapping[str, Any], slide: Slide, bundle: Bundle, grid: NestedGrid, files: tuple[_Patches, _Patches]
) -> Prediction:
    card, (lr, hr) = bundle.card, files
    if tuple(told["classes"]) != card.classes:
        raise ValueError(f"the classes are {told['classes']}, expected {list(card.classes)}")
    compared = np.bincount(grid.parent, minlength=len(grid.lr_index)) > 0
    part = grid if compared.all() else grid.only(compared)
    return Prediction(
        slide=slide.name,
        path=slide.path,
        slide_fingerprint=slide.fingerprint,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        classes=card.classes,
        calibrated=bool(told["calibrated"]),
        grid=grid,
        level0_size=(slide.width, slide.height),
        student=_reading(told, lr, grid.lattice.lr_cell, card.lr_mpp, card.classes),
        device=str(told["device"]),
        warnings=tuple(map(str, told["warnings"])),
        scope=_scope(str(told.get("scope", "whole slide")), grid),
        teacher=_reading(told["teacher"], hr, grid.lattice.cell, card.hr_mpp, card.classes),
        compared=compared,
        agreement=measure_agreement(part, lr.attention[compared], hr.attention),
        reader=ReaderChoice(str(told["reader"]), str(told["reader_reason"])) if told.get("reader") else None,
    )


def _reading(
    told: Mapping[str, Any], patches: _Patches, cell: tuple[int, int], mpp: float, classes: tuple[str, ...]
) -> Reading:
    return Reading(
        coords=patches.coords,
        patch_level0=cell,
        attention=patches.attention,
        evidence=patches.evidence,
        logits={name: float(told["logits"][name]) for name in classes},
        probabilities={name: float(told["probabilities"][name]) for name in classes},
        target_mpp=mpp,
        pixels_decoded=int(told["pixels_decoded"]),
        seconds={str(step): float(seconds) for step, seconds in told["seconds"].items()},
        cpu_seconds=0.0,  # not stored
    )


def _scope(text: str, grid: NestedGrid) -> Scope:
    """Return what was asked about, from its words: of a part, the patches are its region."""
    if text == WHOLE.text:
        return WHOLE
    corners, (width, height) = grid.lr_corners, grid.lattice.lr_cell
    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + width, corners[:, 1] + height)
    together: Any = shapely.union_all(boxes)  # of rectangles, so an area
    kind: Kind = "view" if text.startswith(WORDS["view"]) else "region"
    return Scope(kind, (Region("stored", together),), edited="tissue edited" in text)


# ---------------------------------------------------------------- a cohort


@dataclass(frozen=True)
class StoredSlide:
    """One line of a cohort's table.

    Attributes
    ----------
    name
        The slide's.
    folder
        Where its results lie.
    path
        Where the slide lay when it was analysed; None where that was not kept.
    student, teacher
        The probability of each class; empty where the network did not run.
    spearman, js_divergence
        Agreement of the two; None where it is undefined or no teacher ran.
    problem
        Why the line cannot be used; empty where it can.
    """

    name: str
    folder: Path
    path: Path | None = None
    student: Mapping[str, float] | None = None
    teacher: Mapping[str, float] | None = None
    spearman: float | None = None
    js_divergence: float | None = None
    problem: str = ""

    @property
    def picture(self) -> Path | None:
        """A picture of the slide with its maps, where there is one."""
        found = (self.folder / name for name in ("overlay.png", "compare.png"))
        return next((path for path in found if path.is_file()), None)


def stored_folders(folder: Path) -> list[Path]:
    """Return the folders of the slides whose results lie in `folder`, by name.

    Raises
    ------
    StoredError
        Where there is none.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{PREDICTION}"))
    if not found:
        raise StoredError(folder, f"no slide's results (*/{PREDICTION}) here; choose what `predict` gave as --out")
    return found


def read_line(folder: Path) -> StoredSlide:
    """Return what a cohort's table says of one slide; what is wrong with its files is part of the line."""
    try:
        told = read_told(folder)
        name, path = str(told["slide"]), told.get("path")
        student = _numbers(told["probabilities"])
        line = StoredSlide(name, folder, Path(path) if path else None, student)
    except StoredError as error:
        return StoredSlide(folder.name, folder, problem=str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return StoredSlide(folder.name, folder, problem=str(_broken(folder / PREDICTION, error)))
    if "teacher" not in told:
        return StoredSlide(name, folder, line.path, student, problem="no teacher (HR) ran")
    try:
        agreement = json.loads((folder / "agreement.json").read_text(encoding="utf-8"))
        rho, js = agreement["spearman"], float(agreement["js_divergence"])
        teacher = _numbers(told["teacher"]["probabilities"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = str(_broken(folder / "agreement.json", error))
        return StoredSlide(name, folder, line.path, student, problem=problem)
    return StoredSlide(name, folder, line.path, student, teacher, None if rho is None else float(rho), js)


def _numbers(told: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in told.items()}
