"""Embeddings from pooled layers: the means of the full network's maps, joined, without what runs after the last."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from napari_lrmil.core.encoders import (
    CONVOLUTIONAL,
    AlignedEncoder,
    EncoderSpec,
    LoadedEncoder,
    NetworkEncoder,
    build_encoder,
    load_encoder,
    module_sha256,
    pool_layers,
    reduce_embedding,
    round_to_half,
    save_encoder,
)
from napari_lrmil.core.encoders.base import capture_activations
from napari_lrmil.core.encoders.foundation import FoundationEncoder
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.models import networks
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.runtimes.optimize import fold_batch_norm
from support.networks import SMALL, untrained_encoder

VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16}
ATTO = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
SPECS = {
    "mobilenet_v2": SMALL,
    "mobilenet_v3_large": EncoderSpec("mobilenet_v3_large", {"width": 0.25}),
    "convnext": EncoderSpec("convnext", ATTO),
    "vit": EncoderSpec("vit", VIT | {"image_size": 64}),
    "dinov2": EncoderSpec("dinov2", {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"image_size": 64}),
}
CASES = [
    ("mobilenet_v2", ("block_15",)),
    ("mobilenet_v2", ("block_14", "block_3")),
    ("mobilenet_v2", ("block_2", "head")),
    ("mobilenet_v3_large", ("block_12",)),
    ("mobilenet_v3_large", ("head", "block_4")),
    ("convnext", ("stage_3", "stage_2")),
    ("convnext", ("stage_4",)),
    ("vit", ("block_2",)),
    ("vit", ("block_1.cls", "block_2")),
    ("dinov2", ("block_2.cls",)),
]


def loaded(family: str) -> LoadedEncoder:
    if family == "mobilenet_v2":
        encoder: NetworkEncoder = untrained_encoder()
    else:
        torch.manual_seed(0)
        encoder = build_encoder(SPECS[family])
    return LoadedEncoder(encoder, module_sha256(encoder))


def pixels(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def by_hand(encoder: NetworkEncoder, name: str) -> Tensor:
    """Return the mean over the map of the full network; of a class token the first token of the block's output."""
    block, _, token = name.partition(".")
    if not token:
        return encoder(pixels(), (block,)).maps[block].mean(dim=(2, 3))
    blocks = encoder.net.layers if encoder.spec.family == "vit" else encoder.net.encoder.layer
    with capture_activations({"out": blocks[int(block[6:]) - 1]}) as outputs:
        encoder(pixels())
    return outputs["out"][:, 0]


@pytest.mark.parametrize(("family", "layers"), CASES)
def test_the_embedding_is_the_pooled_maps_joined(family: str, layers: tuple[str, ...]) -> None:
    """In the order in which they are named; layers of other grids too. The hash is of the layers, too."""
    whole = loaded(family)
    pooled = pool_layers(whole, layers)
    expected = torch.cat([by_hand(whole.encoder, name) for name in layers], dim=1)
    encoded = pooled.encoder(pixels(), (last := list(pooled.encoder.layers)[-1],))
    torch.testing.assert_close(encoded.embedding, expected, rtol=1e-5, atol=1e-6)
    assert encoded.maps[last].shape[1] == pooled.encoder.layers[last]
    assert pooled.encoder.dim == expected.shape[1] and pooled.sha256 != whole.sha256
    assert pooled.spec.full_name == f"{whole.spec.name}-{'+'.join(layers)}"
    assert pool_layers(whole, ()) is whole


def test_what_runs_after_the_last_layer_is_left_out() -> None:
    """Fewer weights, and no layer of the later ones; the original keeps its own."""
    whole = loaded("mobilenet_v2")
    pooled = pool_layers(whole, ("block_3", "block_14"))
    assert list(pooled.encoder.layers) == [f"block_{i}" for i in range(1, 15)]
    assert list(whole.encoder.layers)[-1] == "head"
    sizes = [sum(p.numel() for p in loaded.encoder.parameters()) for loaded in (pooled, whole)]
    assert sizes[0] < 0.6 * sizes[1]
    assert not [name for name in pooled.encoder.state_dict() if name.startswith("net.conv_1x1")]
    with pytest.raises(EncoderError, match=r"no layer block_15 in untrained, which ends with .* block_3 and block_14"):
        pooled.encoder(pixels(), ("block_15",))


