"""Exported view: the canvas is complete, the scale bar has its length, the legend its colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from napari_lrmil.core.visualize.overlay import ATTENTION_LEGEND, RESEARCH_USE
from napari_lrmil.core.visualize.picture_text import load_font
from napari_lrmil.core.visualize.view_export import (
    INK,
    PAPER,
    SOFT,
    WARN,
    ColourLegend,
    _page,
    _wrap_text,
    compose_view,
    write_view,
)

TEXT_PX = 14
VIRIDIS = ColourLegend(0.0, 3.25, "viridis", ATTENTION_LEGEND)


def canvas(width: int = 900, height: int = 500) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def find_part(picture: NDArray[np.uint8], part: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return row and column where `part` lies in a picture, pixel for pixel."""
    height, width = part.shape[:2]
    marked = np.argwhere((part != PAPER).any(axis=2))[0]
    for y, x in np.argwhere((picture == part[tuple(marked)]).all(axis=2)) - marked:
        if y >= 0 and x >= 0 and np.array_equal(picture[y : y + height, x : x + width], part):
            return int(y), int(x)
    return None


def written(text: str, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the pixels of a text on paper, cut to its letters."""
    image = Image.new("RGB", (int(load_font(TEXT_PX).getlength(text)) + 8, 3 * TEXT_PX), PAPER)
    ImageDraw.Draw(image).text((0, TEXT_PX), text, fill=colour, font=load_font(TEXT_PX))
    pixels = np.asarray(image)
    rows, columns = np.nonzero((pixels != PAPER).any(axis=2))
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def composed(pixels: NDArray[np.uint8], legend: ColourLegend | None = VIRIDIS, footer: str = "") -> NDArray[np.uint8]:
    return np.asarray(compose_view(pixels, 0.8, legend, "slide 7 · attention", footer, text_px=TEXT_PX))


@pytest.mark.parametrize("width", [900, 120])
def test_the_view_is_whole_and_everything_else_lies_outside_it(width: int) -> None:
    view = canvas(width)
    picture = composed(view)
    position = find_part(picture, view)
    assert position is not None
    assert find_part(picture[: position[0]], written("slide 7 · attention", INK)) is not None, "the title is above"
    assert find_part(picture[position[0] + 500 :], written(RESEARCH_USE, WARN)) is not None, "the use is beneath"


def test_the_scale_bar_is_as_long_as_it_says() -> None:
    """900 px of 0.8 µm are 720 µm: a quarter is 180, the round length below it 100 µm, 125 px."""
    view = canvas()
    picture = composed(view, None)
    y, x = find_part(picture, view) or (0, 0)
    beneath = picture[y + 500 :]
    assert find_part(beneath, written("100 µm", INK)) is not None
    assert (beneath == INK).all(axis=2).sum(axis=1).max() == 125
    row = (beneath == INK).all(axis=2)[(beneath == INK).all(axis=2).sum(axis=1).argmax()]
    assert row[x : x + 125].all(), "it begins where the view begins"


def test_the_legend_has_the_colours_and_the_two_numbers_and_its_whole_label() -> None:
    beneath = composed(canvas(120))[-12 * TEXT_PX :]
    first, last = (tuple(np.rint(255 * np.array(colormaps["viridis"](v)[:3])).astype(int)) for v in (0.0, 1.0))
    left, right = (np.argwhere((beneath == colour).all(axis=2))[:, 1] for colour in (first, last))
    assert len(left) and len(right) and left.max() < right.min()
    for text in ("3.25", ATTENTION_LEGEND):
        assert find_part(beneath, written(text, INK)) is not None, text


def test_a_legend_may_bring_its_own_colours_low_to_high() -> None:
    table = np.array([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.4, 0.0, 1.0]])
    beneath = composed(canvas(), ColourLegend(-1.5, 1.5, table, "evidence"))[-12 * TEXT_PX :]
    blue, orange = (np.argwhere((beneath == c).all(axis=2))[:, 1] for c in ((0, 0, 255), (255, 102, 0)))
    assert len(blue) and len(orange) and blue.max() < orange.min()


def test_without_a_legend_there_is_none() -> None:
    picture = composed(canvas(), None)
    y, _ = find_part(picture, canvas()) or (0, 0)
    beneath = picture[y + 500 :].astype(int)
    assert not ((beneath.max(axis=2) - beneath.min(axis=2)) > 180).any()


def test_a_long_footer_is_wrapped_and_nothing_of_it_is_lost() -> None:
    page = _page(Image.new("RGB", (1, 1)), 300, TEXT_PX)
    names = [f"word{i}" for i in range(40)]
    lines = _wrap_text(page, "  ".join(names))
    assert " ".join(lines).split() == names and len(lines) > 5
    broken = _wrap_text(page, "sha256 " + "f" * 200 + " end")
    assert "".join(broken).replace(" ", "") == "sha256" + "f" * 200 + "end"
    assert all(page.font.getlength(line) <= 300 - 2 * TEXT_PX for line in [*lines, *broken])


def test_the_picture_grows_with_its_footer() -> None:
    picture = composed(canvas(), footer="first " + "more " * 60)
    assert find_part(picture, written("first", SOFT)) is not None and find_part(picture, canvas()) is not None
    assert picture.shape[0] > composed(canvas(), footer="first").shape[0]


def test_a_fourth_channel_is_dropped_and_the_file_is_a_png(tmp_path: Path) -> None:
    view = canvas()
    see_through = np.dstack([view, np.full(view.shape[:2], 255, np.uint8)])
    picture = compose_view(see_through, 0.8, None, "", "")
    write_view(tmp_path / "new" / "view.png", picture)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["view.png"]
    with Image.open(tmp_path / "new" / "view.png") as image:
        assert image.format == "PNG" and image.mode == "RGB"
        assert find_part(np.asarray(image), view) is not None


@pytest.mark.parametrize("um", [0.0, -1.0, float("nan")])
def test_a_view_without_a_size_is_refused(um: float) -> None:
    with pytest.raises(ValueError, match="positive number of µm"):
        compose_view(canvas(), um, None, "", "")
