"""What makes an answer doubtful though nothing failed: colour that the model has not seen, little tissue."""

from __future__ import annotations

from napari_lrmil.core.models.bundle import Card
from napari_lrmil.core.patching.color import color_stats, colour_distance
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.slides.slide import Slide

# In units of the spread between training slides. Measured: phantoms of the cohort's own look at most 0.6; half or one
# and a half times their stain 3.3; slides of gland patients held out 0.2 to 2.5, a few of one patient to 3.9; CMU-1
# from glands 3.5, from phantoms 7.5.
MAX_COLOUR_DISTANCE = 3.0
MIN_LR_PATCHES = 10  # LR patches


def quality_warnings(slide: Slide, grid: NestedGrid, card: Card) -> tuple[str, ...]:
    """Return a sentence for each thing about the tissue of `slide` that makes this model's answer doubtful.

    Reads a few coarse pixels where the card tells the colour of the training slides, and none where it does not.
    """
    found = []
    if card.colour is not None:
        distance = colour_distance(color_stats(slide, grid), card.colour)
        if distance > MAX_COLOUR_DISTANCE:
            found.append(
                f"colour differs from the training slides, {distance:.1f} times as much as they differ from one "
                "another; check stain and scanner before believing the probabilities"
            )
    patches = len(grid.lr_index)
    if patches < MIN_LR_PATCHES:
        found.append(
            f"little tissue: {patches} LR {'patch' if patches == 1 else 'patches'}, fewer than {MIN_LR_PATCHES}; "
            "the answer rests on few places"
        )
    return tuple(found)
