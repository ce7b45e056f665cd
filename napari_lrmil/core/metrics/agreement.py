"""How far two networks look at the same places, and how well attention finds annotated lesions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.patching.grid import NestedGrid

if TYPE_CHECKING:
    from shapely import Polygon

Values = NDArray[np.float32] | NDArray[np.float64]

TOP_SHARE = 0.10  # "top 10 %" of the patches
LESION_SHARE = 0.25  # Method 3: a patch counts as lesion from a quarter of its area on


@dataclass(frozen=True)
class Agreement:
    """Student against teacher on the LR grid; a figure that is undefined on this slide is None.

    Attributes
    ----------
    spearman
        Rank correlation, -1 to 1.
    jaccard_top10
        Overlap of the two sets of top-10 % patches, 0 to 1.
    js_divergence
        Jensen-Shannon divergence, base 2: 0 the same, 1 nothing in common.
    n_patches
        LR patches compared.
    """

    spearman: float | None
    jaccard_top10: float
    js_divergence: float
    n_patches: int


def pool_to_lr_grid(grid: NestedGrid, hr_values: Values) -> NDArray[np.float64]:
    """Return (N,) sums of (K,) values over the children of each LR patch; attention stays a distribution."""
    sums = np.bincount(grid.parent, weights=hr_values, minlength=len(grid.lr_index))
    return np.asarray(sums, dtype=np.float64)


def measure_agreement(grid: NestedGrid, student: Values, teacher: Values) -> Agreement:
    """Compare (N,) student attention with (K,) teacher attention carried to the LR grid."""
    pooled = pool_to_lr_grid(grid, teacher)
    return Agreement(
        spearman=spearman(student, pooled),
        jaccard_top10=topk_jaccard(student, pooled, TOP_SHARE),
        js_divergence=js_divergence(student, pooled),
        n_patches=len(pooled),
    )


def spearman(a: Values, b: Values) -> float | None:
    """Return the rank correlation; None where fewer than three patches or a constant leave it undefined."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import spearmanr  # half a second to import, which a prediction without a teacher does not pay

    return float(spearmanr(a, b).statistic)


def topk_jaccard(a: Values, b: Values, share: float) -> float:
    """Return the overlap of the patches with the highest values; at least one patch from each side."""
    k = max(1, round(share * len(a)))
    top_a, top_b = (set(np.argsort(-np.asarray(v, dtype=np.float64), kind="stable")[:k].tolist()) for v in (a, b))
    return len(top_a & top_b) / len(top_a | top_b)


def js_divergence(a: Values, b: Values) -> float:
    """Return the Jensen-Shannon divergence (base 2) of two non-negative vectors, each scaled to sum to 1.

    From `scipy.special.rel_entr`, not as the square of `scipy.spatial.distance.jensenshannon`: that takes a root, which
    is NaN for two equal vectors if rounding makes their divergence -1e-17.
    """
    from scipy.special import rel_entr

    p, q = (np.asarray(v, dtype=np.float64) / np.sum(v, dtype=np.float64) for v in (a, b))
    m = (p + q) / 2
    nats = (rel_entr(p, m).sum() + rel_entr(q, m).sum()) / 2
    return float(np.clip(nats / np.log(2), 0.0, 1.0))


def read_outlines(path: Path) -> list[Polygon]:
    """Return the polygons in a GeoJSON file, holes and all, level-0 pixels.

    Raises
    ------
    LrmilError
        Where the file is not GeoJSON.
    """
    from shapely.geometry import shape

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = content if isinstance(content, list) else content.get("features", [content])
        geometries = [f["geometry"] if f["type"] == "Feature" else f for f in features]
        shapes = [shape(g) for g in geometries if g is not None]
    except OSError as error:
        raise LrmilError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise LrmilError(f"{path}: not GeoJSON ({error}); expected a FeatureCollection of polygons") from error
    return [p for s in shapes for p in getattr(s, "geoms", [s]) if p.geom_type == "Polygon"]


def lesion_shares(corners: Int64, size: tuple[int, int], outlines: Sequence[Polygon]) -> NDArray[np.float64]:
    """Return (N,) the share of each patch's area that lies in a lesion. All in level-0 pixels.

    The hole of a ring is no lesion, unless another outline covers it.
    """
    import shapely

    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + size[0], corners[:, 1] + size[1])
    lesions = shapely.union_all([shapely.make_valid(o) for o in outlines])
    shares: NDArray[np.float64] = shapely.area(shapely.intersection(boxes, lesions)) / (size[0] * size[1])
    return shares


def lesion_auroc(values: Values, shares: NDArray[np.float64]) -> float | None:
    """Return how well (N,) values tell lesion patches (a quarter or more) from those without any; None if undefined.

    Patches with a little lesion count on neither side (Method 3).
    """
    counted = (shares >= LESION_SHARE) | (shares == 0)
    return auroc(np.asarray(values)[counted], shares[counted] >= LESION_SHARE)


def auroc(values: Values, positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve (Mann-Whitney, ties count half); None where a class is missing."""
    from scipy.stats import rankdata

    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if n_pos == 0 or n_neg == 0:
        return None
    ranks = rankdata(values)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
