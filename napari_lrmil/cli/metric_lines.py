"""Lines on the terminal about the metrics of a run or an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil.cli.console import FEW_SLIDES, print_result
from napari_lrmil.core.formatting import format_count


def print_metrics(run_folder: Path) -> None:
    """Print AUROC by method and split, with a caution if a split has few slides."""
    from lrmil_training.evaluation.groups import BY, describe_auroc
    from lrmil_training.evaluation.patients import PATIENTS
    from lrmil_training.runs.event_log import WARNINGS

    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    groups = metrics.pop(BY, {})
    metrics.pop(WARNINGS, None)  # printed as notices
    # A series of folds or seeds has means over its runs instead of metrics per split.
    if "summary" in metrics:
        _print_summary(metrics["summary"])
        return
    for split in ("train", "val", "test", "all"):
        for method, splits in metrics.items():
            if split not in splits:
                continue
            a = splits[split]["auroc"]
            print_result(
                f"{split:5} {method:21} {_describe_result(splits[split])}, {format_count(a['n_slides'], 'slide')}"
            )
            if PATIENTS in splits[split]:
                by_patient = splits[split][PATIENTS]["auroc"]
                patients = format_count(by_patient["n_patients"], "patient")
                counts = f"{patients} of {format_count(by_patient['n_slides'], 'slide')}"
                print_result(f"{'':27} by patient {describe_auroc(by_patient, 'patient')}, {counts}")
            # Once per split: every method was measured on the same slides.
            if a["n_slides"] < FEW_SLIDES and method == "student":
                print_result(f"      only {format_count(a['n_slides'], f'{split} slide')}: figures are uncertain")
            if method == "student":
                _print_limits(splits[split])
    for column, entries in groups.items():
        _print_groups(column, entries)


def _describe_result(figures: Mapping[str, Any]) -> str:
    """Return the AUROC of a method; on slides without labels its agreement with the teacher."""
    from lrmil_training.evaluation.groups import describe_auroc
    from lrmil_training.evaluation.metrics import NO_LABELS

    auroc, agreement = figures["auroc"], figures.get("agreement")
    if auroc.get("reason") != NO_LABELS or not agreement or agreement["spearman"] is None:
        return f"AUROC {describe_auroc(auroc)}"
    return f"agreement with the teacher ρ {agreement['spearman']:.3f}, its class in {figures['same_class']:.0%}"


def _print_limits(figures: Mapping[str, Any]) -> None:
    """Print sensitivity, specificity and coverage, if the model has an operating point and conformal scores."""

    def text(share: Mapping[str, Any]) -> str:
        if share["value"] is None:
            return "undefined"
        return f"{share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f})"

    point, sets = figures.get("operating_point", {}), figures.get("prediction_sets", {})
    if "threshold" in point:
        biased = ", which these slides chose" if point["chosen_here"] else ""
        biased += ", by patient" if point.get("level") == "patient" else ""
        print_result(
            f"      at the operating point{biased}: sensitivity {text(point['sensitivity'])}, specificity "
            f"{text(point['specificity'])}"
        )
    if "empirical" in sets:
        by_patient = ", by patient" if sets.get("level") == "patient" else ""
        print_result(
            f"      sets at {100 * sets['coverage']:g} %{by_patient}: coverage {text(sets['empirical'])}, mean size "
            f"{sets['mean_size']:.2f}, one class in {sets['singletons']:.0%}"
        )


def _print_groups(column: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Print AUROC and counts by method for each group of slides."""
    from lrmil_training.evaluation.groups import describe_auroc

    print_result(f"by {column}")
    for entry in entries:
        counts = {"slides": entry["n_slides"], "patients": entry["n_patients"], **entry["class_counts"]}
        print_result(f"  {entry['value']} ({', '.join(f'{name}: {count}' for name, count in counts.items())})")
        for method, figures in entry["methods"].items():
            print_result(f"    {method:21} AUROC {describe_auroc(figures['auroc'])}")


def _print_summary(summary: dict[str, Any]) -> None:
    """Print mean and standard deviation of AUROC over the runs of a series, by method."""
    for method, splits in summary.items():
        for split, metrics in splits.items():
            a = metrics["auroc"]
            spread = "" if a["sd"] is None else f" ± {a['sd']:.3f}"
            value = "undefined" if a["mean"] is None else f"{a['mean']:.3f}{spread}"
            print_result(f"{split:5} {method:21} AUROC {value}, mean ± sd over {a['n_runs']} runs")
