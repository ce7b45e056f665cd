"""Amounts of haematoxylin and eosin, band by band, and the light that they let through."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from napari_lrmil.core.phantom.layout import PLAN_PX, Plan
from napari_lrmil.core.phantom.look import EOSIN, HAEMATOXYLIN, Field, PhantomLook, PhantomSlide, Pixels
from napari_lrmil.core.phantom.stamps import LAYER_UNIT, Layers

_BAND = 256  # rows painted at a time, which bounds memory
_TILE = 1024  # texels along a side of the noise tiles; a power of two, so that they wrap by a bit mask


@lru_cache(maxsize=4)
def _tile(sigma_across: float, sigma_along: float) -> Field:
    """Return a tile of wrapping noise of unit sd, (across, along)."""
    white = np.random.default_rng(7).standard_normal((_TILE, _TILE), dtype=np.float32)
    smooth = gaussian_filter(white, (sigma_across, sigma_along), mode="wrap")
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


def develop(plan: Plan, layers: Layers, slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> Pixels:
    """Return the light that a lamp sends through the section."""
    width, height = slide.size
    stains = rng.normal(1, look.stain_sd, 2).astype(np.float32)
    lamp = rng.normal(look.lamp, look.lamp_sd, 3).astype(np.float32)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        haem, eosin = _stain(plan, layers, rows, slide)
        noise = look.noise_sd * rng.standard_normal(haem.shape, dtype=np.float32) + np.float32(0.5)
        for channel in range(3):
            density = haem * (stains[0] * HAEMATOXYLIN[channel]) + eosin * (stains[1] * EOSIN[channel])
            pixels[rows, :, channel] = np.clip(lamp[channel] * np.exp(-density) + noise, 0, 255)
    return pixels


def _stain(plan: Plan, layers: Layers, rows: slice, slide: PhantomSlide) -> tuple[Field, Field]:
    """Return the amounts of haematoxylin and eosin in a band of rows."""
    tissue, gland, lumen, across, along, thickness = (
        _enlarge(f, rows, slide.size[0])
        for f in (plan.tissue, plan.gland, plan.lumen, plan.across, plan.along, plan.thickness)
    )
    grain = _grain(rows, slide.size[0])
    haem, eosin = _stroma(across, along, grain)
    membrane = 0.10 * np.exp(-((gland / 1.6) ** 2))
    _mix(haem, eosin, _edge(gland, 1.2), 0.20 + 0.03 * grain, 0.30 + 0.03 * grain + membrane)
    _mix(haem, eosin, layers.mucin[rows] * np.float32(0.8 / 255), 0.10 + 0.01 * grain, 0.04)
    _mix(haem, eosin, _edge(lumen, 2.0), 0.03 + 0.015 * grain, 0.03)
    mask = layers.mask[rows] * np.float32(1 / 255)
    _mix(haem, eosin, mask, 0.05, 0.16)
    haem += layers.density[rows] * np.float32(LAYER_UNIT)
    section = _edge(tissue, 2.5) * thickness
    return haem * section, eosin * section


def _enlarge(field: Field, rows: slice, width: int) -> Field:
    """Return a band of level-0 pixels of a field of the plan."""
    box = (0.0, rows.start / PLAN_PX, width / PLAN_PX, rows.stop / PLAN_PX)
    size = (width, rows.stop - rows.start)
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR, box=box))


def _edge(depth: Field, blur: float) -> Field:
    """Return 0 outside to 1 inside over `blur` µm."""
    return np.asarray(np.clip(depth * np.float32(1 / blur) + np.float32(0.5), 0, 1))


def _mix(haem: Field, eosin: Field, share: Field, own_haem: Field | float, own_eosin: Field | float) -> None:
    """Replace `share` of what is there by a tissue of its own stains, in place."""
    haem += share * (own_haem - haem)
    eosin += share * (own_eosin - eosin)


def _grain(rows: slice, width: int) -> Field:
    """Return fine isotropic noise for a band, from a tile that repeats too far apart to be seen."""
    tile = _tile(1.2, 1.2)
    i, j = np.arange(rows.start, rows.stop) & (_TILE - 1), np.arange(width) & (_TILE - 1)
    return np.asarray(tile[i[:, None], j])


def _stroma(across: Field, along: Field, grain: Field) -> tuple[Field, Field]:
    """Return collagen: pink fibres, paler between, with clefts."""
    i, j = (across * 2).astype(np.int32) & (_TILE - 1), along.astype(np.int32) & (_TILE - 1)
    fibre = 0.75 * _tile(1.7, 9.0)[i, j] + 0.6 * _tile(7.0, 16.0)[i, j]
    cleft = np.clip(-0.9 * fibre - 1.0, 0, 1)
    eosin = (0.40 + 0.10 * fibre + 0.02 * grain) * (1 - 0.75 * cleft)
    return (0.07 + 0.02 * fibre) * (1 - cleft), eosin
