"""Phantom slides: procedural H&E-like tissue whose classes differ in the fine structure of nuclei, and in little else.

A slide is an L of fibrous stroma with glands on noisy glass. On a lesion slide a few foci hold epithelial nuclei of
coarse chromatin and unequal darkness; they lie where the ordinary ones would, are as many, and absorb as much light. So
a 20x network tells a focus from its surroundings at once; at 5x only the unequal darkness of dots is left.

Everything is laid out on a coarse plan, then painted band by band as amounts of haematoxylin and eosin, turned into
light by Beer and Lambert's law, and written while it is painted: memory does not grow with the slide. A huge slide
holds several such pieces of tissue. Variants are finer, do not tell their resolution, have a fold or a pen's stroke, or
are another kind of file. Lengths are micrometres unless a name says otherwise.
"""

from napari_lrmil.core.phantom.cohort import make_cohort
from napari_lrmil.core.phantom.composition import COMPOSITION, COMPOSITION_CELL
from napari_lrmil.core.phantom.containers import BOUNDS_OFFSET, CONTAINERS
from napari_lrmil.core.phantom.look import LESION, NORMAL, PhantomLook, PhantomSlide
from napari_lrmil.core.phantom.pyramid import write_bands, write_pyramid
from napari_lrmil.core.phantom.slide import Band, Phantom, lesions_geojson, paint, paint_bands, write_slide
from napari_lrmil.core.phantom.variants import VARIANTS

__all__ = [
    "BOUNDS_OFFSET",
    "COMPOSITION",
    "COMPOSITION_CELL",
    "CONTAINERS",
    "LESION",
    "NORMAL",
    "VARIANTS",
    "Band",
    "Phantom",
    "PhantomLook",
    "PhantomSlide",
    "lesions_geojson",
    "make_cohort",
    "paint",
    "paint_bands",
    "write_bands",
    "write_pyramid",
    "write_slide",
]
