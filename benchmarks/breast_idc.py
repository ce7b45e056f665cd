"""Breast carcinoma patches of 190 patients: their resolution, a colour-only baseline, and sparse slides to train on.

    python benchmarks/breast_idc.py resolution --data ../shared/data/patches/idc
    python benchmarks/breast_idc.py baseline --data ../shared/data/patches/idc [--json OUT]
    python benchmarks/breast_idc.py slides --data ../shared/data/patches/idc --out COHORT [--mpp 8]

The patches are a random part of the public set ``IDC_regular_ps50_idx5`` (CC0 by its cards): 50 px squares of breast
H&E slides with their place in the slide and a label, invasive ductal carcinoma or not.

``resolution`` measures fat cells, as the files do not state µm per pixel. ``baseline`` classifies a patch by its
colours alone, in five folds grouped by patient. ``slides`` lays the patches of a patient where they lay in the slide,
and writes carcinoma patches as outlines. Glass fills the rest.
"""

from __future__ import annotations

import argparse
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
from skimage.filters import gaussian
from skimage.measure import label, regionprops
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from napari_lrmil.core.atomic_files import write_text

SIDE = 50  # px of a patch; the few smaller ones lie at the edge of a slide
GLASS = 243  # grey value where no patch lies
CLASSES = ("benign", "carcinoma")
FOLDS = 5
FAT_UM = (50.0, 90.0)  # mean diameter of fat cells in breast tissue, low and high of published means
BRIGHT, ROUND, MIN_PX, MAX_PX = 0.80, 0.85, 12, 400  # of a fat cell: brightness, solidity, area

Uint8 = NDArray[np.uint8]
Float = NDArray[np.float64]


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


# ---------------------------------------------------------------- resolution


def measure_resolution(patches: Sequence[Patch]) -> dict[str, float]:
    """Return diameters of fat cells in px, what µm per pixel they imply, and the size of the largest slide in px."""
    diameters = np.array([d for patch in patches if not patch.is_carcinoma for d in fat_cell_diameters(patch.read())])
    middle = float(np.median(diameters))
    return {
        "fat_cells": len(diameters),
        "diameter_px": middle,
        "diameter_px_quartile1": float(np.quantile(diameters, 0.25)),
        "diameter_px_quartile3": float(np.quantile(diameters, 0.75)),
        "mpp_low": FAT_UM[0] / middle,
        "mpp_high": FAT_UM[1] / middle,
        "widest_px": max(patch.x for patch in patches) + SIDE,
        "highest_px": max(patch.y for patch in patches) + SIDE,
    }


def fat_cell_diameters(pixels: Uint8) -> Iterator[float]:
    """Yield the diameters (px) of bright round regions that a darker membrane encloses, none at the patch's edge."""
    brightness = gaussian(pixels.mean(axis=2) / 255, 0.5)
    bright = brightness > BRIGHT
    if not 0.3 < bright.mean() < 0.95:  # fat fills its patches; glass has no membranes
        return
    for region in regionprops(label(bright, connectivity=1)):
        rows, columns = np.array(region.bbox).reshape(2, 2).T
        is_inside = min(rows[0], columns[0]) > 0 and rows[1] < bright.shape[0] and columns[1] < bright.shape[1]
        if is_inside and MIN_PX <= region.area <= MAX_PX and region.solidity >= ROUND:
            yield float(region.equivalent_diameter_area)


# ---------------------------------------------------------------- colour baseline


def colour_features(pixels: Uint8) -> Float:
    """Return mean, standard deviation and three quantiles of each channel's optical density: (15,)."""
    density = -np.log((pixels.reshape(-1, 3).astype(np.float64) + 1) / 256)
    quantiles = np.quantile(density, (0.1, 0.5, 0.9), axis=0)
    return np.concatenate([density.mean(axis=0), density.std(axis=0), quantiles.ravel()])


def score_by_colour(patches: Sequence[Patch], seed: int = 0) -> dict[str, Float]:
    """Return out-of-fold scores of each classifier, from folds that share no patient."""
    features = np.stack([colour_features(patch.read()) for patch in patches])
    targets = np.array([patch.is_carcinoma for patch in patches])
    classifiers = {
        "logistic regression": make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")
        ),
        "boosted trees": HistGradientBoostingClassifier(random_state=seed),
    }
    scores = {name: np.zeros(len(patches)) for name in classifiers}
    for train, test in split_patients(patches, seed):
        for name, classifier in classifiers.items():
            classifier.fit(features[train], targets[train])
            scores[name][test] = classifier.predict_proba(features[test])[:, 1]
    return scores


def split_patients(patches: Sequence[Patch], seed: int = 0) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield rows of training and test of each fold; a patient is on one side, and labels are balanced over folds."""
    targets = [patch.is_carcinoma for patch in patches]
    patients = [patch.patient for patch in patches]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    yield from folds.split(np.zeros(len(patches)), targets, patients)


def auroc_over_patients(patches: Sequence[Patch], scores: Float, draws: int = 1000) -> tuple[float, float, float]:
    """Return the AUROC of patches, and a 95 % interval over patients drawn with replacement."""
    targets = np.array([patch.is_carcinoma for patch in patches])
    rows = defaultdict(list)
    for row, patch in enumerate(patches):
        rows[patch.patient].append(row)
    groups, rng = [np.array(group) for group in rows.values()], np.random.default_rng(0)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        values.append(roc_auc_score(targets[drawn], scores[drawn]))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(roc_auc_score(targets, scores)), float(low), float(high)


# ---------------------------------------------------------------- sparse slides


def write_slides(patches: Sequence[Patch], out: Path, mpp: float) -> Path:
    """Write a slide and the outlines of each patient, and the cohort table. A patient with carcinoma has that label."""
    by_patient = defaultdict(list)
    for patch in patches:
        by_patient[patch.patient].append(patch)
    out.mkdir(parents=True, exist_ok=True)
    table = ["slide,patient,label"]
    for patient, own in sorted(by_patient.items()):
        _write_slide(out / f"{patient}.tif", own, mpp)
        write_text(out / f"{patient}.geojson", json.dumps(_outlines(own)))
        table.append(f"{patient}.tif,{patient},{CLASSES[any(patch.is_carcinoma for patch in own)]}")
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


# ---------------------------------------------------------------- commands


def main(words: list[str] | None = None) -> None:
    """Run one of the three commands."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=("resolution", "baseline", "slides"))
    p.add_argument("--data", type=Path, required=True, help="folder of labels.csv and the patches")
    p.add_argument("--out", type=Path, help="folder of the slides")
    p.add_argument("--mpp", type=float, default=8.0, help="µm per pixel of the patches")
    p.add_argument("--json", type=Path, help="file for the figures")
    args = p.parse_args(words)
    patches = read_patches(args.data)
    if args.command == "slides":
        if args.out is None:
            p.error("slides needs --out")
        print(write_slides(patches, args.out, args.mpp))
        return
    if args.command == "resolution":
        figures: object = measure_resolution(patches)
    else:
        figures = {name: auroc_over_patients(patches, s) for name, s in score_by_colour(patches).items()}
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        write_text(args.json, text)


if __name__ == "__main__":
    main()
