"""Patient groups: a pseudo-patient such as ``2+5+12`` is in the same group as ``5``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def patient_parts(patient: str) -> list[str]:
    """Return the patients of a pseudo-patient; a plain patient is its only part."""
    return [part.strip() for part in patient.split("+") if part.strip()] or [patient]


def count_patients(patients: Iterable[str]) -> int:
    """Return the number of patients, each counted once: ``2+5`` and ``5`` are two."""
    return len({part for patient in patients for part in patient_parts(patient)})


def count_units(patients: Sequence[str]) -> int:
    """Return the number of observations that an interval may count on: see `observed_patients`; at most one per slide.

    Parameters
    ----------
    patients
        (N,) patient of each slide.
    """
    names = {name for of_slide in observed_patients(patients) for name in of_slide}
    return min(len(names), len(patients))


def observed_patients(patients: Sequence[str]) -> list[list[str]]:
    """Return the patients of each slide. Those that never come apart, as 9 and 11 if all of both is ``9+11``, are one.

    Parameters
    ----------
    patients
        (N,) patient of each slide.
    """
    slides: dict[str, list[int]] = {}
    for i, patient in enumerate(patients):
        for part in dict.fromkeys(patient_parts(patient)):
            slides.setdefault(part, []).append(i)
    first = {tuple(rows): part for part, rows in reversed(slides.items())}
    return [list(dict.fromkeys(first[tuple(slides[part])] for part in patient_parts(patient))) for patient in patients]


def draw_owners(parts: Sequence[Sequence[str]], rng: np.random.Generator) -> list[str]:
    """Return one patient for each slide, drawn evenly from its own: a slide of ``9+11`` is that of 9 or of 11.

    Parameters
    ----------
    parts
        (N,) patients of each slide.
    rng
        Source of the draw.
    """
    return [names[int(u * len(names))] for names, u in zip(parts, rng.random(len(parts)), strict=True)]


def effective_patients(patients: Sequence[str]) -> float:
    """Return the effective number of patients, ``(Σ w)² / Σ w²``: that of equal patients who would vary as much.

    The weight of a patient is the number of slides; a slide of ``2+5`` gives each of them a half.

    Parameters
    ----------
    patients
        (N,) patient of each slide; N must be positive.
    """
    weights: dict[str, float] = {}
    for patient in patients:
        parts = set(patient_parts(patient))
        for part in parts:
            weights[part] = weights.get(part, 0.0) + 1 / len(parts)
    return sum(weights.values()) ** 2 / sum(weight**2 for weight in weights.values())


def patient_clusters(patients: Sequence[str], sites: Sequence[str] = ()) -> list[str]:
    """Return the cluster of each row. Rows that share a patient, directly or through others, are in one cluster.

    Parameters
    ----------
    patients
        (N,) patient of each slide.
    sites
        (N,) site of each slide, or nothing. Rows of one site are in one cluster too; an empty name joins nothing.

    Returns
    -------
    list of str
        (N,) name of each row's cluster: its first patient in sorted order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = [(i, ("patient", part)) for i, patient in enumerate(patients) for part in patient_parts(patient)]
    rows += [(i, ("site", site)) for i, site in enumerate(sites) if site]
    # Bipartite graph of slides and the patients and sites that they name; its components are the clusters.
    nodes = {key: len(patients) + i for i, key in enumerate(dict.fromkeys(key for _, key in rows))}
    ends = [i for i, _ in rows], [nodes[key] for _, key in rows]
    size = len(patients) + len(nodes)
    graph = coo_array(([1] * len(rows), ends), shape=(size, size))
    components = connected_components(graph, directed=False)[1][: len(patients)].tolist()
    names: dict[int, str] = {}
    for component, patient in sorted(zip(components, patients, strict=True), key=lambda pair: pair[1]):
        names.setdefault(component, patient)
    return [names[component] for component in components]


def bags_by_patient(patients: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return patient -> rows of its slides, in order of appearance. ``9+11`` and ``11 + 9`` are one, ``9`` is another.

    A slide of a pseudo-patient does not say which tissue is whose, so that it can be in the bag of neither.

    Parameters
    ----------
    patients
        (N,) patient of each slide.
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    for i, patient in enumerate(patients):
        rows.setdefault(tuple(sorted(set(patient_parts(patient)))), []).append(i)
    return {patients[indices[0]]: tuple(indices) for indices in rows.values()}


def samples_by_patient(patients: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the rows of each real patient, in order of appearance. A row of ``9+11`` belongs to both.

    Parameters
    ----------
    patients
        (N,) patient of each slide.
    """
    rows: dict[str, list[int]] = {}
    for i, patient in enumerate(patients):
        for part in dict.fromkeys(patient_parts(patient)):
            rows.setdefault(part, []).append(i)
    return tuple(map(tuple, rows.values()))


def expected_draws(samples: Sequence[Sequence[int]], count: int) -> list[float]:
    """Return (count,) expected draws of each sample in an epoch of `count` draws in which patients are drawn evenly.

    Parameters
    ----------
    samples
        Rows of each patient; see `samples_by_patient`.
    count
        Number of samples.
    """
    draws = [0.0] * count
    for rows in samples:
        for row in rows:
            draws[row] += count / (len(samples) * len(rows))
    return draws
