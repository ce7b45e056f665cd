"""Picture ``overlay.png``: a slide, the attention of each network over it, one colour scale, and notes.

Drawn by array operations and Pillow. With matplotlib the picture cost ten times the analysis of a small slide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.formatting import format_probabilities
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.slides.slide import Pixels, Slide
from napari_lrmil.core.visualize.colormaps import viridis_colors
from napari_lrmil.core.visualize.overlay import (
    ATTENTION_LEGEND,
    OPACITY,
    RESEARCH_USE,
    blend_heatmap,
    calibration_text,
    color_limits,
    format_length,
    make_heatmap,
    round_scale_bar,
)
from napari_lrmil.core.visualize.picture_text import load_font, wrap_text
from napari_lrmil.core.visualize.scope_outlines import SMOOTH, outline_scope

OVERLAY = "overlay.png"
PANEL_AREA = 450 * 600  # pixels of a panel, whatever the slide's shape
PANELS_PX, TALLEST_PX = 1500, 800  # width of all panels together: on a screen the text stays readable; and their height
NARROWEST_PX = 300  # room for the title of a narrow slide
SHORTEST_PX = 350  # room for the colour scale and its label beside a flat slide
MARGIN, GAP = 18, 16
HEADLINE_PX, TITLE_PX, NOTE_PX = 17, 15, 13  # text heights
MOST_LINES = {HEADLINE_PX: 4, TITLE_PX: 60, NOTE_PX: 80}  # with these the picture stays below 4,096 px
BAR_PX, TIP_PX, TICK_PX, NUMBER_PX = 26, 22, 5, 44  # colour scale: width, pointed end, length of ticks, their numbers
REST = "… (the rest is in prediction.json)"
SCALE_PX = 4  # height of a scale bar
INK, WARN, PAPER = (0, 0, 0), (138, 59, 0), (255, 255, 255)
NICE_STEPS = (1.0, 2.0, 2.5, 5.0)
MOST_TICKS = 8


def draw_overlay(path: Path, slide: Slide, prediction: Prediction) -> None:
    """Write a PNG of the slide and of each network's attention over it, with one colour scale."""
    png = _encode_png(compose_overlay(slide, prediction))
    with atomic_write(path, len(png)) as partial:
        partial.write_bytes(png)


def _encode_png(picture: Image.Image) -> bytes:
    """Return a picture as PNG. With these settings the file is as large as Pillow's fastest, in half the time."""
    from imagecodecs import PNG, png_encode

    settings = {"level": PNG.COMPRESSION.SPEED, "strategy": PNG.STRATEGY.RLE, "filter": PNG.FILTER.PAETH}
    return bytes(png_encode(np.asarray(picture), **settings))


