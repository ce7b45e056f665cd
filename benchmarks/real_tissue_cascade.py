"""Cascade on real tissue, from 2.5x students to their 20x teachers: AUROC, CPU-seconds, share of slides that went up.

    python benchmarks/real_tissue_cascade.py --measure COHORT.csv --bundle BUNDLE
    python benchmarks/real_tissue_cascade.py [--write docs/how-to/ladder.md]

The answers are those of the students and teachers of `real_tissue.py --recipes`, on the test slides of every fold: new
patients, 40 slides of each fold. `--measure` reads the test slides of one fold for the cost, by the student all and by
the teacher the first `TEACHER_SLIDES`, which have the same size.

The sets of a slide are calibrated on four fifths of the test slides of its fold, without its own fifth. The networks
have learned from none of them, as with calibration slides of the place where a model is used. The policy is that of
`predict --cascade`: the teacher reads if the student's set holds more than one class. For the recalibrated cascade the
probabilities of both networks are recalibrated on the same four fifths.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_tissue_table import put_between

RESULTS = Path(__file__).parent / "results"
COST = RESULTS / "cascade_cost.json"
BEGIN, END = "<!-- written by benchmarks/real_tissue_cascade.py --write -->", "<!-- end of what it writes -->"
PICTURE = "images/cascade-real-tissue.png"
SETTINGS = {"default": "60 training slides", "third": "20 training slides", "harder": "smaller lesions"}
CLASSES = ("benign", "malignant")
COVERAGES, STATED = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95), 0.9
RESAMPLES, SEED, TEACHER_SLIDES, GROUPS = 2000, 0, 8, 5
Float, Flags = NDArray[np.float64], NDArray[np.bool_]


@dataclass(frozen=True)
class Fold:
    """Answers of both networks on the test slides of a fold.

    Attributes
    ----------
    student, teacher
        (N, 2) probabilities.
    targets
        (N,) index of the true class.
    """

    student: Float
    teacher: Float
    targets: NDArray[np.int64]


def read_folds(setting: str) -> list[Fold]:
    """Return the folds of a setting that were measured with the new recipe."""
    folds = []
    for file in sorted((RESULTS / "real_tissue_recipes").glob(f"student_new-image_{setting}-2.5x-fold*-seed0.json")):
        slides = json.loads(file.read_text())["slides"]
        malignant = {name: [s["probabilities"][name] for s in slides] for name in ("student", "teacher")}
        student, teacher = (np.array([[1 - p, p] for p in values]) for values in malignant.values())
        folds.append(Fold(student, teacher, np.array([CLASSES.index(s["label"]) for s in slides])))
    return folds


# ---------------------------------------------------------------- policy


def groups_of(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,) the group of each slide; every group has as many slides of each class."""
    groups = np.empty(len(targets), np.int64)
    for c in range(len(CLASSES)):
        groups[targets == c] = np.arange((targets == c).sum()) % GROUPS
    return groups


def sets_of(probabilities: Float, targets: NDArray[np.int64], coverage: float) -> Flags:
    """Return (N, 2) the set of each slide, calibrated on the other groups, with each slide as a patient."""
    from napari_lrmil.core.metrics.conformal import aps_scores, conformal_threshold, prediction_sets

    scores, groups = aps_scores(probabilities)[np.arange(len(targets)), targets], groups_of(targets)
    sets = np.empty(probabilities.shape, np.bool_)
    for group in range(GROUPS):
        others = scores[groups != group].tolist()
        threshold = conformal_threshold(others, range(len(others)), coverage)
        assert threshold is not None  # 32 slides are enough for 95 %
        sets[groups == group] = prediction_sets(probabilities[groups == group], threshold)
    return sets


def recalibrate(probabilities: Float, targets: NDArray[np.int64]) -> Float:
    """Return (N, 2) probabilities by a logistic regression on the logit, fitted on the other groups (Platt scaling)."""
    from sklearn.linear_model import LogisticRegression

    logits, groups = np.log(probabilities[:, 1:]) - np.log(probabilities[:, :1]), groups_of(targets)
    logits = (logits - logits.mean()) / logits.std()  # one penalty for all networks
    fitted = np.empty_like(probabilities)
    for group in range(GROUPS):
        model = LogisticRegression(C=10.0).fit(logits[groups != group], targets[groups != group])
        fitted[groups == group] = model.predict_proba(logits[groups == group])
    return fitted


@dataclass(frozen=True)
class Outcome:
    """What a cascade does on a fold: answers, slides that went up, and slides whose set holds the truth."""

    probabilities: Float
    went_up: Flags
    holds: Flags


def run_policy(fold: Fold, coverage: float) -> Outcome:
    """Return the outcome of the cascade at a coverage of its sets."""
    rows, student = np.arange(len(fold.targets)), sets_of(fold.student, fold.targets, coverage)
    teacher, went_up = sets_of(fold.teacher, fold.targets, coverage), student.sum(axis=1) > 1
    holds = np.where(went_up, teacher[rows, fold.targets], student[rows, fold.targets])
    return Outcome(np.where(went_up[:, None], fold.teacher, fold.student), went_up, holds)


