"""Cells of benchmarks/real_tissue.py: one run each, of a cohort, a fold, a resolution, a seed and changed settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FOLDS = (  # patients of train, val, test; each split has both classes
    ("2,4,8,13", "10,12", "3,5,16"),
    ("3,5,8,16", "10,12", "2,4,13"),
    ("2,4,5,13", "3,16", "8,10,12"),
)
SLIDES = {"train": 60, "val": 20, "test": 40}
SHARES = {"default": "0.10,0.20", "harder": "0.02,0.04", "matched": "0.10,0.20"}
THIRD = 20  # training slides of the cohort with few of them
# An LR patch has a footprint of 512 level-0 px, so that four HR patches of 128 px lie along its side.
RESOLUTIONS: dict[str, dict[str, Any]] = {
    "2.5x": {"lr_mpp": 4.0, "lr_patch_px": 64},
    "2.5x enlarged": {"lr_mpp": 4.0, "lr_patch_px": 64, "student_input_px": 128},
    "5x": {"lr_mpp": 2.0, "lr_patch_px": 128},
}
RATES = (3e-5, 1e-4, 3e-4)  # of fine-tuning; chosen on validation with a fold's first seed
ROWS = ("labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both")
BASE: dict[str, Any] = {
    "hr_patch_px": 128,
    "teacher": {"lr": 3e-3, "hidden": 64},  # what validation favours among TEACHERS
    "bootstrap": 1000,
    "stage1": {"patches_per_slide": 40},
    "stage3": {"epochs": 15, "lr": list(RATES)},
    "baselines": list(ROWS),
}
# The teacher without a student that learns.
ALONE: dict[str, Any] = {
    "baselines": [],
    "stage1": {"epochs": 0},
    "stage2": {"init": "frozen_head"},
    "stage3": {"epochs": 0},
}
TEACHERS = ((3e-4, 64), (1e-3, 64), (1e-3, 128), (3e-3, 64))  # learning rate, width of the gate


@dataclass(frozen=True)
class Cell:
    """One run: a cohort, a fold, a resolution, a seed, and the changed settings."""

    kind: str  # headline, ablation, or the name of a control
    cohort: str
    fold: int
    resolution: str
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""  # of real_tissue_recipes; none in the first grid

    @property
    def name(self) -> str:
        """File name of its results."""
        kind = f"{self.kind}_{self.recipe}" if self.recipe else self.kind
        return f"{kind}-{self.cohort}-{self.resolution.replace(' ', '_')}-fold{self.fold}-seed{self.seed}"


def cells() -> Iterator[Cell]:
    """Yield all cells, the most important ones first."""
    for lr, hidden in TEACHERS:  # chosen on validation before any student is trained
        for fold in range(len(FOLDS)):
            changes = ALONE | {"teacher": {"lr": lr, "hidden": hidden}}
            yield Cell(f"teacher_lr{lr:g}_hidden{hidden}", "default", fold, "2.5x", 0, changes)
    ablation = {"ablation": True, "baselines": [], "stage3": {"epochs": 0}}
    uniform = {"stage1": {**BASE["stage1"], "attention": "uniform"}, "baselines": ["stage1_only"]}
    for seed in range(10):
        for fold in range(len(FOLDS)):
            if seed < 5:
                yield Cell("headline", "default", fold, "2.5x", seed)
            if seed < 3:
                yield Cell("headline", "third", fold, "2.5x", seed)
                yield Cell("headline", "harder", fold, "2.5x", seed)
            if seed < 2:
                yield Cell("uniform", "default", fold, "2.5x", seed, uniform | {"stage3": {"epochs": 0}})
                yield Cell("ablation", "default", fold, "2.5x", seed, ablation)
            yield Cell("permuted", f"permuted_{seed}", fold, "2.5x", seed, ALONE)
        if seed < 5:  # patches of 128 px are the most expensive
            for fold in range(len(FOLDS)):
                yield Cell("headline", "default", fold, "2.5x enlarged", seed)
                yield Cell("headline", "default", fold, "5x", seed)
                if seed < 2:
                    yield Cell("stain_matched", "matched", fold, "2.5x", seed)
