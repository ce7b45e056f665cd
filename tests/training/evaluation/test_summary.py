"""Summary over runs: mean of each run's metrics, undefined values left out, folds and a fixed split never mixed."""

from __future__ import annotations

from typing import Any

import pytest

from lrmil_training.evaluation.summary import is_method_entry, summarise_runs


def run(
    fold: int | None, seed: int, auroc: float | None, difference: float | None, rho: float | None
) -> dict[str, Any]:
    """Return one run with two methods; the arguments are metrics of the student."""
    shared = {"balanced_accuracy": 0.5, "f1": None, "ece": 0.1, "brier": 0.2 + 0.1 * seed, "lesion_auroc": 0.75}
    student = {
        "auroc": {"value": auroc},
        **shared,
        "agreement": None if rho is None else {"spearman": rho, "jaccard_top10": 0.3, "js_divergence": 0.1},
        "paired": {"teacher": {"value": difference}},
    }
    teacher = {"auroc": {"value": 0.9}, **shared, "agreement": None, "paired": {}}
    return {
        "fold": fold,
        "seed": seed,
        "metrics": {"protocol": {"folds": 3}, "student": {"test": student}, "teacher": {"test": teacher}},
    }


def test_means_and_deviations_by_hand() -> None:
    """.8, .9 and 1.0 have mean .9 and sample deviation .1; of +.1, -.1 and 0 one is positive."""
    summary = summarise_runs([run(0, 0, 0.8, -0.1, 0.2), run(1, 0, 0.9, 0.0, 0.4), run(2, 0, 1.0, 0.1, 0.6)])
    assert set(summary) == {"student", "teacher"}
    figures = summary["student"]["test"]
    assert figures["auroc"] == {
        "mean": pytest.approx(0.9),
        "sd": pytest.approx(0.1),
        "n_runs": 3,
        "runs": [{"fold": i, "seed": 0, "value": v} for i, v in enumerate((0.8, 0.9, 1.0))],
    }
    assert figures["paired"]["teacher"]["positive"] == 1
    assert figures["paired"]["teacher"]["mean"] == pytest.approx(0)
    assert figures["agreement"]["spearman"]["mean"] == pytest.approx(0.4)
    assert figures["f1"] == {"mean": None, "sd": None, "n_runs": 0}


def test_an_undefined_figure_is_left_out_not_counted_as_0() -> None:
    summary = summarise_runs([run(None, 0, 0.8, 0.1, None), run(None, 1, None, None, 0.5)])["student"]["test"]
    assert (summary["auroc"]["mean"], summary["auroc"]["sd"], summary["auroc"]["n_runs"]) == (0.8, None, 1)
    assert [run["value"] for run in summary["auroc"]["runs"]] == [0.8, None]
    assert summary["agreement"]["spearman"]["n_runs"] == summary["paired"]["teacher"]["positive"] == 1
    assert summary["brier"]["mean"] == pytest.approx(0.25)


def test_folds_and_a_fixed_split_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="some runs are folds and others have the fixed split"):
        summarise_runs([run(0, 0, 0.8, 0.1, 0.2), run(None, 0, 0.9, 0.1, 0.2)])


def test_a_method_that_one_run_lacks_is_summed_up_over_the_others() -> None:
    runs = [run(None, seed, 0.8, 0.1, 0.2) for seed in range(3)]
    del runs[1]["metrics"]["student"]
    assert summarise_runs(runs)["student"]["test"]["auroc"]["n_runs"] == 2


@pytest.mark.parametrize("entry", [None, 3, {}, {"kind": "fixed split"}, [{"fold": 0}], {"test": {"n": 3}}])
def test_what_else_metrics_hold_is_no_method(entry: Any) -> None:
    assert not is_method_entry(entry)
    assert is_method_entry({"test": {"auroc": {}}})
