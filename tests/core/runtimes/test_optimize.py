"""The same network with less to compute: what folding and rounding change, and what they leave."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from napari_lrmil.core.encoders import AlignedEncoder, EncoderSpec, NetworkEncoder, build_encoder, resolve_encoder
from napari_lrmil.core.encoders.base import IMAGENET
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


def pictures(count: int = 3, side: int = 96) -> torch.Tensor:
    """Return (count, 3, side, side) smooth pixels: neighbours are alike, as on slides."""
    coarse = torch.rand((count, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=side, mode="bilinear", align_corners=False)
    return (255 * smooth).to(torch.uint8)


def embedded(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(pixels).embedding
    return found


def kinds(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("name", NAMES)
def test_folded_norms_are_gone_and_numbers_stay(name: str) -> None:
    network = AlignedEncoder(encoder(name), 24).eval()
    norms = kinds(network, nn.BatchNorm2d)
    made = fold_batch_norm(network)
    assert not kinds(made, nn.BatchNorm2d) and len(kinds(made, ConvBatchNorm2d)) == len(norms)
    assert len(kinds(network, nn.BatchNorm2d)) == len(norms), "the original is left alone"
    wanted, found = (embedded(e, pictures()) for e in (network, made))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


# ---------------------------------------------------------------- weights


def by_trying_all(weights: list[float], alike: float) -> float:
    """Return the least expected square error of a filter that rounds every weight up or down."""
    errors = []
    for weight in weights:
        near = torch.tensor(weight).to(torch.bfloat16)
        ends = [torch.nextafter(near, torch.tensor(end, dtype=torch.bfloat16)) for end in (-torch.inf, torch.inf)]
        other = min((float(e) - weight for e in ends if (float(e) - weight) * (float(near) - weight) <= 0), key=abs)
        errors.append((float(near) - weight, other))
    costs = [(1 - alike) * sum(e**2 for e in some) + alike * sum(some) ** 2 for some in product(*errors)]
    return min(costs)


def cost(error: torch.Tensor, alike: float) -> torch.Tensor:
    return (1 - alike) * error.square().sum(dim=1) + alike * error.sum(dim=1).square()


def test_weights_are_rounded_nearly_as_well_as_they_can_be() -> None:
    weights = torch.randn((40, 9), generator=torch.Generator().manual_seed(2))
    found = error_compensated_rounding(weights, 0.9)
    assert torch.equal(found, found.to(torch.bfloat16).float())
    best = torch.tensor([by_trying_all(row, 0.9) for row in weights.tolist()])
    plain = cost(weights.to(torch.bfloat16).float() - weights, 0.9)
    ours = cost(found - weights, 0.9)
    assert (ours <= plain + 1e-12).all()
    assert ours.sum() < 0.2 * plain.sum() and ours.sum() < 3 * best.sum()


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
    wanted, found, lost = (e[0](pictures().float()) for e in (network, spared, plain))  # type: ignore[operator, index]  # a Sequential
    assert (found - wanted).norm() < 0.5 * (lost - wanted).norm()


@pytest.mark.parametrize("name", NAMES)
def test_rounded_networks_say_nearly_the_same(name: str) -> None:
    network = fold_batch_norm(Bundle("demo").student.encoder if name == "mobilenet_v2" else encoder(name))
    wanted, found = (embedded(e, pictures(8)) for e in (network, round_weights_to_bfloat16(network)))
    assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("normalisation", [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), IMAGENET])
def test_pixels_stay_whole_numbers_that_bfloat16_holds(normalisation: tuple[tuple[float, float, float], ...]) -> None:
    torch.manual_seed(4)
    spec = EncoderSpec("mobilenet_v3_large", {"width": 0.25}, "BSD-3-Clause", "small", *normalisation)
    network = fold_batch_norm(build_encoder(spec))
    made = round_weights_to_bfloat16(network)
    assert isinstance(made, NetworkEncoder)
    every = torch.arange(256, dtype=torch.uint8).expand(3, 256)[None, :, :, None]
    pixels = made.normalised(every)
    assert torch.equal(pixels, pixels.to(torch.bfloat16).float()) and pixels.abs().max() <= 256
    wanted, found = (embedded(e, pictures(8)) for e in (network, made))
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_biases_stay_apart_where_their_rounding_would_be_felt() -> None:
    network = fold_batch_norm(lively(untrained_encoder()))
    first, second = (m for m in kinds(network, ConvBatchNorm2d)[:2])
    assert isinstance(first, ConvBatchNorm2d) and isinstance(second, ConvBatchNorm2d) and first.bias is not None
    for module in kinds(network, ConvBatchNorm2d):
        module.bias.data.zero_()  # type: ignore[operator, union-attr]  # a Fused has one
    first.bias.data += 3.01
    made = round_weights_to_bfloat16(network, biases=True)
    assert [m.apart for m in kinds(made, ConvBatchNorm2d)][1:] == [False] * (len(kinds(made, ConvBatchNorm2d)) - 1)
    assert kinds(made, ConvBatchNorm2d)[0].apart is True
    assert not any(m.apart for m in kinds(round_weights_to_bfloat16(network), ConvBatchNorm2d))
    torch.testing.assert_close(*(embedded(e, pictures()) for e in (made, round_weights_to_bfloat16(network))))