def test_a_copy_for_a_student_has_the_same_embedding() -> None:
    pooled = pool_layers(loaded("mobilenet_v2"), ("block_14", "block_12"))
    copy = build_encoder(pooled.spec)
    copy.load_state_dict(pooled.encoder.state_dict())
    student = AlignedEncoder(copy, pooled.encoder.dim).eval()
    torch.testing.assert_close(student(pixels()).embedding, pooled.encoder(pixels()).embedding)
    assert not list(student.projection.parameters())


def test_other_layers_are_other_encoders() -> None:
    """The order of the joined layers counts, because it is the order of the embedding."""
    whole = loaded("mobilenet_v2")
    choices = [("block_15",), ("block_14",), ("block_14", "block_15"), ("block_15", "block_14"), ("head",)]
    assert len({pool_layers(whole, layers).sha256 for layers in choices} | {whole.sha256}) == 6
    assert len({pool_layers(whole, layers).spec.full_name for layers in choices} | {whole.spec.full_name}) == 6


@pytest.mark.parametrize(
    ("family", "layer", "available"),
    [
        ("mobilenet_v2", "block_17", "block_1, .*block_16, head"),
        ("mobilenet_v2", "block_3.cls", "block_1, .*block_16, head"),
        ("convnext", "head", "stage_1, stage_2, stage_3, stage_4"),
        ("vit", "block_4", "block_1, block_2, block_3, block_1.cls, block_2.cls, block_3.cls"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(family: str, layer: str, available: str) -> None:
    keys = r"\(encoder.teacher_layers, selection.layers\)"
    with pytest.raises(EncoderError, match=rf"no layer {layer} to pool in .*{keys}.*{available}$"):
        pool_layers(loaded(family), ("block_1" if family != "convnext" else "stage_1", layer))
    with pytest.raises(EncoderError, match="block_2 is joined with itself"):
        pool_layers(loaded("vit"), ("block_2", "block_2"))


def test_a_file_keeps_the_layers(tmp_path: Path) -> None:
    """A file without pooled layers has the description that earlier versions read."""
    pooled = pool_layers(loaded("mobilenet_v2"), ("block_12", "block_2"))
    for encoder in (pooled.encoder, untrained_encoder()):
        save_encoder(tmp_path / "encoder.safetensors", encoder)
        again = load_encoder(tmp_path / "encoder.safetensors")
        assert again.spec == replace(encoder.spec, settings=again.spec.settings)
        torch.testing.assert_close(again.encoder(pixels()).embedding, encoder(pixels()).embedding)
    assert "pooled" not in json.loads(json.dumps(untrained_encoder().spec.stored_values()))


def test_a_reduced_embedding_is_a_projection(tmp_path: Path) -> None:
    """Less the mean, times the components, with or without pooled layers; a file keeps it."""
    for layers in ((), ("block_12", "block_2")):
        whole = pool_layers(loaded("mobilenet_v2"), layers)
        random = torch.Generator().manual_seed(2)
        mean = torch.randn(whole.encoder.dim, generator=random).half().float()
        components = torch.randn(3, whole.encoder.dim, generator=random).half().float()
        reduced = reduce_embedding(whole, {"mean": mean, "components": components})
        expected = (whole.encoder(pixels()).embedding - mean) @ components.T
        torch.testing.assert_close(reduced.encoder(pixels()).embedding, expected, rtol=1e-4, atol=1e-4)
        assert reduced.encoder.dim == 3 and reduced.sha256 != whole.sha256
        assert reduced.spec.full_name == f"{whole.spec.full_name}-pca3"
        save_encoder(tmp_path / "encoder.safetensors", reduced.encoder)
        again = load_encoder(tmp_path / "encoder.safetensors")
        torch.testing.assert_close(again.encoder(pixels()).embedding, expected, rtol=1e-4, atol=1e-4)
        # Other layers of a reduced encoder are not reduced.
        assert pool_layers(reduced, ("block_2",)).encoder.reduction is None
    with pytest.raises(EncoderError, match=r"encoder\.pca=9999: the embedding of untrained has 320 dimensions"):
        build_encoder(replace(SMALL, pca=9999))


def test_a_shortened_encoder_has_no_later_layers_to_pool() -> None:
    pooled = pool_layers(loaded("mobilenet_v2"), ("block_5",))
    assert pool_layers(pooled, ("block_4",)).encoder.dim == pooled.encoder.layers["block_4"]
    with pytest.raises(EncoderError, match=r"no layer block_6 to pool .* available: .*block_4, block_5$"):
        pool_layers(pooled, ("block_6",))


class Registered:
    """Model object of a registry with a vision transformer like timm's."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Module()
        self.model.patches = torch.nn.Conv2d(3, 8, 16, 16)
        self.model.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)])
        self.model.num_prefix_tokens = 1

    def get_transform(self) -> None:
        return None

    def encode_image(self, image: Tensor) -> Tensor:
        tokens = self.model.patches(image / 255).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        for block in self.model.blocks:
            tokens = torch.tanh(block(tokens))
        return tokens[:, 0]


def registered() -> LoadedEncoder:
    spec = EncoderSpec("lazyslide", {"key": "x"}, "CC-BY-NC-ND-4.0", "lazyslide:x")
    encoder = FoundationEncoder(spec, Registered())
    return LoadedEncoder(encoder, module_sha256(encoder.net))


def test_a_foundation_encoder_gives_its_blocks() -> None:
    """The whole network runs, because it is the registry's."""
    whole = registered()
    assert list(whole.encoder.poolable) == [*(f"block_{i}" for i in (1, 2, 3)), *(f"block_{i}.cls" for i in (1, 2, 3))]
    pooled = pool_layers(whole, ("block_1", "block_2.cls"))
    with capture_activations({"1": whole.encoder.net.blocks[0], "2": whole.encoder.net.blocks[1]}) as outputs:
        whole.encoder(pixels())
    expected = torch.cat([outputs["1"][:, 1:].mean(dim=1), outputs["2"][:, 0]], dim=1)
    torch.testing.assert_close(pooled.encoder(pixels()).embedding, expected)
    reduction = {"mean": torch.ones(16), "components": torch.eye(2, 16)}
    reduced = reduce_embedding(pooled, reduction).encoder(pixels()).embedding
    torch.testing.assert_close(reduced, expected[:, :2] - 1)
    with pytest.raises(EncoderError, match=r"no layer head to pool in lazyslide:x"):
        pool_layers(whole, ("head",))


@pytest.mark.parametrize("pca", [None, 4])
def test_a_bundle_names_a_foundation_encoder_with_its_layers(
    pca: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the MIL and the reduction, and none of the encoder's weights."""
    teacher = pool_layers(registered(), ("block_1", "block_2.cls"))
    if pca is not None:
        random = torch.Generator().manual_seed(2)
        sizes = {"mean": (16,), "components": (pca, 16)}
        teacher = reduce_embedding(teacher, {k: torch.randn(s, generator=random) for k, s in sizes.items()})
    student = untrained_encoder()
    network = TeacherNetwork(teacher.encoder, GatedAttentionMIL(teacher.encoder.dim, 2))
    round_to_half(network.mil)
    if teacher.encoder.reduction is not None:
        round_to_half(teacher.encoder.reduction)
    plan = {"hr_mpp": 0.5, "lr_mpp": 2.0, "hr_patch_px": 64, "lr_patch_px": 64}
    card = plan | {"name": "layers", "classes": ("a", "b")}
    of_student = StudentNetwork(AlignedEncoder(student, student.dim), GatedAttentionMIL(student.dim, 2))
    write_bundle(tmp_path / "bundle", card, of_student, network)
    names = load_file(tmp_path / "bundle" / "teacher.safetensors")
    assert {name.partition(".")[0] for name in names} == {"mil"} | ({"reduction"} if pca else set())
    monkeypatch.setattr(networks, "resolve_encoder", lambda _: registered())
    again = Bundle(tmp_path / "bundle").teacher
    torch.testing.assert_close(again.encoder(pixels()).embedding, teacher.encoder(pixels()).embedding)
    assert again.mil.dim == teacher.encoder.dim


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_batch_norm_is_folded_in_a_shortened_network(family: str) -> None:
    pooled = pool_layers(loaded(family), ("stage_2", "stage_3") if family == "convnext" else ("block_7", "block_9"))
    expected = pooled.encoder(pixels()).embedding
    torch.testing.assert_close(fold_batch_norm(pooled.encoder)(pixels()).embedding, expected, rtol=1e-4, atol=1e-4)


def test_threads_that_share_a_network_do_not_mix_their_maps() -> None:
    """A window can run two slides at once."""
    encoder = pool_layers(loaded("mobilenet_v2"), ("block_3", "block_4")).encoder
    batches = [pixels()[:1], 255 - pixels()[:1]]
    expected = [encoder(batch).embedding for batch in batches]
    assert not torch.allclose(expected[0], expected[1])
    wrong: list[int] = []

    def encode(number: int) -> None:
        for _ in range(60):
            if not torch.allclose(encoder(batches[number]).embedding, expected[number], atol=1e-4):
                wrong.append(number)

    threads = [threading.Thread(target=encode, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
