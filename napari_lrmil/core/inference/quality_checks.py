"""Quality warnings of a prediction: stain colour outside the training range, little tissue, a small region."""

from __future__ import annotations

from napari_lrmil.core.models.card import Card
from napari_lrmil.core.patching.artefacts import ArtefactShares
from napari_lrmil.core.patching.color import color_stats, colour_distance
from napari_lrmil.core.patching.grid import NestedGrid, TissueGrid
from napari_lrmil.core.patching.roi import Kind
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.slides.slide import Slide

# In units of the spread between training slides. Measured: phantoms with the stain of their cohort 0.6 at most, with
# half or one and a half times that stain 3.3. Held-out gland slides 0.2 to 2.5, a few of one patient up to 3.9.
# CMU-1 has 3.5 for a model of gland slides and 7.5 for one of phantoms.
MAX_COLOUR_DISTANCE = 3.0
# LR patches. With fewer, a tenth of them is less than one patch: the 10 % with the most attention cannot be told apart
# from the rest, and each patch has more than a tenth of the attention however little it shows.
MIN_LR_PATCHES = 10


def quality_warnings(slide: Slide, grid: NestedGrid, card: Card) -> tuple[str, ...]:
    """Return one sentence for each property of the tissue that makes this model's result doubtful.

    A few coarse pixels are read if the model card states the colour of the training slides, otherwise none.
    """
    warnings = []
    if card.colour is not None:
        distance = colour_distance(color_stats(slide, grid), card.colour)
        if distance > MAX_COLOUR_DISTANCE:
            warnings.append(
                f"staining is far outside the training range ({distance:.1f} times the usual spread); "
                "check stain and scanner before you rely on the probabilities"
            )
    patches = len(grid.lr_index)
    if patches < MIN_LR_PATCHES:
        warnings.append(
            f"little tissue: {patches} LR {'patch' if patches == 1 else 'patches'}, fewer than {MIN_LR_PATCHES}; "
            "the result rests on few places"
        )
    return tuple(warnings)


def small_region_warnings(grid: NestedGrid, kind: Kind) -> tuple[str, ...]:
    """Return a sentence if a region or a view holds so few patches that the result says little; none for a slide.

    Colour is not checked: the limit of its distance was measured on whole slides.
    """
    patches = len(grid.lr_index)
    if kind == "slide" or patches >= MIN_LR_PATCHES:
        return ()
    if patches == 1:
        text = "1 LR patch, which gets all attention whatever it shows; the result rests on this patch alone"
    else:
        text = f"{patches} LR patches, fewer than {MIN_LR_PATCHES}; the result rests on few places"
    return (f"small {kind}: {text}",)


def artefact_shares(tissue_grid: TissueGrid, config: TissueConfig, *, is_slide: bool) -> ArtefactShares | None:
    """Return the artefacts on the tissue of a slide; None if there is nothing to say.

    A mask that was edited by hand is taken as it is. Without artefacts the result says so if they were to be left out.
    Of a region, as opposed to a slide, it says whether they were left out, and no shares.
    """
    if not is_slide:
        return ArtefactShares({}, True) if config.exclude_artefacts and not tissue_grid.edited else None
    artefacts = None if tissue_grid.edited else tissue_grid.tissue.artefacts
    if artefacts is None or not (artefacts.shares or config.exclude_artefacts):
        return None
    return ArtefactShares(dict(artefacts.shares), config.exclude_artefacts)
