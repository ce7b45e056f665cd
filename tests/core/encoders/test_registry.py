"""Encoders: reference embeddings of the shared weights, files, named layers, a student in the teacher's space."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from napari_lrmil.core.encoders import (
    AlignedEncoder,
    EncoderSpec,
    MobileNetV2Encoder,
    half_tensors,
    load_encoder,
    load_weights,
    round_to_half,
    save_encoder,
)
from napari_lrmil.core.encoders.weights import METADATA_KEY
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.hashing import file_sha256
from support.fake_slides import one_sentence
from support.networks import SMALL, untrained_encoder

WEIGHTS = "mobilenet_v2_1.0_imagenet_from_coral_ptq_backbone_fp16.safetensors"


@pytest.fixture(scope="module")
def encoder() -> MobileNetV2Encoder:
    return untrained_encoder()


def pixels(count: int = 2, height: int = 96, width: int = 64) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


# ---------------------------------------------------------------- the shared weights


def test_shared_weights_give_the_reference_embeddings(shared_data: Path) -> None:
    """Cosine >= 0.999 on four crops, 256 px at x, y of the gland images (the shared README's criterion)."""
    from PIL import Image

    reference = np.load(shared_data / "weights" / "reference.npz")
    side, crops = int(reference["side"]), []
    for image, x, y in zip(reference["image"], reference["x"], reference["y"], strict=True):
        with Image.open(shared_data / "patches" / "glas" / str(image)) as opened:
            crops.append(np.asarray(opened.convert("RGB"))[y : y + side, x : x + side])
    loaded = load_encoder(shared_data / "weights" / WEIGHTS)
    with torch.inference_mode():
        embeddings = loaded.encoder(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)).embedding
    expected = torch.from_numpy(reference["embeddings"])
    assert embeddings.shape == (4, 1280)
    assert torch.cosine_similarity(embeddings, expected).min() >= 0.999
    assert torch.allclose(embeddings.norm(dim=1), expected.norm(dim=1), rtol=0.02), "the scale is part of the space"
    assert torch.cosine_similarity(embeddings, expected.roll(1, 0)).max() < 0.99, "the criterion could not fail"


def test_shared_weights_arrive_frozen_in_evaluation_mode_with_their_hash(shared_data: Path) -> None:
    loaded = load_encoder(shared_data / "weights" / WEIGHTS)
    assert not any(m.training for m in loaded.encoder.modules())
    assert not any(p.requires_grad for p in loaded.encoder.parameters())
    assert loaded.sha256 == file_sha256(shared_data / "weights" / WEIGHTS) and len(loaded.sha256) == 64
    assert loaded.spec.name.startswith("mobilenet_v2_1.0_imagenet")


def test_folded_weights_of_the_wrong_shape_are_one_sentence(shared_data: Path, tmp_path: Path) -> None:
    tensors = load_file(shared_data / "weights" / WEIGHTS)
    tensors["head.weight"] = tensors["head.weight"][:640].clone()
    tensors["head.bias"] = tensors["head.bias"][:640].clone()
    save_file(tensors, tmp_path / "narrow.safetensors")
    with pytest.raises(EncoderError, match="do not fit"):
        load_encoder(tmp_path / "narrow.safetensors")


# ---------------------------------------------------------------- what an encoder says


def test_normalisation_is_inside_and_as_the_weights_expect(encoder: MobileNetV2Encoder) -> None:
    """uint8 x in, x / 127.5 - 1 seen by the network; mean over the last map out."""
    x = pixels()
    with torch.no_grad():
        direct = encoder.net(x.float() / 127.5 - 1).mean(dim=(2, 3))
        assert torch.allclose(encoder(x).embedding, direct, atol=1e-5)


