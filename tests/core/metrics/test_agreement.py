"""Agreement of attention by hand-computed figures; outlines, lesion shares and lesion AUROC."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shapely import MultiPolygon, Polygon

from napari_lrmil.core.geometry import Bounds, Mpp, PatchPlan
from napari_lrmil.core.metrics.agreement import (
    Agreement,
    auroc,
    js_divergence,
    lesion_auroc,
    lesion_shares,
    measure_agreement,
    pool_to_lr_grid,
    spearman,
    topk_jaccard,
)
from napari_lrmil.core.patching.grid import NestedGrid, nested_grid_from_cells


def a(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def grid() -> NestedGrid:
    """Three LR patches with 2, 1 and 3 kept children; n = 2."""
    lattice = PatchPlan(0.5, 1.0, 64, 64).lattice(Bounds(0, 0, 400, 200), Mpp(0.5, 0.5))
    return nested_grid_from_cells(lattice, np.array([[0, 0], [1, 0], [4, 0], [0, 2], [1, 2], [1, 3]]))


# ---------------------------------------------------------------- agreement


def test_teacher_attention_is_summed_over_the_children_of_each_lr_patch() -> None:
    """Student attention is compared at LR coordinates, not HR."""
    g = grid()
    assert g.lr_index.tolist() == [[0, 0], [2, 0], [0, 1]]
    assert pool_to_lr_grid(g, a(0.1, 0.2, 0.05, 0.3, 0.15, 0.2)).tolist() == pytest.approx([0.3, 0.05, 0.65])


@settings(deadline=None)
@given(hnp.arrays(np.float64, 6, elements=st.floats(0, 1)))
def test_carrying_to_the_lr_grid_keeps_the_sum(values: np.ndarray) -> None:
    assert pool_to_lr_grid(grid(), values).sum() == pytest.approx(values.sum())


def test_an_lr_patch_without_a_child_has_a_sum_of_nothing() -> None:
    """Also the last one: there is a sum for every LR patch."""
    g = grid()
    wider = NestedGrid(g.lattice, g.hr_index, np.vstack([g.lr_index, [[2, 1]]]), g.parent)
    assert pool_to_lr_grid(wider, np.ones(6)).tolist() == [2, 1, 3, 0]


def test_measure_agreement_by_hand() -> None:
    found = measure_agreement(grid(), a(0.2, 0.1, 0.7), a(0.1, 0.2, 0.05, 0.3, 0.15, 0.2))
    assert found.spearman == pytest.approx(1.0) and found.jaccard_top10 == 1.0 and found.n_patches == 3
    p, q = a(0.2, 0.1, 0.7), a(0.3, 0.05, 0.65)
    m = (p + q) / 2
    assert found.js_divergence == pytest.approx(float((p * np.log2(p / m) + q * np.log2(q / m)).sum() / 2))


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (1, "on 1 LR patch, fewer than 20; so few say nothing about agreement"),
        (4, "on 4 LR patches, fewer than 20; so few say nothing about agreement"),
        (5, "on 5 LR patches, fewer than 20; so few unrelated values reach a rank correlation of 0.98 by chance"),
        (19, "rank correlation of 0.46"),
        (20, ""),
    ],
)
def test_an_agreement_on_few_patches_carries_a_caution(n: int, words: str) -> None:
    caution = Agreement(0.5, 0.5, 0.5, n).caution
    assert caution.startswith("the agreement of student and teacher is measured") if words else not caution
    assert words in caution


def test_chance_reaches_the_stated_correlation_in_one_of_twenty() -> None:
    rng = np.random.default_rng(0)
    shares = {}
    for n in (5, 10, 19):
        bound = float(Agreement(None, 0, 0, n).caution.split(" correlation of ")[1].split()[0])
        pairs = [spearman(rng.random(n), rng.random(n)) for _ in range(1000)]
        shares[n] = float(np.mean([abs(rho or 0.0) >= bound for rho in pairs]))
    assert all(0.005 <= share <= 0.08 for share in shares.values()), shares


def test_agreement_of_the_top_is_of_a_tenth_of_the_patches() -> None:
    """Of 40 patches with one child each the top four; the third and fourth are exchanged for others: two of six."""
    lattice = PatchPlan(0.5, 1.0, 64, 64).lattice(Bounds(0, 0, 64 * 2 * 40, 100), Mpp(0.5, 0.5))
    line = nested_grid_from_cells(lattice, np.array([[2 * i, 0] for i in range(40)]))
    student = np.arange(40, 0, -1) / 820
    teacher = student.copy()
    teacher[[2, 3, 8, 9]] = student[[8, 9, 2, 3]]
    agreement = measure_agreement(line, student, teacher)
    assert (agreement.n_patches, agreement.jaccard_top10) == (40, pytest.approx(2 / 6))


def test_spearman_by_hand_with_ties() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, deviations² 4.5 and 5."""
    assert spearman(a(1, 5, 5, 9), a(10, 30, 20, 40)) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman(a(1, 2, 3), a(9, 4, 1)) == pytest.approx(-1.0)
    assert spearman(a(1, 2, 3, 4), a(1, 100, 1000, 1e9)) == pytest.approx(1.0), "ranks, not values"


