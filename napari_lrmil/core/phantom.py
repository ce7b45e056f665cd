"""Phantom slides: procedural H&E-like tissue whose classes differ in the fine structure of nuclei, and in little else.

A slide is an L of fibrous stroma with glands on noisy glass. On a lesion slide a few foci hold epithelial nuclei of
coarse chromatin and unequal darkness; they lie where the ordinary ones would, are as many, and absorb as much light. So
a 20x network tells a focus from its surroundings at once; at 5x only the unequal darkness of dots is left.

Everything is laid out on a coarse plan, then painted band by band as amounts of haematoxylin and eosin and turned into
light by Beer and Lambert's law. Lengths are micrometres unless a name says otherwise.
"""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from napari_lrmil.core.errors import CohortError, GeometryError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.files import whole, write_json, write_text

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Outline = NDArray[np.float64]  # (points, 2), x then y
Field = NDArray[np.float32]  # (rows, cols)

NORMAL, LESION = "normal", "lesion"
CLASSES = (NORMAL, LESION)
COHORT_COLUMNS = ("slide", "patient", "label", "split")
COMPOSITION = ("glass", "stroma", "epithelium", "lumen", "epithelial_nuclei", "fibroblasts", "lymphocytes")
COMPOSITION_CELL = 64  # level-0 pixels along a side of one cell of the composition

# Optical density of red, green and blue per unit of stain, from the colours of routine sections.
HAEMATOXYLIN = np.array([0.55, 0.74, 0.38], dtype=np.float32)
EOSIN = np.array([0.20, 0.84, 0.50], dtype=np.float32)

_PLAN_PX = 4  # level-0 pixels per cell of the plan
_BAND = 256  # rows painted at a time, which bounds memory
_LAYER_UNIT = 0.01  # optical density that one grey level of the nuclear layer stands for
_TILE = 1024  # texels along a side of the noise tiles; a power of two, so that they wrap by a bit mask
_ANGLES = 16  # directions of the nuclei in a stamp library, over half a turn
_STAMPS = 20 * _ANGLES  # nuclei in a stamp library


@dataclass(frozen=True)
class NucleusLook:
    """One kind of nucleus."""

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
    """How a phantom looks; the defaults make a lesion plain at 20x and faint at 5x (docs/benchmarks.md)."""

    margin: float = 0.05  # glass round the tissue, share of the slide's side, and no less than `edge_um`
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
    foci: tuple[int, int] = (1, 3)  # foci on a lesion slide, fewer where they would be too small
    focus_across: tuple[float, float] = (320.0, 1100.0)  # µm; a 5x patch should fit into one
    lesion_share: tuple[float, float] = (0.12, 0.20)  # of the tissue
    stain_sd: float = 0.05  # relative sd of the amount of each stain between slides
    thickness_sd: float = 0.04  # relative sd of the section's thickness within a slide
    lamp: float = 243.0  # grey of empty glass
    lamp_sd: float = 1.2  # of each channel between slides
    noise_sd: float = 1.6  # grey levels, camera noise


@dataclass(frozen=True)
class PhantomSlide:
    """What a slide will hold; equal values give equal pixels, and only a focus depends on the label."""

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


@dataclass(frozen=True)
class Phantom:
    """A painted slide."""

    pixels: Pixels  # (height, width, 3)
    lesions: tuple[Outline, ...]  # level-0 px, empty on a normal slide
    composition: Field  # (rows, cols, len(COMPOSITION)): shares, then counts; the same whether lesional or not


@dataclass(frozen=True)
class _Plan:
    """Where everything lies; fields have one value per `_PLAN_PX` level-0 pixels."""

    tissue: Field  # µm within the tissue, negative on glass
    gland: Field  # µm within a gland, negative in the stroma
    lumen: Field  # µm within a lumen
    across: Field  # µm across the fibres
    along: Field  # µm along the fibres
    thickness: Field  # relative to the mean
    foci: tuple[_Blob, ...]


