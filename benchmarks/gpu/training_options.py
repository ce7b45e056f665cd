"""Step of many short trainings, each with options that the other steps leave out, on the device and on the CPU."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from machine_steps import cohort_table
from record import LOSSES
from steps import PROBLEM, Context
from training_steps import run_folder, train_once

from napari_lrmil.core.encoders import EncoderSpec, build_encoder, save_encoder

SLIDES = {"train": (4, 12), "val": (2, 4), "test": (2, 4)}  # small, full
# Bags and batches of equal sizes, because cuDNN prepares kernels for each new one.
SIZES: dict[str, Any] = {
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 1, "patches_per_slide": 8},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 1, "min_epochs": 1, "lr": [1e-4], "patches_per_slide": 4},
}
GIVEN, STAIN = "features given", "stain changed"  # what needs more than `OPTIONS` say
OPTIONS: dict[str, dict[str, Any]] = {
    "other aggregators": {"teacher": {"aggregator": "dsmil"}, "compare": ["all"]},
    GIVEN: {"encoder": {"student": "mobilenet_v3_large"}, "hr_check": 2},
    "joined layers": {
        "encoder": {"teacher_layers": ["block_14", "block_15"], "pca": 16},
        "baselines": ["labels_only_finetuned", "stage1_only", "stage2_only"],
    },
    "recipe chosen": {
        "encoder": {"pca": 16},
        "selection": {
            "inner_folds": 2,
            "layers": ["block_15", "block_14+block_15"],
            "aggregators": ["gated_attention", "linear_topk"],
        },
    },
    "outlines": {
        "lambda_patch": 1.0,
        "teacher": {"aggregator": "linear_topk"},
        "stage2": {"lambda_hard": 1.0, "patch_dropout": 0.2},
        "stage3": {"feature_dropout": 0.2},
        "stain": {"normalise": "density_gain"},
        "exclude_artefacts": True,
    },
    "patients": {"bag": "patient", "operating_point": {"sensitivity": 1.0}},
    STAIN: {
        "stage1": {"targets": "on_the_fly", "stain_sd": 0.05},
        "stage2": {"features": "on_the_fly"},
        "stain": {"normalise": "reinhard"},
        "sampling": "patient",
    },
    "ViT teacher": {"encoder": {"student": "convnext_atto"}, "stage1": {"layers": ["block_2:stage_4"]}},
    "no teacher": {"distil": False, "encoder": {"student": "mobilenet_v2"}, "baselines": ["labels_only"]},
}
# Stages with dropout, whose random numbers are of the device and so are others than the CPU's.
CHANCE = {"other aggregators": ("teacher_clam_sb ", "teacher_transmil "), "outlines": ("stage3 ",)}
VIT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192, "image_size": 64}
SMALLEST_LOSS = 0.1  # smaller ones are compared as if they were this: their relative gap is chance
MAX_GAP = 0.2  # of a loss term between the devices; another seed makes up to 0.9
DIED = "the process died"
THREADS = 4  # of the trainings on the CPU
CHOICE = "the inner cross-validation chose"


def train_with_options(context: Context) -> dict[str, Any]:
    """Train with each of `OPTIONS` in float32, on the device and meanwhile on the CPU in a process of its own.

    ``gap`` is the largest relative difference of a loss term of the last epochs, without the stages of `CHANCE`.
    ``auroc_gap`` is that of an AUROC on the test slides, which jumps, as they are few. On a CPU there is one training
    of each, and no gap.
    """
    rows, pool = dict[str, Any](), _start_pool()
    try:
        for name in OPTIONS:
            rows[name] = _compare(context, name, pool)
            if DIED in rows[name]["outcome"]:
                pool = _start_pool()
    finally:
        pool.shutdown()
    failed = [name for name, row in rows.items() if row["outcome"] != "done"]
    return rows | ({PROBLEM: f"failed, or other losses than on the CPU: {', '.join(failed)}"} if failed else {})


def _start_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare_process)


def _prepare_process() -> None:
    """Keep the process of the CPU's trainings quiet, and leave cores to the training on the device."""
    logging.getLogger("napari_lrmil").setLevel(logging.ERROR)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))


