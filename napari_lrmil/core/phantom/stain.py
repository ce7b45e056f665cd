"""Amounts of haematoxylin and eosin in a band of rows, and the light that they transmit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from napari_lrmil.core.phantom.layout import PLAN_UM
from napari_lrmil.core.phantom.look import BLUR_REACH, INKS, Field, PhantomLook, PhantomSlide, Pixels
from napari_lrmil.core.phantom.pieces import Piece
from napari_lrmil.core.phantom.stamps import LAYER_UNIT, draw_stamps
from napari_lrmil.core.phantom.strokes import pen_stroke

_TILE = 1024  # texels along a side of the noise tiles; a power of two, so that they wrap by a bit mask


@lru_cache(maxsize=4)
def _tile(sigma_across: float, sigma_along: float) -> Field:
    """Return a tile of wrapping noise of unit sd, (across, along)."""
    white = np.random.default_rng(7).standard_normal((_TILE, _TILE), dtype=np.float32)
    smooth = gaussian_filter(white, (sigma_across, sigma_along), mode="wrap")
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


@dataclass(frozen=True)
class Exposure:
    """Properties that are constant over a slide: stain amounts, light and pen."""

    slide: PhantomSlide
    look: PhantomLook
    stains: NDArray[np.float32]  # (2,) amounts of haematoxylin and eosin relative to the usual
    lamp: NDArray[np.float32]  # (3,) grey of empty glass

    @classmethod
    def draw(cls, slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> Exposure:
        """Return the exposure of one slide."""
        stains = (rng.normal(1, look.stain_sd, 2) * look.stain_mean).astype(np.float32)
        lamp = rng.normal(look.lamp, look.lamp_sd, 3) * look.white_balance
        return cls(slide, look, stains, lamp.astype(np.float32))

    def develop(self, pieces: Sequence[Piece], rows: slice, rng: np.random.Generator) -> Pixels:
        """Return the RGB pixels of a band: transmitted light of the lamp, plus camera noise."""
        halo = self.look.halo(self.slide.mpp)
        seen = slice(max(rows.start - halo, 0), min(rows.stop + halo, self.slide.size[1]))
        stained = [_Stained.of(piece, seen, self.look.fibre_scale) for piece in pieces]
        ink = self._ink(seen)
        shape = (rows.stop - rows.start, self.slide.size[0])
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise *= self.look.noise_sd
        noise += np.float32(0.5)
        pixels = np.empty((*shape, 3), dtype=np.uint8)
        for channel in range(3):
            light = self._blurred(self._light(channel, stained, ink, seen))
            light = light[rows.start - seen.start : rows.stop - seen.start]
            light += noise
            pixels[..., channel] = np.clip(light, 0, 255, out=light)
        return pixels

    def _light(self, channel: int, stained: Sequence[_Stained], ink: Field | None, rows: slice) -> Field:
        """Return the transmitted light of a channel in a band of rows."""
        haematoxylin, eosin = np.float32(self.look.haematoxylin[channel]), np.float32(self.look.eosin[channel])
        light: Field = np.full((rows.stop - rows.start, self.slide.size[0]), self.lamp[channel])
        for part in stained:
            density = part.haem * (self.stains[0] * haematoxylin)
            density += part.eosin * (self.stains[1] * eosin)
            light[part.window] *= np.exp(-density)
        if ink is not None and self.look.pen:
            light *= 1 - ink * np.float32(1 - INKS[self.look.pen][channel])
        return light

    def _blurred(self, light: Field) -> Field:
        """Return the light as the scanner's optics pass it on; a sharp scanner changes nothing."""
        if not self.look.blur_um:
            return light
        return np.asarray(
            gaussian_filter(light, self.look.blur_um / self.slide.mpp, mode="nearest", truncate=BLUR_REACH)
        )

    def _ink(self, rows: slice) -> Field | None:
        """Return the share of each pixel of a band that the pen covers, or None without a pen."""
        if self.look.pen is None:
            return None
        mpp = self.slide.mpp
        x, y = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(mpp) for n in self.slide.size)
        width, height = (n * mpp for n in self.slide.size)
        return _edge(pen_stroke(width, height).depth(x, y[rows, None]), 4.0)


@dataclass(frozen=True)
class _Stained:
    """Amounts of both stains of a piece of tissue in a band of the slide."""

    window: tuple[slice, slice]  # part of the band that the piece covers
    haem: Field
    eosin: Field

    @classmethod
    def of(cls, piece: Piece, rows: slice, fibre_scale: float) -> _Stained:
        """Return the stains of the part of a piece in a band of rows; the two must overlap."""
        top = piece.spot.rows.start
        own = slice(max(rows.start, top) - top, min(rows.stop, piece.spot.rows.stop) - top)
        haem, eosin = _stain(piece, own, fibre_scale)
        return cls((slice(own.start + top - rows.start, own.stop + top - rows.start), piece.spot.columns), haem, eosin)