@dataclass(frozen=True)
class _Nuclei:
    """Nuclei of one kind."""

    xy: Outline  # (n, 2), µm
    angle: NDArray[np.float64]  # (n,), of the long axis, radians from x towards y

    def within(self, foci: Sequence[_Blob]) -> NDArray[np.bool_]:
        """Return which nuclei have their centre in a focus."""
        inside = np.zeros(len(self.xy), dtype=bool)
        for focus in foci:
            dx, dy = (self.xy - focus.centre).T
            inside |= np.hypot(dx, dy) < focus.reach(np.arctan2(dy, dx))
        return inside


@dataclass(frozen=True)
class _Blob:
    """A gland or a focus: a circle with ripples."""

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


# ---------------------------------------------------------------- painting


def paint(slide: PhantomSlide, look: PhantomLook = PhantomLook()) -> Phantom:
    """Return the pixels, lesions and composition of a slide.

    The same seed under the other label gives a twin: the same tissue, with or without lesional nuclei in the foci.
    """
    rng = _streams(slide.seed)
    glands, plan = _lay_out(slide, look, rng["plan"])
    nuclei, goblets = _populate(plan, glands, slide, look, rng["nuclei"])
    foci = plan.foci if slide.label == LESION else ()
    layers = _stamp_all(nuclei, goblets, foci, slide, look, rng["stamps"])
    pixels = _develop(plan, layers, slide, look, rng["light"])
    lesions = tuple(focus.outline() / slide.mpp for focus in foci)
    return Phantom(pixels, lesions, _composition(plan, nuclei, slide))


def _streams(seed: int) -> dict[str, np.random.Generator]:
    """Return one random stream per step, so that a draw in one step moves nothing in another."""
    steps = ("plan", "nuclei", "stamps", "light")
    return {step: np.random.default_rng([seed, i]) for i, step in enumerate(steps)}


def _noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> Field:
    """Return smooth noise of unit sd; `wavelength` in cells."""
    coarse = (max(4, math.ceil(shape[1] / wavelength) + 3), max(4, math.ceil(shape[0] / wavelength) + 3))
    lattice = Image.fromarray(rng.standard_normal(coarse[::-1], dtype=np.float32))
    box = (1.0, 1.0, 1.0 + min(coarse[0] - 2, shape[1] / wavelength), 1.0 + min(coarse[1] - 2, shape[0] / wavelength))
    field: Field = np.asarray(lattice.resize(shape[::-1], Image.Resampling.BICUBIC, box=box))
    return field * np.float32(1.35)  # bicubic interpolation flattens white noise by about this much


# ---------------------------------------------------------------- the plan