def compose_overlay(slide: Slide, prediction: Prediction) -> Image.Image:
    """Return the picture that `draw_overlay` writes: at most 4,096 px wide and high."""
    networks = [n for n in (prediction.student, prediction.teacher) if n is not None]
    limits = color_limits(networks)
    thumbnail, box = read_panel(slide, PANELS_PX // (1 + len(networks)))
    blended = [blend_heatmap(thumbnail, box, make_heatmap(network), limits) for network in networks]
    panels = [Image.fromarray(pixels) for pixels in (thumbnail, *blended)]
    layout = _Layout(panels[0].size, len(panels), _texts(slide, prediction, networks))
    picture = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(picture)
    outlines = outline_scope(prediction.scope, box, panels[0].size)
    for i, panel in enumerate(panels):
        if outlines is not None:
            outlines.draw_on(panel)
        _draw_panel(picture, draw, panel, layout.panel_corner(i))
        _draw_scale_bar(draw, layout, i, box.width * slide.mpp.x)
    _draw_texts(draw, layout)
    _draw_legend(picture, draw, layout, limits)
    return picture


def read_panel(slide: Slide, widest_px: int) -> tuple[Pixels, BoxLevel0]:
    """Return the scanned part of a slide at the size of a panel of at most `widest_px`, and its level-0 box.

    JPEG tiles are reduced while they are decoded, by a power of two; Pillow does the rest.
    """
    bounds = slide.bounds
    size = panel_size(bounds.width, bounds.height, widest_px)
    step = 2 ** max(0, int(math.log2(min(bounds.width / size[0], bounds.height / size[1]))))
    # Whole reduced pixels only, counted from the slide's corner: no window may cut one.
    left, top = bounds.x // step, bounds.y // step
    width = max(1, (bounds.x + bounds.width) // step - left)
    height = max(1, (bounds.y + bounds.height) // step - top)
    box = BoxLevel0(*(float(step * v) for v in (left, top, width, height)))
    pixels = np.empty((height, width, 3), np.uint8)
    # In blocks: a level of a slide without pyramid may not fit into memory.
    for rows, columns, block in slide.read_blocks(box, (width, height), reduced=True):
        pixels[rows, columns] = block
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.HAMMING)), box


def panel_size(width: float, height: float, widest_px: int) -> tuple[int, int]:
    """Return width and height of the panel that shows a slide of `width` x `height`."""
    scale = min(math.sqrt(PANEL_AREA / (width * height)), widest_px / width, TALLEST_PX / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


# ---------------------------------------------------------------- texts and their places


@dataclass(frozen=True)
class _Texts:
    """Headline, one title per panel, and notes; each as one line, as long as it may be."""

    headline: str
    titles: Sequence[str]
    notes: Sequence[str]


def _texts(slide: Slide, prediction: Prediction, networks: Sequence[NetworkPrediction]) -> _Texts:
    names = ("Student (LR)", "Teacher (HR)")
    titles = [f"{name}: {format_probabilities(n.probabilities)}" for name, n in zip(names, networks, strict=False)]
    return _Texts(
        f"Where the model looked (attention) · {prediction.bundle}",
        (slide.name, *titles),
        (f"{RESEARCH_USE} {calibration_text(prediction)}.", *prediction.warnings),
    )


@dataclass(frozen=True)
class _Layout:
    """Places of all parts of the picture, in pixels. Panels stand in slots side by side, the legend on their right."""

    panel: tuple[int, int]
    panels: int
    texts: _Texts

    @property
    def slot(self) -> int:
        """Width of a slot: a panel, or wider for its title."""
        return max(self.panel[0], NARROWEST_PX)

    @property
    def row(self) -> int:
        """Height of the row of panels."""
        return max(self.panel[1], SHORTEST_PX)

    @cached_property
    def legend_lines(self) -> list[str]:
        return wrap_text(load_font(NOTE_PX), ATTENTION_LEGEND, self.row)

    @cached_property
    def headline(self) -> list[str]:
        return _wrap(self.texts.headline, HEADLINE_PX, self.size_x - 2 * MARGIN)

    @cached_property
    def titles(self) -> list[list[str]]:
        return [_wrap(title, TITLE_PX, self.slot) for title in self.texts.titles]

    @cached_property
    def notes(self) -> list[tuple[str, bool]]:
        """Lines of the notes, and whether a line belongs to the first note, on research use."""
        lines = [
            (line, i == 0)
            for i, note in enumerate(self.texts.notes)
            for line in _wrap(note, NOTE_PX, self.size_x - 2 * MARGIN)
        ]
        return [*lines[: MOST_LINES[NOTE_PX]], *([(REST, False)] if len(lines) > MOST_LINES[NOTE_PX] else [])]

    @property
    def legend_x(self) -> int:
        return MARGIN + self.panels * (self.slot + GAP) + GAP // 2

    @cached_property
    def size_x(self) -> int:
        label = len(self.legend_lines) * _line(NOTE_PX)
        return self.legend_x + BAR_PX + TICK_PX + NUMBER_PX + label + MARGIN

    @property
    def titles_y(self) -> int:
        return MARGIN + len(self.headline) * _line(HEADLINE_PX) + GAP // 2

    @property
    def row_y(self) -> int:
        return self.titles_y + max(map(len, self.titles)) * _line(TITLE_PX) + GAP // 4

    @property
    def scale_y(self) -> int:
        """Middle of the scale bars."""
        return self.row_y + (self.row + self.panel[1]) // 2 + GAP

    @property
    def notes_y(self) -> int:
        return max(self.scale_y + GAP, self.row_y + self.row) + GAP // 2

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return self.size_x, self.notes_y + len(self.notes) * _line(NOTE_PX) + MARGIN

    def slot_middle(self, i: int) -> float:
        return MARGIN + i * (self.slot + GAP) + self.slot / 2

    def panel_corner(self, i: int) -> tuple[int, int]:
        """Return the upper left corner of panel `i`."""
        return round(self.slot_middle(i) - self.panel[0] / 2), self.row_y + (self.row - self.panel[1]) // 2


def _line(text_px: int) -> int:
    """Return the height of a line of text."""
    return round(1.4 * text_px)


def _wrap(text: str, text_px: int, width: int) -> list[str]:
    """Return a text in lines, at most `MOST_LINES`."""
    lines = wrap_text(load_font(text_px), text, width)
    most = MOST_LINES[text_px]
    return lines if len(lines) <= most else [*lines[: most - 1], REST]


# ---------------------------------------------------------------- drawing


def _draw_texts(draw: ImageDraw.ImageDraw, layout: _Layout) -> None:
    for i, line in enumerate(layout.headline):
        place = layout.size_x / 2, MARGIN + i * _line(HEADLINE_PX)
        draw.text(place, line, INK, load_font(HEADLINE_PX), "ma")
    for panel, lines in enumerate(layout.titles):
        above = layout.panel_corner(panel)[1] - GAP // 4 - len(lines) * _line(TITLE_PX)
        for i, line in enumerate(lines):
            draw.text((layout.slot_middle(panel), above + i * _line(TITLE_PX)), line, INK, load_font(TITLE_PX), "ma")
    for i, (line, is_first) in enumerate(layout.notes):
        place = MARGIN, layout.notes_y + i * _line(NOTE_PX)
        draw.text(place, line, WARN if is_first else INK, load_font(NOTE_PX), "la")


def _draw_panel(picture: Image.Image, draw: ImageDraw.ImageDraw, panel: Image.Image, corner: tuple[int, int]) -> None:
    """Draw a panel with a thin frame around it."""
    x, y = corner
    picture.paste(panel, corner)
    draw.rectangle((x - 1, y - 1, x + panel.width, y + panel.height), outline=INK)


def _draw_scale_bar(draw: ImageDraw.ImageDraw, layout: _Layout, i: int, width_um: float) -> None:
    """Draw the scale bar of panel `i` below it, where it hides no tissue."""
    length_um = round_scale_bar(width_um / 4)
    x, y = layout.panel_corner(i)[0], layout.scale_y
    end = x + max(1, round(length_um / width_um * layout.panel[0]))
    draw.rectangle((x, y - SCALE_PX // 2, end - 1, y + SCALE_PX - SCALE_PX // 2 - 1), fill=INK)
    draw.text((end + GAP // 2, y), format_length(length_um), INK, load_font(NOTE_PX), "lm")


def _draw_legend(picture: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, limits: tuple[float, float]) -> None:
    """Draw the colour scale with its pointed end, which stands for all higher values, ticks, and label."""
    low, high = limits
    height = round(0.85 * layout.row)
    x, top = layout.legend_x, layout.row_y + (layout.row - height) // 2
    picture.paste(_color_bar(height), (x, top))
    bottom, length = top + height - 1, height - TIP_PX - 1
    for value, text in scale_ticks(low, high):
        y = round(bottom - length * (value - low) / (high - low))
        draw.line((x + BAR_PX, y, x + BAR_PX + TICK_PX - 1, y), fill=INK)
        draw.text((x + BAR_PX + TICK_PX + 3, y), text, INK, load_font(NOTE_PX), "lm")
    label = _vertical_text(layout.legend_lines, NOTE_PX)
    place = x + BAR_PX + TICK_PX + NUMBER_PX, layout.row_y + (layout.row - label.height) // 2
    picture.paste(INK, place, mask=label)


def _color_bar(height: int) -> Image.Image:
    """Return the colours from low (bottom) to high as they look over glass, with a pointed end and an outline."""
    right, tip, bottom = SMOOTH * BAR_PX - 1, SMOOTH * TIP_PX, SMOOTH * height - 1
    shares = np.linspace(1, 0, bottom + 1 - tip)[:, None]
    colours = np.rint(OPACITY * viridis_colors(shares) + (1 - OPACITY) * 255).astype(np.uint8)
    large = Image.new("RGB", (right + 1, bottom + 1), PAPER)
    large.paste(Image.fromarray(np.ascontiguousarray(np.repeat(colours, right + 1, axis=1))), (0, tip))
    draw = ImageDraw.Draw(large)
    # Half a line inside, so that the outline is not cut at the edge.
    inset = SMOOTH // 2
    corners = [(inset, tip), (right / 2, inset), (right - inset, tip)]
    draw.polygon(corners, fill=tuple(colours[0, 0].tolist()))
    draw.line([*corners, (right - inset, bottom - inset), (inset, bottom - inset), corners[0]], INK, SMOOTH, "curve")
    return large.reduce(SMOOTH)


def scale_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return round values between two limits with their texts, about `MOST_TICKS` of them."""
    least = (high - low) / MOST_TICKS
    power = math.floor(math.log10(least))
    steps = [(nice * 10.0**p, p - (nice == 2.5)) for p in (power, power + 1) for nice in NICE_STEPS]
    step, exponent = next((step, p) for step, p in steps if step >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:.{max(0, -exponent)}f}") for i in range(first, last + 1)]


def _vertical_text(lines: Sequence[str], text_px: int) -> Image.Image:
    """Return a mask of lines that read from bottom to top."""
    font = load_font(text_px)
    width = math.ceil(max(font.getlength(line) for line in lines))
    mask = Image.new("L", (width, len(lines) * _line(text_px)))
    for i, line in enumerate(lines):
        ImageDraw.Draw(mask).text((width / 2, i * _line(text_px)), line, 255, font, "ma")
    return mask.transpose(Image.Transpose.ROTATE_90)
