"""Grid of training recipes on real tissue: its cells, its arithmetic and its verdicts."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("real_tissue_recipes")


@pytest.fixture
def cohorts(recipes: ModuleType) -> ModuleType:
    return importlib.import_module("real_tissue_cohorts")


@pytest.fixture
def verdicts(recipes: ModuleType) -> ModuleType:
    return importlib.import_module("real_tissue_recipes_verdicts")


def recipe_cell(
    kind: str, recipe: str, fold: int, seed: int = 0, setting: str = "default", **wrong: int
) -> dict[str, Any]:
    """Return a cell with four test slides of each class: a method ranks `wrong` malignant ones below all benign."""
    slides = [
        {
            "slide": f"s{number}",
            "patient": "1",
            "label": "malignant" if number >= 4 else "benign",
            "probabilities": {m: 0.0 if 4 <= number < 4 + n else number / 8 + 0.1 for m, n in wrong.items()},
        }
        for number in range(8)
    ]
    figures = {m: {"auroc": {"value": 1 - n / 4}, "lesion_auroc": 0.9, "agreement": None} for m, n in wrong.items()}
    slides_of, _, resolution = setting.partition(" at ")
    cell = {"kind": kind, "recipe": recipe, "cohort": f"image_{slides_of}", "fold": fold, "seed": seed}
    cell |= {"resolution": resolution or "2.5x"}
    metrics = {m: {"test": f, "val": f} for m, f in figures.items()}
    return {"cell": cell, "cpu_seconds": 360.0, "metrics": metrics, "slides": slides}


def teachers(new: Iterable[int], old: int = 2) -> list[dict[str, Any]]:
    """Return a cell of either recipe for each fold; an AUROC is 1 less a quarter of each slide that is wrong."""
    cells = [recipe_cell("teacher", "new", fold, teacher=wrong) for fold, wrong in enumerate(new)]
    return cells + [recipe_cell("teacher", "old", fold, teacher=old) for fold in range(len(cells))]


def test_teachers_of_both_recipes_come_first_and_every_cell_has_a_name_of_its_own(recipes: ModuleType) -> None:
    cells = list(recipes.recipe_cells())
    assert len({cell.name for cell in cells}) == len(cells)
    assert {(cell.kind, cell.recipe) for cell in cells[:36]} == {("teacher", "old"), ("teacher", "new")}
    assert {(cell.cohort, cell.seed) for cell in cells if (cell.kind, cell.recipe) == ("student", "new")} == {
        (f"image_{setting}", seed) for setting in ("default", "harder", "third") for seed in range(3)
    }
    assert sum(cell.kind == "permuted" for cell in cells) == 30


def test_settings_of_a_recipe_leave_those_of_the_grid_in_place(recipes: ModuleType) -> None:
    """The learning rate and width of the teacher stay, and a cell's own changes come last."""
    cell = next(c for c in recipes.recipe_cells() if c.recipe == "new" and c.kind == "uniform")
    settings = recipes.cell_settings(cell)
    assert settings["teacher"] == {"lr": 3e-3, "hidden": 64, "weight_decay": 1e-2, "feature_dropout": 0.5}
    assert settings["stage1"] == {"patches_per_slide": 40, "attention": "uniform"}
    assert settings["stage3"]["epochs"] == 0 and settings["encoder"] == {"teacher_layers": ["block_15"]}
    assert recipes.BASE["teacher"] == {"lr": 3e-3, "hidden": 64}, "the grid's own settings are not changed"


def test_a_dominant_source_lowers_the_effective_number(cohorts: ModuleType) -> None:
    assert cohorts.effective_number([5, 5, 5, 5]) == 4
    assert cohorts.effective_number([8, 1, 1]) == pytest.approx(100 / 66)


def test_sources_are_those_of_the_malignant_training_cores(cohorts: ModuleType, tmp_path: Path) -> None:
    """The third has the slides of the default cohort; validation slides and benign cores do not count."""
    args = argparse.Namespace(work=tmp_path)
    default, third = (cohorts.cohort_folder(args, f"image_{name}", 0) for name in ("default", "third"))
    for folder in (default, third):
        folder.mkdir(parents=True)
    rows = [("a", "2", "malignant", "x"), ("a", "2", "malignant", "x"), ("a", "4", "malignant", "y")]
    rows += [("a", "4", "benign", "z"), ("b", "5", "malignant", "w"), ("v", "9", "malignant", "v")]
    pd.DataFrame(rows, columns=["slide", "patient", "label", "image"]).to_csv(default / "cores.csv", index=False)
    table = pd.DataFrame({"slide": ["../d/a.tif", "../d/v.tif"], "split": ["train", "val"]})
    table.to_csv(third / "cohort.csv", index=False)
    sources = cohorts.measure_sources(args, "image_third", 0)
    assert (sources["slides"], sources["cores"], sources["images"], sources["patients"]) == (1, 3, 2, 2)
    assert sources["effective_images"] == sources["effective_patients"] == pytest.approx(9 / 5)


