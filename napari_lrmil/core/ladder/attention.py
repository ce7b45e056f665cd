"""Agreement of the attention of two rungs, on the patches of the coarser one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.inference.prediction import NetworkPrediction
from napari_lrmil.core.metrics.agreement import TOP_SHARE, Agreement, js_divergence, spearman, topk_jaccard


def compare_attention(coarse: NetworkPrediction, fine: NetworkPrediction) -> Agreement | None:
    """Return the agreement of two networks' attention; None if their patches do not nest, or share no place.

    Parameters
    ----------
    coarse
        The network with the larger patches.
    fine
        The other one. Its attention is summed over the patches that lie in a coarse one.
    """
    if any(large % small for large, small in zip(coarse.patch_level0, fine.patch_level0, strict=True)):
        return None
    size = np.asarray(coarse.patch_level0, np.int64)
    parents = (fine.coords - coarse.coords[0]) // size  # cells from the first coarse patch
    cells = (coarse.coords - coarse.coords[0]) // size
    row = {cell: i for i, cell in enumerate(map(tuple, cells.tolist()))}
    rows = np.array([row.get(cell, -1) for cell in map(tuple, parents.tolist())], np.int64)
    is_inside = rows >= 0
    is_shared = np.isin(np.arange(len(cells)), rows)
    if not is_shared.any():
        return None
    sums: NDArray[np.float64] = np.bincount(rows[is_inside], weights=fine.attention[is_inside], minlength=len(cells))[
        is_shared
    ].astype(np.float64)
    own: NDArray[np.float32] = coarse.attention[is_shared]
    return Agreement(
        spearman=spearman(own, sums),
        jaccard_top10=topk_jaccard(own, sums, TOP_SHARE),
        js_divergence=js_divergence(own, sums),
        n_patches=len(sums),
    )
