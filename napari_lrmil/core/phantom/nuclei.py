"""Nuclei and goblet vacuoles: number, position and orientation of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.phantom.layout import PLAN_UM, Blob, Plan, noise
from napari_lrmil.core.phantom.look import Field, Outline, PhantomLook


@dataclass(frozen=True)
class Nuclei:
    """Positions and orientations of the nuclei of one kind."""

    xy: Outline  # (n, 2), µm
    angle: NDArray[np.float64]  # (n,), of the long axis, radians from x towards y

    def within(self, foci: Sequence[Blob]) -> NDArray[np.bool_]:
        """Return an (n,) mask of the nuclei whose centre is inside a focus."""
        inside = np.zeros(len(self.xy), dtype=bool)
        for focus in foci:
            dx, dy = (self.xy - focus.centre).T
            inside |= np.hypot(dx, dy) < focus.reach(np.arctan2(dy, dx))
        return inside


def populate(
    plan: Plan, glands: Sequence[Blob], look: PhantomLook, rng: np.random.Generator
) -> tuple[dict[str, Nuclei], Nuclei]:
    """Return the nuclei of each ordinary kind, and the goblet vacuoles."""
    cell = PLAN_UM
    stroma = np.clip(-plan.gland / 2 - 0.6, 0, 1) * (plan.tissue > 4)
    clustered = stroma * np.exp(1.3 * noise(rng, (stroma.shape[0], stroma.shape[1]), 170 / cell))
    clustered *= stroma.sum() / max(float(clustered.sum()), 1e-6)
    fibres = _scatter(stroma * (look.fibroblasts * 1e-6 * cell**2), cell, rng)
    lymph = _scatter(clustered * (look.lymphocytes * 1e-6 * cell**2), cell, rng)
    columns, goblets = _line_walls(glands, look, rng)
    nuclei = {
        "epithelial_nuclei": columns,
        "fibroblasts": Nuclei(fibres, _fibre_angle(plan.across, fibres, cell)),
        "lymphocytes": Nuclei(lymph, rng.uniform(0, np.pi, len(lymph))),
    }
    return nuclei, goblets


def _scatter(expected: NDArray[Any], cell: float, rng: np.random.Generator) -> Outline:
    """Return random points, at most one per cell; `expected` is the expected number in each cell of the plan."""
    rows, cols = np.nonzero(rng.random(expected.shape, dtype=np.float32) < expected)
    return (np.stack([cols, rows], axis=1) + rng.random((len(rows), 2))) * cell


def _fibre_angle(across: Field, xy: Outline, cell: float) -> NDArray[np.float64]:
    """Return the fibre direction at points: perpendicular to the gradient of the coordinate across the fibres."""
    i, j = (np.clip((xy[:, k] / cell).astype(int), 1, across.shape[1 - k] - 2) for k in (1, 0))
    slope_y, slope_x = across[i + 1, j] - across[i - 1, j], across[i, j + 1] - across[i, j - 1]
    return np.asarray(np.arctan2(slope_y, slope_x) + np.pi / 2, dtype=np.float64)


def _line_walls(glands: Sequence[Blob], look: PhantomLook, rng: np.random.Generator) -> tuple[Nuclei, Nuclei]:
    """Return columnar nuclei near the basement membrane of each gland, and vacuoles above some of them."""
    none = Nuclei(np.zeros((0, 2)), np.zeros(0))
    parts, vacuoles = [none], [none]
    for gland in glands:
        n = max(6, round(2 * np.pi * (gland.radius - look.nucleus_depth[0]) / look.nucleus_step))
        angle = (np.arange(n) + rng.normal(0, 0.18, n)) * 2 * np.pi / n
        parts.append(_on_wall(gland, angle, rng.normal(*look.nucleus_depth, n)))
        goblet = angle[rng.random(n) < look.goblets] + np.pi / n
        vacuoles.append(_on_wall(gland, goblet, rng.normal(0.70 * look.wall_um, 1.8, len(goblet))))
    return _join(parts), _join(vacuoles)


def _on_wall(gland: Blob, angle: NDArray[np.float64], depth: NDArray[np.float64]) -> Nuclei:
    away = gland.reach(angle) - np.maximum(depth, 3.5)
    xy = np.stack([np.cos(angle), np.sin(angle)], axis=1) * away[:, None] + gland.centre
    return Nuclei(xy, angle)


def _join(parts: Sequence[Nuclei]) -> Nuclei:
    return Nuclei(np.concatenate([p.xy for p in parts]), np.concatenate([p.angle for p in parts]))
