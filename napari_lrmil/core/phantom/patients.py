"""Phantom patients: stain, morphology and scanner that all slides of a patient share and other patients do not.

Without patients, all phantoms come from one distribution, so training slides resemble test slides far more than in a
clinic. Each patient has a stain, a tissue and lesional nuclei of its own, and one of a few scanners. The spreads are
chosen so that a normal patient with coarse chromatin is close to a lesion patient with faint lesions. A network then
has to learn what lesions of all patients have in common. That takes patients, not slides.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.phantom.look import CLASSES, NucleusLook, PhantomLook, PhantomSlide

SLIDES_PER_PATIENT = (1, 2)
MAX_SLIDES_PER_PATIENT = 100
_AMOUNT_SD = 0.18  # of the logarithm of each stain's amount; laboratories differ by about a factor of 1.5
_VECTOR_SD = 0.05  # of the optical density of each channel per unit of stain, before its length is restored
_TEXTURE_SD = 0.20  # of the logarithm of sizes and numbers in stroma and glands


@dataclass(frozen=True)
class Scanner:
    """Properties of the light and the optics of a scanner."""

    mpp: float  # µm per px
    blur_um: float  # sd of the blur, µm
    white_balance: tuple[float, float, float]  # gain of red, green and blue
    noise_sd: float  # grey levels


SCANNERS = {
    "scanner-a": Scanner(0.5, 0.0, (1.0, 1.0, 1.0), 1.6),
    "scanner-b": Scanner(0.5, 0.25, (1.0, 0.985, 0.965), 1.2),
    "scanner-c": Scanner(0.46, 0.20, (0.975, 0.985, 1.0), 2.0),
    "scanner-d": Scanner(0.5, 0.40, (0.96, 0.96, 0.96), 2.4),
}


@dataclass(frozen=True)
class PhantomPatient:
    """A patient with its label, the appearance of its slides, and the slides themselves."""

    name: str
    label: str
    scanner: str  # one of `SCANNERS`
    look: PhantomLook
    slides: tuple[PhantomSlide, ...]


def draw_patient(
    number: int,
    size: tuple[int, int],
    seed: int,
    split: str | None,
    *,
    slides_per_patient: tuple[int, int] = SLIDES_PER_PATIENT,
    look: PhantomLook,
) -> PhantomPatient:
    """Return a patient of a cohort. It does not depend on the number of patients, so that cohorts can grow.

    Parameters
    ----------
    number
        Place in the cohort, from 0. Of each two patients, one has lesions; which one is random.
    size
        Width and height of each slide, in px of 0.5 µm. A finer scanner gives more pixels of the same tissue.
    seed, split
        Seed and split of the cohort.
    slides_per_patient
        Smallest and largest number of slides.
    look
        Average appearance, from which the patient's differs.
    """
    call = zlib.crc32((split or "").encode())
    first = np.random.default_rng([seed, call, number // 2, 0]).integers(2)
    label = CLASSES[int(first + number) % 2]
    rng = np.random.default_rng([seed, call, number, 1])
    scanner = list(SCANNERS)[int(rng.integers(len(SCANNERS)))]
    own_look = _scan(_draw_look(look, rng), SCANNERS[scanner])
    mpp = SCANNERS[scanner].mpp
    pixels = (round(size[0] * 0.5 / mpp), round(size[1] * 0.5 / mpp))
    name = f"{split or 'patient'}-{seed}-{number:03d}"
    count = int(rng.integers(slides_per_patient[0], slides_per_patient[1] + 1))
    slides = [PhantomSlide(f"{name}-{i}", label, int(rng.integers(2**62)), pixels, mpp) for i in range(count)]
    return PhantomPatient(f"P-{name}", label, scanner, own_look, tuple(slides))


def _scan(look: PhantomLook, scanner: Scanner) -> PhantomLook:
    return replace(look, white_balance=scanner.white_balance, blur_um=scanner.blur_um, noise_sd=scanner.noise_sd)


def _draw_look(look: PhantomLook, rng: np.random.Generator) -> PhantomLook:
    """Return the appearance of a patient's slides; the same draws for either label, so that twins match."""
    size, darkness = rng.lognormal(0, 0.07), rng.lognormal(0, 0.10)
    coarse, unequal = rng.uniform(0.7, 2.2), rng.uniform(0.8, 1.7)  # of ordinary chromatin, towards that of a lesion
    faint = rng.uniform(0.65, 1.1)  # of the lesion's chromatin
    many = [rng.lognormal(0, _TEXTURE_SD) for _ in range(6)]
    amounts = [rng.lognormal(0, _AMOUNT_SD) for _ in range(2)]
    epithelial = _of_patient(look.epithelial, size, darkness, coarse, unequal)
    lesional = _of_patient(look.lesional, size, darkness, faint, rng.uniform(0.7, 1.1))
    return replace(
        look,
        haematoxylin=_draw_vector(look.haematoxylin, rng),
        eosin=_draw_vector(look.eosin, rng),
        stain_mean=(look.stain_mean[0] * amounts[0], look.stain_mean[1] * amounts[1]),
        fibre_scale=look.fibre_scale * many[0],
        fibroblasts=look.fibroblasts * many[1] ** 2,
        lymphocytes=look.lymphocytes * many[2] ** 2,
        gland_spacing=look.gland_spacing * many[3] ** 0.5,
        nucleus_step=look.nucleus_step * size * many[4] ** 0.5,
        goblets=min(look.goblets * many[5] ** 2, 0.9),
        gland_gaps=min(look.gland_gaps * rng.uniform(0.5, 2.5), 0.6),
        gland_ripple=look.gland_ripple * rng.uniform(0.6, 1.6),
        epithelial=epithelial,
        lesional=lesional,
        fibroblast=_of_patient(look.fibroblast, size, darkness, 1.0, 1.0),
        lymphocyte=_of_patient(look.lymphocyte, size, darkness, 1.0, 1.0),
    )  # fmt: skip


def _of_patient(kind: NucleusLook, size: float, darkness: float, coarse: float, unequal: float) -> NucleusLook:
    """Return a kind of nucleus with its size, density and the two marks of a lesion multiplied."""
    return replace(
        kind,
        length=kind.length * size,
        width=kind.width * size,
        density=kind.density * darkness,
        density_sd=kind.density_sd * unequal,
        grain=kind.grain * coarse,
    )


def _draw_vector(stain: tuple[float, float, float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a stain of another hue and equal total density."""
    vector: NDArray[np.float64] = np.clip(np.array(stain) + rng.normal(0, _VECTOR_SD, 3), 0.05, None)
    vector *= sum(stain) / vector.sum()
    return float(vector[0]), float(vector[1]), float(vector[2])


def parse_slides_per_patient(text: str) -> tuple[int, int]:
    """Return the bounds that a text such as ``1..2`` or ``3`` states.

    Raises
    ------
    ConfigError
        If the text is neither a number nor a range, or its bounds are impossible.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+))?\s*", text, re.ASCII)
    if match is None:
        raise ConfigError(f"slides per patient {text!r}: expected a number or a range such as 1..2")
    low = int(match[1])
    return require_slides_per_patient((low, int(match[2] or low)))


def require_slides_per_patient(bounds: tuple[int, int]) -> tuple[int, int]:
    """Return the bounds if they are possible; raise `ConfigError` otherwise."""
    low, high = bounds
    if not 1 <= low <= high <= MAX_SLIDES_PER_PATIENT:
        raise ConfigError(
            f"slides per patient {low}..{high}: expected 1 to {MAX_SLIDES_PER_PATIENT}, the smaller number first"
        )
    return bounds
