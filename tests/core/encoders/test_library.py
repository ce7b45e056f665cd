"""MobileNetV2 and ConvNeXt against ``transformers``: weights of a seed, outputs, settings; and no import of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders import EncoderSpec, build_encoder
from napari_lrmil.core.errors import EncoderError
from support.fake_slides import one_sentence

TINY = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 24]}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("mobilenet_v2", {}),
    ("mobilenet_v2", {"depth_multiplier": 0.35, "image_size": 96}),
    ("mobilenet_v2", {"depth_multiplier": 1.4, "layer_norm_eps": 1e-5}),
    ("mobilenet_v2", {"depth_multiplier": 0.5, "finegrained_output": False, "first_layer_is_expansion": False}),
    ("mobilenet_v2", {"depth_multiplier": 0.3, "depth_divisible_by": 4, "min_depth": 12, "expand_ratio": 3}),
    ("mobilenet_v2", {"depth_multiplier": 0.25, "tf_padding": False}),
    ("mobilenet_v2", {"depth_multiplier": 0.25, "tf_padding": False, "output_stride": 8}),
    ("mobilenet_v2", {"depth_multiplier": 0.25, "output_stride": 16, "hidden_act": "gelu_new"}),
    ("convnext", {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}),
    ("convnext", TINY | {"layer_scale_init_value": 0.5, "layer_norm_eps": 1e-5, "initializer_range": 0.1}),
    ("convnext", TINY | {"layer_scale_init_value": 0.0, "hidden_act": "relu", "patch_size": 2}),
    ("convnext", {"depths": [1, 2], "hidden_sizes": [8, 12], "num_stages": 2, "drop_path_rate": 0.3}),
]
SIZES = [(64, 64), (67, 95), (33, 130)]


def library_network(family: str, settings: dict[str, Any]) -> nn.Module:
    """Return the network of ``transformers`` as encoders used it before."""
    import transformers as t

    if family == "convnext":
        return t.ConvNextModel(t.ConvNextConfig(**settings)).to(memory_format=torch.channels_last)
    network = t.MobileNetV2Model(t.MobileNetV2Config(**settings), add_pooling_layer=False)
    return network.to(memory_format=torch.channels_last)


def output(network: nn.Module, x: Tensor) -> Tensor:
    """Return the output of either network, with the same random numbers for dropped paths."""
    torch.manual_seed(7)
    result = network(x)
    if isinstance(result, Tensor):
        return result
    pooled: Tensor | None = result.pooler_output
    last: Tensor = result.last_hidden_state
    return last if pooled is None else pooled


@pytest.mark.slow
@pytest.mark.parametrize(("family", "settings"), SETTINGS)
def test_a_seed_gives_the_weights_of_the_library(family: str, settings: dict[str, Any]) -> None:
    """Hashes of untrained encoders, checkpoints and the numbers of a training depend on it."""
    torch.manual_seed(3)
    own, own_next = build_encoder(EncoderSpec(family, settings)).net, torch.rand(3)
    torch.manual_seed(3)
    library, library_next = library_network(family, settings), torch.rand(3)
    assert [name for name, _ in own.named_modules()] == [name for name, _ in library.named_modules()]
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in library.named_parameters()]
    state, expected = own.state_dict(), library.state_dict()
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]) and tensor.stride() == expected[name].stride(), name
    assert torch.equal(own_next, library_next), "numbers that are drawn after it stay the same too"


@pytest.mark.slow
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(("family", "settings"), SETTINGS)
def test_outputs_and_gradients_are_those_of_the_library(
    family: str, settings: dict[str, Any], is_training: bool
) -> None:
    torch.manual_seed(3)
    library = library_network(family, settings).train(is_training)
    for module in library.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # the initial weights are so small that outputs vanish
            nn.init.kaiming_normal_(module.weight)
    own = build_encoder(EncoderSpec(family, settings)).net.train(is_training)
    own.load_state_dict(library.state_dict())
    for size in SIZES:
        x = torch.randn(2, 3, *size).contiguous(memory_format=torch.channels_last)
        embedding, expected = output(own, x), output(library, x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max()))
        embedding.square().mean().backward()
        expected.square().mean().backward()
    for (name, parameter), other in zip(own.named_parameters(), library.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)
    for name, tensor in own.named_buffers():  # statistics of batch norm
        torch.testing.assert_close(tensor, library.get_buffer(name), rtol=1e-6, atol=1e-6)


def test_settings_without_effect_are_accepted() -> None:
    """Published configurations hold them, and so do the cards of bundles."""
    settings = {"classifier_dropout_prob": 0.2, "semantic_loss_ignore_index": 0, "image_size": [96, 96]}
    plain = build_encoder(EncoderSpec("mobilenet_v2", {"depth_multiplier": 0.25}))
    other = build_encoder(EncoderSpec("mobilenet_v2", {"depth_multiplier": 0.25, **settings}))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in other.parameters()]


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("mobilenet_v2", {"wings": 2, "tails": 1}, "n: mobilenet_v2 has no setting wings, tails"),
        ("mobilenet_v2", {"depth_multiplier": 0}, "of mobilenet_v2 cannot be combined .*must be greater than zero"),
        ("mobilenet_v2", {"depth_multiplier": "wide"}, "of mobilenet_v2 cannot be combined .*expected int, got str"),
        ("mobilenet_v2", {"tf_padding": 1}, "'tf_padding' expected bool, got int"),
        ("mobilenet_v2", {"min_depth": True}, "'min_depth' expected int, got bool"),
        ("mobilenet_v2", {"hidden_act": "step"}, "hidden_act is 'step', expected one of .*relu6"),
        ("convnext", {"depths": 3}, "of convnext cannot be combined .*expected a list, got int"),
        ("convnext", {"hidden_sizes": [8, "a"]}, "Invalid item at index 1 in list 'hidden_sizes'"),
        ("convnext", {"depths": [1, 1], "hidden_sizes": [8, 12]}, "2 depths, 2 hidden_sizes and num_stages=4"),
    ],
)
def test_settings_of_no_network_are_one_sentence(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        build_encoder(EncoderSpec(family, settings, name="n"))
    assert one_sentence(caught.value)


BUILD = """
import json, sys
from napari_lrmil.core.encoders import EncoderSpec, build_encoder
from napari_lrmil.core.encoders.registry import UNTRAINED_ENCODERS
from napari_lrmil.core.models.bundle import Bundle, find_bundle
from napari_lrmil.core.models.networks import load_student
for spec in UNTRAINED_ENCODERS.values():
    build_encoder(spec)
build_encoder(EncoderSpec("mobilenet_v2", {"depth_multiplier": 1, "image_size": 96}))
load_student(Bundle(find_bundle("demo")))
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.slow
def test_small_networks_are_built_without_the_library() -> None:
    """Its import takes seconds, and other threads of Python wait meanwhile: a window stops."""
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(json.loads(done.stdout))
    assert "torch" in loaded and not loaded & {"transformers", "torch._dynamo", "huggingface_hub"}
