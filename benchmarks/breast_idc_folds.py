"""Students without a teacher on breast carcinoma patches, in folds by patient: training, patch scores, and figures."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from breast_idc_colour import colour_features, colour_logits
from breast_idc_figures import Bools, FoldScores, Judgement, calibration_curve, compare, judge, logistic, measure
from breast_idc_patches import BENIGN_PART, SIDE, Float, Fold, Patch, Rows, Uint8, list_folds, patients_of, write_slides
from PIL import Image
from real_tissue import cpu_seconds
from sklearn.metrics import roc_auc_score

from lrmil_training.config import build_config
from lrmil_training.runs.event_log import BUNDLE, FEATURES, SLIDES
from lrmil_training.train import train
from napari_lrmil.core.atomic_files import write_json, write_text
from napari_lrmil.core.encoders import module_sha256
from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.features.torch_encoding import resize_patches
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.slides.slide import Slide

COLOUR, STUDENT = "colour alone", "student"
MPP = 8.0  # µm per pixel, by fat cells; see the command resolution
BATCH = 64
AS_TRAINED = "as trained"  # the first view
VIEW_STEP = 4  # every fourth test patch is also shown at other resolutions: these views take most of the time
TOP_SHARE = 0.1  # of the patches of a slide, whose mean colour score is the baseline's score of the slide


@dataclass(frozen=True)
class Work:
    """What folds need: patches, their slides, the recipe and the folder for runs.

    Attributes
    ----------
    patches
        All patches.
    slides
        Folder of the slides, written by `write_slides` with benign parts.
    recipe
        Configuration of the training.
    weights
        File of the student's first weights.
    runs
        Folder of the runs, which may be deleted.
    """

    patches: Sequence[Patch]
    slides: Path
    recipe: Mapping[str, Any]
    weights: Path
    runs: Path


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file."""
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def prepare(data: Path, work: Path, recipe: Path, weights: Path) -> Work:
    """Write the slides unless they are there, and return what folds need."""
    from breast_idc_patches import read_patches

    patches, values, slides = read_patches(data), read_recipe(recipe), work / "slides"
    if not (slides / "cohort.csv").exists():  # the table is written last
        write_slides(patches, slides, float(values["lr_mpp"]), benign_parts=True)
    return Work(patches, slides, values, weights, work / "runs" / recipe.stem)


# ---------------------------------------------------------------- training


def measure_folds(work: Work, results: Path, recipe: str, only: Sequence[int] = ()) -> None:
    """Train and score the folds that have no results yet."""
    results.mkdir(parents=True, exist_ok=True)
    for number, fold in enumerate(list_folds(work.patches)):
        file = results / f"{recipe}-fold{number}.json"
        if not file.exists() and (not only or number in only):
            write_json(file, measure_fold(work, number, fold))
            print(f"{file.name} done", flush=True)


def measure_fold(work: Work, number: int, fold: Fold) -> dict[str, Any]:
    """Train the student of a fold and return its scores; a run that was interrupted goes on."""
    began = cpu_seconds()
    run = work.runs / f"fold{number}"
    sides = {patient: side for side in ("train", "val", "test") for patient in _patients(work, getattr(fold, side))}
    table = write_table(work.slides, run.with_suffix(".csv"), sides)
    train_student(work, table, run)
    bundle = Bundle(run / BUNDLE)
    rows = np.sort(np.concatenate([fold.val, fold.test]))
    is_viewed = np.isin(rows, fold.test[::VIEW_STEP])
    logits = score_patches(bundle, work, rows, is_viewed)
    return {
        "rows": rows.tolist(),
        "is_viewed": is_viewed.astype(int).tolist(),
        "is_test": np.isin(rows, fold.test).astype(int).tolist(),
        "logits": {view: np.round(values, 4).tolist() for view, values in logits.items()},
        "slides": list(scored_slides(json.loads((run / SLIDES).read_text())["slides"])),
        "cpu_seconds": round(cpu_seconds() - began, 1),  # of this attempt, without interrupted ones
    }


def _patients(work: Work, rows: Rows) -> set[str]:
    return {work.patches[row].patient for row in rows}


