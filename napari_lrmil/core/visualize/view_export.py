"""A view as a picture that can leave the program: with scale bar, legend, and what it may be used for burnt in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.slides.slide import Pixels
from napari_lrmil.core.visualize.overlay import RESEARCH_USE, format_length, round_scale_bar

INK, SOFT, WARN, PAPER = (31, 35, 40), (91, 98, 109), (138, 59, 0), (255, 255, 255)
BAR_SHARE = 0.25  # of the canvas's width that the scale bar takes at most
SMALLEST_TEXT_PX = 12
NARROWEST_EM = 24  # a picture is at least this many text heights wide, or its lines would be chopped to words
BAR_TEXT_EM = 6  # room for the scale bar's length

Colours = NDArray[np.float32] | NDArray[np.float64]


class ColourLegend(NamedTuple):
    """What the colours of a view mean.

    Attributes
    ----------
    low, high
        Values at the two ends.
    cmap
        Name of one of matplotlib's colour maps, or (N, 3 or more) colours from low to high, 0 to 1.
    label
        What is shown, with its unit.
    """

    low: float
    high: float
    cmap: str | Colours
    label: str


@dataclass(frozen=True)
class _Page:
    """Paper with room above and below the canvas, and the pen for it."""

    draw: ImageDraw.ImageDraw
    font: ImageFont.FreeTypeFont
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
    """Return a view as a picture: title above it; scale bar, legend, footer and the research-use line beneath it.

    They stand outside the canvas, so that they hide no tissue and are readable on whatever it shows.

    Parameters
    ----------
    canvas_rgb
        (height, width, 3) uint8, what is on the screen; a fourth channel is dropped.
    um_per_screen_px
        µm across one pixel of it.
    colour_legend
        What its colours mean; None where nothing lies over the tissue.
    title
        What it shows; may be empty.
    footer
        What else should be known; wrapped to the picture's width; may be empty.
    text_px
        Height of the text; chosen from the canvas's size if not given.
    """
    if not um_per_screen_px > 0:
        raise ValueError(f"a view needs a positive number of µm per pixel, got {um_per_screen_px}")
    canvas = np.ascontiguousarray(canvas_rgb[..., :3])
    height, width = canvas.shape[:2]
    text_px = text_px or max(SMALLEST_TEXT_PX, round(width / 64))
    paper_width = max(width, _narrowest(text_px, colour_legend)) + 2 * text_px
    scratch = _page(Image.new("RGB", (1, 1)), paper_width, text_px)
    titles, footers = (_wrapped(scratch, text) for text in (title, footer))
    above = len(titles) * scratch.line + scratch.margin * (2 if titles else 1)
    image = Image.new("RGB", (paper_width, above + height + _foot_height(scratch, footers)), PAPER)
    page = _page(image, paper_width, text_px)
    _write(page, titles, page.margin, INK)
    image.paste(Image.fromarray(canvas), ((paper_width - width) // 2, above))
    _draw_foot(image, page, above + height, _bar(width, um_per_screen_px), colour_legend, footers)
    return image


def write_view(path: Path, picture: Image.Image) -> None:
    """Write a composed view as PNG, whole or not at all."""
    with atomic_write(path) as partial:
        picture.save(partial, format="PNG")


def _narrowest(text_px: int, legend: ColourLegend | None) -> int:
    """Return the width that the lines need: the legend's label is never cut, and stands beside the scale bar."""
    label = 0 if legend is None else math.ceil(load_font(text_px).getlength(legend.label)) + BAR_TEXT_EM * text_px
    return max(NARROWEST_EM * text_px, label)


def _page(image: Image.Image, width: int, text_px: int) -> _Page:
    return _Page(ImageDraw.Draw(image), load_font(text_px), width, text_px)


@lru_cache(maxsize=16)
def load_font(text_px: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib brings along: the same on every machine, and it has µ."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", text_px)


def _wrapped(page: _Page, text: str) -> list[str]:
    """Return `text` in lines that fit between the margins; a word that is too long is broken, as hashes are."""
    room, lines = page.width - 2 * page.margin, [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if page.font.getlength(longer) > room and lines[-1]:
            lines.append("")
            longer = word
        while page.font.getlength(longer) > room:
            fits = next(n for n in range(len(longer), 0, -1) if page.font.getlength(longer[:n]) <= room or n == 1)
            lines[-1], longer = longer[:fits], longer[fits:]
            lines.append("")
        lines[-1] = longer
    return [line for line in lines if line]


def _write(page: _Page, lines: Sequence[str], y: int, colour: tuple[int, int, int]) -> int:
    """Write lines from `y` on and return where they end."""
    for i, line in enumerate(lines):
        page.draw.text((page.margin, y + i * page.line), line, fill=colour, font=page.font)
    return y + len(lines) * page.line


# ---------------------------------------------------------------- beneath the canvas


@dataclass(frozen=True)
class _Bar:
    """A scale bar: a round length and the pixels it takes."""

    um: float
    px: int


def _bar(width: int, um_per_px: float) -> _Bar:
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
    """Draw label, colours and the two numbers, right-aligned."""
    width = min(20 * page.text_px, (page.width - 2 * page.margin) // 2)
    left = page.width - page.margin - width
    right = page.width - page.margin
    page.draw.text((right, y), legend.label, fill=INK, font=page.font, anchor="ra")
    strip = np.broadcast_to(colour_strip(legend.cmap, width), (page.text_px, width, 3))
    image.paste(Image.fromarray(np.ascontiguousarray(strip)), (left, y + page.line))
    under = y + page.line + page.text_px + page.text_px // 4
    page.draw.text((left, under), f"{legend.low:.3g}", fill=INK, font=page.font)
    page.draw.text((right, under), f"{legend.high:.3g}", fill=INK, font=page.font, anchor="ra")


def colour_strip(cmap: str | Colours, width: int) -> Pixels:
    """Return (1, width, 3) the colours of a legend from low to high."""
    from matplotlib import colormaps

    at = np.linspace(0, 1, width)
    if isinstance(cmap, str):
        colours = colormaps[cmap](at)[:, :3]
    else:
        table = np.asarray(cmap, dtype=np.float64)[:, :3]
        colours = np.stack([np.interp(at, np.linspace(0, 1, len(table)), column) for column in table.T], axis=1)
    strip: Pixels = np.rint(255 * colours).astype(np.uint8)[None]
    return strip
