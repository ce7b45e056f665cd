"""Inference-time optimisation: folded batch norm and compensated rounding leave the output nearly unchanged."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from napari_lrmil.core.encoders import AlignedEncoder, EncoderSpec, NetworkEncoder, build_encoder, resolve_encoder
from napari_lrmil.core.encoders.spec import IMAGENET
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.runtimes.optimize import (
    ConvBatchNorm2d,
    error_compensated_rounding,
    fold_batch_norm,
    round_weights_to_bfloat16,
)
from support.fake_slides import lively
from support.networks import untrained_encoder

NAMES = ("mobilenet_v2", "mobilenet_v3_large", "convnext_atto")


def encoder(name: str) -> NetworkEncoder:
    loaded = resolve_encoder(name)
    assert loaded is not None
    return loaded.encoder


def smooth_images(count: int = 3, side: int = 96) -> torch.Tensor:
    """Return (count, 3, side, side) smooth pixels: neighbours are alike, as on slides."""
    coarse = torch.rand((count, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=side, mode="bilinear", align_corners=False)
    return (255 * smooth).to(torch.uint8)


def embed(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        embedding: torch.Tensor = network(pixels).embedding
    return embedding


def modules_of(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("name", NAMES)
def test_folded_norms_are_gone_and_numbers_stay(name: str) -> None:
    network = AlignedEncoder(encoder(name), 24).eval()
    norms = modules_of(network, nn.BatchNorm2d)
    optimized = fold_batch_norm(network)
    assert not modules_of(optimized, nn.BatchNorm2d) and len(modules_of(optimized, ConvBatchNorm2d)) == len(norms)
    assert len(modules_of(network, nn.BatchNorm2d)) == len(norms), "the original is left alone"
    expected, embedding = (embed(e, smooth_images()) for e in (network, optimized))
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


# ---------------------------------------------------------------- weights


def brute_force_cost(weights: list[float], correlation: float) -> float:
    """Return the least expected square error of a filter that rounds every weight up or down."""
    errors = []
    for weight in weights:
        near = torch.tensor(weight).to(torch.bfloat16)
        ends = [torch.nextafter(near, torch.tensor(end, dtype=torch.bfloat16)) for end in (-torch.inf, torch.inf)]
        other = min((float(e) - weight for e in ends if (float(e) - weight) * (float(near) - weight) <= 0), key=abs)
        errors.append((float(near) - weight, other))
    costs = [
        (1 - correlation) * sum(e**2 for e in candidate) + correlation * sum(candidate) ** 2
        for candidate in product(*errors)
    ]
    return min(costs)


def cost(error: torch.Tensor, correlation: float) -> torch.Tensor:
    return (1 - correlation) * error.square().sum(dim=1) + correlation * error.sum(dim=1).square()


def test_weights_are_rounded_nearly_as_well_as_they_can_be() -> None:
    weights = torch.randn((40, 9), generator=torch.Generator().manual_seed(2))
    rounded = error_compensated_rounding(weights, 0.9)
    assert torch.equal(rounded, rounded.to(torch.bfloat16).float())
    best = torch.tensor([brute_force_cost(row, 0.9) for row in weights.tolist()])
    plain = cost(weights.to(torch.bfloat16).float() - weights, 0.9)
    compensated = cost(rounded - weights, 0.9)
    assert (compensated <= plain + 1e-12).all()
    assert compensated.sum() < 0.2 * plain.sum() and compensated.sum() < 3 * best.sum()


def test_what_does_not_depend_on_neighbours_takes_the_nearest() -> None:
    weights = torch.randn((5, 30), generator=torch.Generator().manual_seed(3))
    assert torch.equal(error_compensated_rounding(weights, 0.0), weights.to(torch.bfloat16).float())
    exact = torch.tensor([[1.0, -0.5, 0.0, 384.0]])
    assert torch.equal(error_compensated_rounding(exact, 0.9), exact)


def test_a_filter_of_few_taps_loses_less_where_neighbours_are_alike() -> None:
    torch.manual_seed(6)
    network = nn.Sequential(nn.Conv2d(3, 96, 3, groups=3), nn.Conv2d(96, 24, 1)).requires_grad_(False)
    spared, plain = round_weights_to_bfloat16(network), fold_batch_norm(network)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.to(torch.bfloat16).float()
    for module in spared.modules():
        if isinstance(module, nn.Conv2d):
            assert torch.equal(module.weight, module.weight.to(torch.bfloat16).float())
    expected, embedding, lost = (e[0](smooth_images().float()) for e in (network, spared, plain))  # type: ignore[operator, index]  # a Sequential
    assert (embedding - expected).norm() < 0.5 * (lost - expected).norm()


@pytest.mark.parametrize("name", NAMES)
def test_rounded_networks_say_nearly_the_same(name: str) -> None:
    network = fold_batch_norm(Bundle("demo").student.encoder if name == "mobilenet_v2" else encoder(name))
    expected, embedding = (embed(e, smooth_images(8)) for e in (network, round_weights_to_bfloat16(network)))
    assert 0 < (embedding - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("normalisation", [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), IMAGENET])
def test_pixels_stay_whole_numbers_that_bfloat16_holds(normalisation: tuple[tuple[float, float, float], ...]) -> None:
    torch.manual_seed(4)
    spec = EncoderSpec("mobilenet_v3_large", {"width": 0.25}, "BSD-3-Clause", "small", *normalisation)
    network = fold_batch_norm(build_encoder(spec))
    optimized = round_weights_to_bfloat16(network)
    assert isinstance(optimized, NetworkEncoder)
    every = torch.arange(256, dtype=torch.uint8).expand(3, 256)[None, :, :, None]
    pixels = optimized.normalised(every)
    assert torch.equal(pixels, pixels.to(torch.bfloat16).float()) and pixels.abs().max() <= 256
    expected, embedding = (embed(e, smooth_images(8)) for e in (network, optimized))
    assert (embedding - expected).norm() < 0.02 * expected.norm()


def test_biases_stay_apart_where_their_rounding_would_be_felt() -> None:
    network = fold_batch_norm(lively(untrained_encoder()))
    first, second = (m for m in modules_of(network, ConvBatchNorm2d)[:2])
    assert isinstance(first, ConvBatchNorm2d) and isinstance(second, ConvBatchNorm2d) and first.bias is not None
    for module in modules_of(network, ConvBatchNorm2d):
        module.bias.data.zero_()  # type: ignore[operator, union-attr]  # a ConvBatchNorm2d has one
    first.bias.data += 3.01
    optimized = round_weights_to_bfloat16(network, biases=True)
    assert [m.has_separate_bias for m in modules_of(optimized, ConvBatchNorm2d)][1:] == [False] * (
        len(modules_of(optimized, ConvBatchNorm2d)) - 1
    )
    assert modules_of(optimized, ConvBatchNorm2d)[0].has_separate_bias is True
    assert not any(m.has_separate_bias for m in modules_of(round_weights_to_bfloat16(network), ConvBatchNorm2d))
    torch.testing.assert_close(*(embed(e, smooth_images()) for e in (optimized, round_weights_to_bfloat16(network))))
