"""Warning that a validation split has too few patients to rank methods, epochs or settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lrmil_training.data.cohort import Cohort
from lrmil_training.data.patient_groups import count_patients

MIN_PATIENTS = 5  # of each class; with two patients, validation ranked the methods wrongly on real tissue


def few_validation_patients(labelled: Iterable[tuple[str, str]]) -> str:
    """Return a sentence if a class has fewer than `MIN_PATIENTS` validation patients; empty if none has.

    Parameters
    ----------
    labelled
        Label and patient of each validation slide; a slide of ``2+5`` is of two patients.
    """
    patients: dict[str, list[str]] = {}
    for label, patient in labelled:
        patients.setdefault(label, []).append(patient)
    counts = {label: count_patients(names) for label, names in patients.items()}
    return _describe_few(counts)


def validation_notice(cohorts: Sequence[Cohort]) -> str:
    """Return the sentence on the cohort, or on the first fold with few validation patients; empty if all have enough.

    Parameters
    ----------
    cohorts
        The cohort with its splits, or one for each fold.
    """
    sentences = [few_validation_patients((s.label, s.patient) for s in cohort.of("val")) for cohort in cohorts]
    first = next(filter(None, sentences), "")
    if not first or len(cohorts) == 1:
        return first
    number = sentences.index(first)
    return f"{first} (fold {number}; so in {sum(map(bool, sentences))} of {len(cohorts)} folds)"


def _describe_few(counts: Mapping[str, int]) -> str:
    if all(count >= MIN_PATIENTS for count in counts.values()):
        return ""
    listed = ", ".join(f"{count} of {label}" if label else str(count) for label, count in counts.items())
    return (
        f"validation has few patients ({listed}): with fewer than {MIN_PATIENTS} of a class it cannot rank methods; "
        "trust no difference between validation figures"
    )
