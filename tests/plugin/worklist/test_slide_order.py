"""Order of a worklist: it changes only when the user arranges it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from napari_lrmil.core.worklist.entry import ListedSlide, Status, StoredAnswer, WorklistEntry
from napari_lrmil.core.worklist.order import SortKey
from napari_lrmil.core.worklist.review import ReviewRow, Verdict
from napari_lrmil.plugin.worklist.slide_order import Arrangement, SlideOrder


def order_of(**probabilities: float) -> SlideOrder:
    order = SlideOrder()
    order.set_entries(
        [
            WorklistEntry(ListedSlide(Path(f"{name}.tif")), StoredAnswer("a", value, ("a", "b")))
            for name, value in probabilities.items()
        ]
    )
    return order


def test_paging_goes_through_the_rows_and_ends_at_both_ends() -> None:
    order = order_of(x=0.9, y=0.6, z=0.7)
    order.arrange(Arrangement(SortKey.PROBABILITY))
    assert [order.entries[row].name for row in order.rows] == ["y", "z", "x"]
    assert order.step(1) == 1 and order.step(-1) == 0
    order.current = 1
    assert (order.step(-1), order.step(1), order.step(2), order.step(3)) == (None, 2, 0, None)


def test_a_verdict_moves_no_row_until_the_list_is_arranged_anew() -> None:
    order = order_of(x=0.9, y=0.6)
    order.arrange(Arrangement(statuses=(Status.DONE,)))
    order.current = 0
    order.entries[0] = replace(order.entries[0], review=ReviewRow("x", "Anna", Verdict.AGREE))
    assert order.rows == [0, 1] and order.step(1) == 1
    order.arrange(order.arrangement)
    assert order.rows == [1] and order.step(1) == 1, "the current slide is not listed any more"
    assert order.count([Status.REVIEWED]) == 1
    assert order.index_of_path(Path("y.tif")) == 1 and order.index_of_path(Path("other.tif")) is None