def _lay_out(slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> tuple[list[_Blob], _Plan]:
    cell = _PLAN_PX * slide.mpp
    shape = (math.ceil(slide.size[1] / _PLAN_PX), math.ceil(slide.size[0] / _PLAN_PX))
    y, x = (np.arange(n, dtype=np.float32)[:, None] * cell + cell / 2 for n in shape)
    tissue = _tissue(x.T, y, slide, look, rng)
    foci = _place_foci(tissue, cell, look, rng)
    glands = _place_glands(tissue, cell, look, rng)
    gland = _gland_depth(glands, shape, cell)
    wall = look.wall_um + 2.5 * _noise(rng, shape, 22 / cell)
    across, along = _fibres(x.T, y, gland, cell, rng)
    thickness = 1 + look.thickness_sd * _noise(rng, shape, 300 / cell)
    return glands, _Plan(tissue, gland, gland - wall, across, along, thickness, tuple(foci))


def _tissue(x: Field, y: Field, slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> Field:
    """Return the depth within an L whose notch lies top right or bottom left: a swap of x and y would move it."""
    width, height = (s * slide.mpp for s in slide.size)
    left, top = (max(look.margin * side, look.edge_um) for side in (width, height))
    notch_x, notch_y = width * (1 - look.notch[0]), height * look.notch[1]
    if rng.random() < 0.5:  # turn the L by half a turn
        x, y = width - x, height - y
    within = np.minimum(np.minimum(x - left, width - left - x), np.minimum(y - top, height - top - y))
    depth = np.minimum(within, np.maximum(notch_x - x, y - notch_y))
    cell = _PLAN_PX * slide.mpp
    for share, wavelength in ((0.7, 220.0), (0.28, 60.0), (0.10, 14.0)):
        depth = depth + share * look.edge_um * _noise(rng, (depth.shape[0], depth.shape[1]), wavelength / cell)
    return np.asarray(depth, dtype=np.float32)


def _waves(rng: np.random.Generator, depth: float, orders: Sequence[int] = (2, 3, 4, 5)) -> tuple[Any, ...]:
    return tuple((k, float(rng.normal(0, depth)) * 2 / k, float(rng.uniform(0, 2 * np.pi))) for k in orders)


def _place_foci(tissue: Field, cell: float, look: PhantomLook, rng: np.random.Generator) -> list[_Blob]:
    """Return disjoint round blobs well within the tissue that together cover a drawn share of it."""
    area = float((tissue > 0).sum()) * cell**2 * rng.uniform(*look.lesion_share)
    wanted = int(rng.integers(look.foci[0], look.foci[1] + 1))
    count = max(1, min(wanted, int(area / (np.pi / 4 * look.focus_across[0] ** 2))))
    radius = min(math.sqrt(area / count / np.pi), look.focus_across[1] / 2)
    room = tissue.copy()
    foci: list[_Blob] = []
    for _ in range(count):
        if foci and room.max() < 0.8 * radius:
            break
        rows, cols = np.nonzero(room >= min(1.1 * radius, 0.97 * float(room.max())))
        pick = int(rng.integers(len(rows)))
        focus = _Blob(((cols[pick] + 0.5) * cell, (rows[pick] + 0.5) * cell), radius, _waves(rng, 0.05))
        foci.append(focus)
        np.minimum(room, _distance(focus.centre, tissue.shape, cell) - radius, out=room)
    return foci


def _distance(centre: tuple[float, float], shape: tuple[int, ...], cell: float) -> Field:
    y, x = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot((x + 0.5) * cell - centre[0], (y + 0.5) * cell - centre[1])
    return np.asarray(distance, dtype=np.float32)


def _place_glands(tissue: Field, cell: float, look: PhantomLook, rng: np.random.Generator) -> list[_Blob]:
    """Return glands on a jittered hexagonal lattice, with patches left out for plain stroma."""
    step = look.gland_spacing
    scarce = _noise(rng, (tissue.shape[0], tissue.shape[1]), 260 / cell)
    limit = np.quantile(scarce, 1 - look.gland_gaps)
    glands = []
    for row, y in enumerate(np.arange(0, tissue.shape[0] * cell, step * 0.87)):
        for x in np.arange(0, tissue.shape[1] * cell, step) + step / 2 * (row % 2):
            dx, dy = rng.normal(0, look.gland_jitter * step, 2)
            centre = (float(x + dx), float(y + dy))
            gland = _Blob(centre, step / 2 * rng.uniform(*look.gland_fill), _waves(rng, look.gland_ripple))
            i, j = int(centre[1] / cell), int(centre[0] / cell)
            fits = 0 <= i < tissue.shape[0] and 0 <= j < tissue.shape[1] and tissue[i, j] > gland.radius * 1.05
            if fits and scarce[i, j] < limit:
                glands.append(gland)
    return glands


def _gland_depth(glands: Sequence[_Blob], shape: tuple[int, int], cell: float, around: float = 60.0) -> Field:
    """Return the depth within the nearest gland, µm; exact to within `around` outside of it."""
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
    """Return coordinates across and along collagen fibres: a wavy main direction that gives way to the glands."""
    angle = rng.uniform(0, np.pi)
    shape = (gland.shape[0], gland.shape[1])
    wave = 40 * _noise(rng, shape, 240 / cell) + 5 * _noise(rng, shape, 45 / cell)
    around = gaussian_filter(np.clip(-gland, 0, 30), 5 / cell)  # smooth where the surroundings of two glands meet
    across = x * np.cos(angle) + y * np.sin(angle) + wave + 1.2 * around
    along = y * np.cos(angle) - x * np.sin(angle) + 20 * _noise(rng, shape, 200 / cell)
    return across.astype(np.float32), along.astype(np.float32)


# ---------------------------------------------------------------- nuclei


def _populate(
    plan: _Plan, glands: Sequence[_Blob], slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator
) -> tuple[dict[str, _Nuclei], _Nuclei]:
    """Return the nuclei of each ordinary kind, and the goblet vacuoles."""
    cell = _PLAN_PX * slide.mpp
    stroma = np.clip(-plan.gland / 2 - 0.6, 0, 1) * (plan.tissue > 4)
    clustered = stroma * np.exp(1.3 * _noise(rng, (stroma.shape[0], stroma.shape[1]), 170 / cell))
    clustered *= stroma.sum() / max(float(clustered.sum()), 1e-6)
    fibres = _scatter(stroma * (look.fibroblasts * 1e-6 * cell**2), cell, rng)
    lymph = _scatter(clustered * (look.lymphocytes * 1e-6 * cell**2), cell, rng)
    columns, goblets = _line_walls(glands, look, rng)
    nuclei = {
        "epithelial_nuclei": columns,
        "fibroblasts": _Nuclei(fibres, _fibre_angle(plan.across, fibres, cell)),
        "lymphocytes": _Nuclei(lymph, rng.uniform(0, np.pi, len(lymph))),
    }
    return nuclei, goblets


def _scatter(expected: NDArray[Any], cell: float, rng: np.random.Generator) -> Outline:
    """Return points whose number in each cell of the plan is expected to be `expected`."""
    rows, cols = np.nonzero(rng.random(expected.shape, dtype=np.float32) < expected)
    return (np.stack([cols, rows], axis=1) + rng.random((len(rows), 2))) * cell


def _fibre_angle(across: Field, xy: Outline, cell: float) -> NDArray[np.float64]:
    """Return the direction of the fibres at points: square to the gradient of the coordinate across them."""
    i, j = (np.clip((xy[:, k] / cell).astype(int), 1, across.shape[1 - k] - 2) for k in (1, 0))
    slope_y, slope_x = across[i + 1, j] - across[i - 1, j], across[i, j + 1] - across[i, j - 1]
    return np.asarray(np.arctan2(slope_y, slope_x) + np.pi / 2, dtype=np.float64)


def _line_walls(glands: Sequence[_Blob], look: PhantomLook, rng: np.random.Generator) -> tuple[_Nuclei, _Nuclei]:
    """Return columnar nuclei near the basement membrane of each gland, and vacuoles above some of them."""
    none = _Nuclei(np.zeros((0, 2)), np.zeros(0))
    parts, vacuoles = [none], [none]
    for gland in glands:
        n = max(6, round(2 * np.pi * (gland.radius - look.nucleus_depth[0]) / look.nucleus_step))
        angle = (np.arange(n) + rng.normal(0, 0.18, n)) * 2 * np.pi / n
        parts.append(_on_wall(gland, angle, rng.normal(*look.nucleus_depth, n)))
        goblet = angle[rng.random(n) < look.goblets] + np.pi / n
        vacuoles.append(_on_wall(gland, goblet, rng.normal(0.70 * look.wall_um, 1.8, len(goblet))))
    return _join(parts), _join(vacuoles)


def _on_wall(gland: _Blob, angle: NDArray[np.float64], depth: NDArray[np.float64]) -> _Nuclei:
    away = gland.reach(angle) - np.maximum(depth, 3.5)
    xy = np.stack([np.cos(angle), np.sin(angle)], axis=1) * away[:, None] + gland.centre
    return _Nuclei(xy, angle)


def _join(parts: Sequence[_Nuclei]) -> _Nuclei:
    return _Nuclei(np.concatenate([p.xy for p in parts]), np.concatenate([p.angle for p in parts]))


def _composition(plan: _Plan, nuclei: Mapping[str, _Nuclei], slide: PhantomSlide) -> Field:
    """Return shares of glass, stroma, epithelium and lumen, and counts of nuclei, per cell of the slide."""
    inside, gland, lumen = (np.clip(f / 2 + 0.5, 0, 1) for f in (plan.tissue, plan.gland, plan.lumen))
    gland, lumen = np.minimum(gland, inside), np.minimum(lumen, inside)
    shares = [_cell_means(f) for f in (1 - inside, inside - gland, gland - lumen, lumen)]
    rows, cols = shares[0].shape
    counts = []
    for name in COMPOSITION[len(shares) :]:
        x, y = (nuclei[name].xy / (slide.mpp * COMPOSITION_CELL)).T
        counts.append(np.histogram2d(y, x, bins=(rows, cols), range=((0, rows), (0, cols)))[0])
    return np.stack([*shares, *counts], axis=-1).astype(np.float32)


def _cell_means(field: NDArray[Any]) -> NDArray[Any]:
    """Return means over cells; a cell cut by the slide's edge averages what there is of it."""
    side = COMPOSITION_CELL // _PLAN_PX
    starts = [np.arange(0, n, side) for n in field.shape]
    sums = np.add.reduceat(np.add.reduceat(field, starts[0], axis=0), starts[1], axis=1)
    sizes = [np.diff([*s, n]) for s, n in zip(starts, field.shape, strict=True)]
    return np.asarray(sums / np.outer(*sizes))


# ---------------------------------------------------------------- stamps


@dataclass(frozen=True)
class _Stamps:
    """Nuclei drawn beforehand; number i points in direction i modulo `_ANGLES`."""

    density: Pixels  # (n, side, side), in units of `_LAYER_UNIT`
    mask: Pixels  # (n, side, side), 255 within


@dataclass(frozen=True)
class _Layers:
    """What is stamped on the slide, at level 0."""

    density: Pixels  # (height, width) haematoxylin of nuclei, in units of `_LAYER_UNIT`
    mask: Pixels  # (height, width) 255 within a nucleus
    mucin: Pixels  # (height, width) 255 within a vacuole


@lru_cache(maxsize=16)
def _stamps(kind: NucleusLook, mpp: float) -> _Stamps:
    """Return a library of nuclei of one kind. Its seed is fixed: slides differ by which they use and where."""
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
    density = np.clip(_calibrate(chromatin, mask, kind.density), 0, 255 * _LAYER_UNIT)
    return _Stamps(np.rint(density / _LAYER_UNIT).astype(np.uint8), np.rint(mask * 255).astype(np.uint8))


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
        there = rng.random((_STAMPS, 1, 1)) < kind.nucleoli / 2
        blob = np.exp(-((np.hypot(y - cy, x - cx) * mpp / kind.nucleolus_um) ** 4))
        chromatin = chromatin + 1.2 * there * blob
    return np.maximum(chromatin, 0.12)


def _calibrate(chromatin: NDArray[Any], mask: NDArray[Any], density: float, steps: int = 6) -> NDArray[Any]:
    """Scale each nucleus until it absorbs the light that a flat one of `density` absorbs.

    Light, not density, is what a coarse pixel averages; with equal density a clumped nucleus would look paler at 5x.
    """

    def absorbed(amount: NDArray[Any]) -> NDArray[Any]:
        passed = [np.exp(-amount * stain).sum((1, 2), keepdims=True) for stain in HAEMATOXYLIN]
        return np.asarray(amount[0].size * len(passed) - sum(passed))

    wanted = absorbed(mask * density)
    amount = chromatin * density
    for _ in range(steps):
        amount = amount * (wanted / absorbed(amount)) ** 1.3  # 1.3 hastens the approach: absorption is concave
    return amount


def _stamp_all(
    nuclei: Mapping[str, _Nuclei],
    goblets: _Nuclei,
    foci: Sequence[_Blob],
    slide: PhantomSlide,
    look: PhantomLook,
    rng: np.random.Generator,
) -> _Layers:
    width, height = slide.size
    density, mask, mucin = (np.zeros((height, width), dtype=np.uint8) for _ in range(3))
    looks = {"epithelial_nuclei": look.epithelial, "fibroblasts": look.fibroblast, "lymphocytes": look.lymphocyte}
    vacuole = NucleusLook(9.5, 7.5, 0.5, size_sd=0.18, grain=0.0, rim=0.0, nucleoli=0)
    for name, kind in looks.items():
        group = nuclei[name]
        changed = group.within(foci if kind is look.epithelial else ())
        picks, gains = _draw_stamps(group, rng)
        for here, used in ((~changed, kind), (changed, look.lesional)):
            stamps = _stamps(used, slide.mpp)
            _blit(density, stamps.density, group.xy[here] / slide.mpp, picks[here], 1 + used.density_sd * gains[here])
            _blit(mask, stamps.mask, group.xy[here] / slide.mpp, picks[here], None)
    picks, _ = _draw_stamps(goblets, rng)
    _blit(mucin, _stamps(vacuole, slide.mpp).mask, goblets.xy / slide.mpp, picks, None)
    return _Layers(density, mask, mucin)


def _draw_stamps(group: _Nuclei, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return a stamp that points the right way for each nucleus, and how many sd its density is off."""
    direction = np.rint(group.angle / (np.pi / _ANGLES)).astype(int) % _ANGLES
    picks = rng.integers(_STAMPS // _ANGLES, size=len(direction)) * _ANGLES + direction
    return picks, np.clip(rng.normal(size=len(direction)), -2.5, 2.5)


def _blit(
    layer: Pixels, stamps: Pixels, xy: Outline, picks: NDArray[np.int64], gains: NDArray[np.float64] | None
) -> None:
    """Stamp with the maximum of old and new: nuclei that overlap in a thin section do not add up."""
    side = stamps.shape[1]
    corners = np.rint(xy - side / 2).astype(int)
    for i, (x, y) in enumerate(corners.tolist()):
        x0, y0 = max(x, 0), max(y, 0)
        view = layer[y0 : max(y + side, 0), x0 : max(x + side, 0)]
        stamp = stamps[picks[i], y0 - y : y0 - y + view.shape[0], x0 - x : x0 - x + view.shape[1]]
        if gains is not None:
            stamp = np.minimum(stamp * np.float32(gains[i]) + np.float32(0.5), 255).astype(np.uint8)
        np.maximum(view, stamp, out=view)


# ---------------------------------------------------------------- light


@lru_cache(maxsize=4)
def _tile(sigma_across: float, sigma_along: float) -> Field:
    """Return a tile of wrapping noise of unit sd, (across, along)."""
    white = np.random.default_rng(7).standard_normal((_TILE, _TILE), dtype=np.float32)
    smooth = gaussian_filter(white, (sigma_across, sigma_along), mode="wrap")
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


def _develop(plan: _Plan, layers: _Layers, slide: PhantomSlide, look: PhantomLook, rng: np.random.Generator) -> Pixels:
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


def _stain(plan: _Plan, layers: _Layers, rows: slice, slide: PhantomSlide) -> tuple[Field, Field]:
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
    haem += layers.density[rows] * np.float32(_LAYER_UNIT)
    section = _edge(tissue, 2.5) * thickness
    return haem * section, eosin * section


def _enlarge(field: Field, rows: slice, width: int) -> Field:
    """Return a band of level-0 pixels of a field of the plan."""
    box = (0.0, rows.start / _PLAN_PX, width / _PLAN_PX, rows.stop / _PLAN_PX)
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


# ---------------------------------------------------------------- files


def write_pyramid(
    path: Path,
    level0: Pixels,
    mpp: float,
    *,
    container: str = "aperio",
    levels: int = 5,
    quality: int = 90,
    mpp_y: float | None = None,
) -> None:
    """Write a tiled JPEG pyramid that OpenSlide opens, whole or not at all; each level halves the one before.

    Parameters
    ----------
    path
        The file to write; its folder is made.
    level0
        (height, width, 3) uint8 RGB.
    mpp
        Micrometres per level-0 pixel, across; down too unless `mpp_y` says otherwise.
    container
        ``aperio`` as an SVS holds it, or ``generic``: a plain pyramidal TIFF, whose resolution stands in its tags.
    levels
        At most so many; five give 20x, 10x, 5x, 2.5x and 1.25x of a 20x slide.
    quality
        Of the JPEG tiles.
    mpp_y
        Micrometres per level-0 pixel down, for a generic container: Aperio's has one resolution only.
    """
    if container not in ("aperio", "generic"):
        raise GeometryError(f"{path}: container {container!r} is unknown; use aperio or generic")
    if container == "aperio" and mpp_y not in (None, mpp):
        raise GeometryError(f"{path}: an Aperio slide states one resolution; write {mpp} x {mpp_y} µm as generic")
    image = np.ascontiguousarray(level0)
    with whole(Path(path)) as partial, tifffile.TiffWriter(partial) as writer:
        for level in range(levels):
            if level and min(image.shape[:2]) < 2:
                break
            image = image if level == 0 else _halve(image)
            description = _aperio(level0, image, mpp, quality) if container == "aperio" else None
            per_cm = tuple(1e4 / (m * 2**level) for m in (mpp, mpp_y or mpp))
            writer.write(
                image,
                photometric="rgb",  # tifffile makes it YCbCr for JPEG itself
                compression="jpeg",
                compressionargs={"level": quality},
                subsampling=(2, 2),
                tile=(256, 256),
                description=description,
                subfiletype=int(level > 0 and container == "generic"),  # how OpenSlide tells generic levels from pages
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                software=False,
                metadata=None,
            )


def _halve(image: Pixels) -> Pixels:
    """Return means of 2 x 2 pixels; an odd last row or column is left out, as scanners do."""
    height, width = (n // 2 * 2 for n in image.shape[:2])
    a = image[:height, :width].astype(np.uint16)
    total = a[0::2, 0::2] + a[1::2, 0::2] + a[0::2, 1::2] + a[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def _aperio(level0: Pixels, image: Pixels, mpp: float, quality: int) -> str:
    """Return an image description as OpenSlide's Aperio reader expects it: vendor, then facts between bars."""
    (height, width), (rows, cols) = level0.shape[:2], image.shape[:2]
    size = f"{width}x{height}" if image.shape == level0.shape else f"{width}x{height} -> {cols}x{rows}"
    facts = f"AppMag = {10 / mpp:g}|MPP = {mpp:.6g}"
    return f"Aperio Image Library v12 (phantom)\r\n{size} [0,0 {cols}x{rows}] JPEG/RGB Q={quality}|{facts}"


def lesions_geojson(outlines: Sequence[Outline]) -> dict[str, Any]:
    """Return outlines (points, 2) in level-0 px as a QuPath feature collection of tumour annotations."""
    return {"type": "FeatureCollection", "features": [_feature(outline) for outline in outlines]}


def _feature(outline: Outline) -> dict[str, Any]:
    ring = [[round(float(x), 1), round(float(y), 1)] for x, y in (*outline, outline[0])]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
    }


def write_slide(folder: Path, slide: PhantomSlide, look: PhantomLook = PhantomLook()) -> Path:
    """Paint a slide, write ``<name>.tif`` and ``<name>_lesions.geojson`` into `folder`, and return the slide's path."""
    phantom = paint(slide, look)
    path = Path(folder) / f"{slide.name}.tif"
    write_pyramid(path, phantom.pixels, slide.mpp)
    write_json(path.with_name(f"{slide.name}_lesions.geojson"), lesions_geojson(phantom.lesions))
    return path


# ---------------------------------------------------------------- cohorts


def make_cohort(
    out: Path,
    slides: int,
    size: tuple[int, int],
    seed: int,
    *,
    split: str | None = None,
    workers: int = 1,
    look: PhantomLook = PhantomLook(),
) -> Iterator[Event]:
    """Write a cohort, half of it lesion slides, and yield how far it is; several calls may fill one folder.

    Parameters
    ----------
    out
        Folder of the slides and of ``cohort.csv``; rows of earlier calls stay, rows of the same slides are replaced.
    slides
        How many. Each has a patient of its own.
    size
        Width and height of each, level-0 px of 0.5 µm.
    seed
        With `split` it fixes every pixel, however many `workers` there are.
    split
        For all of these slides; without it they are split 60/20/20 within each class.
    workers
        Processes that paint.
    look
        How they look.

    Yields
    ------
    Progress
        After each slide.
    Finished
        With the path of ``cohort.csv``.
    """
    plan, splits = _plan_cohort(slides, size, seed, split)
    for done, _ in enumerate(_write_all(Path(out), plan, look, workers), start=1):
        yield Progress("phantom", done, slides, unit="slides")
    rows = [(f"{s.name}.tif", f"P-{s.name}", s.label, part) for s, part in zip(plan, splits, strict=True)]
    yield Finished(_merge_table(Path(out) / "cohort.csv", rows))


def _plan_cohort(
    count: int, size: tuple[int, int], seed: int, split: str | None
) -> tuple[list[PhantomSlide], list[str]]:
    """Return the slides and their splits. Names hold the call and a number, which the shuffled labels do not follow."""
    call = zlib.crc32((split or "").encode())  # other splits of the same seed hold other slides
    rng = np.random.default_rng([seed, call])
    labels = [CLASSES[int(i)] for i in rng.permutation(np.arange(count) % 2)]
    seeds = rng.integers(2**62, size=count)
    plan = [
        PhantomSlide(f"{split or 'slide'}-{seed}-{i:03d}", label, int(seeds[i]), size) for i, label in enumerate(labels)
    ]
    return plan, [split] * count if split else _stratify(labels)


def _stratify(labels: Sequence[str]) -> list[str]:
    """Return splits dealt out in turn within each class, so that few slides still reach all three."""
    turn, seen = ("train", "val", "test", "train", "train"), dict.fromkeys(CLASSES, -1)
    splits = []
    for label in labels:
        seen[label] += 1
        splits.append(turn[seen[label] % len(turn)])
    return splits


def _write_all(out: Path, plan: Sequence[PhantomSlide], look: PhantomLook, workers: int) -> Iterator[Path]:
    if workers <= 1:
        yield from (write_slide(out, slide, look) for slide in plan)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_slide, out, slide, look) for slide in plan]
        try:
            yield from (job.result() for job in jobs)
        finally:
            for job in jobs:  # a caller that stops early does not wait for the rest
                job.cancel()


def _merge_table(path: Path, rows: Sequence[tuple[str, ...]]) -> Path:
    """Add rows to the cohort table, in place of older rows of the same slides, and return its path."""
    table = {row[0]: row for row in [*_read_table(path), *rows]}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COHORT_COLUMNS, *(table[name] for name in sorted(table))])
    write_text(path, text.getvalue())
    return path


def _read_table(path: Path) -> list[tuple[str, ...]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        table = csv.DictReader(handle)
        if tuple(table.fieldnames or ()) != COHORT_COLUMNS:
            raise CohortError(path, f"is no table of phantoms (columns {table.fieldnames}); choose another folder")
        return [tuple(row[column] for column in COHORT_COLUMNS) for row in table]