def _stain(piece: Piece, rows: slice, fibre_scale: float) -> tuple[Field, Field]:
    """Return the amounts of haematoxylin and eosin in a band of rows of a piece."""
    plan, width, mpp = piece.plan, piece.spot.piece.size[0], piece.spot.piece.mpp
    grain = _grain(rows, width)
    finer = np.float32(1 / fibre_scale)
    fibre = _fibre(_enlarge(plan.across, rows, width, mpp) * finer, _enlarge(plan.along, rows, width, mpp) * finer)
    haem, eosin = _stroma(fibre, grain)
    del fibre  # fields of a band are large: each is freed after its last use
    gland = _enlarge(plan.gland, rows, width, mpp)
    membrane = 0.10 * np.exp(-((gland / 1.6) ** 2))
    _mix(haem, eosin, _edge(gland, 1.2), 0.20 + 0.03 * grain, 0.30 + 0.03 * grain + membrane)
    del gland, membrane
    layers = draw_stamps(piece.imprints, rows, width)
    _mix(haem, eosin, layers.mucin * np.float32(0.8 / 255), 0.10 + 0.01 * grain, 0.04)
    _mix(haem, eosin, _edge(_enlarge(plan.lumen, rows, width, mpp), 2.0), 0.03 + 0.015 * grain, 0.03)
    _mix(haem, eosin, layers.mask * np.float32(1 / 255), 0.05, 0.16)
    haem += layers.density * np.float32(LAYER_UNIT)
    section = _section(piece, rows)
    haem *= section
    eosin *= section
    return haem, eosin


def _section(piece: Piece, rows: slice) -> Field:
    """Return the thickness of tissue relative to the mean: 0 on glass, and about 2 in a fold."""
    (width, _), mpp = piece.spot.piece.size, piece.spot.piece.mpp
    tissue, thickness = (_enlarge(f, rows, width, mpp) for f in (piece.plan.tissue, piece.plan.thickness))
    section = _edge(tissue, 2.5) * thickness
    if piece.fold is not None:
        x, y = (np.arange(a, b, dtype=np.float32) * np.float32(mpp) for a, b in ((0, width), (rows.start, rows.stop)))
        section *= 1 + _edge(piece.fold.depth(x, y[:, None]), 3.0)
    return section


def _enlarge(field: Field, rows: slice, width: int, mpp: float) -> Field:
    """Return a band of level-0 pixels of a field of the plan."""
    px, size = PLAN_UM / mpp, (width, rows.stop - rows.start)
    box = (0.0, rows.start / px, width / px, rows.stop / px)
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR, box=box))


def _edge(depth: Field, blur: float) -> Field:
    """Return a ramp from 0 outside to 1 inside, `blur` µm wide."""
    return np.asarray(np.clip(depth * np.float32(1 / blur) + np.float32(0.5), 0, 1))


def _mix(haem: Field, eosin: Field, share: Field, own_haem: Field | float, own_eosin: Field | float) -> None:
    """Replace a share of the stains by those of another tissue, in place."""
    haem += share * (own_haem - haem)
    eosin += share * (own_eosin - eosin)


def _grain(rows: slice, width: int) -> Field:
    """Return fine isotropic noise for a band, from a repeated tile; the period is too long to be visible."""
    tile = _tile(1.2, 1.2)
    i, j = np.arange(rows.start, rows.stop) & (_TILE - 1), np.arange(width) & (_TILE - 1)
    return np.asarray(tile[i[:, None], j])


def _fibre(across: Field, along: Field) -> Field:
    """Return the density of collagen about its mean: fine fibres in coarse bundles."""
    i, j = (across * 2).astype(np.int32) & (_TILE - 1), along.astype(np.int32) & (_TILE - 1)
    return np.asarray(0.75 * _tile(1.7, 9.0)[i, j] + 0.6 * _tile(7.0, 16.0)[i, j])


def _stroma(fibre: Field, grain: Field) -> tuple[Field, Field]:
    """Return the stains of collagen: pink fibres, paler between them, with clefts."""
    cleft = np.clip(-0.9 * fibre - 1.0, 0, 1)
    eosin = (0.40 + 0.10 * fibre + 0.02 * grain) * (1 - 0.75 * cleft)
    return (0.07 + 0.02 * fibre) * (1 - cleft), eosin
