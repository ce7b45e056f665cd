"""Coverage of the sets of classes on unseen phantoms, and sensitivity and specificity at the operating point.

    python benchmarks/set_coverage.py --setting patients|alike --work WORK [--results FILE] [--write PAGE]

A student learns from phantoms, without a teacher so that it takes minutes. A part of the training patients is set aside
for calibration, and the sets are counted on 200 patients that the run has not seen, a slide each. Patients differ in
stain, morphology and scanner (``patients``), or their slides look alike (``alike``). Slides and run go to `WORK` and
may be deleted; the command goes on where it stopped. The figures go to `FILE`; if it exists, nothing is measured.
``--write`` puts them into a page.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_tissue import cpu_seconds
from real_tissue_table import put_between

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.metrics.conformal import aps_scores, conformal_threshold, prediction_sets
from napari_lrmil.core.phantom import LESION


@dataclass(frozen=True)
class Setting:
    """Phantoms of a run: numbers of patients, how many of the training patients calibrate, and how they look."""

    train: int
    calibration: int
    differ: bool
    results: str

    @property
    def patients(self) -> dict[str, int]:
        """Split -> number of patients that are painted."""
        return {"train": self.train + self.calibration, "val": 20, "test": 200}

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the run."""
        share = self.calibration / (self.train + self.calibration)
        return CONFIG | {"split": {"calibration": share}}


SETTINGS = {
    "patients": Setting(train=40, calibration=60, differ=True, results="set_coverage.json"),
    "alike": Setting(train=60, calibration=200, differ=False, results="set_coverage_alike.json"),
}
SIZE = (1024, 768)  # px of 0.5 µm
SEED = 90
CONFIG: dict[str, Any] = {
    "distil": False,
    "lr_patch_px": 64,
    "stage3": {"epochs": 0},  # a MIL on the frozen encoder
    "baselines": [],
    "encoder": {"teacher": "demo"},
}
COVERAGES = (0.8, 0.9, 0.95)
DIVISIONS = 2000  # random divisions of calibration and test patients, for the spread between calibrations
END = "<!-- end of what it writes -->"
Slides = Sequence[Mapping[str, Any]]


