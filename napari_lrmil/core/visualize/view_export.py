"""Export of a view as a picture, with scale bar, legend and the research-use line burnt in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.slides.slide import Pixels
from napari_lrmil.core.visualize.colormaps import viridis_colors
from napari_lrmil.core.visualize.overlay import COLORMAP, RESEARCH_USE, format_length, round_scale_bar
from napari_lrmil.core.visualize.picture_text import Font, load_font, wrap_text

INK, SOFT, WARN, PAPER = (31, 35, 40), (91, 98, 109), (138, 59, 0), (255, 255, 255)
BAR_SHARE = 0.25  # of the canvas's width that the scale bar takes at most
SMALLEST_TEXT_PX = 12
NARROWEST_EM = 24  # least width in text heights; narrower lines would hold single words
BAR_TEXT_EM = 6  # room for the text of the scale bar, in text heights

Colours = NDArray[np.float32] | NDArray[np.float64]


class ColourLegend(NamedTuple):
    """Legend of a view's colours.

    Attributes
    ----------
    low, high
        Values at the two ends.
    cmap
        Name of one of matplotlib's colour maps, or (N, 3 or more) colours from low to high, 0 to 1.
    label
        Quantity and unit.
    """

    low: float
    high: float
    cmap: str | Colours
    label: str


@dataclass(frozen=True)
class _Page:
    """Picture with room above and below the canvas, and the font to write on it."""

    draw: ImageDraw.ImageDraw
    font: Font
    width: int
    text_px: int

    @property
    def margin(self) -> int:
        return self.text_px

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return round(1.4 * self.text_px)


def compose_view(
    canvas_rgb: Pixels,
    um_per_screen_px: float,
    colour_legend: ColourLegend | None,
    title: str,
    footer: str,
    *,
    text_px: int | None = None,
) -> Image.Image:
    """Return a view as a picture: title above; scale bar, legend, footer and research-use line below.

    Parameters
    ----------
    canvas_rgb
        (height, width, 3) uint8 pixels of the screen; a fourth channel is dropped.
    um_per_screen_px
        µm per pixel of the canvas.
    colour_legend
        None if no map is shown.
    title, footer
        May be empty. The lines are wrapped to the picture's width.
    text_px
        Height of the text; derived from the canvas's width if not given.
    """
    if not um_per_screen_px > 0:  # also refuses NaN
        raise ValueError(f"a view needs a positive number of µm per pixel, got {um_per_screen_px}")
    canvas = np.ascontiguousarray(canvas_rgb[..., :3])  # Pillow needs contiguous pixels
    height, width = canvas.shape[:2]
    text_px = text_px or max(SMALLEST_TEXT_PX, round(width / 64))
    paper_width = max(width, _narrowest(text_px, colour_legend)) + 2 * text_px
    # Text is measured on a scratch page, because the height of the picture depends on its lines.
    scratch = _page(Image.new("RGB", (1, 1)), paper_width, text_px)
    titles, footers = (_wrap_text(scratch, text) for text in (title, footer))
    above = len(titles) * scratch.line + scratch.margin * (2 if titles else 1)  # text hides no tissue
    image = Image.new("RGB", (paper_width, above + height + _foot_height(scratch, footers)), PAPER)
    page = _page(image, paper_width, text_px)
    _write(page, titles, page.margin, INK)
    image.paste(Image.fromarray(canvas), ((paper_width - width) // 2, above))
    _draw_foot(image, page, above + height, _scale_bar(width, um_per_screen_px), colour_legend, footers)
    return image


def write_view(path: Path, picture: Image.Image) -> None:
    """Write a composed view as PNG, atomically."""
    with atomic_write(path) as partial:
        picture.save(partial, format="PNG")


def _narrowest(text_px: int, legend: ColourLegend | None) -> int:
    """Return the least width of the picture. The legend's label is beside the scale bar and must not be cut."""
    label = 0 if legend is None else math.ceil(load_font(text_px).getlength(legend.label)) + BAR_TEXT_EM * text_px
    return max(NARROWEST_EM * text_px, label)


def _page(image: Image.Image, width: int, text_px: int) -> _Page:
    return _Page(ImageDraw.Draw(image), load_font(text_px), width, text_px)


def _wrap_text(page: _Page, text: str) -> list[str]:
    """Return `text` in lines that fit between the margins."""
    return wrap_text(page.font, text, page.width - 2 * page.margin)


def _write(page: _Page, lines: Sequence[str], y: int, colour: tuple[int, int, int]) -> int:
    """Write lines from `y` down and return the y below them."""
    for i, line in enumerate(lines):
        page.draw.text((page.margin, y + i * page.line), line, fill=colour, font=page.font)
    return y + len(lines) * page.line


# ---------------------------------------------------------------- below the canvas


@dataclass(frozen=True)
class _Bar:
    """Scale bar: a round length and its width in pixels."""

    um: float
    px: int


def _scale_bar(width: int, um_per_px: float) -> _Bar:
    um = round_scale_bar(width * um_per_px * BAR_SHARE)
    return _Bar(um, max(1, round(um / um_per_px)))


def _foot_height(page: _Page, footers: Sequence[str]) -> int:
    return 4 * page.line + (len(footers) + 1) * page.line + page.margin // 2


def _draw_foot(
    image: Image.Image, page: _Page, top: int, bar: _Bar, legend: ColourLegend | None, footers: Sequence[str]
) -> None:
    y = top + page.margin // 2
    page.draw.text((page.margin, y), format_length(bar.um), fill=INK, font=page.font)
    line = y + page.line + page.text_px // 4
    page.draw.rectangle((page.margin, line, page.margin + bar.px - 1, line + max(2, page.text_px // 4)), fill=INK)
    if legend is not None:
        _draw_legend(image, page, y, legend)
    y = _write(page, footers, y + 3 * page.line, SOFT)
    _write(page, [RESEARCH_USE], y + page.line // 4, WARN)


def _draw_legend(image: Image.Image, page: _Page, y: int, legend: ColourLegend) -> None:
    """Draw label, colours and both limits, right-aligned."""
    width = min(20 * page.text_px, (page.width - 2 * page.margin) // 2)
    left = page.width - page.margin - width
    right = page.width - page.margin
    page.draw.text((right, y), legend.label, fill=INK, font=page.font, anchor="ra")
    strip = np.broadcast_to(colour_strip(legend.cmap, width), (page.text_px, width, 3))
    image.paste(Image.fromarray(np.ascontiguousarray(strip)), (left, y + page.line))
    below = y + page.line + page.text_px + page.text_px // 4
    page.draw.text((left, below), f"{legend.low:.3g}", fill=INK, font=page.font)
    page.draw.text((right, below), f"{legend.high:.3g}", fill=INK, font=page.font, anchor="ra")


def colour_strip(cmap: str | Colours, width: int) -> Pixels:
    """Return the (1, width, 3) uint8 colours of a legend, from low to high."""
    positions = np.linspace(0, 1, width)
    if isinstance(cmap, str) and cmap == COLORMAP:
        return viridis_colors(positions)[None]
    if isinstance(cmap, str):
        from matplotlib import colormaps

        colours = colormaps[cmap](positions)[:, :3]
    else:
        table = np.asarray(cmap, dtype=np.float64)[:, :3]
        colours = np.stack([np.interp(positions, np.linspace(0, 1, len(table)), column) for column in table.T], axis=1)
    strip: Pixels = np.rint(255 * colours).astype(np.uint8)[None]
    return strip
