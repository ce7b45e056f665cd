"""Which viewers are guarded: those of every dock, and those in which a slide is opened without a dock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from napari.components import ViewerModel

from napari_lrmil.plugin import guards
from napari_lrmil.plugin.analyse.widget import AnalyseWidget
from napari_lrmil.plugin.compare.widget import CompareWidget
from napari_lrmil.plugin.train.widget import TrainWidget
from napari_lrmil.plugin.worklist.widget import WorklistWidget

KINDS = ("guard_layer_removal", "guard_slice_delivery")


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, Any]]:
    """Return the kinds of guard that were asked for, with the viewer."""
    calls: set[tuple[str, Any]] = set()
    for kind in KINDS:
        monkeypatch.setattr(guards, kind, lambda viewer, kind=kind: calls.add((kind, viewer)))
    return calls


@pytest.mark.parametrize("widget", [AnalyseWidget, CompareWidget, TrainWidget, WorklistWidget])
def test_every_dock_guards_its_viewer(widget: Callable[[Any], Any], viewer: Any, guarded: set[tuple[str, Any]]) -> None:
    viewer.window.add_dock_widget(widget(viewer))
    assert guarded == {(kind, viewer) for kind in KINDS}


def test_a_slide_that_is_opened_without_a_dock_guards_the_viewer(
    viewer: Any, slide_path: Path, guarded: set[tuple[str, Any]]
) -> None:
    viewer.open(slide_path, plugin="napari-lrmil")
    assert guarded == {(kind, viewer) for kind in KINDS}


def test_a_viewer_without_a_window_needs_no_guard(guarded: set[tuple[str, Any]]) -> None:
    guards.guard_viewer(ViewerModel())
    assert guarded == set()