# ---------------------------------------------------------------- figures


def pairs_won(answers: Float, targets: NDArray[np.int64]) -> Float:
    """Return (malignant, benign) 1 where the malignant slide has the higher probability, a half if they are equal."""
    malignant, benign = (answers[targets == c, 1] for c in (1, 0))
    difference = malignant[:, None] - benign[None, :]
    return np.asarray(0.5 * (np.sign(difference) + 1))


def mean_auroc(folds: Sequence[Fold], answers: Sequence[Float]) -> float:
    """Return the mean AUROC over folds."""
    return float(np.mean([pairs_won(rows, fold.targets).mean() for fold, rows in zip(folds, answers, strict=True)]))


def drawn_auroc(folds: Sequence[Fold], answers: Sequence[Float]) -> Float:
    """Return (RESAMPLES,) mean AUROC over folds of resampled slides, the same for every network.

    Slides are drawn within folds and classes.
    """
    rng, values = np.random.default_rng(SEED), []
    for fold, rows in zip(folds, answers, strict=True):
        won = pairs_won(rows, fold.targets)
        malignant, benign = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in won.shape)
        values.append(((malignant @ won) * benign).sum(axis=1) / won.size)
    return np.asarray(np.mean(values, axis=0))


def measure_setting(setting: str, cost: dict[str, float]) -> dict[str, Any]:
    """Return the figures of a setting: each network alone, the cascade, and its curve over coverages."""
    folds = read_folds(setting)
    outcomes = [run_policy(fold, STATED) for fold in folds]
    answers = {
        "student": [fold.student for fold in folds],
        "teacher": [fold.teacher for fold in folds],
        "cascade": [outcome.probabilities for outcome in outcomes],
    }
    values = {name: mean_auroc(folds, rows) for name, rows in answers.items()}
    drawn = {name: drawn_auroc(folds, rows) for name, rows in answers.items()}
    figures: dict[str, Any] = {name: (values[name], *_interval(drawn[name])) for name in answers}
    for other in ("student", "teacher"):
        difference = values["cascade"] - values[other]
        figures[f"less {other}"] = difference, *_interval(drawn["cascade"] - drawn[other])
    local = [Fold(recalibrate(f.student, f.targets), recalibrate(f.teacher, f.targets), f.targets) for f in folds]
    figures["recalibrated"] = _measure_recalibrated(local, drawn, values, cost)
    figures["folds"] = [
        [mean_auroc([fold], [row]) for fold, row in zip(folds, rows, strict=True)] for rows in answers.values()
    ]
    figures["holds"] = float(np.mean([outcome.holds.mean() for outcome in outcomes]))
    figures["curve"] = [_curve_point(folds, coverage, cost) for coverage in COVERAGES]
    return figures


def _measure_recalibrated(
    folds: Sequence[Fold], drawn: dict[str, Float], values: dict[str, float], cost: dict[str, float]
) -> dict[str, Any]:
    """Return the figures of the cascade of recalibrated networks, with its differences to the networks as they are."""
    outcomes = [run_policy(fold, STATED) for fold in folds]
    answers = [outcome.probabilities for outcome in outcomes]
    auroc, resampled = mean_auroc(folds, answers), drawn_auroc(folds, answers)
    figures: dict[str, Any] = {"cascade": (auroc, *_interval(resampled))}
    for other in ("student", "teacher"):
        figures[f"less {other}"] = auroc - values[other], *_interval(resampled - drawn[other])
    figures["folds"] = [mean_auroc([fold], [rows]) for fold, rows in zip(folds, answers, strict=True)]
    figures["holds"] = float(np.mean([outcome.holds.mean() for outcome in outcomes]))
    figures["curve"] = [_curve_point(folds, coverage, cost) for coverage in COVERAGES]
    return figures


def _interval(drawn: Float) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _curve_point(folds: Sequence[Fold], coverage: float, cost: dict[str, float]) -> dict[str, float]:
    outcomes = [run_policy(fold, coverage) for fold in folds]
    share = float(np.mean([outcome.went_up.mean() for outcome in outcomes]))
    auroc = mean_auroc(folds, [outcome.probabilities for outcome in outcomes])
    return {"coverage": coverage, "went_up": share, "auroc": auroc, "cpu": cost["student"] + share * cost["added"]}


# ---------------------------------------------------------------- cost


def measure_cost(table: Path, bundle: Path) -> None:
    """Read the test slides of a cohort and store mean CPU-seconds of the student alone and of the teacher."""
    from lrmil_training.data.cohort import read_cohort
    from napari_lrmil.core.ladder.climb import Climber, ClimbOptions
    from napari_lrmil.core.ladder.rungs import open_ladder
    from napari_lrmil.core.slides.slide import Slide

    ladder = open_ladder([bundle], teacher=True)
    figures = []
    for count, row in enumerate(read_cohort(table).of("test")):
        began = time.perf_counter()
        with Slide(row.path) as slide:
            climber = Climber(slide, ladder, ClimbOptions("cpu", "auto"), time.perf_counter() - began)
            for rung in ladder.rungs:
                if not rung.is_teacher or count < TEACHER_SLIDES:
                    deque(climber.read(rung), maxlen=0)
        figures += climber.figures
    teacher = [f for f in figures if f.rung.is_teacher]
    student = [f for f in figures if not f.rung.is_teacher]
    costs = {
        "student": float(np.mean([f.alone.cpu_seconds for f in student])),
        "teacher": float(np.mean([f.alone.cpu_seconds for f in teacher])),
        "added": float(np.mean([f.added.cpu_seconds for f in teacher])),  # by the teacher after the student
        "student_slides": len(student),
        "teacher_slides": len(teacher),
    }
    COST.write_text(json.dumps(costs, indent=1))


