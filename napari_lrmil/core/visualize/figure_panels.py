"""Panels of matplotlib figures: a slide's thumbnail with a scale bar, and attention over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.slides.slide import Pixels, Slide
from napari_lrmil.core.visualize.overlay import COLORMAP, OPACITY, Heatmap, format_length, round_scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_slide(axis: Axes, thumbnail: Pixels, box: BoxLevel0, slide: Slide) -> None:
    """Show a thumbnail of `box` with a scale bar. The axes are in level-0 pixels."""
    extent = (box.x, box.x + box.width, box.y + box.height, box.y)
    axis.imshow(thumbnail, extent=extent, interpolation="antialiased")
    axis.set_xlim(extent[:2])
    # y grows downward, as in images.
    axis.set_ylim(extent[2:])
    axis.set_xticks([])
    axis.set_yticks([])
    length_um = round_scale_bar(box.width * slide.mpp.x / 4)
    x, y = box.x + 0.04 * box.width, box.y + 0.96 * box.height
    axis.plot([x, x + length_um / slide.mpp.x], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    axis.text(x, y - 0.015 * box.height, format_length(length_um), fontsize=8, va="bottom")


def show_attention(
    axis: Axes, heat: Heatmap, low: float, high: float, *, colours: str = COLORMAP, opacity: float = OPACITY
) -> Any:
    """Draw a heatmap over a slide's axes and return the image, which a colour bar needs."""
    (x, y), (width, height) = heat.origin_level0, heat.pixel_level0
    rows, columns = heat.image.shape
    extent = (x, x + columns * width, y + rows * height, y)
    return axis.imshow(
        heat.image, cmap=colours, vmin=low, vmax=high, alpha=opacity, extent=extent, interpolation="nearest"
    )
