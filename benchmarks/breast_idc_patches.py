"""Breast carcinoma patches of the public set: labels, folds by patient, and sparse slides to train on."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.inference.teacher_comparison import lesion_file

SIDE = 50  # px of a patch; the few smaller ones lie at the edge of a slide
GLASS = 243  # grey value where no patch lies
CLASSES = ("benign", "carcinoma")
FOLDS = 5
BENIGN_PART = "-benign"  # end of the name of a slide that holds the benign patches of a patient alone

Uint8 = NDArray[np.uint8]
Float = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Patch:
    """One patch: file, patient, place of its upper left pixel in the slide (x, y; 0-based) and label."""

    path: Path
    patient: str
    x: int
    y: int
    is_carcinoma: bool

    def read(self) -> Uint8:
        """Return the (h, w, 3) pixels."""
        with Image.open(self.path) as image:
            return np.asarray(image.convert("RGB"))


def read_patches(folder: Path) -> list[Patch]:
    """Return all patches that ``labels.csv`` lists."""
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        return [
            Patch(folder / r["path"], r["patient_id"], int(r["x"]) - 1, int(r["y"]) - 1, r["label"] == "1")
            for r in csv.DictReader(file)
        ]


def targets_of(patches: Sequence[Patch]) -> NDArray[np.bool_]:
    """Return (N,) whether each patch is carcinoma."""
    return np.array([patch.is_carcinoma for patch in patches])


def patients_of(patches: Sequence[Patch]) -> NDArray[np.str_]:
    """Return (N,) patients of the patches."""
    return np.array([patch.patient for patch in patches])


# ---------------------------------------------------------------- folds


@dataclass(frozen=True)
class Fold:
    """Rows of the patches of one fold: (T,) to learn from, (V,) to select on, (S,) to test on."""

    train: Rows
    val: Rows
    test: Rows

    @property
    def seen(self) -> Rows:
        """Rows of training and validation."""
        return np.sort(np.concatenate([self.train, self.val]))


def split_patients(patches: Sequence[Patch], seed: int = 0, folds: int = FOLDS) -> Iterator[tuple[Rows, Rows]]:
    """Yield rows of training and test of each fold; a patient is on one side, and labels are balanced over folds."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros(len(patches)), targets_of(patches), patients_of(patches))


def list_folds(patches: Sequence[Patch], seed: int = 0) -> list[Fold]:
    """Return the folds of `split_patients`; a fifth of a fold's other patients validate."""
    folds = []
    for seen, test in split_patients(patches, seed):
        train, val = next(iter(split_patients([patches[row] for row in seen], seed + 1)))
        folds.append(Fold(seen[train], seen[val], test))
    return folds


# ---------------------------------------------------------------- sparse slides


def write_slides(patches: Sequence[Patch], out: Path, mpp: float, *, benign_parts: bool = False) -> Path:
    """Write a slide and the outlines of each patient, and the cohort table. A patient with carcinoma has that label.

    Parameters
    ----------
    patches
        The patches of all patients.
    out
        Folder of the slides.
    mpp
        µm per pixel that the slides state.
    benign_parts
        Also write a slide of the benign patches alone for each patient with both kinds. Without these slides hardly
        any slide is benign, because most patients of the set have carcinoma.
    """
    by_patient = defaultdict(list)
    for patch in patches:
        by_patient[patch.patient].append(patch)
    out.mkdir(parents=True, exist_ok=True)
    table = ["slide,patient,label"]
    for patient, own in sorted(by_patient.items()):
        parts = {patient: own}
        benign = [patch for patch in own if not patch.is_carcinoma]
        if benign_parts and 0 < len(benign) < len(own):
            parts[f"{patient}{BENIGN_PART}"] = benign
        for name, content in parts.items():
            _write_slide(out / f"{name}.tif", content, mpp)
            if any(patch.is_carcinoma for patch in content):  # a benign slide needs no outlines
                write_text(lesion_file(out / f"{name}.tif"), json.dumps(_outlines(content)))
            table.append(f"{name}.tif,{patient},{CLASSES[any(patch.is_carcinoma for patch in content)]}")
    write_text(out / "cohort.csv", "\n".join(table) + "\n")
    return out / "cohort.csv"


def _write_slide(path: Path, patches: Sequence[Patch], mpp: float) -> None:
    width, height = (max(place) + 2 * SIDE for place in zip(*((p.x, p.y) for p in patches), strict=True))
    canvas = np.full((height, width, 3), GLASS, np.uint8)
    for patch in patches:
        pixels = patch.read()
        canvas[patch.y : patch.y + pixels.shape[0], patch.x : patch.x + pixels.shape[1]] = pixels
    resolution = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(
        path, canvas, tile=(256, 256), photometric="rgb", compression="deflate",
        resolution=resolution, resolutionunit="CENTIMETER",
    )  # fmt: skip


def _outlines(patches: Sequence[Patch]) -> dict[str, object]:
    """Return the carcinoma patches as GeoJSON squares in level-0 pixels."""
    features = []
    for patch in (patch for patch in patches if patch.is_carcinoma):
        x, y = patch.x, patch.y
        ring = [[x, y], [x + SIDE, y], [x + SIDE, y + SIDE], [x, y + SIDE], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"name": "carcinoma"}, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}