@pytest.mark.parametrize(
    ("cohort", "source"),
    [
        ("matched", "matched"),
        ("third", "default"),
        ("image_harder", "image_harder"),
        ("image_third", "image_default"),
        ("image_permuted_3", "image_default"),
    ],
)
def test_tables_use_the_slides_of_their_own_way_of_drawing(cohorts: ModuleType, cohort: str, source: str) -> None:
    assert cohorts.source_cohort(cohort) == source


def test_paired_differences_are_means_over_seeds_then_over_folds(verdicts: ModuleType) -> None:
    """Fold 0 has .5 less .5 and 1 less .5, fold 1 has 1 less .5; a seed of one recipe alone does not count."""
    cells = teachers([2, 0])
    cells += [recipe_cell("teacher", recipe, 0, 1, teacher=wrong) for recipe, wrong in (("new", 0), ("old", 2))]
    cells.append(recipe_cell("teacher", "new", 0, 2, teacher=4))
    difference = verdicts.paired_difference(cells, verdicts.TEACHER, verdicts.OLD_TEACHER, "default")
    assert difference.folds == {0: 0.25, 1: 0.5} and difference.runs == 3
    assert difference.value == pytest.approx(0.375) and difference.low <= 0.375 <= difference.high
    assert difference.low < difference.high
    assert verdicts.paired_difference(cells, verdicts.STUDENT, verdicts.TUNED, "default") is None


@pytest.mark.parametrize(
    ("new", "gain", "folds", "level"),
    [
        ([1, 0, 1], True, True, True),  # +.33; .75 at least; .83 in the mean
        ([2, 0, 0], True, False, True),  # one fold at .5
        ([2, 2, 1], False, False, False),  # +.08; .58
        ([1, 0], None, None, None),  # a fold is missing
        ([2, 0], None, False, None),  # a fold below decides, whatever the third is
    ],
)
def test_goals_are_held_missed_or_open(
    verdicts: ModuleType, new: list[int], gain: bool | None, folds: bool | None, level: bool | None
) -> None:
    goals = verdicts.recipe_goals(teachers(new))
    assert [goal.held for goal in goals[:3]] == [gain, folds, level]
    assert goals[3].held is None and goals[3].measured == "-"


def test_better_in_two_settings_needs_two_that_are_complete(verdicts: ModuleType) -> None:
    """The student is better by .25 in two settings; the third was not measured and decides nothing."""

    def students(setting: str, wrong: int) -> list[dict[str, Any]]:
        return [
            recipe_cell("student", "new", f, 0, setting, student=0, labels_only_finetuned=wrong, teacher=0)
            for f in range(3)
        ]

    by_statement = {g.statement: g for g in verdicts.recipe_goals(students("default", 1) + students("harder", 1))}
    better = next(g for statement, g in by_statement.items() if "in two settings" in statement)
    assert (better.measured, better.held) == ("2 of 2 settings", True)
    mixed = verdicts.recipe_goals(students("default", 1) + students("harder", 0))
    assert next(g for g in mixed if "in two settings" in g.statement).held is None
    level = next(g for g in mixed if g.statement.startswith("student: lesion AUROC"))
    assert (level.measured, level.held) == ("0.900 (runs: 3, folds: 3)", True)


def test_tables_and_picture_show_runs_sources_and_cells(
    verdicts: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = importlib.import_module("real_tissue_recipes_table")
    for number, cell in enumerate([*teachers([1, 0, 1]), recipe_cell("permuted", "new", 0, teacher=2)]):
        (tmp_path / f"{number}.json").write_text(json.dumps(cell))
    counts = {"slides": 60, "cores": 300, "images": 27, "patients": 3}
    sources = counts | {"effective_images": 21.25, "effective_patients": 2.0}
    cell = {"kind": "sources", "cohort": "image_default", "fold": 1}
    (tmp_path / "sources.json").write_text(json.dumps({"cell": cell, "sources": sources}))
    (tmp_path / "slides.json").write_text(json.dumps({"cell": {"kind": "preparation"}, "cpu_seconds": 1080.0}))
    table.print_recipe_tables(tmp_path)
    out = capsys.readouterr().out
    assert "| HR teacher, new recipe: no fold below 0.65, default | 0.750, 1.000, 0.750 | held |" in out
    assert "| default slides | 1 | 60 | 300 | 27 | 21.2 | 3 | 2.0 |" in out
    assert "| default slides | HR teacher, new recipe | 0.750 |  |  | 1.000 |  |  | 0.750 |  |  |" in out
    assert "permuted labels: test AUROC 0.500 over 1 runs" in out
    assert "7 of 150 cells, 1.0 CPU-hours" in out
    monkeypatch.setattr("sys.argv", ["table", str(tmp_path / "runs.png"), "--results", str(tmp_path)])
    table.main()
    assert (tmp_path / "runs.png").stat().st_size > 5000
