"""Stamp libraries: nuclei drawn in advance, and the level-0 layers that they are stamped on.

Stamping a drawn nucleus is much cheaper than drawing each one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_lrmil.core.phantom.layout import Blob
from napari_lrmil.core.phantom.look import NucleusLook, Outline, PhantomLook, PhantomSlide, Pixels
from napari_lrmil.core.phantom.nuclei import Nuclei

LAYER_UNIT = 0.01  # optical density of one grey level of the nuclear layer
_ANGLES = 16  # directions of the nuclei in a stamp library, over half a turn
_STAMPS = 20 * _ANGLES  # nuclei in a stamp library


@dataclass(frozen=True)
class _Stamps:
    """Library of drawn nuclei; nucleus i has direction i modulo `_ANGLES`."""

    density: Pixels  # (n, side, side), in units of `LAYER_UNIT`
    mask: Pixels  # (n, side, side), 255 within


@dataclass(frozen=True)
class Layers:
    """Stamped layers of a band of level-0 rows."""

    density: Pixels  # (rows, width) haematoxylin of nuclei, in units of `LAYER_UNIT`
    mask: Pixels  # (rows, width) 255 within a nucleus
    mucin: Pixels  # (rows, width) 255 within a vacuole


@dataclass(frozen=True)
class Imprint:
    """Positions of the stamps of one library, sorted from top to bottom, so that a band finds its stamps quickly."""

    layer: str  # of `Layers`
    stamps: Pixels  # (m, side, side)
    corners: NDArray[np.int64]  # (n, 2), px, x then y
    picks: NDArray[np.int64]  # (n,) which stamp
    gains: NDArray[np.float64] | None  # (n,) factor of the density of each stamp

    def within(self, rows: slice) -> Imprint:
        """Return the stamps that overlap a band, with corners relative to its first row."""
        top, side = self.corners[:, 1], self.stamps.shape[1]
        chosen = slice(*np.searchsorted(top, (rows.start - side + 1, rows.stop)))
        gains = None if self.gains is None else self.gains[chosen]
        return Imprint(self.layer, self.stamps, self.corners[chosen] - (0, rows.start), self.picks[chosen], gains)


@lru_cache(maxsize=16)
def _stamps(kind: NucleusLook, mpp: float, stain: tuple[float, ...]) -> _Stamps:
    """Return the library of one kind of nucleus; its seed is fixed, and slides differ in the choice of stamps.

    `stain` is the optical density of each channel per unit of haematoxylin.
    """
    rng = np.random.default_rng(20)
    side = 2 * math.ceil(0.5 * kind.length * (1 + 3.2 * kind.size_sd) / mpp + 2)
    scale = np.exp(rng.normal(0, kind.size_sd, (2, _STAMPS)))
    scale = np.minimum(scale / np.sqrt(np.mean(scale[0] * scale[1])), 1 + 3.2 * kind.size_sd)
    radius, angle = _polar(side, mpp, scale * np.array([[kind.length / 2], [kind.width / 2]]))
    for order in (2, 3, 5):
        depth = np.float32(kind.ripple) * rng.standard_normal((_STAMPS, 1, 1), dtype=np.float32)
        phase = np.float32(2 * np.pi) * rng.random((_STAMPS, 1, 1), dtype=np.float32)
        radius = radius * (1 + depth * np.cos(order * angle + phase))
    mask = np.clip((1 - radius) * kind.width / 2 / 0.9 + 0.5, 0, 1)  # the edge is blurred over 0.9 µm
    chromatin = _chromatin(kind, radius, mpp, rng) * mask
    density = np.clip(_calibrate(chromatin, mask, kind.density, stain), 0, 255 * LAYER_UNIT)
    return _Stamps(np.rint(density / LAYER_UNIT).astype(np.uint8), np.rint(mask * 255).astype(np.uint8))


def _polar(side: int, mpp: float, axes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the radius, 1 on the outline, and angle of each pixel in ellipses of semi-axes (2, n) µm."""
    turn = (np.arange(axes.shape[1], dtype=np.float32) % _ANGLES * (np.pi / _ANGLES))[:, None, None]
    y, x = ((np.mgrid[:side, :side] - (side - 1) / 2) * mpp).astype(np.float32)
    axes = axes.astype(np.float32)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    u, v = u / axes[0][:, None, None], v / axes[1][:, None, None]
    return np.hypot(u, v), np.arctan2(v, u)


def _chromatin(kind: NucleusLook, radius: NDArray[Any], mpp: float, rng: np.random.Generator) -> NDArray[Any]:
    """Return chromatin relative to its mean: grain or clumps, more of it at the membrane, and nucleoli."""
    white, fine = rng.standard_normal(radius.shape, dtype=np.float32), kind.grain_um / mpp
    grain = gaussian_filter(white, (0, fine, fine)) - gaussian_filter(white, (0, 2 * fine, 2 * fine))
    grain /= grain.std()
    chromatin = 1 + kind.grain * grain + kind.rim * np.exp(-(((radius - 0.86) / 0.13) ** 2))
    side = radius.shape[1]
    y, x = np.mgrid[:side, :side].astype(np.float32)
    for _ in range(2 if kind.nucleoli else 0):
        cy, cx = rng.normal((side - 1) / 2, 0.18 * kind.width / mpp, (2, _STAMPS, 1, 1)).astype(np.float32)
        has_nucleolus = rng.random((_STAMPS, 1, 1)) < kind.nucleoli / 2
        blob = np.exp(-((np.hypot(y - cy, x - cx) * mpp / kind.nucleolus_um) ** 4))
        chromatin = chromatin + 1.2 * has_nucleolus * blob
    return np.maximum(chromatin, 0.12)


