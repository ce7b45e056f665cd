"""Phantom slides: procedural H&E-like tissue whose classes differ mainly in the fine structure of nuclei.

A slide is an L of fibrous stroma with glands on noisy glass. On a lesion slide, epithelial nuclei in a few foci have
coarse chromatin and unequal darkness. Their positions, their number and their mean absorption are those of ordinary
nuclei. A 20x network therefore separates a focus from its surroundings easily. At 5x, only the unequal darkness is
left.

Tissue is laid out on a coarse plan, then painted band by band as amounts of haematoxylin and eosin. The Beer-Lambert
law turns them into light. Bands are written while they are painted, so memory does not grow with the slide. A huge
slide holds several pieces of tissue. Variants have a finer resolution, no stated resolution, a fold, a pen stroke, or
another file format. Lengths are micrometres unless a name says otherwise.
"""

from napari_lrmil.core.phantom.cohort import make_cohort
from napari_lrmil.core.phantom.composition import COMPOSITION, COMPOSITION_CELL
from napari_lrmil.core.phantom.containers import BOUNDS_OFFSET, CONTAINERS
from napari_lrmil.core.phantom.look import LESION, NORMAL, PhantomLook, PhantomSlide
from napari_lrmil.core.phantom.patients import SCANNERS, PhantomPatient, draw_patient
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
    "SCANNERS",
    "VARIANTS",
    "Band",
    "Phantom",
    "PhantomLook",
    "PhantomPatient",
    "PhantomSlide",
    "draw_patient",
    "lesions_geojson",
    "make_cohort",
    "paint",
    "paint_bands",
    "write_bands",
    "write_pyramid",
    "write_slide",
]