def main() -> None:
    """Measure unless it was measured, and print or write the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, help="folder for slides and run")
    p.add_argument("--setting", choices=SETTINGS, default="patients")
    p.add_argument("--results", type=Path, help="by default benchmarks/results/set_coverage*.json")
    p.add_argument("--write", type=Path, help="put the tables into this page")
    args = p.parse_args()
    setting = SETTINGS[args.setting]
    file = args.results or Path(__file__).parent / "results" / setting.results
    if not file.exists():
        if args.work is None:
            p.error("--work is needed, for slides and run")
        write_json(file, measure(args.work, setting))
    results = json.loads(file.read_text(encoding="utf-8"))
    if args.write is None:
        print_tables(results)
        return
    with redirect_stdout(StringIO()) as output:
        print_tables(results)
    begin = f"<!-- written by benchmarks/set_coverage.py --setting {args.setting} --write -->"
    put_between(args.write, begin, END, f"\n{output.getvalue()}\n")


# ---------------------------------------------------------------- measuring


def measure(work: Path, setting: Setting) -> dict[str, Any]:
    """Paint, train and return the figures of the run with the probabilities of its calibration and test slides."""
    import torch

    from lrmil_training.config import build_config
    from lrmil_training.runs.event_log import METRICS, SLIDES
    from lrmil_training.train import train

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    paint(work / "slides", setting)
    run = work / "run"
    for _ in train(work / "slides" / "cohort.csv", run, build_config(setting.config), torch.device("cpu")):
        pass
    metrics = json.loads((run / METRICS).read_text(encoding="utf-8"))["student"]["test"]
    slides = json.loads((run / SLIDES).read_text(encoding="utf-8"))["slides"]
    return {
        "figures": {key: metrics[key] for key in ("auroc", "balanced_accuracy", "operating_point", "prediction_sets")},
        "cpu_seconds": cpu_seconds(),  # of the last attempt
        "slides": [
            {key: s[key] for key in ("slide", "label", "split")}
            | {"lesion": s["methods"]["student"]["probabilities"][LESION]}
            for s in slides
            if s["split"] in ("calibration", "test")
        ],
    }


def paint(folder: Path, setting: Setting) -> None:
    """Write the phantoms, a slide of each patient, unless they are there."""
    from napari_lrmil.core.phantom import make_cohort

    for split, patients in setting.patients.items():
        done = folder / f".{split}-{patients}"
        if not done.exists():
            options: dict[str, Any] = {"patients": patients, "slides_per_patient": (1, 1)} if setting.differ else {}
            slides = None if setting.differ else patients  # each of a different patient
            for _ in make_cohort(folder, slides, SIZE, SEED, split=split, **options):
                pass
            done.touch()


# ---------------------------------------------------------------- tables


def print_tables(results: Mapping[str, Any]) -> None:
    """Print coverage at several levels, by class, and the operating point."""
    of = {split: [s for s in results["slides"] if s["split"] == split] for split in ("calibration", "test")}
    scores, truths = {}, {}
    for split, slides in of.items():
        lesion = np.array([s["lesion"] for s in slides])
        truths[split] = np.array([int(s["label"] == LESION) for s in slides])
        scores[split] = np.stack([1 - lesion, lesion], axis=1)
    is_right = scores["test"].argmax(axis=1) == truths["test"]
    print(
        f"{len(of['calibration'])} calibration patients, {len(of['test'])} test patients; the most probable class is "
        f"wrong on {1 - is_right.mean():.1%} of the test slides. {results['cpu_seconds']:.0f} CPU-seconds.\n"
    )
    print_coverage(scores, truths)
    print_figures(results["figures"])


def print_coverage(probabilities: Mapping[str, NDArray[np.float64]], truths: Mapping[str, NDArray[np.int64]]) -> None:
    """Print a row for each stated coverage, with the spread over random divisions of calibration and test slides."""
    from lrmil_training.evaluation.limits import wilson_interval

    print("| stated coverage | empirical coverage (95 %) | mean set size | single class | over other calibrations |")
    print("|---|---|---|---|---|")
    n = len(truths["calibration"])
    joined = np.concatenate([probabilities["calibration"], probabilities["test"]])
    truth = np.concatenate([truths["calibration"], truths["test"]])
    for coverage in COVERAGES:
        is_covered, sizes = count(joined, truth, np.arange(len(truth)), n, coverage)
        low, high = wilson_interval(float(is_covered.mean()), len(is_covered))
        rng = np.random.default_rng(0)
        others = [count(joined, truth, rng.permutation(len(truth)), n, coverage)[0].mean() for _ in range(DIVISIONS)]
        print(
            f"| {coverage:.0%} | {is_covered.mean():.3f} ({low:.3f} to {high:.3f}) | {sizes.mean():.2f} | "
            f"{(sizes == 1).mean():.2f} | mean {np.mean(others):.3f}, central 95 % {np.quantile(others, 0.025):.3f} to "
            f"{np.quantile(others, 0.975):.3f} |"
        )


def count(
    probabilities: NDArray[np.float64], truth: NDArray[np.int64], order: NDArray[np.int64], n: int, coverage: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return whether each test slide is covered, and the size of its set; the first `n` of `order` calibrate."""
    rows = np.arange(len(truth) - n)
    scores = aps_scores(probabilities[order[:n]])[np.arange(n), truth[order[:n]]]
    threshold = conformal_threshold(scores.tolist(), range(n), coverage)
    if threshold is None:
        raise SystemExit(f"{n} calibration patients are too few for a coverage of {coverage:g}")
    sets = prediction_sets(probabilities[order[n:]], threshold)
    return sets[rows, truth[order[n:]]], sets.sum(axis=1)


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print what the run's metrics.json states of its test slides."""

    def share(value: Mapping[str, Any]) -> str:
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}), {value['n_slides']} slides"

    sets, point = figures["prediction_sets"], figures["operating_point"]
    print("\n| figure of `metrics.json`, test | value (95 %) |\n|---|---|")
    print(f"| AUROC | {share(figures['auroc'])} |")
    print(f"| coverage at {sets['coverage']:.0%} | {share(sets['empirical'])} |")
    for name, value in sets["by_class"].items():
        print(f"| the same, slides of class {name} | {share(value)} |")
    if "reason" in point:
        print(f"| operating point | none: {point['reason']} |")
        return
    print(f"| sensitivity at the operating point ({point['threshold']:.3f}) | {share(point['sensitivity'])} |")
    print(f"| specificity | {share(point['specificity'])} |")


if __name__ == "__main__":
    main()