def test_maps_have_the_widths_that_layers_promise_and_keep_rows_before_columns(encoder: MobileNetV2Encoder) -> None:
    names = ["block_2", "head", "block_13"]
    with torch.no_grad():
        encoded = encoder(pixels(height=96, width=64), names)
    assert list(encoded.maps) == names
    for name in names:
        assert encoded.maps[name].shape[1] == encoder.layers[name]
    assert encoded.maps["block_2"].shape[2:] == (96 // 4, 64 // 4)
    assert encoded.maps["block_13"].shape[2:] == (96 // 32, 64 // 32)
    assert torch.allclose(encoded.maps["head"].mean(dim=(2, 3)), encoded.embedding)


def test_a_named_block_is_that_blocks_output(encoder: MobileNetV2Encoder) -> None:
    caught: dict[str, torch.Tensor] = {}
    for i in (0, 5, 15):
        encoder.net.layer[i].register_forward_hook(lambda _m, _x, y, i=i: caught.__setitem__(f"block_{i + 1}", y))
    with torch.no_grad():
        encoded = encoder(pixels(), ["block_1", "block_6", "block_16"])
    for name, output in caught.items():
        assert torch.equal(encoded.maps[name], output), name
    assert len(caught) == 3


def test_asking_for_layers_does_not_change_the_embedding(encoder: MobileNetV2Encoder) -> None:
    with torch.no_grad():
        assert torch.equal(encoder(pixels()).embedding, encoder(pixels(), ["block_3"]).embedding)


def test_an_unknown_layer_names_those_there_are(encoder: MobileNetV2Encoder) -> None:
    with pytest.raises(EncoderError, match="no layer block_17") as caught:
        encoder(pixels(), ["block_3", "block_17"])
    assert "block_1, block_2" in str(caught.value) and "head" in str(caught.value) and one_sentence(caught.value)


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(EncoderError, match="unknown encoder family 'alexnet'; expected one of mobilenet_v2"):
        EncoderSpec(family="alexnet")


# ---------------------------------------------------------------- files


def test_what_is_saved_is_what_is_loaded(encoder: MobileNetV2Encoder, tmp_path: Path) -> None:
    """The fixture is rounded to half, so a file of half the size holds exactly it."""
    path = tmp_path / "deep" / "e.safetensors"
    save_encoder(path, encoder)
    loaded = load_encoder(path)
    assert loaded.spec == SMALL
    with torch.no_grad():
        assert torch.equal(loaded.encoder(pixels()).embedding, encoder(pixels()).embedding)
    assert not any(m.training for m in loaded.encoder.modules())
    assert [p.name for p in path.parent.iterdir()] == ["e.safetensors"]


def test_round_to_half_is_what_a_file_does(tmp_path: Path) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(5, 3)
    before = linear.weight.clone()
    stored = half_tensors(linear, prefix="p.")
    assert set(stored) == {"p.weight", "p.bias"} and stored["p.weight"].dtype == torch.float16
    round_to_half(linear)
    assert torch.equal(linear.weight, stored["p.weight"].float()) and not torch.equal(linear.weight, before)
    round_to_half(linear)
    assert torch.equal(linear.weight, stored["p.weight"].float()), "rounding twice is rounding once"


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no such encoder") as caught:
        load_encoder(tmp_path / "none.safetensors")
    assert one_sentence(caught.value)


def test_a_broken_file_is_one_sentence(tmp_path: Path, encoder: MobileNetV2Encoder) -> None:
    save_encoder(tmp_path / "whole.safetensors", encoder)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in (("text", b"not weights"), ("empty", b""), ("cut", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(EncoderError, match="not a safetensors file") as caught:
            load_encoder(path)
        assert str(path) in str(caught.value) and one_sentence(caught.value)


def test_a_strangers_weights_are_one_sentence(tmp_path: Path) -> None:
    save_file({"resnet.conv.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(EncoderError, match=r"the network of the tensors resnet\.conv\.weight … is unknown") as caught:
        load_encoder(tmp_path / "a.safetensors")
    assert one_sentence(caught.value)


@pytest.mark.parametrize(
    "described",
    [
        json.dumps({"family": "alexnet"}),
        pytest.param(json.dumps({"patience": 3}), id="unknown key"),
        pytest.param("{", id="not json"),
    ],
)
def test_a_description_that_means_nothing_here_is_an_encoder_error(tmp_path: Path, described: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={METADATA_KEY: described})
    with pytest.raises(EncoderError):
        load_encoder(tmp_path / "a.safetensors")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused_and_name_the_tensor(change: str) -> None:
    linear = nn.Linear(3, 2)
    tensors: Mapping[str, torch.Tensor] = {
        "missing": {"weight": torch.zeros(2, 3)},
        "extra": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
        "shape": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
    }[change]
    with pytest.raises(EncoderError, match=r"do not fit the network: 1 tensors differ, first (bias|more|weight)$"):
        load_weights(linear, tensors)


# ---------------------------------------------------------------- a student in the teacher's space


def test_where_widths_agree_the_projection_is_the_identity_and_statistics_standardise(
    encoder: MobileNetV2Encoder,
) -> None:
    aligned = AlignedEncoder(encoder, encoder.dim).eval()
    mean, deviation = torch.linspace(-1, 1, encoder.dim), torch.linspace(0.5, 2, encoder.dim)
    with torch.no_grad():
        plain = encoder(pixels()).embedding
        assert torch.equal(aligned(pixels()).embedding, plain), "before any statistics it is the encoder itself"
        aligned.set_standard(mean, deviation)
        assert torch.allclose(aligned(pixels()).embedding, (plain - mean) / deviation)
    assert isinstance(aligned.projection, nn.Identity) and aligned.layers == encoder.layers


def test_where_widths_differ_a_linear_map_leads_to_the_teachers_width(encoder: MobileNetV2Encoder) -> None:
    aligned = AlignedEncoder(encoder, 7).eval()
    assert isinstance(aligned.projection, nn.Linear) and aligned.dim == 7
    with torch.no_grad():
        before = aligned(pixels()).embedding
        aligned.set_standard(torch.full((7,), 9.0), torch.full((7,), 3.0))  # the map learns the scale by itself
        assert torch.equal(aligned(pixels()).embedding, before)
        assert torch.allclose(before, aligned.projection(encoder(pixels()).embedding))
    assert before.shape == (2, 7)


def test_the_statistics_travel_with_the_weights(encoder: MobileNetV2Encoder) -> None:
    aligned = AlignedEncoder(encoder, encoder.dim)
    aligned.set_standard(torch.full((encoder.dim,), 0.5), torch.full((encoder.dim,), 2.0))
    other = AlignedEncoder(untrained_encoder(5), encoder.dim)
    other.load_state_dict(aligned.state_dict())
    assert torch.equal(other.mean, aligned.mean) and torch.equal(other.deviation, aligned.deviation)
