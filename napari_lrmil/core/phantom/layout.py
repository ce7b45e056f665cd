"""Coarse plan of a slide: positions of tissue, foci, glands and fibres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from napari_lrmil.core.phantom.look import Field, Outline, PhantomLook, PhantomSlide

PLAN_UM = 2.0  # µm along a side of one cell of the plan, whatever the resolution of the slide


@dataclass(frozen=True)
class Plan:
    """Plan of a piece of tissue; fields have one value per `PLAN_UM`."""

    tissue: Field  # µm within the tissue, negative on glass
    gland: Field  # µm within a gland, negative in the stroma
    lumen: Field  # µm within a lumen
    across: Field  # µm across the fibres
    along: Field  # µm along the fibres
    thickness: Field  # relative to the mean
    foci: tuple[Blob, ...]


@dataclass(frozen=True)
class Blob:
    """Outline of a gland or focus: a circle with ripples."""

    centre: tuple[float, float]  # x, y in µm
    radius: float  # µm
    waves: tuple[tuple[int, float, float], ...]  # order, relative depth, phase of each ripple

    def reach(self, angle: NDArray[Any]) -> NDArray[Any]:
        """Return the distance from the centre to the outline, µm, in each direction."""
        order, depth, phase = (np.array(w, dtype=np.float32)[:, None] for w in zip(*self.waves, strict=True))
        ripple = (depth * np.cos(order * angle.reshape(-1) + phase)).sum(0)
        return np.asarray(self.radius * (1 + ripple.reshape(angle.shape)))

    def outline(self, points: int = 64) -> Outline:
        """Return the outline, µm."""
        angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
        unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.asarray(unit * self.reach(angle)[:, None] + self.centre)


def lay_out(slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> tuple[list[Blob], Plan]:
    """Return the glands of a slide and its plan; the plan has foci for both labels, so that twins match."""
    cell, px = PLAN_UM, PLAN_UM / slide.mpp
    shape = (math.ceil(slide.size[1] / px), math.ceil(slide.size[0] / px))
    y, x = (np.arange(n, dtype=np.float32)[:, None] * cell + cell / 2 for n in shape)
    tissue = _tissue(x.T, y, slide, look, rng)
    foci = _place_foci(tissue, cell, look, rng)
    glands = _place_glands(tissue, cell, look, rng)
    gland = _gland_depth(glands, shape, cell)
    wall = look.wall_um + 2.5 * noise(rng, shape, 22 / cell)
    across, along = _fibres(x.T, y, gland, cell, rng)
    thickness = 1 + look.thickness_sd * noise(rng, shape, 300 / cell)
    return glands, Plan(tissue, gland, gland - wall, across, along, thickness, tuple(foci))


def _tissue(x: Field, y: Field, slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> Field:
    """Return the depth within an L with its notch top right or bottom left, so that a swap of x and y shows."""
    width, height = (s * slide.mpp for s in slide.size)
    left, top = (max(look.margin * side, look.edge_um) for side in (width, height))
    notch_x, notch_y = width * (1 - look.notch[0]), height * look.notch[1]
    if rng.random() < 0.5:  # rotate the L by 180°
        x, y = width - x, height - y
    within = np.minimum(np.minimum(x - left, width - left - x), np.minimum(y - top, height - top - y))
    depth = np.minimum(within, np.maximum(notch_x - x, y - notch_y))
    cell = PLAN_UM
    for share, wavelength in ((0.7, 220.0), (0.28, 60.0), (0.10, 14.0)):
        depth = depth + share * look.edge_um * noise(rng, (depth.shape[0], depth.shape[1]), wavelength / cell)
    return np.asarray(depth, dtype=np.float32)


def _waves(rng: np.random.Generator, depth: float, orders: Sequence[int] = (2, 3, 4, 5)) -> tuple[Any, ...]:
    return tuple((k, float(rng.normal(0, depth)) * 2 / k, float(rng.uniform(0, 2 * np.pi))) for k in orders)


def _place_foci(tissue: Field, cell: float, look: PhantomLook, rng: np.random.Generator) -> list[Blob]:
    """Return disjoint round blobs well inside the tissue that together cover a randomly drawn share of it."""
    area = float((tissue > 0).sum()) * cell**2 * rng.uniform(*look.lesion_share)
    drawn_count = int(rng.integers(look.foci[0], look.foci[1] + 1))
    count = max(1, min(drawn_count, int(area / (np.pi / 4 * look.focus_across[0] ** 2))))
    radius = min(math.sqrt(area / count / np.pi), look.focus_across[1] / 2)
    room = tissue.copy()
    foci: list[Blob] = []
    for _ in range(count):
        if foci and room.max() < 0.8 * radius:
            break
        rows, cols = np.nonzero(room >= min(1.1 * radius, 0.97 * float(room.max())))
        pick = int(rng.integers(len(rows)))
        focus = Blob(((cols[pick] + 0.5) * cell, (rows[pick] + 0.5) * cell), radius, _waves(rng, 0.05))
        foci.append(focus)
        np.minimum(room, _distance(focus.centre, tissue.shape, cell) - radius, out=room)
    return foci


def _distance(centre: tuple[float, float], shape: tuple[int, ...], cell: float) -> Field:
    y, x = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot((x + 0.5) * cell - centre[0], (y + 0.5) * cell - centre[1])
    return np.asarray(distance, dtype=np.float32)


def _place_glands(tissue: Field, cell: float, look: PhantomLook, rng: np.random.Generator) -> list[Blob]:
    """Return glands on a jittered hexagonal lattice with gaps of plain stroma."""
    step = look.gland_spacing
    scarce = noise(rng, (tissue.shape[0], tissue.shape[1]), 260 / cell)
    limit = np.quantile(scarce, 1 - look.gland_gaps)
    glands = []
    for row, y in enumerate(np.arange(0, tissue.shape[0] * cell, step * 0.87)):
        for x in np.arange(0, tissue.shape[1] * cell, step) + step / 2 * (row % 2):
            dx, dy = rng.normal(0, look.gland_jitter * step, 2)
            centre = (float(x + dx), float(y + dy))
            gland = Blob(centre, step / 2 * rng.uniform(*look.gland_fill), _waves(rng, look.gland_ripple))
            i, j = int(centre[1] / cell), int(centre[0] / cell)
            fits = 0 <= i < tissue.shape[0] and 0 <= j < tissue.shape[1] and tissue[i, j] > gland.radius * 1.05
            if fits and scarce[i, j] < limit:
                glands.append(gland)
    return glands


def _gland_depth(glands: Sequence[Blob], shape: tuple[int, int], cell: float, around: float = 60.0) -> Field:
    """Return the depth within the nearest gland, µm; outside, distances above `around` are cut off."""
    depth = np.full(shape, -around, dtype=np.float32)
    for gland in glands:
        half = gland.radius + around
        (x0, x1), (y0, y1) = ((max(0, int((c - half) / cell)), int((c + half) / cell) + 1) for c in gland.centre)
        view = depth[y0:y1, x0:x1]
        y, x = np.mgrid[y0 : y0 + view.shape[0], x0 : x0 + view.shape[1]].astype(np.float32)
        dx, dy = (x + 0.5) * cell - gland.centre[0], (y + 0.5) * cell - gland.centre[1]
        np.maximum(view, gland.reach(np.arctan2(dy, dx)) - np.hypot(dx, dy), out=view)
    return depth


def _fibres(x: Field, y: Field, gland: Field, cell: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return coordinates across and along collagen fibres: a wavy main direction that bends around glands."""
    angle = rng.uniform(0, np.pi)
    shape = (gland.shape[0], gland.shape[1])
    wave = 40 * noise(rng, shape, 240 / cell) + 5 * noise(rng, shape, 45 / cell)
    around = gaussian_filter(
        np.clip(-gland, 0, 30), 5 / cell
    )  # smooths the border between the surroundings of two glands
    across = x * np.cos(angle) + y * np.sin(angle) + wave + 1.2 * around
    along = y * np.cos(angle) - x * np.sin(angle) + 20 * noise(rng, shape, 200 / cell)
    return across.astype(np.float32), along.astype(np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> Field:
    """Return smooth noise of unit sd; `wavelength` in cells."""
    coarse = (max(4, math.ceil(shape[1] / wavelength) + 3), max(4, math.ceil(shape[0] / wavelength) + 3))
    lattice = Image.fromarray(rng.standard_normal(coarse[::-1], dtype=np.float32))
    box = (1.0, 1.0, 1.0 + min(coarse[0] - 2, shape[1] / wavelength), 1.0 + min(coarse[1] - 2, shape[0] / wavelength))
    field: Field = np.asarray(lattice.resize(shape[::-1], Image.Resampling.BICUBIC, box=box))
    return field * np.float32(1.35)  # bicubic interpolation reduces the sd of white noise by about this factor