@pytest.mark.parametrize(("x", "y"), [((1, 1, 1), (1, 2, 3)), ((1, 2, 3), (4, 4, 4)), ((1, 2), (2, 1)), ((), ())])
def test_spearman_is_undefined_on_a_constant_or_too_few(x: tuple[float, ...], y: tuple[float, ...]) -> None:
    assert spearman(a(*x), a(*y)) is None


def test_jaccard_by_hand() -> None:
    """Top 3 of 10: {7, 8, 9} against {6, 8, 9}: two of four."""
    x, y = a(*range(10)), a(0, 1, 2, 3, 4, 5, 9, 6, 7, 8)
    assert topk_jaccard(x, y, 0.3) == 0.5
    assert topk_jaccard(x, x, 0.1) == 1.0 and topk_jaccard(x, -x, 0.1) == 0.0
    assert topk_jaccard(x[:3], y[:3], 0.1) == 1.0, "at least one patch from each side"


@pytest.mark.parametrize(("n", "k"), [(3, 1), (14, 1), (15, 2), (16, 2), (24, 2), (25, 2), (26, 3), (35, 4)])
def test_the_top_tenth_is_rounded_half_to_even(n: int, k: int) -> None:
    """1.5 patches are two, and so are 2.5: the same k patches at the top, then another one."""
    x = np.arange(n, dtype=np.float64)
    same_top = x.copy()
    same_top[: n - k] = x[: n - k][::-1]
    assert topk_jaccard(x, same_top, 0.1) == 1.0
    other = x.copy()
    other[n - k] = -1  # the last of the k gives its place to another
    assert topk_jaccard(x, other, 0.1) == pytest.approx((k - 1) / (k + 1))


def test_of_equal_values_the_first_patches_are_at_the_top() -> None:
    """As in the choice of patches for the teacher: all alike, the top three of thirty are the first three."""
    alike, first, last = np.ones(30), np.zeros(30), np.zeros(30)
    first[:3] = last[-3:] = 1
    assert topk_jaccard(alike, first, 0.1) == 1.0 and topk_jaccard(alike, last, 0.1) == 0.0


def test_js_divergence_by_hand() -> None:
    assert js_divergence(a(1, 0), a(0, 1)) == 1.0
    assert js_divergence(a(0.25, 0.75), a(1, 3)) == 0.0, "each is scaled to sum to 1"
    m = a(0.75, 0.25)
    by_hand = (1 * np.log2(1 / m[0]) + 0.5 * np.log2(0.5 / m[0]) + 0.5 * np.log2(0.5 / m[1])) / 2
    assert js_divergence(a(1, 0), a(0.5, 0.5)) == pytest.approx(by_hand)


distributions = hnp.arrays(np.float64, 7, elements=st.floats(1e-6, 1))


@settings(deadline=None)
@given(distributions, distributions)
def test_js_divergence_is_symmetric_and_between_zero_and_one(p: np.ndarray, q: np.ndarray) -> None:
    found = js_divergence(p, q)
    assert 0 <= found <= 1 and found == pytest.approx(js_divergence(q, p), abs=1e-12)


