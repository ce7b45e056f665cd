"""Content and appearance of a phantom slide: label, seed and size; colours and tuned quantities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import CohortError, ConfigError, GeometryError

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Outline = NDArray[np.float64]  # (points, 2), x then y
Field = NDArray[np.float32]  # (rows, cols)

NORMAL, LESION = "normal", "lesion"
CLASSES = (NORMAL, LESION)

# Optical density of red, green and blue per unit of stain, from the colours of routine sections.
HAEMATOXYLIN = (0.55, 0.74, 0.38)
EOSIN = (0.20, 0.84, 0.50)
BLUR_REACH = 4.0  # sd of the scanner's blur beyond which it is cut off
INKS = {
    "green": (0.25, 0.66, 0.40),
    "blue": (0.20, 0.36, 0.75),
    "black": (0.09, 0.09, 0.10),
}  # share of light let through


@dataclass(frozen=True)
class NucleusLook:
    """Appearance of one kind of nucleus."""

    length: float  # long axis, µm
    width: float  # short axis, µm
    density: float  # haematoxylin of a flat nucleus that absorbs as much light, optical density
    size_sd: float = 0.10  # relative sd of both axes; the mean area does not depend on it
    density_sd: float = 0.10  # relative sd of the density between nuclei
    ripple: float = 0.05  # relative depth of dents in the outline
    grain: float = 0.2  # sd of chromatin relative to its mean
    grain_um: float = 0.3  # size of the grains: inner sd of a band pass, which a 5x pixel averages out
    rim: float = 0.3  # chromatin at the membrane over that within
    nucleoli: float = 0.3  # expected nucleoli per nucleus
    nucleolus_um: float = 0.5  # their radius, µm


@dataclass(frozen=True)
class PhantomLook:
    """Appearance of a phantom; by default a lesion is obvious at 20x and faint at 5x (docs, Demo model)."""

    margin: float = 0.05  # glass around the tissue, share of the slide's side, at least `edge_um`
    notch: tuple[float, float] = (0.42, 0.50)  # sides of the corner missing from the L, share of width and height
    edge_um: float = 26.0  # depth of the raggedness of the tissue edge
    gland_spacing: float = 104.0  # µm between gland centres; sets the number of epithelial nuclei
    gland_jitter: float = 0.07  # sd of a gland's place off the lattice, share of the spacing
    gland_fill: tuple[float, float] = (0.74, 0.98)  # gland diameter over the spacing
    gland_gaps: float = 0.12  # share of glands missing, in patches of plain stroma
    gland_ripple: float = 0.08  # relative depth of dents in a gland's outline
    wall_um: float = 25.0  # height of the columnar epithelium
    nucleus_depth: tuple[float, float] = (8.0, 2.2)  # mean and sd of a nucleus' distance from the basement membrane
    nucleus_step: float = 6.6  # µm between epithelial nuclei along the wall
    goblets: float = 0.35  # goblet vacuoles per epithelial nucleus
    fibroblasts: float = 1400.0  # per mm² of stroma
    lymphocytes: float = 900.0  # per mm² of stroma, gathered in patches
    epithelial: NucleusLook = NucleusLook(9.6, 6.6, 0.80, grain=0.15, grain_um=0.25, rim=0.35, nucleoli=0.3)
    lesional: NucleusLook = NucleusLook(
        9.6, 6.6, 0.80, size_sd=0.26, density_sd=0.32, ripple=0.06,
        grain=0.70, grain_um=0.65, rim=0.40, nucleoli=0.6, nucleolus_um=0.5,
    )  # fmt: skip
    fibroblast: NucleusLook = NucleusLook(15.0, 3.0, 1.05, size_sd=0.18, ripple=0.10, grain=0.10, rim=0.1, nucleoli=0)
    lymphocyte: NucleusLook = NucleusLook(6.4, 6.0, 1.25, size_sd=0.07, grain=0.40, grain_um=0.6, rim=0.3, nucleoli=0)
    foci: tuple[int, int] = (1, 3)  # number of foci on a lesion slide, fewer if they would be too small
    focus_across: tuple[float, float] = (320.0, 1100.0)  # µm; a 5x patch should fit into one
    lesion_share: tuple[float, float] = (0.12, 0.20)  # of the tissue
    haematoxylin: tuple[float, float, float] = HAEMATOXYLIN  # optical density per unit; patients differ in it
    eosin: tuple[float, float, float] = EOSIN
    stain_mean: tuple[float, float] = (1.0, 1.0)  # mean amount of haematoxylin and eosin over slides
    stain_sd: float = 0.05  # relative sd of the amount of each stain between slides
    fibre_scale: float = 1.0  # size of the fibres of the stroma, relative to the usual
    thickness_sd: float = 0.04  # relative sd of the section's thickness within a slide
    lamp: float = 243.0  # grey of empty glass
    lamp_sd: float = 1.2  # of each channel between slides
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)  # gain of each channel of the scanner
    blur_um: float = 0.0  # sd of the scanner's blur, µm
    noise_sd: float = 1.6  # grey levels, camera noise
    tissue_share: float | None = (
        None  # of the slide, in several pieces; None: one piece that fills it, if it is not huge
    )
    fold: bool = False  # whether a band of each piece lies double
    pen: str | None = None  # ink of a marker stroke over tissue and glass, one of `INKS`

    def __post_init__(self) -> None:
        if self.pen is not None and self.pen not in INKS:
            raise ConfigError(f"there is no ink {self.pen!r}; choose one of {', '.join(INKS)}")

    def halo(self, mpp: float) -> int:
        """Return the rows beyond a band that its blur reaches, px."""
        return math.ceil(BLUR_REACH * self.blur_um / mpp)


DEFAULT_LOOK = PhantomLook()


@dataclass(frozen=True)
class PhantomSlide:
    """Definition of a slide; equal values give equal pixels, and the label changes the foci only."""

    name: str
    label: str
    seed: int
    size: tuple[int, int]  # width, height in px
    mpp: float = 0.5  # µm per px; 0.5 is 20x

    def __post_init__(self) -> None:
        if self.label not in CLASSES:
            raise CohortError(self.name, f"the label is {self.label!r}; expected one of {', '.join(CLASSES)}")
        if min(self.size) * self.mpp < 200:
            raise GeometryError(f"{self.name}: {self.size} px of {self.mpp} µm hold no gland; use 200 µm or more")

    def zoomed(self, factor: int) -> PhantomSlide:
        """Return the same tissue at `factor` times the magnification, with `factor` times the pixels per side."""
        width, height = self.size
        return replace(self, size=(width * factor, height * factor), mpp=self.mpp / factor)
