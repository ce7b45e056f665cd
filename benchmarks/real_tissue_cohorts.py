"""Cohorts of benchmarks/real_tissue.py: slides painted from real images, and tables over them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_tissue_cells import FOLDS, SHARES, SLIDES, THIRD

BY_IMAGE = "image_"  # begins the name of a cohort whose cores are drawn by image, not by patient first


def make_cohort(args: argparse.Namespace, cohort: str, fold: int) -> None:
    """Write the slides of a fold, or a table over the slides of another cohort."""
    folder = cohort_folder(args, cohort, fold)
    if (folder / "cohort.csv").exists() and (folder / ".whole").exists():
        return
    source, setting = source_cohort(cohort), cohort.removeprefix(BY_IMAGE)
    if source == cohort:
        _paint(args, folder, cohort, fold)
    elif setting == "third":
        _table(args, source, fold, folder, _fewer)
    else:
        seed = int(setting.removeprefix("permuted_"))
        _table(args, source, fold, folder, lambda rows: _permuted(rows, seed))
    (folder / ".whole").touch()


def source_cohort(cohort: str) -> str:
    """Return the cohort whose slides a cohort uses: itself, or the one with the default lesions."""
    drawn = BY_IMAGE if cohort.startswith(BY_IMAGE) else ""
    return cohort if cohort.removeprefix(drawn) in SHARES else f"{drawn}default"


def cohort_folder(args: argparse.Namespace, cohort: str, fold: int) -> Path:
    """Return the folder of the slides and the table of a cohort."""
    folder: Path = args.work / "cohorts" / cohort / f"fold_{fold}"
    return folder


def _paint(args: argparse.Namespace, folder: Path, cohort: str, fold: int) -> None:
    source = args.shared / "data" / "patches" / "glas"
    images = _matched(source, args.work / "images") if cohort == "matched" else source
    draw = "image" if cohort.startswith(BY_IMAGE) else "patient"
    share = SHARES[cohort.removeprefix(BY_IMAGE)]
    for split, patients in zip(SLIDES, FOLDS[fold], strict=True):
        call = [sys.executable, args.shared / "tools" / "make_tissue_cohort.py", "--images", images]
        call += ["--labels", source / "labels.csv", "--patients", patients, "--split", split, "--out", folder]
        call += ["--n", SLIDES[split], "--lesion-share", share, "--draw", draw, "--workers", 1]
        subprocess.run([str(part) for part in call], check=True, stdout=subprocess.DEVNULL)


def _matched(source: Path, folder: Path) -> Path:
    """Return the folder of images normalised to equal mean and deviation of colour (Reinhard et al. 2001).

    Patients differ in colour. After normalisation, a network cannot recognise a patient by it.
    """
    import numpy as np
    from skimage.color import lab2rgb, rgb2lab
    from skimage.io import imread, imsave

    files = sorted(source.rglob("*.png"))
    if (folder / ".whole").exists():
        return folder
    moments = [(lab.mean((0, 1)), lab.std((0, 1))) for lab in (rgb2lab(imread(f)[..., :3]) for f in files)]
    mean, deviation = np.mean([m for m, _ in moments], axis=0), np.mean([d for _, d in moments], axis=0)
    for file, (own_mean, own_deviation) in zip(files, moments, strict=True):
        lab = (rgb2lab(imread(file)[..., :3]) - own_mean) / own_deviation * deviation + mean
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        imsave(target, np.round(np.clip(lab2rgb(lab), 0, 1) * 255).astype(np.uint8), check_contrast=False)
    (folder / ".whole").touch()
    return folder


def _table(args: argparse.Namespace, source: str, fold: int, folder: Path, change: Any) -> None:
    """Write a table over the slides of another cohort, with the rows that `change` returns."""
    import pandas as pd

    make_cohort(args, source, fold)
    source_folder = cohort_folder(args, source, fold)
    rows = change(pd.read_csv(source_folder / "cohort.csv", dtype=str))
    rows["slide"] = [os.path.relpath(source_folder / name, folder) for name in rows["slide"]]
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "cohort.csv", index=False)


def _fewer(rows: Any) -> Any:
    """Return the table with the first third of the training slides, half of each class; validation and test stay."""
    train = rows[rows["split"] == "train"]
    selected = train.groupby("label").head(THIRD // 2).index
    return rows[(rows["split"] != "train") | rows.index.isin(selected)].copy()


def _permuted(rows: Any, seed: int) -> Any:
    """Return the table with labels permuted within training and within validation; the test labels stay true.

    Patients get labels, with all their slides, if each has slides of one label. Otherwise slides get labels.
    """
    import numpy as np

    from lrmil_training.data.patient_groups import patient_clusters

    rng = np.random.default_rng([seed, 77])
    changed = rows.copy()
    for split in ("train", "val"):
        side = changed[changed["split"] == split]
        bags = side["label"].groupby(patient_clusters(side["patient"].astype(str).tolist()), sort=False)
        is_pure = bool((bags.nunique() == 1).all())
        labels = bags.first().to_numpy() if is_pure else side["label"].to_numpy()
        permuted = rng.permutation(labels)
        changed.loc[side.index, "label"] = permuted[bags.ngroup().to_numpy()] if is_pure else permuted
    return changed


# ---------------------------------------------------------------- how much there is to learn from


def effective_number(counts: Sequence[int]) -> float:
    """Return ``(Σ w)² / Σ w²``: the number of equally frequent sources that vary as much as these."""
    return sum(counts) ** 2 / sum(count**2 for count in counts)


def measure_sources(args: argparse.Namespace, cohort: str, fold: int) -> dict[str, float]:
    """Return real and effective numbers of images and patients among the malignant training cores of a cohort."""
    import pandas as pd

    rows = pd.read_csv(cohort_folder(args, cohort, fold) / "cohort.csv", dtype=str)
    train = {Path(slide).stem for slide in rows.loc[rows["split"] == "train", "slide"]}
    cores = pd.read_csv(cohort_folder(args, source_cohort(cohort), fold) / "cores.csv", dtype=str)
    malignant = cores[cores["slide"].isin(train) & (cores["label"] == "malignant")]
    figures: dict[str, float] = {"slides": len(train), "cores": len(malignant)}
    for column, name in (("image", "images"), ("patient", "patients")):
        counts = malignant[column].value_counts().tolist()
        figures |= {name: len(counts), f"effective_{name}": effective_number(counts)}
    return figures