def _compare(context: Context, name: str, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Return the row of one set of options."""
    try:
        settings, table = _complete(context, name), _write_table(context, name)
    except Exception as error:  # recorded: the other rows go on
        return {"outcome": _sentence(error)}
    arguments = {"table": table, "sizes": SIZES}
    job = pool.submit(_train_reference, context, f"options, {name}, cpu", settings, arguments)
    row, runs = {"outcome": "done"}, {}
    if context.kind != "cpu":
        try:
            runs[context.kind] = train_once(context, f"options, {name}, device", context.kind, settings, **arguments)
        except Exception as error:  # recorded
            row["outcome"] = f"{context.kind}: {_sentence(error)}"
    _take_reference(job, row, runs)
    row |= {f"{device}_s": run["seconds"] for device, run in runs.items()}
    return row | (compare_runs(runs[context.kind], runs["cpu"], CHANCE.get(name, ())) if len(runs) == 2 else {})


def _train_reference(
    context: Context, name: str, settings: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any] | str:
    """Train on the CPU; return a sentence instead of an error, because some errors cannot leave their process."""
    try:
        return train_once(context, name, "cpu", settings, **arguments)
    except Exception as error:  # recorded by `_take_reference`
        return _sentence(error)


def _take_reference(job: Future[dict[str, Any] | str], row: dict[str, Any], runs: dict[str, Any]) -> None:
    """Wait for the training on the CPU."""
    try:
        result = job.result()
    except BrokenProcessPool:
        result = DIED
    if isinstance(result, dict):
        runs["cpu"] = result
    else:
        row["outcome"] = "; ".join([*([] if row["outcome"] == "done" else [row["outcome"]]), f"cpu: {result}"])


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[-1][:300]


def _complete(context: Context, name: str) -> dict[str, Any]:
    """Return the settings of a row with the files that they need."""
    settings = OPTIONS[name] | {"precision": "32"}
    if name == GIVEN:  # by the first row
        features = run_folder(context, f"options, {next(iter(OPTIONS))}, cpu") / "features"
        return settings | {"hr_features": str(next(features.glob("20x_*/features_*")))}
    if name == STAIN:  # of twelve training patients ten, as sets at 90 % need nine
        return settings | {"split": {"calibration": context.pick(0.5, 0.8)}}
    if name == "ViT teacher":
        file = context.work / "vit.safetensors"
        torch.manual_seed(0)
        save_encoder(file, build_encoder(EncoderSpec("vit", VIT, "none", "vit")))
        return settings | {"encoder": settings["encoder"] | {"teacher": str(file)}}
    return settings


def _write_table(context: Context, name: str) -> Path:
    """Write a table with some slides of the cohort beside it; if patients have one bag each, with two slides each."""
    with cohort_table(context).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for split, counts in SLIDES.items() for row in balanced(rows, split, context.pick(*counts))]
    if "bag" in OPTIONS[name]:
        share_patients(chosen)
    table = cohort_table(context).with_name("patients.csv" if "bag" in OPTIONS[name] else "options.csv")
    write_rows(table, chosen)
    return table


def balanced(rows: list[dict[str, str]], split: str, count: int) -> list[dict[str, str]]:
    """Return `count` rows of a split, half of each class."""
    own = [row for row in rows if row["split"] == split]
    labels = sorted({row["label"] for row in own})
    return [row for label in labels for row in [r for r in own if r["label"] == label][: count // len(labels)]]


def share_patients(rows: list[dict[str, str]]) -> None:
    """Give every two slides of one split and label, which follow each other, one patient."""
    seen: dict[str, int] = {}
    for row in rows:
        key = f"{row['split']}-{row['label']}"
        row["patient"] = f"{key}-{seen.setdefault(key, 0) // 2}"
        seen[key] += 1


def write_rows(table: Path, rows: list[dict[str, str]]) -> None:
    """Write a cohort table."""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def compare_runs(run: Mapping[str, Any], reference: Mapping[str, Any], chance: tuple[str, ...]) -> dict[str, Any]:
    """Return the largest differences of a training from that on the CPU, and an outcome if they are too large.

    Parameters
    ----------
    run, reference
        As `train_once` returns them.
    chance
        Beginnings of the figures that are left out.
    """
    figures, expected = run["figures"], reference["figures"]
    losses = [name for name in expected if name.rpartition("/")[2].startswith(LOSSES) and not name.startswith(chance)]
    missing = [name for name in losses if name not in figures]
    if missing:
        return {"outcome": f"no {', '.join(missing)}"}
    gaps = {name: abs(figures[name] - expected[name]) / max(abs(expected[name]), SMALLEST_LOSS) for name in losses}
    largest = max(gaps, key=lambda name: math.inf if math.isnan(gaps[name]) else gaps[name])
    row = {"gap": gaps[largest], "of": largest, "auroc_gap": _auroc_gap(run["metrics"], reference["metrics"])}
    if choice(run) != choice(reference):
        return row | {"outcome": f"{choice(run)} and not {choice(reference)}"}
    is_close = gaps[largest] <= MAX_GAP  # false for NaN too
    return row if is_close else row | {"outcome": f"{largest} is {gaps[largest]:.2g} of its value from the CPU's"}


def choice(run: Mapping[str, Any]) -> str:
    """Return the recipe that an inner cross-validation chose; empty without one."""
    sentence = next((text for text in run["notices"] if text.startswith(CHOICE)), CHOICE)
    return sentence.removeprefix(CHOICE).partition(":")[0].strip()


def _auroc_gap(metrics: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    return max(
        abs(metrics[method]["test"]["auroc"]["value"] - splits["test"]["auroc"]["value"])
        for method, splits in reference.items()
    )
