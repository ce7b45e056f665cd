"""Agreement of reviewers with each other and with the model: counts, and Cohen's kappa with a bootstrap interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from lrmil_training.data.patient_groups import count_patients
from lrmil_training.evaluation.metrics import Int, Resampler, percentile_interval
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.worklist.review import ReviewRow, Verdict

MODEL = "model"  # rater in tables
N_RESAMPLES = 2000  # as in evaluations
NO_WIDTH = "every resample has the same kappa, so there is no interval: too few slides, or too much alike"
MAX_UNDEFINED = 0.05  # share of resamples without a kappa; leaving out more would bias the interval


@dataclass(frozen=True)
class ReviewedModel:
    """A model whose answers were reviewed: name and hash, both empty in rows that do not state them.

    Models of one hash are one model, however their folders are called.
    """

    bundle: str
    bundle_sha256: str

    @property
    def text(self) -> str:
        """Name and beginning of the hash."""
        digest = f" ({self.bundle_sha256[:8]})" if self.bundle_sha256 else ""
        return f"{self.bundle or 'without a name'}{digest}"


@dataclass(frozen=True)
class ReviewerCounts:
    """Verdicts of one reviewer, on the answers of one model if there are several.

    Attributes
    ----------
    reviewer
        Name.
    slides, agree, disagree, unsure
        Number of slides with a verdict, and of each verdict.
    blind
        Verdicts that were given before the model's answer was shown.
    without_class
        Disagreements that name no class; they have no part in kappa.
    model
        The model, if there are several; otherwise None.
    """

    reviewer: str
    slides: int
    agree: int
    disagree: int
    unsure: int
    blind: int
    without_class: int
    model: ReviewedModel | None = None


@dataclass(frozen=True)
class PairAgreement:
    """Agreement of two raters on the slides to which both gave a class.

    Attributes
    ----------
    first, second
        Names; `MODEL` for the answers of the model that the first was shown.
    slides, patients
        Number of slides and of patients.
    same_class
        Share of slides of equal class; None without a slide.
    kappa, low, high
        Cohen's kappa and its interval of 95 %; None if undefined.
    reason
        Why a figure is undefined; empty if none is.
    interval
        Units that the bootstrap drew, see `Resampler.interval`.
    confusion
        (class of the first, class of the second) -> number of slides.
    model
        The model whose answers are the second; None of two reviewers, and without an answer.
    """

    first: str
    second: str
    slides: int
    patients: int
    same_class: float | None
    kappa: float | None
    low: float | None
    high: float | None
    reason: str
    interval: str
    confusion: Mapping[tuple[str, str], int]
    model: ReviewedModel | None = None


@dataclass(frozen=True)
class ReviewComparison:
    """Verdicts of all reviewers, side by side.

    Attributes
    ----------
    reviewers
        Names.
    counts
        One per reviewer, or one per reviewer and model if there are several models.
    pairs
        Every two reviewers, then every reviewer and each model that this reviewer saw: answers are never pooled.
    slides
        Slide -> reviewer -> verdict.
    models
        The models whose answers were reviewed.
    """

    reviewers: tuple[str, ...]
    counts: tuple[ReviewerCounts, ...]
    pairs: tuple[PairAgreement, ...]
    slides: Mapping[str, Mapping[str, ReviewRow]]
    models: tuple[ReviewedModel, ...]


def compare_reviewers(
    rows: Sequence[ReviewRow], reviewers: Sequence[str] = (), resamples: int = N_RESAMPLES
) -> ReviewComparison:
    """Return the agreement of reviewers with each other and with the model.

    Parameters
    ----------
    rows
        Verdicts of all reviewers, at most one for each slide and reviewer.
    reviewers
        Names of those to compare; none takes all.
    resamples
        Number of bootstrap resamples for each interval.

    Raises
    ------
    ConfigError
        If there is no verdict, or none of a reviewer that was named.
    """
    names = list(dict.fromkeys(reviewers)) or sorted({row.reviewer for row in rows})
    by_reviewer = {name: {row.slide: row for row in rows if row.reviewer == name} for name in names}
    missing = [name for name, verdicts in by_reviewer.items() if not verdicts]
    if missing or not names:
        available = ", ".join(sorted({row.reviewer for row in rows})) or "nobody"
        raise ConfigError(f"no verdict of {', '.join(missing) or 'any reviewer'}; there are verdicts of {available}")
    by_model = _split_by_model(by_reviewer)
    models = tuple(dict.fromkeys(model for parts in by_model.values() for model in parts if model is not None))
    pairs = [
        _agreement(first, second, _paired(by_reviewer[first], by_reviewer[second]), resamples)
        for first, second in combinations(names, 2)
    ]
    pairs += [pair for name in names for pair in _agree_with_models(name, by_model[name], resamples)]
    order = dict.fromkeys(row.slide for row in rows)
    slides = {
        slide: {name: by_reviewer[name][slide] for name in names if slide in by_reviewer[name]} for slide in order
    }
    counts = _count_each(by_model) if len(models) > 1 else [_counts(name, v) for name, v in by_reviewer.items()]
    return ReviewComparison(tuple(names), tuple(counts), tuple(pairs), {s: r for s, r in slides.items() if r}, models)


_Verdicts = Mapping[str, ReviewRow]  # slide -> verdict of one reviewer
_ByModel = Mapping[ReviewedModel | None, _Verdicts]  # None: verdicts without an answer


def _split_by_model(by_reviewer: Mapping[str, _Verdicts]) -> dict[str, _ByModel]:
    """Return the verdicts of each reviewer by the model whose answer they are on."""
    parts: dict[str, dict[ReviewedModel | None, dict[str, ReviewRow]]] = {}
    bundles: dict[str, str] = {}  # hash -> first name
    for name, verdicts in by_reviewer.items():
        parts[name] = {}
        for slide, row in verdicts.items():
            sha256 = row.bundle_sha256
            bundle = bundles.setdefault(sha256, row.bundle) if sha256 else row.bundle
            model = ReviewedModel(bundle, sha256) if row.predicted else None
            parts[name].setdefault(model, {})[slide] = row
    return {name: dict(of_reviewer) for name, of_reviewer in parts.items()}


def _agree_with_models(name: str, parts: _ByModel, resamples: int) -> list[PairAgreement]:
    """Return the agreement of one reviewer with each model; with none, one that says that there is no answer."""
    return [
        replace(_agreement(name, MODEL, _paired_with_model(verdicts), resamples), model=model)
        for model, verdicts in parts.items()
        if model is not None or len(parts) == 1
    ]


def _count_each(by_model: Mapping[str, _ByModel]) -> list[ReviewerCounts]:
    return [
        replace(_counts(name, verdicts), model=model)
        for name, parts in by_model.items()
        for model, verdicts in parts.items()
    ]


def _counts(name: str, rows_by_slide: _Verdicts) -> ReviewerCounts:
    rows = rows_by_slide.values()
    verdicts = Counter(row.verdict for row in rows)
    return ReviewerCounts(
        name,
        slides=len(rows),
        agree=verdicts[Verdict.AGREE],
        disagree=verdicts[Verdict.DISAGREE],
        unsure=verdicts[Verdict.UNSURE],
        blind=sum(row.is_blind for row in rows),
        without_class=sum(row.verdict is Verdict.DISAGREE and not row.label for row in rows),
    )


@dataclass(frozen=True)
class _Ratings:
    """Classes of two raters for the same slides, and the patients of these."""

    first: list[str]
    second: list[str]
    patients: list[str]


def _paired(first: Mapping[str, ReviewRow], second: Mapping[str, ReviewRow]) -> _Ratings:
    """Return the classes of the slides to which both reviewers gave one."""
    both = [(a, second[slide]) for slide, a in first.items() if slide in second and a.label and second[slide].label]
    # A slide whose table names no patient counts as a patient of its own.
    patients = [a.patient or b.patient or f"slide {a.slide}" for a, b in both]
    return _Ratings([a.label for a, _ in both], [b.label for _, b in both], patients)


def _paired_with_model(rows: Mapping[str, ReviewRow]) -> _Ratings:
    used = [row for row in rows.values() if row.label and row.predicted]
    patients = [row.patient or f"slide {row.slide}" for row in used]
    return _Ratings([row.label for row in used], [row.predicted for row in used], patients)


def _agreement(first: str, second: str, ratings: _Ratings, resamples: int) -> PairAgreement:
    n = len(ratings.first)
    classes = {name: index for index, name in enumerate(sorted({*ratings.first, *ratings.second}))}
    a, b = (np.array([classes[name] for name in side], dtype=np.int64) for side in (ratings.first, ratings.second))
    kappa, low, high, interval = None, None, None, ""
    if len(classes) > 1:
        kappa = cohen_kappa(a, b)
        # One stratum: drawing within the classes of one rater would hold that rater's frequencies fixed.
        resampler = Resampler(np.zeros(n, dtype=np.int64), ratings.patients, resamples)
        low, high = _interval([cohen_kappa(a[rows], b[rows]) for rows in resampler.draws])
        interval = resampler.interval
    has_width = low is None or low != high
    low, high = (low, high) if has_width else (None, None)
    return PairAgreement(
        first,
        second,
        slides=n,
        patients=count_patients(ratings.patients),
        same_class=float((a == b).mean()) if n else None,
        kappa=kappa,
        low=low,
        high=high,
        reason=_why_undefined(n, len(classes), low) if has_width else NO_WIDTH,
        interval=interval,
        confusion=Counter(zip(ratings.first, ratings.second, strict=True)),
    )


def _interval(values: Sequence[float | None]) -> tuple[float, float] | tuple[None, None]:
    """Return the percentile interval. Resamples with one class only have no kappa; a few of them are left out."""
    defined = [value for value in values if value is not None]
    is_enough = len(values) - len(defined) <= MAX_UNDEFINED * len(values)
    bounds = percentile_interval(np.array(defined)) if is_enough else None
    return bounds or (None, None)


def _why_undefined(n_slides: int, n_classes: int, low: float | None) -> str:
    if n_slides == 0:
        return "no slide has a class of both"
    if n_classes == 1:
        return "both gave every slide the same class, so chance agreement is certain"
    return "one class is so rare that many resamples lack it, so there is no interval" if low is None else ""


def cohen_kappa(first: Int, second: Int) -> float | None:
    """Return Cohen's kappa of two (N,) class indices; None if both raters gave all slides one and the same class."""
    from sklearn.metrics import cohen_kappa_score

    labels = np.union1d(first, second)
    return float(cohen_kappa_score(first, second, labels=labels)) if len(labels) > 1 else None
