"""Which patients stand together: a pseudo-patient such as ``2+5+12`` is of the same cluster as ``5``."""

from __future__ import annotations

from collections.abc import Sequence


def patient_parts(patient: str) -> list[str]:
    """Return the patients that a pseudo-patient is made of; of a plain one itself."""
    return [part.strip() for part in patient.split("+") if part.strip()] or [patient]


def patient_clusters(patients: Sequence[str], sites: Sequence[str] = ()) -> list[str]:
    """Return for each row the name of its cluster: rows that share a part of a patient, however far apart, have one.

    Parameters
    ----------
    patients
        (N,) one per slide.
    sites
        (N,) where given, rows of one site are one cluster too; an empty name joins nothing.

    Returns
    -------
    list of str
        (N,) the first patient of each cluster in sorted order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = [(i, ("patient", part)) for i, patient in enumerate(patients) for part in patient_parts(patient)]
    rows += [(i, ("site", site)) for i, site in enumerate(sites) if site]
    place = {key: len(patients) + at for at, key in enumerate(dict.fromkeys(key for _, key in rows))}
    ends = [i for i, _ in rows], [place[key] for _, key in rows]
    size = len(patients) + len(place)
    graph = coo_array(([1] * len(rows), ends), shape=(size, size))
    found = connected_components(graph, directed=False)[1][: len(patients)].tolist()
    names: dict[int, str] = {}
    for label, patient in sorted(zip(found, patients, strict=True), key=lambda pair: pair[1]):
        names.setdefault(label, patient)
    return [names[label] for label in found]
