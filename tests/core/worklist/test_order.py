"""Sorting and selection of worklist entries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from napari_lrmil.core.worklist.entry import ListedSlide, Status, StoredAnswer, WorklistEntry
from napari_lrmil.core.worklist.order import SortKey, filter_entries, group_by_patient, sort_entries
from napari_lrmil.core.worklist.review import ReviewRow, Verdict


def entry(name: str, probability: float | None = None, *, patient: str = "", predicted: str = "a") -> WorklistEntry:
    answer = None if probability is None else StoredAnswer(predicted, probability, ("a", "b"))
    return WorklistEntry(ListedSlide(Path(f"{name}.tif"), patient), answer)


def names(entries: list[WorklistEntry]) -> list[str]:
    return [entry.name for entry in entries]


def test_numbers_in_names_are_sorted_as_numbers_and_the_list_stays_as_it_was() -> None:
    entries = [entry("s10"), entry("S2"), entry("s1b"), entry("1s")]
    assert names(sort_entries(entries, SortKey.NAME)) == ["1s", "s1b", "S2", "s10"]
    assert names(sort_entries(entries, SortKey.LISTED, descending=True)) == ["1s", "s1b", "S2", "s10"]
    assert names(entries) == ["s10", "S2", "s1b", "1s"]


def test_slides_without_a_value_come_last_in_both_directions() -> None:
    entries = [entry("none"), entry("low", 0.6), entry("high", 0.9)]
    assert names(sort_entries(entries, SortKey.PROBABILITY)) == ["low", "high", "none"]
    assert names(sort_entries(entries, SortKey.PROBABILITY, descending=True)) == ["high", "low", "none"]
    by_patient = [entry("x"), entry("y", patient="P10"), entry("z", patient="P9")]
    assert names(sort_entries(by_patient, SortKey.PATIENT)) == ["z", "y", "x"]


def test_entries_are_selected_by_words_state_and_class() -> None:
    reviewed = replace(entry("r", 0.7), review=ReviewRow("r", "Anna", Verdict.AGREE, comment="Mitoses seen"))
    failed = replace(entry("f"), problem="no tissue")
    entries = [reviewed, failed, entry("n", patient="P7"), entry("d", 0.8, predicted="b")]
    assert names(filter_entries(entries, text="mitoses R")) == ["r"]
    assert names(filter_entries(entries, text="p7")) == ["n"]
    assert names(filter_entries(entries, text="tissue")) == ["f"]
    assert names(filter_entries(entries, statuses=[Status.FAILED, Status.REVIEWED])) == ["r", "f"]
    assert names(filter_entries(entries, classes=["b"])) == ["d"]
    assert filter_entries(entries) == entries


def test_patients_are_grouped_in_the_order_of_the_list() -> None:
    entries = [entry("1", patient="B"), entry("2"), entry("3", patient="B"), entry("4", patient="A")]
    groups = group_by_patient(entries)
    assert {patient: names(group) for patient, group in groups.items()} == {"B": ["1", "3"], "": ["2"], "A": ["4"]}
