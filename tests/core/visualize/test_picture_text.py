"""Text of pictures: a font with all the letters, and lines that fit."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

from napari_lrmil.core.visualize import picture_text
from napari_lrmil.core.visualize.picture_text import REPLACEMENT, load_font, wrap_text

LETTERS = "µ·≥–−…éüñøßčłőÅœαΩЖ"


def test_the_font_has_every_letter_that_we_use() -> None:
    font = load_font(20)
    missing = bytes(font.getmask("\uffff"))
    assert [c for c in LETTERS + REPLACEMENT if bytes(font.getmask(c)) == missing] == []


@pytest.mark.parametrize("spec", [None, ModuleSpec("matplotlib", None)])
def test_without_matplotlibs_font_text_is_drawn_all_the_same(
    monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None
) -> None:
    monkeypatch.setattr(picture_text, "find_spec", lambda _name: spec)
    font = load_font.__wrapped__(20)
    assert font.getlength("Research use only") > 50


def test_a_text_that_fits_stays_as_it_is() -> None:
    assert wrap_text(load_font(13), "a  name with $two$ blanks_", 1000) == ["a  name with $two$ blanks_"]
    assert wrap_text(load_font(13), "", 1000) == []


def test_lines_are_no_wider_than_asked_and_lose_nothing() -> None:
    font, text = load_font(13), "some words and " + "a" * 300 + " at the end"
    lines = wrap_text(font, text, 200)
    assert all(font.getlength(line) <= 200 for line in lines) and len(lines) > 5
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_line_break_in_a_name_is_one_line() -> None:
    assert wrap_text(load_font(13), "slide\n7\x07", 1000) == [f"slide 7{REPLACEMENT}"]
