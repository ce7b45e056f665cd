"""Agreement of two attention maps, and localisation of annotated lesions by attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.patching.grid import NestedGrid

if TYPE_CHECKING:
    from napari_lrmil.core.patching.outlines import Area

Values = NDArray[np.float32] | NDArray[np.float64]

TOP_SHARE = 0.10  # "top 10 %" of the patches
# LR patches. The rank correlation of n unrelated values has the variance 1 / (n - 1): below 20 patches chance alone
# reaches 0.45 in 1 of 20 cases, which would pass for agreement. Neighbours are alike, so that this is a lower bound.
MIN_AGREEMENT_PATCHES = 20
CHANCE_QUANTILE = 1.96  # of the normal distribution, two-sided 95 %
LESION_SHARE = 0.25  # share of a patch's area from which it counts as lesion (docs/explanation/method.md 3)


@dataclass(frozen=True)
class Agreement:
    """Agreement of student and teacher on the LR grid. A figure is None if it is undefined on this slide.

    Attributes
    ----------
    spearman
        Rank correlation, -1 to 1.
    jaccard_top10
        Jaccard index of the two sets of top-10 % patches, 0 to 1.
    js_divergence
        Jensen-Shannon divergence, base 2: 0 for equal maps, 1 for disjoint ones.
    n_patches
        LR patches compared.
    """

    spearman: float | None
    jaccard_top10: float
    js_divergence: float
    n_patches: int

    @property
    def caution(self) -> str:
        """Why the figures are uncertain; empty if there are enough patches."""
        return few_patches_caution(self.n_patches)


def few_patches_caution(n_patches: int) -> str:
    """Return why an agreement on so many LR patches is uncertain; empty if they are enough."""
    if n_patches >= MIN_AGREEMENT_PATCHES:
        return ""
    by_chance = CHANCE_QUANTILE / math.sqrt(max(1, n_patches - 1))
    patches = f"{n_patches} LR {'patch' if n_patches == 1 else 'patches'}, fewer than {MIN_AGREEMENT_PATCHES}"
    text = f"so few unrelated values reach a rank correlation of {by_chance:.2f} by chance"
    if by_chance >= 1:
        text = "so few say nothing about agreement"
    return f"the agreement of student and teacher is measured on {patches}; {text}"


def pool_to_lr_grid(grid: NestedGrid, hr_values: Values) -> NDArray[np.float64]:
    """Return (N,) sums of (K,) HR values over the children of each LR patch. Attention still sums to 1."""
    sums = np.bincount(grid.parent, weights=hr_values, minlength=len(grid.lr_index))
    return np.asarray(sums, dtype=np.float64)


def measure_agreement(grid: NestedGrid, student: Values, teacher: Values) -> Agreement:
    """Compare (N,) student attention with (K,) teacher attention, pooled to the LR grid."""
    pooled = pool_to_lr_grid(grid, teacher)
    return Agreement(
        spearman=spearman(student, pooled),
        jaccard_top10=topk_jaccard(student, pooled, TOP_SHARE),
        js_divergence=js_divergence(student, pooled),
        n_patches=len(pooled),
    )


def spearman(a: Values, b: Values) -> float | None:
    """Return the rank correlation, or None if it is undefined: fewer than three patches, or constant values."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import (
        spearmanr,  # the import takes half a second, and predictions without a teacher do not need it
    )

    return float(spearmanr(a, b).statistic)


def topk_jaccard(a: Values, b: Values, share: float) -> float:
    """Return the Jaccard index of the patches with the highest values. Each set has at least one patch."""
    k = max(1, round(share * len(a)))
    top_a, top_b = (set(np.argsort(-np.asarray(v, dtype=np.float64), kind="stable")[:k].tolist()) for v in (a, b))
    return len(top_a & top_b) / len(top_a | top_b)


def js_divergence(a: Values, b: Values) -> float:
    """Return the Jensen-Shannon divergence (base 2) of two non-negative vectors, each scaled to sum to 1.

    It is computed from `scipy.special.rel_entr`. `scipy.spatial.distance.jensenshannon` takes a square root, which is
    NaN for equal vectors if rounding makes their divergence -1e-17.
    """
    from scipy.special import rel_entr

    p, q = (np.asarray(v, dtype=np.float64) / np.sum(v, dtype=np.float64) for v in (a, b))
    m = (p + q) / 2
    nats = (rel_entr(p, m).sum() + rel_entr(q, m).sum()) / 2
    return float(np.clip(nats / np.log(2), 0.0, 1.0))


def lesion_shares(corners: Int64, size: tuple[int, int], outlines: Sequence[Area]) -> NDArray[np.float64]:
    """Return (N,) shares of each patch's area that lie in a lesion. All coordinates are level-0 pixels.

    The hole of a polygon does not count as lesion, unless another outline covers it.
    """
    import shapely

    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + size[0], corners[:, 1] + size[1])
    lesions = shapely.union_all([shapely.make_valid(o) for o in outlines])
    shares: NDArray[np.float64] = shapely.area(shapely.intersection(boxes, lesions)) / (size[0] * size[1])
    return shares


def lesion_auroc(values: Values, shares: NDArray[np.float64]) -> float | None:
    """Return the AUROC of (N,) values for lesion patches (a quarter or more) against lesion-free ones, or None.

    Patches with less lesion are left out (docs/explanation/method.md 3). None means that a class is missing.
    """
    counted = (shares >= LESION_SHARE) | (shares == 0)
    return auroc(np.asarray(values)[counted], shares[counted] >= LESION_SHARE)


def auroc(values: Values, positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve (Mann-Whitney, ties count half), or None if a class is missing."""
    from scipy.stats import rankdata

    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if n_pos == 0 or n_neg == 0:
        return None
    ranks = rankdata(values)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
