"""Breast carcinoma patches of 190 patients: their resolution, a colour-only baseline, and students in folds by patient.

    python benchmarks/breast_idc.py resolution --data ../shared/data/patches/idc
    python benchmarks/breast_idc.py baseline --data ../shared/data/patches/idc [--json OUT]
    python benchmarks/breast_idc.py slides --data ../shared/data/patches/idc --work WORK [--mpp 8] [--benign-parts]
    python benchmarks/breast_idc.py folds --data ../shared/data/patches/idc --work WORK --weights FILE [--fold N…]
    python benchmarks/breast_idc.py figures --data ../shared/data/patches/idc [--json OUT]
    python benchmarks/breast_idc.py maps --data ../shared/data/patches/idc --picture FILE [--fold N]
    python benchmarks/breast_idc.py ship --data ../shared/data/patches/idc --work WORK --weights FILE

The patches are a random part of the public set ``IDC_regular_ps50_idx5`` (CC0 by its cards): 50 px squares of breast
H&E slides with their place in the slide and a label, invasive ductal carcinoma or not.

``resolution`` measures fat cells, as the files do not state µm per pixel. ``baseline`` classifies a patch by its
colours alone, in five folds grouped by patient. ``slides`` lays the patches of a patient where they lay in the slide,
and writes carcinoma patches as outlines. Glass fills the rest. ``folds`` trains a student without a teacher on these
slides in the same folds, by the settings of ``--recipe``, and writes a file of scores for each fold to ``--results``.
A fold with a file is not trained again, and an interrupted one goes on. ``figures`` compares the scores with the
baseline, ``maps`` draws three patients of a fold. ``ship`` trains a student on all patients and puts it into the
package, if ``figures.json`` beside the scores shows that it is better than colour alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from breast_idc_colour import score_by_colour
from breast_idc_figures import Interval, draw_patients, with_intervals
from breast_idc_patches import SIDE, Float, Patch, Uint8, patients_of, read_patches, targets_of, write_slides
from skimage.filters import gaussian
from skimage.measure import label, regionprops
from sklearn.metrics import roc_auc_score

from napari_lrmil.core.atomic_files import write_text

FAT_UM = (50.0, 90.0)  # mean diameter of fat cells in breast tissue, low and high of published means
BRIGHT, ROUND, MIN_PX, MAX_PX = 0.80, 0.85, 12, 400  # of a fat cell: brightness, solidity, area
HERE = Path(__file__).parent
ANSWERS = HERE.parent / "tests" / "formats" / "breast_idc"  # the shipped model's answers to a synthetic slide
COMMANDS = ("resolution", "baseline", "slides", "folds", "figures", "maps", "ship")
NEEDED = {"work": ("slides", "folds", "ship"), "weights": ("folds", "ship"), "picture": ("maps",)}


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


# ---------------------------------------------------------------- commands


def measure_baseline(patches: Sequence[Patch]) -> dict[str, Interval]:
    """Return the AUROC of each classifier of colours, with a 95 % interval over patients."""
    targets, resamples = targets_of(patches), draw_patients(patients_of(patches).tolist())

    def auroc(scores: Float, rows: Any) -> dict[str, float]:
        return {"auroc": float(roc_auc_score(targets[rows], scores[rows]))}

    everything = np.arange(len(patches))
    return {
        name: with_intervals(auroc(scores, everything), [auroc(scores, rows) for rows in resamples])["auroc"]
        for name, scores in score_by_colour(patches).items()
    }


def main(words: list[str] | None = None) -> None:
    """Run one of the commands."""
    args = parse_arguments(words)
    if args.command == "slides":
        print(write_slides(read_patches(args.data), args.work, args.mpp, benign_parts=args.benign_parts))
    elif args.command == "folds":
        from breast_idc_folds import measure_folds, prepare

        work = prepare(args.data, args.work, args.recipe, args.weights)
        measure_folds(work, args.results, args.recipe.stem, args.fold)
    elif args.command == "maps":
        from breast_idc_maps import draw_maps

        draw_maps(read_patches(args.data), read_fold(args, *args.fold[:1]), args.picture)
    elif args.command == "ship":
        ship_model(args)
    else:
        figures = json.dumps(measure(args), indent=1)
        print(figures)
        if args.json:
            write_text(args.json, figures)


def measure(args: argparse.Namespace) -> Any:
    """Return the figures of a command that prints some."""
    patches = read_patches(args.data)
    if args.command == "resolution":
        return measure_resolution(patches)
    if args.command == "baseline":
        return measure_baseline(patches)
    from breast_idc_folds import read_results, summarise

    return summarise(patches, read_results(patches, args.results, args.recipe.stem))


def read_fold(args: argparse.Namespace, number: int = 0) -> Any:
    """Return the scores of a fold."""
    return json.loads((args.results / f"{args.recipe.stem}-fold{number}.json").read_text(encoding="utf-8"))


def ship_model(args: argparse.Namespace) -> None:
    """Train the student of all patients and write it into the package, if the folds show that it is worth it."""
    from breast_idc_folds import prepare
    from breast_idc_ship import read_figures, refuse_unless_better, ship, train_final, write_probe

    figures = read_figures(args.results / "figures.json")
    refuse_unless_better(figures)
    work = prepare(args.data, args.work, args.recipe, args.weights)
    print(ship(train_final(work), work.patches, figures).path)
    write_probe(ANSWERS)


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=COMMANDS)
    p.add_argument("--data", type=Path, required=True, help="folder of labels.csv and the patches")
    p.add_argument("--work", type=Path, help="folder of the slides; of folds and ship: of slides and runs")
    p.add_argument("--mpp", type=float, default=8.0, help="µm per pixel of the slides")
    p.add_argument("--benign-parts", action="store_true", help="slides: also one of a patient's benign patches alone")
    p.add_argument("--weights", type=Path, help="folds, ship: first weights of the student, a .safetensors file")
    p.add_argument("--recipe", type=Path, default=HERE / "breast_idc.yaml", help="settings of the training")
    p.add_argument("--results", type=Path, default=HERE / "results" / "breast_idc", help="folder of the folds' scores")
    p.add_argument("--fold", type=int, nargs="*", default=(), help="folds: only these, from 0; maps: the first")
    p.add_argument("--json", type=Path, help="file for the figures")
    p.add_argument("--picture", type=Path, help="maps: file of the picture")
    args = p.parse_args(words)
    for option, commands in NEEDED.items():
        if args.command in commands and getattr(args, option) is None:
            p.error(f"{args.command} needs --{option}")
    return args


if __name__ == "__main__":
    main()