def write_table(slides: Path, path: Path, sides: Mapping[str, str]) -> Path:
    """Write a cohort table with the split of each patient; slides of patients without one are left out."""
    with (slides / "cohort.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] in sides]
    folder = os.path.relpath(slides, path.parent)
    lines = [f"{folder}/{r['slide']},{r['patient']},{r['label']},{sides[r['patient']]}" for r in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(["slide,patient,label,split", *lines]) + "\n")
    return path


def train_student(work: Work, table: Path, run: Path) -> None:
    """Train a student without a teacher, as ``napari-lrmil train --no-teacher`` does.

    Features are lent from run to run; a run that was interrupted keeps them.
    """
    torch.set_num_threads(1)
    shared, own = work.runs / FEATURES, run / FEATURES
    # Every run begins with the features of the same untrained encoder. Their names have a hash of the encoder.
    if shared.exists() and not own.exists():
        run.mkdir(parents=True, exist_ok=True)
        shared.rename(own)
    encoder = {**work.recipe.get("encoder", {}), "teacher": str(work.weights)}
    config = build_config({**work.recipe, "distil": False, "encoder": encoder})
    for event in train(table, run, config, torch.device("cpu")):
        if type(event).__name__ in ("Failed", "Notice", "Metric"):
            print(event, flush=True)
    shutil.rmtree(shared, ignore_errors=True)
    own.rename(shared)


def scored_slides(slides: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield name, patient, label and log odds of carcinoma of the test slides."""
    for slide in slides:
        if slide["split"] == "test":
            logits = slide["methods"]["student"]["logits"]
            score = round(logits["carcinoma"] - logits["benign"], 4)
            yield {**{key: slide[key] for key in ("slide", "patient", "label")}, "logit": score}


# ---------------------------------------------------------------- scores of patches


def enlarge(pixels: Uint8) -> Uint8:
    """Return the middle of (N, p, p, 3) patches at twice their resolution."""
    side = pixels.shape[1]
    quarter = side // 4
    return _resize(pixels[:, quarter : side - quarter, quarter : side - quarter], side)


def shrink(pixels: Uint8) -> Uint8:
    """Return (N, p, p, 3) patches at half their resolution, mirrored at the edge to the size of a patch."""
    side = pixels.shape[1]
    small = _resize(pixels, side // 2)
    before = (side - side // 2) // 2
    edges = (before, side - side // 2 - before)
    return np.pad(small, ((0, 0), edges, edges, (0, 0)), mode="symmetric")


def _resize(pixels: Uint8, side: int) -> Uint8:
    resized = [Image.fromarray(patch).resize((side, side), Image.Resampling.BILINEAR) for patch in pixels]
    return np.stack([np.asarray(image) for image in resized])


VIEWS: dict[str, Callable[[Uint8], Uint8]] = {AS_TRAINED: np.asarray, "enlarged": enlarge, "shrunk": shrink}


def score_patches(bundle: Bundle, work: Work, rows: Rows, is_viewed: Bools) -> dict[str, Float]:
    """Return the log odds of carcinoma of (N,) patches in each view; see `VIEWS`.

    A patch is scored as a slide of this patch alone would be, with the colour normalisation of its slide. Patches
    without (N,) `is_viewed` have the log odds of the first view in all.
    """
    by_slide: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        by_slide.setdefault(work.patches[row].patient, []).append(position)
    usual = np.zeros(len(rows))
    logits = {view: usual if view == AS_TRAINED else np.zeros(len(rows)) for view in VIEWS}
    for patient, positions in by_slide.items():
        corners = np.array([(work.patches[rows[p]].x, work.patches[rows[p]].y) for p in positions], np.int64)
        pixels = read_pixels(bundle, work.slides / f"{patient}.tif", corners)
        usual[positions] = mil_logits(bundle, embed(bundle, pixels, stored_rows(bundle, work, patient, corners)))
        seen = is_viewed[positions]
        for view in VIEWS.keys() - {AS_TRAINED}:
            logits[view][positions] = usual[positions]
            if seen.any():
                change = VIEWS[view]
                logits[view][np.array(positions)[seen]] = mil_logits(bundle, embed(bundle, change(pixels[seen])))
    return logits


def stored_rows(bundle: Bundle, work: Work, slide: str, corners: Any) -> dict[int, Float]:
    """Return number -> embedding of those of (N, 2) places whose features the run has stored."""
    name = f"features_student-{module_sha256(bundle.student.encoder)[:8]}"
    files = list((work.runs / FEATURES).glob(f"*/{name}/{slide}.h5"))  # with colour normalisation the name is longer
    if not files:
        return {}
    with h5py.File(files[0]) as file:
        rows = dict(zip(map(tuple, file["coords"][:].tolist()), file["features"][:], strict=True))
    return {number: rows[place] for number, place in enumerate(map(tuple, corners.tolist())) if place in rows}


def read_pixels(bundle: Bundle, path: Path, corners: Any) -> Uint8:
    """Return (N, p, p, 3) pixels of patches at (N, 2) places of a slide, in the colours that the model expects."""
    card = bundle.card
    with Slide(path) as slide:
        stain = card.stain and card.stain.transform(slide, find_tissue_grid(slide, card.plan, card.tissue).grid)
        return PatchSet(corners, (SIDE, SIDE), card.lr_patch_px, stain=stain or None).read(slide, slice(None))


@torch.inference_mode()
def embed(bundle: Bundle, pixels: Uint8, stored: Mapping[int, Float] = MappingProxyType({})) -> torch.Tensor:
    """Return (N, D) embeddings of (N, p, p, 3) patches; those that are stored are not computed."""
    embeddings = torch.zeros(len(pixels), bundle.student.mil.dim)
    missing = [number for number in range(len(pixels)) if number not in stored]
    for number, row in stored.items():
        embeddings[number] = torch.as_tensor(row)
    for some in torch.tensor(missing, dtype=torch.long).split(BATCH) if missing else ():
        part = torch.from_numpy(np.ascontiguousarray(pixels[some.numpy()])).movedim(-1, -3)
        embeddings[some] = bundle.student.encoder(resize_patches(part, bundle.card.student_input_px)).embedding
    return embeddings


@torch.inference_mode()
def mil_logits(bundle: Bundle, embeddings: torch.Tensor) -> Float:
    """Return the (N,) log odds of the second class of (N, D) embeddings, each as a slide of one patch."""
    logits = [bundle.student.mil(row[None]).logits.double().numpy() for row in embeddings]
    log_odds: Float = np.array([both[1] - both[0] for both in logits])
    return log_odds


# ---------------------------------------------------------------- figures


def read_results(patches: Sequence[Patch], results: Path, recipe: str) -> list[dict[str, Any]]:
    """Return the results of all folds; raises `SystemExit` if some are missing."""
    files = [results / f"{recipe}-fold{number}.json" for number in range(len(list_folds(patches)))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise SystemExit(f"{results}: {', '.join(missing)} not measured yet; run the command folds first")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def fold_scores(result: Mapping[str, Any], view: str = AS_TRAINED, chosen_by: str = AS_TRAINED) -> FoldScores:
    """Return the scores of a fold in one view; the operating point is chosen in another or the same."""
    rows, is_test = np.array(result["rows"]), np.array(result["is_test"], bool)
    logits, chosen = np.array(result["logits"][view]), np.array(result["logits"][chosen_by])
    return FoldScores(rows[is_test], logits[is_test], rows[~is_test], chosen[~is_test])


def summarise(patches: Sequence[Patch], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of patches and slides, those of the colour baseline on the same folds, and differences."""
    features = np.stack([colour_features(patch.read()) for patch in patches])
    folds = list_folds(patches)
    by_colour = [FoldScores(f.test, *_second(colour_logits(patches, features, f), f.seen)) for f in folds]
    answers = {STUDENT: judge(patches, [fold_scores(r) for r in results]), COLOUR: judge(patches, by_colour)}
    tissue, patients = rows_in_tissue(patches), patients_of(patches)
    in_tissue = {name: own.of(tissue) for name, own in answers.items()}
    return {
        "patches": compare(answers, COLOUR, patients.tolist(), measure),
        "patches_in_tissue": compare(in_tissue, COLOUR, patients[tissue].tolist(), measure) | {"count": len(tissue)},
        "auroc_of_fold": {name: _aurocs(own, folds) for name, own in answers.items()},
        "calibration": {
            name: {
                "as given": calibration_curve(own.is_carcinoma, own.probabilities).tolist(),
                "recalibrated": calibration_curve(own.is_carcinoma, own.recalibrated).tolist(),
            }
            for name, own in answers.items()
        },
        "resolution": {view: _change(patches, results, view) for view in VIEWS},
        "slides": _slide_figures(patches, results, answers[COLOUR]),
        "cpu_seconds": sum(result["cpu_seconds"] for result in results),
    }


def rows_in_tissue(patches: Sequence[Patch]) -> Rows:
    """Return the rows of patches that the tissue mask keeps; the others are mostly fat and glass, and no model asks."""
    plan, kept = PatchPlan(MPP, MPP, SIDE, SIDE), set()
    with TemporaryDirectory() as folder:
        write_slides(patches, Path(folder), MPP)
        for patient in {patch.patient for patch in patches}:
            with Slide(Path(folder) / f"{patient}.tif") as slide:
                corners = find_tissue_grid(slide, plan).grid.lr_corners
            kept |= {(patient, int(x), int(y)) for x, y in corners}
    return np.array([row for row, patch in enumerate(patches) if (patch.patient, patch.x, patch.y) in kept])


def _second(logits: tuple[Float, Float], seen: Rows) -> tuple[Float, Rows, Float]:
    """Return the test logits, the other rows and their logits, in the order of `FoldScores`."""
    return logits[0], seen, logits[1]


def _aurocs(answers: Judgement, folds: Sequence[Fold]) -> list[float]:
    return [float(roc_auc_score(answers.is_carcinoma[f.test], answers.logits[f.test])) for f in folds]


def _change(patches: Sequence[Patch], results: Sequence[Mapping[str, Any]], view: str) -> dict[str, float]:
    """Return figures of another view and how far answers differ; the operating point stays that of training."""
    rows = np.concatenate([np.array(r["rows"])[np.array(r["is_viewed"], bool)] for r in results])
    usual = judge(patches, [fold_scores(r) for r in results]).of(rows)
    other = judge(patches, [fold_scores(r, view) for r in results]).of(rows)
    figures = measure(other, np.arange(len(rows)))
    ranks = [np.argsort(np.argsort(own.logits)) for own in (usual, other)]
    return {
        "patches": len(rows),
        "auroc": figures["auroc"],
        "sensitivity": figures["sensitivity"],
        "specificity": figures["specificity"],
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
        "mean_change": float(np.abs(usual.probabilities - other.probabilities).mean()),
        "share_of_changed_calls": float((usual.is_called != other.is_called).mean()),
    }


# ---------------------------------------------------------------- figures of slides


def _slide_figures(patches: Sequence[Patch], results: Sequence[Mapping[str, Any]], colour: Judgement) -> dict[str, Any]:
    slides = [slide for result in results for slide in result["slides"]]
    labels = np.array([slide["label"] == "carcinoma" for slide in slides])
    by_colour = dict(_colour_of_slides(patches, colour))
    scores = {
        STUDENT: np.array([slide["logit"] for slide in slides]),
        COLOUR: np.array([by_colour[slide["slide"]] for slide in slides]),
    }

    def figures(own: Float, rows: Rows) -> dict[str, float]:
        return {"auroc": float(roc_auc_score(labels[rows], own[rows]))}

    compared = compare(scores, COLOUR, [slide["patient"] for slide in slides], figures)
    return {"slides": len(slides), "carcinoma": int(labels.sum()), "methods": compared}


def _colour_of_slides(patches: Sequence[Patch], colour: Judgement) -> Iterator[tuple[str, float]]:
    """Yield name and score of each slide: the mean over its top share of patches, as a MIL would weigh them."""
    by_patient: dict[str, list[int]] = {}
    for row, patch in enumerate(patches):
        by_patient.setdefault(patch.patient, []).append(row)
    for patient, rows in by_patient.items():
        benign = [row for row in rows if not patches[row].is_carcinoma]
        for name, own in ((patient, rows), (f"{patient}{BENIGN_PART}", benign)):
            if own:
                top = np.sort(logistic(colour.logits[own]))[::-1][: max(1, round(TOP_SHARE * len(own)))]
                yield name, float(top.mean())
