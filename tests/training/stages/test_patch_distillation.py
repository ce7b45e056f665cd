"""Loss terms of stage 1 by hand, with a student and a teacher whose outputs are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb
from torch import Tensor, nn

from lrmil_training import losses
from lrmil_training.config import TrainConfig, build_config
from lrmil_training.data.patch_pairs import PatchPair, collate_pairs, jitter_stain
from lrmil_training.data.teacher_targets import EMBEDDING, FeatureStatistics
from lrmil_training.stages.patch_distillation import (
    FrozenTeacher,
    PatchDistillationModule,
    PatchEvidence,
    require_matching_encoders,
)
from napari_lrmil.core.encoders import AlignedEncoder, EncoderOutput, EncoderSpec, NetworkEncoder
from napari_lrmil.core.errors import ConfigError, EncoderError

LAYER = "late"


class Given(nn.Module):
    """Answers with what it was given, whatever it sees; its own encoder and that of a student at once."""

    def __init__(self, embedding: Tensor, tokens: Tensor, name: str = LAYER) -> None:
        super().__init__()
        self.embedding, self.tokens, self.name = embedding, tokens, name
        self.dim, self.spec = embedding.shape[-1], EncoderSpec(name="given")
        self.layers = {name: tokens.shape[1]}
        self.moved: list[torch.device] = []

    @property
    def encoder(self) -> Given:
        return self

    def to(self, device: Any) -> Any:
        self.moved.append(torch.device(device))
        return self

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        return EncoderOutput(self.embedding, dict.fromkeys(layers, self.tokens))


def config_of(**stage1: Any) -> TrainConfig:
    """Return a configuration with n = 2 and one layer."""
    return build_config({"lr_mpp": 1.0, "stage1": {"layers": [LAYER], **stage1}})


def pair_of(targets: Tensor, layer: Tensor, scores: Sequence[float], present: Sequence[bool]) -> PatchPair:
    """Return a batch of one LR patch with four children."""
    return PatchPair(
        pixels=torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        targets=targets,
        layers={LAYER: layer},
        scores=torch.tensor([scores]),
        present=torch.tensor([present]),
    )


def stage(
    student: Given, statistics: FeatureStatistics, config: TrainConfig, frozen: FrozenTeacher | None = None
) -> PatchDistillationModule:
    return PatchDistillationModule(cast(AlignedEncoder, student), {LAYER: statistics}, config, frozen)


def test_terms_by_hand() -> None:
    """Three children at present, scores ln 1, ln 2 and ln 5: weights 1/8, 2/8, 5/8.

    Embedding (1, 0); squared distances / 2 from (1, 2), (3, 0), (1, 0) are 2, 2, 0: 2/8 + 4/8 = 0.75.
    Tokens 2 x 2, so a block is a token: values 1, 2, 3, 4 in both channels; mean 1 and deviation 2 make them 0, .5, 1,
    1.5; targets 0, 0, 0 of the three at present: (0 + .25 + 1) / 3.
    """
    tokens = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2)
    student = Given(torch.tensor([[1.0, 0.0]]), tokens)
    targets = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [1.0, 0.0], [99.0, 99.0]]])
    layer = torch.zeros(1, 4, 2)
    layer[0, 3] = 99.0
    pair = pair_of(targets, layer, [0.0, np.log(2), np.log(5), 99.0], [True, True, True, False])
    config = config_of(projection="identity", lambda_layer=0.5, lambda_attn=2.0)
    terms = stage(student, FeatureStatistics(torch.ones(2), torch.full((2,), 2.0)), config).terms(pair)
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(
        {"attn": 2 * 0.75, f"layer_{LAYER}": 0.5 * 1.25 / 3}
    )


def test_uniform_attention_weighs_children_alike() -> None:
    """The control: the same with weights of a third."""
    student = Given(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2, 2, 2))
    targets = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [1.0, 0.0], [99.0, 99.0]]])
    pair = pair_of(targets, torch.zeros(1, 4, 2), [0.0, 1.0, 7.0, 99.0], [True, True, True, False])
    config = config_of(projection="identity", attention="uniform")
    terms = stage(student, FeatureStatistics(torch.zeros(2), torch.ones(2)), config).terms(pair)
    assert float(terms["attn"]) == pytest.approx(4 / 3)


def test_a_map_like_the_teachers_costs_nothing_under_the_identity() -> None:
    """Targets are standardised, so the student's own map must be: both with the teacher's statistics."""
    rng = torch.Generator().manual_seed(3)
    tokens = 40 + 9 * torch.randn(1, 5, 4, 4, generator=rng)  # 2 x 2 tokens to a child
    raw = losses.child_blocks(tokens, 2)
    statistics = FeatureStatistics(raw.mean((0, 1)), raw.std((0, 1)) + 0.1)
    student = Given(torch.zeros(1, 5), tokens)
    pair = pair_of(torch.zeros(1, 4, 5), statistics.apply(raw), [0.0] * 4, [True] * 4)
    terms = stage(student, statistics, config_of(projection="identity", lambda_layer=1.0)).terms(pair)
    assert float(terms[f"layer_{LAYER}"]) == pytest.approx(0.0, abs=1e-9)


def test_targets_of_the_watched_teacher_are_pooled_and_standardised_in_the_order_of_children() -> None:
    """Two patches of four children: (8, ...) answers come back as (2, 4, ...), in units of the deviation."""
    embedding = torch.arange(8.0)[:, None].repeat(1, 3)
    tokens = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 2, 3, 3)
    statistics = {
        EMBEDDING: FeatureStatistics(torch.full((3,), 1.0), torch.full((3,), 2.0)),
        LAYER: FeatureStatistics(torch.zeros(2), torch.full((2,), 4.0)),
    }
    frozen = FrozenTeacher(cast(NetworkEncoder, Given(embedding, tokens)), statistics)
    targets = frozen.targets(torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8), (LAYER,))
    assert targets[EMBEDDING].shape == (2, 4, 3)
    assert targets[EMBEDDING][1, 2].tolist() == [2.5] * 3  # child 6: (6 - 1) / 2
    assert targets[LAYER][1, 2].tolist() == [1.5] * 2


def test_the_teacher_s_head_judges_patches() -> None:
    """The patch term by hand: scores (1, 0) of both patches, shares (0.25, 0.75) and none; the head is not stored."""
    student, statistics = Given(torch.eye(2), torch.ones(2, 2, 2, 2)), FeatureStatistics(torch.zeros(2), torch.ones(2))
    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        head.bias.zero_()
    config = build_config({"lr_mpp": 1.0, "lambda_patch": 0.5, "stage1": {"layers": [LAYER]}})
    evidence = PatchEvidence(head.requires_grad_(False), {"train": [], "val": []})
    module = PatchDistillationModule(cast(AlignedEncoder, student), {LAYER: statistics}, config, evidence=evidence)
    one = pair_of(torch.zeros(4, 2), torch.zeros(4, 2), [0.0] * 4, [True] * 4)
    single = PatchPair(one.pixels[0], one.targets, one.layers, one.scores[0], one.present[0])
    pairs = [replace(single, classes=torch.tensor(shares)) for shares in ([0.25, 0.75], [0.0, 0.0])]
    terms = module.terms(collate_pairs(pairs))
    expected = -(0.25 * math.log(math.e / (math.e + 1)) + 0.75 * math.log(1 / (math.e + 1))) / 2
    assert float(terms["patch"]) == pytest.approx(0.5 * expected, rel=1e-5)
    assert not [name for name in module.state_dict() if "head" in name or "evidence" in name]
    assert "patch" not in stage(student, statistics, config_of()).terms(collate_pairs([single] * 2))


def test_watched_targets_replace_the_stored_ones() -> None:
    """The terms see the fresh targets where there are pixels to make them of, as in training, not in validation."""
    student = Given(torch.ones(1, 2), torch.ones(1, 2, 2, 2))
    statistics = FeatureStatistics(torch.zeros(2), torch.ones(2))
    teacher = Given(torch.ones(4, 2), torch.ones(4, 2, 3, 3))
    frozen = FrozenTeacher(cast(NetworkEncoder, teacher), {EMBEDDING: statistics, LAYER: statistics})
    module = stage(student, statistics, config_of(projection="identity"), frozen)
    stored = pair_of(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), [0.0] * 4, [True] * 4)
    assert all(float(value) > 0 for value in module.terms(stored).values())
    fresh = PatchPair(
        stored.pixels, stored.targets, stored.layers, stored.scores, stored.present, torch.zeros(1, 4, 3, 8, 8)
    )
    assert all(float(value) == 0 for value in module.terms(fresh).values())


def test_the_watched_teacher_follows_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own it is loaded on the CPU, and no checkpoint may hold it: it moves as fitting begins."""
    student, teacher = Given(torch.ones(1, 2), torch.ones(1, 2, 2, 2)), Given(torch.ones(4, 2), torch.ones(4, 2, 3, 3))
    statistics = FeatureStatistics(torch.zeros(2), torch.ones(2))
    frozen = FrozenTeacher(cast(NetworkEncoder, teacher), {EMBEDDING: statistics, LAYER: statistics})
    module = stage(student, statistics, config_of(), frozen)
    monkeypatch.setattr(PatchDistillationModule, "device", torch.device("cuda", 1))
    module.on_fit_start()
    assert teacher.moved == [torch.device("cuda", 1)]
    assert not [name for name in module.state_dict() if "teacher" in name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_watched_teacher_answers_on_a_gpu() -> None:
    """Weights on the CPU and pixels on the GPU would not meet."""
    from support.networks import untrained_encoder

    encoder = untrained_encoder()
    statistics = {EMBEDDING: FeatureStatistics(torch.zeros(encoder.dim), torch.ones(encoder.dim))}
    module = PatchDistillationModule(
        AlignedEncoder(untrained_encoder(), encoder.dim), {}, config_of(), FrozenTeacher(encoder, statistics)
    )
    module.cuda().on_fit_start()
    frozen = module._teacher[0]
    assert frozen is not None
    targets = frozen.targets(torch.zeros(1, 4, 3, 64, 64, dtype=torch.uint8, device="cuda"), ())
    assert targets[EMBEDDING].is_cuda


@pytest.mark.parametrize(
    ("layers", "changes", "error", "message"),
    [
        (["late"], {}, EncoderError, "no layer late in given; available: other"),
        (["gone:other"], {}, EncoderError, "no layer gone"),
        (["late:other"], {"projection": "identity"}, ConfigError, "layer late has 3 channels in the student and 2 in"),
        (["late:other"], {}, None, ""),
        (["late"], {"lambda_layer": 0.0}, None, ""),
    ],
)
def test_layers_are_checked_without_any_pixel(
    layers: list[str], changes: dict[str, Any], error: type[Exception] | None, message: str
) -> None:
    """A student whose layers have other names and widths."""
    teacher, student = (
        Given(torch.ones(1, 2), torch.ones(1, width, 2, 2), name) for width, name in ((2, "late"), (3, "other"))
    )
    config = config_of(**{"layers": layers} | changes)
    if error is None:
        require_matching_encoders(cast(NetworkEncoder, student), cast(NetworkEncoder, teacher), config)
        return
    with pytest.raises(error, match=message):
        require_matching_encoders(cast(NetworkEncoder, student), cast(NetworkEncoder, teacher), config)


def test_restaining_changes_the_patch_and_its_children_alike() -> None:
    """HR pixels averaged down to LR and then restained are the restained HR pixels averaged down."""
    rng = np.random.default_rng(0)
    stains = rng.uniform((0.02, 0.02, 0.0), (0.12, 0.15, 0.01), (6, 4, 3))  # colours that stains can make
    cells = np.round(hed2rgb(stains) * 255).astype(np.uint8)
    high = np.repeat(np.repeat(cells, 4, 0), 4, 1)  # every LR pixel is 4 x 4 equal HR pixels
    factors = np.array([1.3, 0.8, 1.0])
    low, children = jitter_stain(cells, factors), jitter_stain(high.reshape(2, 12, 16, 3), factors)
    np.testing.assert_array_equal(children.reshape(24, 16, 3)[::4, ::4], low)
    assert np.abs(low.astype(int) - cells).max() > 5
    np.testing.assert_allclose(jitter_stain(cells, np.ones(3)).astype(int), cells, atol=2)
