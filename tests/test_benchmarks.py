"""The benchmarks' own arithmetic: what they read, what they standardise by, what they call a deviation."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLE = """\
1,3,10,0
0,1,-1,5
0,1,-3,5
1,3,20,0
1,2,7,9
"""


@pytest.fixture
def musk1(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("musk1")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "bags.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def easy_bags(path: Path, bags: int = 24, seed: int = 0) -> Path:
    """Write bags of 2 to 5 instances; a positive one holds a single instance that is large in feature 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(bags):
        count = int(rng.integers(2, 6))
        features = 100 * rng.standard_normal((count, 4)) + 30
        features[0, 1] += 1500 * (number % 2)
        rows += [[number % 2, number, *row] for row in features]
    np.savetxt(path, rows, delimiter=",")
    return path


def test_musk1_rows_become_bags_in_the_order_of_their_numbers(musk1: ModuleType, table: Path) -> None:
    """Column 0 is the label of the bag and column 1 its number, wherever its rows stand; neither is a feature."""
    bags = musk1.read_bags(table)
    assert bags.labels.tolist() == [0, 1, 1]
    assert [bag.tolist() for bag in bags.instances] == [[[-1, 5], [-3, 5]], [[7, 9]], [[10, 0], [20, 0]]]


@pytest.mark.parametrize(
    ("text", "words"),
    [("1,1,5\n0,1,6\n", "bag 1 have both labels"), ("2,1,5\n", "expected 0 and 1"), ("-1,1,5\n", "expected 0 and 1")],
)
def test_musk1_with_impossible_labels_is_refused(musk1: ModuleType, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        musk1.read_bags(path)


def test_musk1_is_the_published_set(musk1: ModuleType, shared_data: Path) -> None:
    """92 molecules, 47 of them musks, 476 shapes of 166 features."""
    bags = musk1.read_bags(shared_data / "features" / "musk1.csv")
    assert (len(bags.instances), bags.labels.sum()) == (92, 47)
    assert torch.cat(bags.instances).shape == (476, 166)


def test_only_the_training_bags_say_how_to_standardise(musk1: ModuleType, table: Path) -> None:
    """Bags 0 and 2: feature 0 has mean 6.5; feature 1 would be 2.5. The test bag is measured in their units."""
    bags = musk1.read_bags(table)
    scaled = musk1.standardised(bags, np.array([0, 2]))
    seen = torch.cat([scaled[0], scaled[2]])
    assert torch.allclose(seen.mean(dim=0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(seen.std(dim=0), torch.ones(2), atol=1e-6)
    sd = np.std([-1, -3, 10, 20], ddof=1)
    assert scaled[1][0, 0].item() == pytest.approx((7 - 6.5) / sd, rel=1e-5)


def test_a_feature_that_never_varies_is_not_divided_by_nothing(musk1: ModuleType, table: Path) -> None:
    scaled = musk1.standardised(musk1.read_bags(table), np.array([0]))
    assert scaled[0][:, 1].tolist() == [0, 0] and scaled[1][0, 1].item() == 4


def test_deviations_say_over_what(musk1: ModuleType) -> None:
    """Two runs of two folds: .8 .6 and 1 .8; mean .8; over folds sd √(.08 / 3), over runs .7 and .9: sd √.02."""
    found = musk1.summary(np.array([[0.8, 0.6], [1.0, 0.8]]))
    assert found["mean"] == pytest.approx(0.8)
    assert found["sd_folds"] == pytest.approx((0.08 / 3) ** 0.5) and found["se_folds"] == pytest.approx(
        found["sd_folds"] / 2
    )
    assert found["sd_runs"] == pytest.approx(0.02**0.5) and found["se_runs"] == pytest.approx(0.1)


def test_one_run_has_no_deviation_over_runs(musk1: ModuleType) -> None:
    found = musk1.summary(np.array([[0.5, 1.0]]))
    assert set(found) == {"mean", "sd_folds", "se_folds"}
    assert "over means of runs" not in musk1.report("plain", "gated_attention", found, (1, 2), 3.0)


@pytest.mark.parametrize("body", ["plain", "mlp"])
def test_the_network_ends_in_our_mil(musk1: ModuleType, body: str) -> None:
    """What is measured is `GatedAttentionMIL`, after the published transform of instances where there is one."""
    from napari_lrmil.core.models.mil import GatedAttentionMIL

    model = musk1.network(166, musk1.BODIES[body])
    mil = model[-1]
    assert isinstance(mil, GatedAttentionMIL)
    assert (mil.dim, mil.hidden, mil.classes) == ({"plain": 166, "mlp": 64}[body], 64, 2)
    assert [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)] == list(
        musk1.BODIES[body].widths
    )
    assert model(torch.randn(5, 166)).logits.shape == (2,)


@pytest.mark.slow
def test_a_run_tests_every_bag_once_and_is_a_function_of_its_seed(musk1: ModuleType, tmp_path: Path) -> None:
    bags = musk1.read_bags(easy_bags(tmp_path / "easy.csv"))
    settings = musk1.Settings((4,), 0.2, 3, "sgd", 1e-3, 1e-3, 2)
    one, again = (list(musk1.one_run(bags, settings, 4, seed=5)) for _ in range(2))
    assert one == again and len(one) == 4


@pytest.mark.slow
def test_an_easy_signal_is_learned_and_written_down(
    musk1: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One instance decides the bag: the whole script finds it, and the file holds each fold, settings and spread."""
    data, out = easy_bags(tmp_path / "easy.csv", 40), tmp_path / "out.json"
    call = ["musk1.py", "--data", str(data), "--folds", "4", "--runs", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", call)
    musk1.main()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["mean"] >= 0.9
    assert np.shape(found["accuracies"]) == (2, 4) and found["mean"] == pytest.approx(np.mean(found["accuracies"]))
    assert found["settings"]["optimizer"] == "adam" and found["sd_runs"] >= 0
    assert f"accuracy {found['mean']:.3f} (published 0.900 ± 0.050)" in capsys.readouterr().out


# ---------------------------------------------------------------- tables of the real-tissue benchmark

BARE = {"agreement": None, "lesion_auroc": None, "cost": {"patches_per_slide": 9.0}}
SLIDES_ONLY = "slides (patient uncertainty not covered)"


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("real_tissue_verdicts")


def cell(
    fold: int, seed: int, cohort: str = "default", **methods: dict[str, tuple[float | None, ...]]
) -> dict[str, Any]:
    """Return a headline cell: method -> other -> value, low and high of the paired difference on test slides."""
    found = {}
    for method, paired in methods.items():
        bounds = {other: dict(zip(("value", "low", "high"), told, strict=True)) for other, told in paired.items()}
        auroc = {"value": 0.5, "low": 0.4, "high": 0.6, "interval": SLIDES_ONLY}
        found[method] = {"test": {"auroc": auroc, "paired": bounds, **BARE}, "val": {"auroc": auroc}}
    told = {"kind": "headline", "cohort": cohort, "fold": fold, "resolution": "2.5x", "seed": seed}
    return {"cell": told, "cpu_seconds": 360.0, "metrics": found}


def test_differences_are_means_over_seeds_then_over_folds(verdicts: ModuleType) -> None:
    """Fold 0 has two seeds and fold 1 one: the mean is that of .2 and .5, not of the three runs."""
    cells = [
        cell(0, 0, student={"teacher": (0.1, -0.04, 0.2)}, teacher={}),
        cell(0, 1, student={"teacher": (0.3, 0.02, 0.6)}, teacher={}),
        cell(1, 0, student={"teacher": (0.5, -0.1, 0.7)}, teacher={}),
    ]
    assert verdicts.paired_rows(cells) == [
        ["difference", "fold 0", "fold 1", "mean over folds"],
        ["student less teacher", "+0.200 (-0.010 to +0.400)", "+0.500 (-0.100 to +0.700)", "+0.350"],
    ]
    assert verdicts.not_worse_rows(cells)[1] == ["student", "yes (1 of 2 runs)", "not shown (0 of 1 runs)"]
    assert verdicts.seeds_of(cells, "student") == "2/1"
    assert verdicts.seeds_of(cells[:2], "student") == "2"


def test_a_difference_without_interval_is_no_verdict(verdicts: ModuleType) -> None:
    cells = [cell(0, 0, both={"teacher": (0.1, None, None)}, teacher={})]
    assert verdicts.paired_rows(cells)[1] == ["both less teacher", "+0.100", "+0.100"]
    assert verdicts.not_worse_rows(cells)[1] == ["both", "cannot be told"]


@pytest.mark.parametrize(("low", "words"), [(-0.0301, "not shown"), (-0.03, "not shown"), (-0.0299, "yes")])
def test_not_worse_is_a_bound_above_the_margin(verdicts: ModuleType, low: float, words: str) -> None:
    cells = [cell(0, 0, student={"teacher": (0.1, low, 0.2)}, teacher={})]
    assert verdicts.not_worse_rows(cells)[1][1].startswith(words)


def test_intervals_over_slides_are_called_so(verdicts: ModuleType) -> None:
    cells = [cell(0, 0, student={})]
    assert verdicts.interval_note(cells) == "Intervals are over slides: patient uncertainty not covered."
    cells[0]["metrics"]["student"]["test"]["auroc"]["interval"] = "patients"
    assert verdicts.interval_note(cells) == "Intervals are over patients."
    both = [*cells, cell(0, 1, student={})]
    assert str(verdicts.interval_note(both)).startswith("Some intervals are over patients, others over slides: ")
    del cells[0]["metrics"]["student"]["test"]["auroc"]["interval"]
    assert verdicts.interval_note(cells) is None


def test_labels_are_permuted_by_patient_where_patients_have_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise by slide, as before; test labels stay true, and every label keeps its number of patients or slides."""
    import pandas as pd

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cohorts = importlib.import_module("real_tissue_cohorts")
    patients = [f"p{i // 3}" for i in range(30)]
    labels = ["a" if i // 3 % 2 else "b" for i in range(30)]
    splits = ["train"] * 18 + ["val"] * 6 + ["test"] * 6
    pure = pd.DataFrame({"patient": patients, "label": labels, "split": splits})
    permuted = cohorts._permuted(pure, 1)
    assert (permuted.groupby("patient")["label"].nunique() == 1).all()
    assert permuted["label"].tolist() != labels and permuted["label"].tolist()[24:] == labels[24:]
    assert sorted(permuted["label"][:18]) == sorted(labels[:18])
    mixed = pure.assign(label=["a", "b"] * 15)
    by_slide = cohorts._permuted(mixed, 1)
    expected = np.random.default_rng([1, 77]).permutation(np.array(["a", "b"] * 9))
    assert by_slide["label"].tolist()[:18] == expected.tolist()


def hoped(verdicts: ModuleType, cells: list[dict[str, Any]], ceiling: float | None = None) -> dict[str, Any]:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in cells:
        found.setdefault(("headline", one["cell"]["cohort"], "2.5x"), []).append(one)
    return {e.statement: e for e in verdicts.expectations(found, ceiling)}


def test_what_was_hoped_for_is_held_against_the_figures(verdicts: ModuleType) -> None:
    """`both` gains .1 over folds, is not worse than the teacher on one of two; agreement .4, lesions .89."""
    gains = {0: (0.15, 0.0, 0.3), 1: (0.05, -0.2, 0.1)}
    cells = [cell(f, 0, both={"labels_only": gain, "teacher": gain}, teacher={}) for f, gain in gains.items()]
    for one, rho in zip(cells, (0.3, 0.5), strict=True):
        one["metrics"]["both"]["test"] |= {"agreement": {"spearman": rho}, "lesion_auroc": 0.89}
    told = hoped(verdicts, cells, 0.61)
    gain = told["both at least labels_only +0.10, default"]
    assert (gain.measured, gain.held) == ("+0.100; runs: 2, folds: 2", True)
    teacher = told["both not worse than teacher, default"]
    assert (teacher.measured, teacher.held) == ("lower bounds +0.000, -0.200; runs: 2, folds: 2", False)
    rho = told["both, Spearman with the teacher at least 0.35, default"]
    assert (rho.measured, rho.held) == ("0.400 (teacher against teacher 0.61); runs: 2, folds: 2", True)
    assert told["both, lesion AUROC at least 0.90, default"].held is False
    assert told["student, lesion AUROC at least 0.90, default"].held is None
    assert told["both not worse than labels_only_finetuned, harder"].measured == "-"
    rows = verdicts.expectation_rows(list(told.values()))
    assert {row[2] for row in rows[1:]} == {"met", "not met", "not measured"}


@pytest.mark.parametrize(
    ("both", "student", "third", "held"),
    [
        (0.0, 0.06, 0.06, True),  # one of the two is enough
        (0.0, 0.04, 0.06, False),  # neither is better by 0.05 where lesions are small
        (0.0, 0.06, None, None),  # not measured with a third of the slides, which decides
        (0.0, 0.04, None, False),  # what is not measured would change nothing
    ],
)
def test_one_of_the_two_students_must_hold_everywhere(
    verdicts: ModuleType, both: float, student: float, third: float | None, held: bool | None
) -> None:
    """Against the fine-tuned student that learned from labels alone: not worse anywhere, better where it is hard."""

    def one(cohort: str, value: float) -> dict[str, Any]:
        fine = {m: {"labels_only_finetuned": (v, -0.01, 0.2)} for m, v in (("both", both), ("student", value))}
        return cell(0, 0, cohort, **fine, labels_only_finetuned={})

    cells = [one("default", 0.0), one("harder", student), *([] if third is None else [one("third", third)])]
    told = hoped(verdicts, cells)
    assert told["both, or student, all of the statements against labels_only_finetuned"].held is held


def test_the_tables_print_it_all(verdicts: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the files of cells: seeds in their column, differences, the note, and what was hoped for."""
    methods = {"student": {"teacher": (0.1, 0.0, 0.2)}, "teacher": {"student": (-0.1, -0.2, 0.0)}}
    for seed in range(3):
        (tmp_path / f"{seed}.json").write_text(json.dumps(cell(0, seed, **methods)))
    importlib.import_module("real_tissue_table").print_tables(tmp_path)
    out = capsys.readouterr().out
    assert "| method | seeds | fold 0 |" in out and "| student | 3 | 0.500" in out
    assert "| student less teacher | +0.100 (+0.000 to +0.200) | +0.100 |" in out
    assert "| student | yes (3 of 3 runs) |" in out and "patient uncertainty not covered." in out
    assert "| both at least labels_only +0.10, default | - | not measured |" in out
    assert "3 cells, 0.3 CPU-hours" in out


def test_a_difference_without_spread_gives_no_verdict(verdicts: ModuleType) -> None:
    """Where both rank all slides rightly every resample says the same."""
    ceiling = cell(0, 0, student={"teacher": (0.0, 0.0, 0.0)}, teacher={})
    found = verdicts.difference([ceiling], "student", "teacher")
    assert (found.value, found.not_worse, found.runs) == (0.0, None, 0)
    told = verdicts.difference(
        [ceiling, cell(0, 1, student={"teacher": (0.1, -0.2, 0.3)}, teacher={})], "student", "teacher"
    )
    assert (told.low, told.not_worse, told.runs) == (-0.2, False, 1)


def test_a_teachers_attention_is_summed_over_the_students_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four HR patches in the first LR patch, one in the other; the lattice begins where the student's patches do."""
    from lrmil_training.evaluation.attention_files import AttentionMap

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    student = AttentionMap(np.array([[10, 20], [110, 20]]), (100, 100), np.array([0.5, 0.5], np.float32))
    corners = np.array([[10, 20], [60, 20], [10, 70], [60, 70], [160, 70]])
    teacher = AttentionMap(corners, (50, 50), np.array([0.1, 0.2, 0.3, 0.1, 0.3], np.float32))
    pooled = importlib.import_module("disagreement").pooled_to(student, teacher)
    np.testing.assert_allclose(pooled.attention, [0.7, 0.3], atol=1e-6)


# ---------------------------------------------------------------- phantom patients


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("phantom_patients_table")


def patients_cell(folder: Path, patients: int, draw: int, wrong: int = 0) -> dict[str, Any]:
    """Write a cell with 12 test patients of two slides each, of whose lesion patients the student misses `wrong`."""
    slides = []
    for number in range(24):
        lesion = number // 2 % 2 == 1
        right = float(lesion)
        student = 0.0 if lesion and number // 4 < wrong else right
        methods = {"teacher": right, "student": student, "labels_only": 0.5, "labels_only_finetuned": student}
        label = "lesion" if lesion else "normal"
        slides.append({"slide": f"s{number}", "patient": f"p{number // 2}", "label": label, "probabilities": methods})
    result = {"cell": {"patients": patients, "draw": draw, "recipe": "default"}, "slides": slides, "cpu_seconds": 9.0}
    (folder / f"{patients}-{draw}.json").write_text(json.dumps(result))
    return result


def test_learning_curves_are_means_over_draws_with_intervals_over_test_patients(
    curves: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six lesion patients, three are missed in one draw and none in the other: AUROC 0.75 and 1."""
    cells = [patients_cell(tmp_path, 10, 0, wrong=3), patients_cell(tmp_path, 10, 1)]
    aurocs = curves.measure_aurocs(cells)
    assert aurocs["student"].values.tolist() == [0.75, 1.0] and aurocs["student"].mean == 0.875
    low, high = aurocs["student"].interval
    assert 0.75 <= low < 0.875 < high <= 1
    assert (aurocs["student"] - aurocs["labels_only_finetuned"]).interval == (0.0, 0.0)
    patients_cell(tmp_path, 5, 0)
    curves.print_curves(tmp_path, 12)
    out = capsys.readouterr().out
    assert "Measured: 3 cells, of 12 for each recipe." in out
    assert out.index("| 5 | 1 | 1.000 (1.000 to 1.000) |") < out.index("| 10 | 2 | 1.000 (1.000 to 1.000) | 0.875 (")
    assert "| 10 | +0.000 (+0.000 to +0.000) | -0.125 (" in out
    curves.draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_a_recipe_without_some_methods_is_shown_without_them(
    curves: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = patients_cell(tmp_path, 5, 0)
    for slide in result["slides"]:
        del slide["probabilities"]["labels_only"]
    (tmp_path / "5-0.json").write_text(json.dumps(result))
    curves.print_curves(tmp_path, 12)
    curves.draw_curves(tmp_path, tmp_path / "curves.png")
    assert "| 1.000 (1.000 to 1.000) | - | 9 |" in capsys.readouterr().out


def test_cells_of_other_test_slides_are_not_averaged(curves: ModuleType, tmp_path: Path) -> None:
    other = patients_cell(tmp_path, 5, 1)
    other["slides"][0]["slide"] = "another"
    with pytest.raises(SystemExit, match="different slides"):
        curves.measure_aurocs([patients_cell(tmp_path, 5, 0), other])
    with pytest.raises(SystemExit, match="no results"):
        curves.draw_curves(tmp_path / "empty", tmp_path / "curves.png")


def test_smaller_cohorts_are_the_first_patients_of_larger_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All validation and test patients are in every table, and slides are given relative to it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    grid = importlib.import_module("phantom_patients")
    monkeypatch.setattr(
        "napari_lrmil.core.phantom.cohort.write_slide",
        lambda folder, slide, look, variants: folder / f"{slide.name}.tif",
    )
    grid.paint(tmp_path / "shared", ("val", grid.VALIDATION_PATIENTS), ("test", grid.TEST_PATIENTS))
    tables = {n: grid.write_table(tmp_path, grid.Cell(n, 0), 40).read_text().splitlines() for n in (5, 10, 40)}
    rows = {n: [line.split(",") for line in lines[1:]] for n, lines in tables.items()}
    for n, of in rows.items():
        assert len({r[1] for r in of if r[3] == "train"}) == n
        assert {r[3] for r in of if r[0].startswith("../shared/")} == {"val", "test"}
        assert len({r[1] for r in of if r[3] == "test"}) == 60 and {r[2] for r in of if r[3] == "train"} == {
            "normal",
            "lesion",
        }
    assert {tuple(r) for r in rows[5]} < {tuple(r) for r in rows[10]} < {tuple(r) for r in rows[40]}
    first, second = (grid.write_table(tmp_path, grid.Cell(5, draw), 40).read_text() for draw in (0, 1))
    assert first != second


@pytest.fixture
def set_coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("set_coverage")


def test_sets_are_counted_on_slides_that_did_not_calibrate(set_coverage: ModuleType) -> None:
    """Nine slides calibrate, one with a probability of 0.4 for the truth: sets up to 0.6 hold both classes."""
    lesion = np.array([0.1] * 4 + [0.9] * 4 + [0.4] + [0.55, 0.45, 0.8, 0.3])
    truth = np.array([0] * 4 + [1] * 4 + [1] + [0, 0, 0, 0])
    probabilities = np.stack([1 - lesion, lesion], axis=1)
    is_covered, sizes = set_coverage.count(probabilities, truth, np.arange(13), 9, 0.9)
    assert (is_covered.tolist(), sizes.tolist()) == ([True, True, False, True], [2, 2, 1, 1])


def test_a_table_of_coverages_is_printed(set_coverage: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    slides = [
        {"slide": str(i), "label": label, "split": split, "lesion": float(rng.beta(3, 2) if label == "lesion" else 0.2)}
        for split, count in (("calibration", 30), ("test", 40))
        for i in range(count)
        for label in ["lesion" if i % 2 else "normal"]
    ]
    share = {"value": 0.5, "low": 0.2, "high": 0.8, "n_slides": 40}
    point = {"threshold": 0.4, "sensitivity": share, "specificity": share}
    sets = {"coverage": 0.9, "empirical": share, "by_class": {"normal": share, "lesion": share}}
    figures = {"auroc": share, "operating_point": point, "prediction_sets": sets}
    set_coverage.print_tables({"slides": slides, "figures": figures, "cpu_seconds": 1})
    printed = capsys.readouterr().out
    assert "30 calibration patients, 40 test patients" in printed and "| 90% |" in printed
    assert "the same, slides of class lesion | 0.500 (0.200 to 0.800), 40 slides" in printed