# ---------------------------------------------------------------- table and picture


def print_table(settings: dict[str, dict[str, Any]], cost: dict[str, float]) -> str:
    """Return a table of AUROC, cost and shares, and one of the AUROC of every fold."""
    names, figures = " | ".join(SETTINGS.values()), list(settings.values())
    rows = {
        f"2.5x student, {cost['student']:.2f} CPU-s per slide": [_span(f["student"], "") for f in figures],
        f"20x teacher, {cost['teacher']:.2f} CPU-s per slide": [_span(f["teacher"], "") for f in figures],
    }
    for kind, cascades in (("cascade", figures), ("recalibrated cascade", [f["recalibrated"] for f in figures])):
        stated = [next(p for p in f["curve"] if p["coverage"] == STATED) for f in cascades]
        rows |= {
            f"**{kind}**, sets at 90 %": [_span(f["cascade"], "") for f in cascades],
            f"{kind} minus student": [_span(f["less student"], "+") for f in cascades],
            f"{kind} minus teacher": [_span(f["less teacher"], "+") for f in cascades],
            f"{kind}: slides that went up": [f"{100 * p['went_up']:.0f} %" for p in stated],
            f"{kind}: CPU-s per slide": [f"{p['cpu']:.2f}" for p in stated],
            f"{kind}: sets hold the truth": [f"{100 * f['holds']:.0f} %" for f in cascades],
        }
    lines = [f"| AUROC, mean of three folds (95 %) | {names} |", "|---|" + "---|" * len(SETTINGS)]
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()]
    lines += ["", f"| AUROC of folds 0, 1, 2 | {names} |", "|---|" + "---|" * len(SETTINGS)]
    for i, label in enumerate(("2.5x student", "20x teacher", "cascade", "recalibrated cascade")):
        of_folds = [[*f["folds"], f["recalibrated"]["folds"]][i] for f in figures]
        lines.append(f"| {label} | {' | '.join(', '.join(f'{v:.3f}' for v in values) for values in of_folds)} |")
    return "\n".join(lines)


def _span(figures: tuple[float, float, float], sign: str) -> str:
    value, low, high = (f"{number:{sign}.3f}" for number in figures)
    return f"{value} ({low} to {high})"


def draw(settings: dict[str, dict[str, Any]], cost: dict[str, float], path: Path) -> None:
    """Draw AUROC against CPU-seconds: both networks alone, and the cascade at several coverages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for (name, figures), colour in zip(settings.items(), ("#0072b2", "#009e73", "#d55e00"), strict=True):
        for curve, style in ((figures["curve"], ".:"), (figures["recalibrated"]["curve"], ".-")):
            label = SETTINGS[name] if style == ".-" else None
            axis.plot([p["cpu"] for p in curve], [p["auroc"] for p in curve], style, color=colour, label=label)
            stated = next(p for p in curve if p["coverage"] == STATED)
            axis.plot(stated["cpu"], stated["auroc"], "*", color=colour, markersize=13)
        axis.plot(cost["student"], figures["student"][0], "s", color=colour, markerfacecolor="white")
        axis.plot(cost["teacher"], figures["teacher"][0], "D", color=colour, markerfacecolor="white")
    for marker, label in (("s", "2.5x student alone"), ("D", "20x teacher alone"), ("*", "cascade, sets at 90 %")):
        axis.plot([], [], marker, color="0.3", markerfacecolor="0.3" if marker == "*" else "white", label=label)
    axis.plot([], [], ":", color="0.3", label="cascade, networks as they are")
    axis.plot([], [], "-", color="0.3", label="cascade, both recalibrated")
    axis.set_xlabel("CPU-seconds per slide, mean (lower is better)")
    axis.set_ylabel("AUROC, mean of three folds (higher is better)")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path)


def main() -> None:
    """Measure the cost, or print or write the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--measure", type=Path, help="cohort table of the slides to read for the cost")
    p.add_argument("--bundle", type=Path, help="bundle of the student, with its teacher")
    p.add_argument("--write", type=Path, help="put the tables into this page and the picture beside it")
    args = p.parse_args()
    if args.measure:
        measure_cost(args.measure, args.bundle)
        return
    cost = json.loads(COST.read_text())
    settings = {name: measure_setting(name, cost) for name in SETTINGS}
    text = print_table(settings, cost)
    if args.write is None:
        print(text)
        return
    put_between(args.write, BEGIN, END, f"\n{text}\n\n")
    draw(settings, cost, args.write.parents[1] / PICTURE)


if __name__ == "__main__":
    main()
