"""Every architecture from every source: shapes, layers, patch sizes, and weights that others published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from napari_lrmil.core.encoders import (
    AlignedEncoder,
    EncoderOutput,
    EncoderSpec,
    NetworkEncoder,
    build_encoder,
    encoder_notice,
    load_encoder,
    require_layers,
    resolve_encoder,
    round_to_half,
    save_encoder,
)
from napari_lrmil.core.encoders.huggingface import load_published
from napari_lrmil.core.errors import EncoderError

TOKENS = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"depth_multiplier": 0.25, "finegrained_output": False},
    "mobilenet_v3_large": {"width": 0.25},
    "convnext": {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 24]},
    "vit": TOKENS | {"intermediate_size": 48},
    "dinov2": TOKENS | {"mlp_ratio": 2},
    "dinov2_with_registers": TOKENS | {"mlp_ratio": 2, "num_register_tokens": 3},
}
FAMILIES = list(SETTINGS)
PUBLISHED = [family for family in FAMILIES if family != "mobilenet_v3_large"]  # which is written here


def tiny_encoder(family: str, seed: int = 0) -> NetworkEncoder:
    """Return a small network with random weights that a half can hold."""
    torch.manual_seed(seed)
    encoder = build_encoder(EncoderSpec(family, SETTINGS[family], name=f"tiny-{family}", licence="CC0-1.0"))
    round_to_half(encoder)
    return encoder.eval()


def pixels(side: int = 64, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def embed(encoder: NetworkEncoder, side: int = 64) -> torch.Tensor:
    with torch.no_grad():
        return encoder(pixels(side)).embedding


@pytest.mark.parametrize("side", [32, 64, 100, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_patch_size_gives_an_embedding_and_square_maps(family: str, side: int) -> None:
    """Also one that is no multiple of a token, and one that is not the size of pretraining."""
    encoder = tiny_encoder(family)
    with torch.no_grad():
        output = encoder(pixels(side), list(encoder.layers))
    assert output.embedding.shape == (2, encoder.dim)
    assert output.embedding.isfinite().all()
    for name, width in encoder.layers.items():
        assert output.maps[name].shape[:2] == (2, width), name
        assert output.maps[name].shape[2] == output.maps[name].shape[3] >= 1, name


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_keep_rows_before_columns(family: str) -> None:
    """A change in the upper right corner shows most in the map's upper right."""
    encoder = tiny_encoder(family)
    layer = next(iter(encoder.layers))
    plain = torch.full((1, 3, 56, 56), 128, dtype=torch.uint8)
    dotted = plain.clone()
    dotted[..., :14, 42:] = 255
    with torch.no_grad():
        change = (encoder(dotted, [layer]).maps[layer] - encoder(plain, [layer]).maps[layer]).abs().sum(1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < change.shape[0] / 2
    assert column >= change.shape[1] / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_for_layers_changes_nothing_and_leaves_no_hook(family: str) -> None:
    """What is asked for is an output of the network as it runs anyway."""
    encoder = tiny_encoder(family)
    with torch.no_grad():
        watched = encoder(pixels(), list(encoder.layers)).embedding
    assert torch.allclose(watched, embed(encoder))
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_of_gradient_reaches_the_first_weights(family: str) -> None:
    """Students are trained through whatever family."""
    encoder = (
        tiny_encoder(family).train().requires_grad_(True)
    )  # batch norm of random weights by its batch, or signals vanish
    encoder(pixels()).embedding.square().sum().backward()
    first = next(encoder.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_is_loaded(family: str, tmp_path: Path) -> None:
    """The file says what it is; nothing else is needed."""
    encoder = tiny_encoder(family)
    save_encoder(tmp_path / "e.safetensors", encoder)
    loaded = load_encoder(tmp_path / "e.safetensors")
    assert loaded.spec == encoder.spec
    assert torch.equal(embed(loaded.encoder), embed(encoder))


@pytest.mark.parametrize("family", FAMILIES)
def test_normalisation_is_that_of_the_spec(family: str) -> None:
    """Pixels that equal the mean are zeros to the network."""
    spec = EncoderSpec(family, SETTINGS[family], mean=(0.2, 0.4, 0.6), deviation=(0.5, 0.25, 0.2))
    x = torch.tensor([51, 102, 153], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert build_encoder(spec).normalised(x).abs().max() < 1e-6
    assert torch.allclose(build_encoder(spec).normalised(x + 51).flatten(), torch.tensor([0.4, 0.8, 1.0]))
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    normalised, (mean, deviation) = (
        build_encoder(spec).normalised(pixels),
        (torch.tensor(v) for v in (spec.mean, spec.deviation)),
    )
    expected = (pixels - 255 * mean.reshape(3, 1, 1)) / (255 * deviation).reshape(3, 1, 1)
    assert torch.equal(normalised, expected) and normalised.is_contiguous(memory_format=torch.channels_last)


def test_a_patch_too_small_for_the_network_is_one_sentence() -> None:
    with pytest.raises(EncoderError, match="32 px or more, found 16 x 16; set student_input_px"):
        tiny_encoder("convnext")(pixels(16))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_that_the_family_lacks_is_one_sentence(family: str) -> None:
    with pytest.raises(EncoderError, match=f"{family} has no setting wings"):
        build_encoder(EncoderSpec(family, SETTINGS[family] | {"wings": 2}))


# ---------------------------------------------------------------- as others publish them


def publish(folder: Path, encoder: NetworkEncoder, prefix: str = "", **config: Any) -> Path:
    """Write a model's folder as hubs have it: configuration, weights with a head, normalisation, card."""
    from transformers import CONFIG_MAPPING

    folder.mkdir(parents=True, exist_ok=True)
    heads = {"architectures": ["SomethingForImageClassification"], "id2label": {"0": "a"}, "problem_type": "x"}
    settings = CONFIG_MAPPING[encoder.spec.family](**encoder.spec.settings).to_dict() | heads | config
    (folder / "config.json").write_text(json.dumps(settings))
    state = {f"{prefix}{name}": value.contiguous() for name, value in encoder.net.state_dict().items()}
    save_file(state | {"classifier.weight": torch.zeros(2, encoder.dim)}, folder / "model.safetensors")
    normal = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- pathology\n---\n# A model\n")
    return folder


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("prefixed", [False, True])
def test_a_published_folder_is_read(family: str, prefixed: bool, tmp_path: Path) -> None:
    """Base model or one with a head: architecture, weights, normalisation and licence."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    source = tiny_encoder(family)
    prefix = f"{MODEL_MAPPING[CONFIG_MAPPING[family]].base_model_prefix}."
    folder = publish(tmp_path / "model", source, prefix if prefixed else "")
    for name in (str(folder), str(folder / "model.safetensors")):
        loaded = resolve_encoder(name)
        assert loaded is not None
        assert loaded.spec.licence == "apache-2.0"
        assert (loaded.spec.mean, loaded.spec.deviation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        state = loaded.encoder.net.state_dict()
        assert all(torch.equal(state[key], value) for key, value in source.net.state_dict().items())
        assert not loaded.encoder.training
        again = build_encoder(loaded.spec)  # a bundle holds the spec alone
        again.load_state_dict(loaded.encoder.state_dict())
        assert torch.equal(embed(again.eval()), embed(loaded.encoder))


def test_names_of_older_checkpoints_are_understood(tmp_path: Path) -> None:
    """Hubs hold weights that were written years ago."""
    source = tiny_encoder("vit")
    folder = publish(tmp_path / "model", source)
    old = {}
    for name, value in source.net.state_dict().items():
        older = name.replace("layers.", "encoder.layer.").replace("attention.q_proj", "attention.attention.query")
        older = older.replace("attention.k_proj", "attention.attention.key")
        older = older.replace("attention.v_proj", "attention.attention.value")
        older = older.replace("attention.o_proj", "attention.output.dense")
        older = older.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        old[f"vit.{older}"] = value.contiguous()
    save_file(old, folder / "model.safetensors")
    loaded = load_published(folder)
    assert torch.equal(loaded.encoder.net(torch.zeros(1, 3, 56, 56))[0], source.net(torch.zeros(1, 3, 56, 56))[0])


@pytest.mark.parametrize("family", PUBLISHED)
def test_weights_that_lack_a_tensor_are_refused(family: str, tmp_path: Path) -> None:
    """Random weights in a network that is believed to be trained would go unnoticed for weeks."""
    folder = publish(tmp_path / "model", tiny_encoder(family))
    state = {name: value.contiguous() for name, value in list(tiny_encoder(family).net.state_dict().items())[3:]}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(EncoderError, match="tensors are missing or of another shape, first "):
        load_published(folder)


def test_a_folder_of_what_nobody_publishes_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilenet_v3_large", "width": 0.25}))
    state = tiny_encoder("mobilenet_v3_large").net.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"mobilenet_v3_large are read from a \.safetensors file that this program"):
        load_published(tmp_path)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_alone_gives_random_weights_that_the_file_fixes(
    family: str, suffix: str, tmp_path: Path
) -> None:
    """For a student that learns from nothing; its name says so."""
    path = tmp_path / f"small.{suffix}"
    path.write_text(json.dumps({"model_type": family, **SETTINGS[family]}))
    torch.manual_seed(5)
    first = resolve_encoder(str(path))
    torch.manual_seed(6)
    second = resolve_encoder(str(path))
    assert first is not None and second is not None
    assert "untrained" in first.spec.name
    assert torch.equal(embed(first.encoder), embed(second.encoder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "config.json",
            '{"model_type": "swin"}',
            "model_type is 'swin', which is not supported; expected one of",
        ),
        ("config.json", "[1]", "expected a configuration with keys and values, found list"),
        ("config.json", "{", "not a readable configuration"),
        ("preprocessor_config.json", '{"image_mean": [1]}', "not three numbers"),
        ("model.safetensors", "text", "not a safetensors file"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = publish(tmp_path / "model", tiny_encoder("vit"))
    (folder / file).write_text(content)
    with pytest.raises(EncoderError, match=message) as caught:
        resolve_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(tmp_path: Path) -> None:
    """Reading one may run whatever its author wanted."""
    folder = publish(tmp_path / "model", tiny_encoder("vit"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin, a pickle"):
        resolve_encoder(str(folder))
    with pytest.raises(EncoderError, match=r"weights\.pth: a pickle"):
        resolve_encoder("weights.pth")


# ---------------------------------------------------------------- hub


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/", "hf:a/b/c", "hf:/name@main"])
def test_what_is_no_hub_id_is_told(name: str) -> None:
    with pytest.raises(EncoderError, match="expected hf:owner/name"):
        resolve_encoder(name)


def test_offline_a_model_comes_from_the_cache_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched once is used without asking anybody, and nothing is said of fetching."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="hf:owner/tiny was not fetched before and HF_HUB_OFFLINE is set"):
        resolve_encoder("hf:owner/tiny")
    repository = tmp_path / "models--owner--tiny"
    publish(repository / "snapshots" / "abc", tiny_encoder("dinov2"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    loaded = resolve_encoder("hf:owner/tiny")
    assert loaded is not None
    assert loaded.spec.name == "owner/tiny"
    assert encoder_notice("hf:owner/tiny") is None


def test_licence_and_terms_are_told_before_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the hub says of the model."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.hf_api import ModelInfo

    info = ModelInfo(id="owner/gated", gated="manual", cardData={"license": "cc-by-nc-4.0"}, siblings=[], tags=[])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    notice = encoder_notice("hf:owner/gated")
    assert notice is not None
    assert "cc-by-nc-4.0" in notice
    assert "agree to its terms at https://huggingface.co/owner/gated" in notice


def test_without_a_network_the_page_with_the_terms_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("Name or service not known\nand a second line")

    class OddError(Exception):
        """As the hub's connection raises: of no family that is known here."""

    def odd(*_: object, **__: object) -> None:
        raise OddError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", odd)
    assert encoder_notice("hf:owner/away") is None
    monkeypatch.setattr("napari_lrmil.core.encoders.huggingface._find_cached", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        EncoderError, match=r"huggingface.co/owner/away, where its licence and terms are, .*network"
    ) as caught:
        resolve_encoder("hf:owner/away")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- in the teacher's space


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_any_family_reaches_the_teachers_width(family: str) -> None:
    student = AlignedEncoder(tiny_encoder(family), 37)
    assert student(pixels()).embedding.shape == (2, 37)


def test_an_encoder_without_layers_says_what_to_set() -> None:
    class Blind:
        spec = EncoderSpec(name="blind")
        dim = 1

        @property
        def layers(self) -> dict[str, int]:
            return {}

        def __call__(self, pixels: torch.Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
            return EncoderOutput(pixels, {})

    with pytest.raises(EncoderError, match=r"set stage1\.lambda_layer=0"):
        require_layers(Blind(), ["block_1"])
