"""MobileNetV3-Large: size and work of the paper's table, named maps, and small students by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lrmil_training.config import SMALL_STUDENTS
from napari_lrmil.core.encoders import (
    AlignedEncoder,
    EncoderSpec,
    build_encoder,
    encoder_notice,
    resolve_encoder,
    round_to_half,
)
from napari_lrmil.core.encoders.mobilenet_v3 import LARGE, MobileNetV3Encoder, round_channels
from napari_lrmil.core.encoders.registry import UNTRAINED_ENCODERS
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, write_bundle
from support.fake_slides import one_sentence
from support.networks import CLASSES

# Table 1 of Howard et al. 2019, typed again: kernel, expanded, out, squeezed to (0: not), stride
TABLE = (
    (3, 16, 16, 0, 1), (3, 64, 24, 0, 2), (3, 72, 24, 0, 1),
    (5, 72, 40, 24, 2), (5, 120, 40, 32, 1), (5, 120, 40, 32, 1),
    (3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1),
    (3, 480, 112, 120, 1), (3, 672, 112, 168, 1),
    (5, 672, 160, 168, 2), (5, 960, 160, 240, 1), (5, 960, 160, 240, 1),
)  # fmt: skip


def count_by_hand(side: int) -> tuple[int, int]:
    """Return parameters and multiply-adds of the convolutions for a square patch, from the table alone."""
    side //= 2
    parameters, macs, inside = 3 * 16 * 9 + 2 * 16, side**2 * 3 * 16 * 9, 16
    for kernel, expanded, out, squeezed, stride in TABLE:
        if expanded != inside:
            parameters += inside * expanded + 2 * expanded
            macs += side**2 * inside * expanded
        side //= stride
        parameters += kernel**2 * expanded + 2 * expanded
        macs += side**2 * kernel**2 * expanded
        if squeezed:
            parameters += 2 * expanded * squeezed + squeezed + expanded
            macs += 2 * expanded * squeezed
        parameters += expanded * out + 2 * out
        macs += side**2 * expanded * out
        inside = out
    return parameters + inside * 960 + 2 * 960, macs + side**2 * inside * 960


def count_multiply_adds(encoder: MobileNetV3Encoder, side: int) -> int:
    """Return the number of multiply-adds that the convolutions perform."""
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        encoder(torch.zeros((1, 3, side, side), dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return total


def test_weights_and_work_are_those_of_the_paper() -> None:
    encoder = MobileNetV3Encoder(EncoderSpec("mobilenet_v3_large")).eval()
    parameters, macs = count_by_hand(128)
    assert sum(p.numel() for p in encoder.parameters()) == parameters == 2_971_952
    assert count_multiply_adds(encoder, 128) == macs
    assert 0.06e9 < macs < 0.08e9, "the paper has 219 million at 224 px, classifier included"


def test_every_block_has_a_map_of_its_width_and_size() -> None:
    encoder = MobileNetV3Encoder(EncoderSpec("mobilenet_v3_large", {"width": 0.5})).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        output = encoder(pixels, list(encoder.layers))
    rows = 32
    for i, row in enumerate(LARGE, start=1):
        rows //= row.stride
        assert output.maps[f"block_{i}"].shape == (2, round_channels(row.out / 2), rows, rows * 3 // 2), i
    assert list(encoder.layers) == [*(f"block_{i}" for i in range(1, 16)), "head"]
    assert output.maps["head"].shape == (2, 480, 2, 3)
    torch.testing.assert_close(output.embedding, output.maps["head"].mean(dim=(2, 3)))


def test_channels_are_multiples_of_eight_and_never_much_fewer() -> None:
    assert [round_channels(c) for c in (1, 18, 30, 42, 60, 92)] == [8, 24, 32, 40, 64, 96]
    assert all(round_channels(c) >= 0.9 * c and round_channels(c) % 8 == 0 for c in np.arange(1, 1000, 0.5))


def test_the_input_is_added_where_shapes_agree_and_nowhere_else() -> None:
    blocks = MobileNetV3Encoder(EncoderSpec("mobilenet_v3_large")).net.blocks
    assert [i for i, b in enumerate(blocks, start=1) if b.residual] == [1, 3, 5, 6, 8, 9, 10, 12, 14, 15]


@pytest.mark.parametrize("settings", [{"width": 0}, {"width": "wide"}, {"depth": 3}])
def test_settings_that_make_no_network_are_one_sentence(settings: dict[str, object]) -> None:
    with pytest.raises(EncoderError, match="mobilenet_v3_large") as caught:
        build_encoder(EncoderSpec("mobilenet_v3_large", settings))
    assert one_sentence(caught.value)


@pytest.mark.parametrize("name", list(UNTRAINED_ENCODERS))
def test_small_students_have_names_and_start_alive(name: str) -> None:
    """Distillation keeps batch norm's statistics, so those of a fresh network must let a difference through."""
    loaded, again = resolve_encoder(name), resolve_encoder(name)
    assert loaded is not None and again is not None and loaded.sha256 == again.sha256
    assert loaded.spec.name == name and not loaded.encoder.training
    dark, light = (torch.full((1, 3, 64, 64), v, dtype=torch.uint8) for v in (60, 190))
    with torch.no_grad():
        noise = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        embeddings = loaded.encoder(torch.cat([dark, light, noise])).embedding
    assert embeddings.isfinite().all() and 1e-3 < embeddings.std() < 100
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", list(UNTRAINED_ENCODERS))
def test_random_weights_are_told_with_what_to_give_for_others(name: str) -> None:
    notice = encoder_notice(name)
    assert notice is not None and f"{name} starts with random weights" in notice
    assert "a .safetensors file" in notice and UNTRAINED_ENCODERS[name].family in notice


def test_the_settings_list_every_small_student() -> None:
    assert sorted(SMALL_STUDENTS) == sorted(UNTRAINED_ENCODERS)


def test_atto_is_as_wide_and_deep_as_its_name_says() -> None:
    loaded = resolve_encoder("convnext_atto")
    assert loaded is not None
    assert loaded.encoder.layers == {"stage_1": 40, "stage_2": 80, "stage_3": 160, "stage_4": 320}
    stages = loaded.encoder.get_submodule("net.encoder.stages")
    assert [len(stage.layers) for stage in stages] == [2, 2, 6, 2]  # type: ignore[union-attr]  # a ModuleList of them


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "convnext_atto"])
def test_a_bundle_brings_a_small_student_whose_width_the_projection_maps(name: str, tmp_path: Path) -> None:
    base = resolve_encoder(name)
    assert base is not None
    torch.manual_seed(0)
    student = StudentNetwork(AlignedEncoder(base.encoder, 48), GatedAttentionMIL(48, 2)).eval()
    round_to_half(student)
    card = {"hr_mpp": 0.5, "lr_mpp": 2.0, "hr_patch_px": 64, "lr_patch_px": 64}
    write_bundle(tmp_path / "b", {"name": "small", "classes": CLASSES} | card, student, None)
    loaded = Bundle(tmp_path / "b").student
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        embedding, expected = loaded.encoder(pixels).embedding, student.encoder(pixels).embedding
    assert embedding.shape == (2, 48) and torch.equal(embedding, expected)