def _calibrate(
    chromatin: NDArray[Any], mask: NDArray[Any], density: float, stain: tuple[float, ...], steps: int = 6
) -> NDArray[Any]:
    """Scale each nucleus until it absorbs as much light as a flat nucleus of `density`.

    A coarse pixel averages light, not density. With equal density, a clumped nucleus would look paler at 5x.
    """

    def absorbed(amount: NDArray[Any]) -> NDArray[Any]:
        passed = [np.exp(-amount * channel).sum((1, 2), keepdims=True) for channel in channels]
        return np.asarray(amount[0].size * len(passed) - sum(passed))

    channels = np.array(stain, dtype=np.float32)
    target = absorbed(mask * density)
    amount = chromatin * density
    for _ in range(steps):
        amount = (
            amount * (target / absorbed(amount)) ** 1.3
        )  # absorption is concave: the exponent speeds up convergence
    return amount


def place_stamps(
    nuclei: Mapping[str, Nuclei],
    goblets: Nuclei,
    foci: Sequence[Blob],
    slide: PhantomSlide,
    look: PhantomLook,
    rng: np.random.Generator,
) -> list[Imprint]:
    """Return the stamp positions of nuclei and vacuoles; epithelial nuclei within `foci` are lesional."""
    looks = {"epithelial_nuclei": look.epithelial, "fibroblasts": look.fibroblast, "lymphocytes": look.lymphocyte}
    vacuole = NucleusLook(9.5, 7.5, 0.5, size_sd=0.18, grain=0.0, rim=0.0, nucleoli=0)
    stain = tuple(look.stain_mean[0] * channel for channel in look.haematoxylin)
    imprints = []
    for name, kind in looks.items():
        group = nuclei[name]
        is_lesional = group.within(foci if kind is look.epithelial else ())
        picks, gains = _choose_stamps(group, rng)
        for mask, used in ((~is_lesional, kind), (is_lesional, look.lesional)):
            stamps, xy = _stamps(used, slide.mpp, stain), group.xy[mask] / slide.mpp
            density_factors = 1 + used.density_sd * gains[mask]
            imprints.append(_sorted("density", stamps.density, xy, picks[mask], density_factors))
            imprints.append(_sorted("mask", stamps.mask, xy, picks[mask]))
    picks, _ = _choose_stamps(goblets, rng)
    return [*imprints, _sorted("mucin", _stamps(vacuole, slide.mpp, stain).mask, goblets.xy / slide.mpp, picks)]


def _sorted(
    layer: str, stamps: Pixels, xy: Outline, picks: NDArray[np.int64], gains: NDArray[np.float64] | None = None
) -> Imprint:
    """Return an imprint of stamps centred at (n, 2) px."""
    corners = np.rint(xy - stamps.shape[1] / 2).astype(int)
    order = np.argsort(corners[:, 1], kind="stable")
    return Imprint(layer, stamps, corners[order], picks[order], None if gains is None else gains[order])


def draw_stamps(imprints: Sequence[Imprint], rows: slice, width: int) -> Layers:
    """Return the layers of a band of rows with all stamps that overlap it."""
    layers = Layers(*(np.zeros((rows.stop - rows.start, width), dtype=np.uint8) for _ in range(3)))
    for imprint in imprints:
        _blit(getattr(layers, imprint.layer), imprint.within(rows))
    return layers


def _choose_stamps(group: Nuclei, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return a stamp of the right direction for each nucleus, and the deviation of its density in sd."""
    direction = np.rint(group.angle / (np.pi / _ANGLES)).astype(int) % _ANGLES
    picks = rng.integers(_STAMPS // _ANGLES, size=len(direction)) * _ANGLES + direction
    return picks, np.clip(rng.normal(size=len(direction)), -2.5, 2.5)


def _blit(layer: Pixels, prints: Imprint) -> None:
    """Stamp with the maximum of old and new, because overlapping nuclei in a thin section do not add up."""
    stamps, side = prints.stamps, prints.stamps.shape[1]
    for i, (x, y) in enumerate(prints.corners.tolist()):
        x0, y0 = max(x, 0), max(y, 0)
        view = layer[y0 : max(y + side, 0), x0 : max(x + side, 0)]
        drawn = stamps[prints.picks[i], y0 - y : y0 - y + view.shape[0], x0 - x : x0 - x + view.shape[1]]
        if prints.gains is not None:
            drawn = np.minimum(drawn * np.float32(prints.gains[i]) + np.float32(0.5), 255).astype(np.uint8)
        np.maximum(view, drawn, out=view)
