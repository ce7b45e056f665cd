"""Published aggregators of the teacher: torchmil as witness where it computes the formula, evidence, and bundles."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_lrmil.core.encoders import AlignedEncoder, round_to_half
from napari_lrmil.core.errors import BundleError, EncoderError
from napari_lrmil.core.models.aggregators import (
    CLAM_INSTANCE_WEIGHT,
    AttentionMIL,
    ClamSbMIL,
    DualStreamMIL,
    TransMIL,
    build_aggregator,
)
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import CARD, IN_TORCH, README, Aggregator
from napari_lrmil.core.models.mil import MIL, GatedAttentionMIL, pool_bag
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.models.patch_scores import patch_class_logits
from napari_lrmil.core.models.pooling import NetworkWeights, pool_instances
from support.fake_slides import lively
from support.networks import untrained_encoder

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CPU = torch.device("cpu")
NAMES: tuple[Aggregator, ...] = ("mean", "max", "abmil", "clam_sb", "dsmil", "transmil")
EXACT: tuple[Aggregator, ...] = tuple(name for name in NAMES if name != "transmil")  # those with exact evidence
HIDDEN = 3


def seeded(name: Aggregator, seed: int = 0, dim: int = 6, classes: int = 3) -> MIL:
    torch.manual_seed(seed)
    mil = build_aggregator(name, dim, classes, HIDDEN)
    mil.set_standard(torch.randn(dim), torch.rand(dim) + 0.5)
    return mil.eval()


def bag(seed: int, count: int, dim: int = 6) -> Tensor:
    return 2 * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- torchmil as witness


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(1, 60))
@torch.no_grad()
def test_abmil_is_the_witness(seed: int, count: int) -> None:
    models = pytest.importorskip("torchmil.models")
    mil, x = seeded("abmil", seed), bag(seed, count)
    assert isinstance(mil, AttentionMIL)
    witness = models.ABMIL(in_shape=(6,), att_dim=2 * HIDDEN)
    witness.classifier = mil.classifier
    witness.pool.fc1.module, witness.pool.fc2 = mil.V, mil.w
    logits, scores = witness(mil.standardise(x)[None], return_att=True)
    torch.testing.assert_close(mil(x).logits, logits.reshape(3), **CLOSE)
    torch.testing.assert_close(mil(x).scores, scores[0], **CLOSE)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(1, 60))
@torch.no_grad()
def test_clam_pools_as_the_witness(seed: int, count: int) -> None:
    """Its instance term is another matter: see the decisions."""
    models = pytest.importorskip("torchmil.models")
    mil, x = seeded("clam_sb", seed), bag(seed, count)
    assert isinstance(mil, ClamSbMIL)
    witness = models.CLAM_SB(in_shape=(6,), att_dim=4 * HIDDEN, gated=True, feat_ext=mil.embedding).eval()
    witness.classifier = mil.classifier
    witness.pool.fc1.module, witness.pool.fc_gated.module, witness.pool.fc2 = mil.V[0], mil.U[0], mil.w
    logits, scores = witness(mil.standardise(x)[None], return_att=True)
    torch.testing.assert_close(mil(x).logits, logits.reshape(3), **CLOSE)
    torch.testing.assert_close(mil(x).scores, scores[0], **CLOSE)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(1, 60))
@torch.no_grad()
def test_dsmil_of_one_class_is_the_witness(seed: int, count: int) -> None:
    models = pytest.importorskip("torchmil.models")
    mil, x = seeded("dsmil", seed, classes=1), bag(seed, count)
    assert isinstance(mil, DualStreamMIL)
    witness = models.DSMIL(in_shape=(6,), att_dim=2 * HIDDEN, nonlinear_q=True)
    witness.q_nn, witness.inst_classifier = mil.query, mil.classifier
    witness.bag_classifier.weight.copy_(mil.bag_classifier.weight[0].T.reshape(1, -1))
    witness.bag_classifier.bias.copy_(mil.bag_classifier.bias)
    out = mil(x)
    torch.testing.assert_close(out.logits, witness.predict(mil.standardise(x)[None]), **CLOSE)
    torch.testing.assert_close(out.attention, witness(mil.standardise(x)[None], return_att=True)[1][0, :, 0], **CLOSE)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(2, 60))
@torch.no_grad()
def test_transmil_without_its_convolution_of_values_is_the_witness(seed: int, count: int) -> None:
    """The witness has neither that convolution nor the map of the heads, so ours are neutral here."""
    models = pytest.importorskip("torchmil.models")
    mil, x = seeded("transmil", seed), bag(seed, count)
    assert isinstance(mil, TransMIL)
    width = 8 * HIDDEN
    witness = models.TransMIL((6,), att_dim=width, n_heads=8, n_landmarks=width // 2, feat_ext=mil.embedding).eval()
    for layer in mil.layers:
        layer.mix.weight.zero_()
        layer.out[0].weight.copy_(torch.eye(width))
        layer.out[0].bias.zero_()
    witness.cls_token = nn.Parameter(mil.class_token[None])
    witness.norm, witness.classifier = mil.norm, mil.classifier
    witness.pos_layer.proj, witness.pos_layer.proj1, witness.pos_layer.proj2 = mil.positions
    for theirs, ours, norm in zip(witness.layers, mil.layers, mil.norms, strict=True):
        theirs.norm1, theirs.att_module.qkv_nn = norm, ours.qkv
    logits, attention = witness(mil.standardise(x)[None], return_att=True)
    torch.testing.assert_close(mil(x).logits, logits.reshape(3), rtol=1e-4, atol=1e-4)
    side = int(np.ceil(np.sqrt(count)))
    if side * side == count and bool((attention > 1e-2 / count).all()):  # no repeated instance, no negative weight
        torch.testing.assert_close(mil(x).scores, attention[0].log(), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- formulas


@torch.no_grad()
def test_mean_and_max_by_hand() -> None:
    x = bag(1, 9)
    mean, largest = seeded("mean"), seeded("max")
    torch.testing.assert_close(mean(x).logits, mean.classifier(mean.standardise(x).mean(0)), **CLOSE)
    torch.testing.assert_close(largest(x).logits, largest.classifier(largest.standardise(x)).amax(0), **CLOSE)


@pytest.mark.parametrize("name", EXACT)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), count=st.integers(1, 40))
@torch.no_grad()
def test_evidence_adds_up_and_pooling_is_the_forward_pass(name: Aggregator, seed: int, count: int) -> None:
    mil, x = seeded(name, seed), bag(seed, count)
    out, pooled = mil(x), pool_bag(mil, x.numpy(), CPU)
    for field in ("logits", "attention", "scores"):
        np.testing.assert_allclose(getattr(pooled, field), getattr(out, field), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled.evidence, mil.evidence(x, out.attention), rtol=1e-4, atol=1e-5)
    centred = pooled.logits - pooled.logits.mean()
    np.testing.assert_allclose(pooled.evidence.sum(0) + mil.centred_bias.numpy(), centred, rtol=1e-4, atol=1e-4)
    assert pooled.attention.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_logits_of_a_patch_are_those_of_a_bag_of_it_alone(name: Aggregator) -> None:
    mil, x = seeded(name), bag(3, 5)
    expected = torch.stack([mil(row[None]).logits for row in x])
    torch.testing.assert_close(mil.patch_logits(x), expected, **CLOSE)
    np.testing.assert_allclose(patch_class_logits(mil.weights(), x.numpy()), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_transmil_says_that_it_has_no_evidence() -> None:
    mil, x = seeded("transmil"), bag(3, 7)
    pooled = pool_bag(mil, x.numpy(), CPU)
    assert np.isnan(pooled.evidence).all() and pooled.evidence.shape == (7, 3)
    assert pooled.attention.sum() == pytest.approx(1, abs=1e-5) and np.isfinite(pooled.scores).all()
    with pytest.raises(NotImplementedError, match="lambda_patch=0"):
        mil.patch_logits(x)
    assert patch_class_logits(mil.weights(), x.numpy()) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_every_weight_learns_from_bags_of_any_size(name: Aggregator, count: int) -> None:
    mil, x = seeded(name), bag(2, count)
    out = mil(x)
    streams = out.logits[None] if out.label_logits is None else out.label_logits
    loss = nn.functional.cross_entropy(streams, torch.ones(len(streams), dtype=torch.long))
    (loss + sum(mil.own_terms(out, 1).values())).backward()
    silent = {n for n, p in mil.named_parameters() if p.grad is None or not bool((p.grad != 0).any())}
    if count == 17:  # in a bag of few patches attention has little or nothing to choose
        assert {n for n in silent if "instance_classifiers" not in n} == set()  # those of other classes stay
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in mil.parameters())


@torch.no_grad()
def test_clam_compares_the_ends_of_the_attention() -> None:
    """By hand: the classifier of the slide's class, with the top half against the bottom half of a small bag."""
    mil, x = seeded("clam_sb"), bag(5, 5)
    assert isinstance(mil, ClamSbMIL)
    out = mil(x)
    order = out.scores.argsort(descending=True)
    h = mil.embed(x)[order[[0, 1, 4, 3]]]
    expected = nn.functional.cross_entropy(mil.instance_classifiers[2](h), torch.tensor([1, 1, 0, 0]))
    torch.testing.assert_close(mil.own_terms(out, 2)["instances"], CLAM_INSTANCE_WEIGHT * expected)
    assert float(mil.own_terms(mil(x[:1]), 2)["instances"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_finite_are_refused(name: Aggregator) -> None:
    features = np.zeros((9, 6), np.float32)
    features[4, 2] = np.nan
    with pytest.raises(EncoderError, match="NaN or infinite"):
        pool_instances(seeded(name).weights(), features)


def test_a_network_with_dropout_does_not_pool_at_random() -> None:
    with pytest.raises(RuntimeError, match="training mode"):
        pool_instances(seeded("clam_sb").train().weights(), np.zeros((3, 6), np.float32))


# ---------------------------------------------------------------- bundles


def written(folder: Path, name: Aggregator) -> Bundle:
    student = StudentNetwork(AlignedEncoder(lively(untrained_encoder()), 5), GatedAttentionMIL(5, 3))
    encoder = lively(untrained_encoder(), 1)
    teacher = TeacherNetwork(encoder, seeded(name, dim=encoder.dim))
    for network in (student, teacher):
        round_to_half(network.eval())
    card: dict[str, Any] = {"name": "t", "classes": ("a", "b", "c"), "hr_mpp": 0.5, "lr_mpp": 2.0}
    return write_bundle(folder, card | {"hr_patch_px": 64, "lr_patch_px": 64}, student, teacher)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_gives_the_same_answers(tmp_path: Path, name: Aggregator) -> None:
    """By the whole teacher, by its MIL alone, and after a pickle, as workers get it; the card names the aggregator."""
    bundle = Bundle(written(tmp_path, name).path)
    x = bag(1, 20, bundle.teacher.mil.dim).numpy()
    expected = pool_bag(bundle.teacher.mil, x, CPU)
    assert isinstance(bundle.teacher_mil, NetworkWeights) == (name in IN_TORCH)
    for copy in (bundle, pickle.loads(pickle.dumps(bundle)), Bundle(tmp_path)):
        pooled = pool_instances(copy.teacher_mil, x)
        for field, values in vars(expected).items():
            np.testing.assert_array_equal(getattr(pooled, field), values)
    content = json.loads((tmp_path / CARD).read_text())
    assert content["teacher"]["aggregator"] == name and "top_share" not in content["teacher"]
    assert "aggregator" not in content["student"]
    assert "Teacher's aggregator" in (tmp_path / README).read_text()


def test_a_student_with_an_aggregator_of_teachers_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "abmil")
    content = json.loads((tmp_path / CARD).read_text())
    content["student"]["aggregator"] = "abmil"
    (tmp_path / CARD).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="aggregator is abmil, which only a teacher"):
        Bundle(tmp_path)


@pytest.mark.parametrize("name", IN_TORCH)
def test_weights_of_another_size_are_refused(tmp_path: Path, name: Aggregator) -> None:
    written(tmp_path, name)
    content = json.loads((tmp_path / CARD).read_text())
    content["teacher"]["hidden"] = HIDDEN + 1
    (tmp_path / CARD).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="damaged, copy it again"):
        _ = Bundle(tmp_path).teacher_mil
    assert Bundle(tmp_path).student_mil.bias.shape == (3,)  # the student runs all the same