@settings(deadline=None)
@given(distributions, distributions)
def test_agreement_is_what_scipy_says(p: np.ndarray, q: np.ndarray) -> None:
    """Spearman is also the correlation of the ranks, written out."""
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import rankdata

    with np.errstate(invalid="ignore"):  # of two that are alike scipy may take the root of -1e-17
        distance = float(np.nan_to_num(jensenshannon(p, q, base=2)))
    assert js_divergence(p, q) == pytest.approx(distance**2, abs=1e-12)
    if np.ptp(p) > 0 and np.ptp(q) > 0:
        by_ranks = np.corrcoef(rankdata(p), rankdata(q))[0, 1]
        assert spearman(p, q) == pytest.approx(float(by_ranks), abs=1e-12)


# ---------------------------------------------------------------- AUROC


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, 30, elements=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7])),
    hnp.arrays(np.bool_, 30),
)
def test_auroc_equals_scikit_learn_ties_and_all(values: np.ndarray, positive: np.ndarray) -> None:
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        assert auroc(values, positive) is None, "undefined, not 0 and not 0.5"
    else:
        assert auroc(values, positive) == pytest.approx(roc_auc_score(positive, values))


def test_lesion_auroc_leaves_out_patches_with_a_little_lesion() -> None:
    """0.25 and 0.9 are lesion, 0 is none, 0.1 and 0.2499 are neither: pairs 3 of 4 right, whatever the neither say."""
    shares = a(0.25, 0.9, 0.0, 0.0, 0.1, 0.2499)
    for neither in (a(99, 99), a(-99, -99)):
        values = np.concatenate([a(0.3, 0.8, 0.5, 0.1), neither])
        assert lesion_auroc(values, shares) == pytest.approx(3 / 4)


@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.1), (0.5, 1.0, 0.1)])
def test_lesion_auroc_is_undefined_without_one_of_the_sides(shares: tuple[float, ...]) -> None:
    assert lesion_auroc(a(1, 2, 3), a(*shares)) is None


# ---------------------------------------------------------------- lesions


def outline(*xy: float) -> Polygon:
    return Polygon(a(*xy).reshape(-1, 2))


def test_lesion_shares_are_shares_of_area() -> None:
    """Patches 100 wide, 50 high; a lesion over half of the first and a tenth of the second; overlap counts once."""
    corners = np.array([[0, 0], [100, 0], [0, 50]])
    lesion = outline(50, 0, 110, 0, 110, 50, 50, 50, 50, 0)
    inner = outline(60, 10, 70, 10, 70, 20, 60, 20)
    assert lesion_shares(corners, (100, 50), [lesion]).tolist() == pytest.approx([0.5, 0.1, 0])
    assert lesion_shares(corners, (100, 50), [lesion, inner]).tolist() == pytest.approx([0.5, 0.1, 0])
    assert lesion_shares(corners, (100, 50), []).tolist() == [0, 0, 0]


def test_a_self_crossing_outline_is_mended() -> None:
    bow = outline(0, 0, 100, 50, 100, 0, 0, 50)
    assert lesion_shares(np.array([[0, 0]]), (100, 50), [bow])[0] == pytest.approx(0.5)


def test_the_hole_of_a_ring_is_no_lesion() -> None:
    """A ring of 300 x 150 with a hole of 160 x 80 around the middle patch, in which a second lesion of 40 x 30 lies.

    By hand: the ring leaves the middle patch without lesion (filled it would be all lesion), the second one covers 0.24
    of it, a little on neither side of the 25 % rule; the patch at the corner keeps what the hole takes from it.
    """
    hole = [(70, 35), (230, 35), (230, 115), (70, 115)]
    ring, island = (
        Polygon([(0, 0), (300, 0), (300, 150), (0, 150)], [hole]),
        outline(120, 60, 160, 60, 160, 90, 120, 90),
    )
    corners = np.array([[100, 50], [0, 0], [200, 100]])
    assert lesion_shares(corners, (100, 50), [ring]).tolist() == pytest.approx([0, 1 - 30 * 15 / 5000, 0.91])
    assert lesion_shares(corners, (100, 50), [ring, island])[0] == pytest.approx(1200 / 5000)
    assert lesion_shares(corners, (100, 50), [MultiPolygon([ring, island])])[0] == pytest.approx(1200 / 5000)
