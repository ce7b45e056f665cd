"""Foundation encoders, offline, with random weights of the real architectures; needs the extra `encoders`.

Weights are as large as the real ones, so those of more than `MOST` parameters run with two blocks of their depth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

operators = torch.library.Library("torchvision", "FRAGMENT")
try:  # torchvision beside another build of torch lacks its operators, none of which is needed here
    import torchvision  # noqa: F401
except RuntimeError:
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for module in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[module]
except ImportError:
    pass
timm = pytest.importorskip("timm", reason="the extra `encoders` is not installed")
pytest.importorskip("lazyslide_models", reason="the extra `encoders` is not installed")

from napari_lrmil.core.encoders import encoder_notice, foundation_cards, resolve_encoder  # noqa: E402
from napari_lrmil.core.encoders.foundation import FoundationEncoder, load_foundation  # noqa: E402
from napari_lrmil.core.errors import EncoderError  # noqa: E402

MOST = 100e6
# Hub id -> timm architecture that its configuration names, for those that timm builds.
ARCHITECTURES = {
    "MahmoodLab/uni": "vit_large_patch16_224",
    "MahmoodLab/UNI2-h": "vit_giant_patch14_224",
    "paige-ai/Virchow": "vit_huge_patch14_224",
    "paige-ai/Virchow2": "vit_huge_patch14_224",
    "bioptimus/H-optimus-0": "vit_giant_patch14_reg4_dinov2",
    "bioptimus/H-optimus-1": "vit_giant_patch14_reg4_dinov2",
    "bioptimus/H0-mini": "vit_base_patch14_reg4_dinov2",
    "prov-gigapath/prov-gigapath": "vit_giant_patch14_dinov2",
    "Wangyh/mSTAR": "vit_large_patch16_224",
    "1aurent/resnet50.lunit_bt": "resnet50",
    "1aurent/vit_small_patch8_224.lunit_dino": "vit_small_patch8_224",
    "1aurent/vit_small_patch16_224.lunit_dino": "vit_small_patch16_224",
}
GIVEN: dict[str, dict[str, Any]] = {  # what the hub's own configuration adds
    "paige-ai/Virchow": {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "img_size": 224},
    "paige-ai/Virchow2": {
        "init_values": 1e-5,
        "mlp_ratio": 5.3375,
        "global_pool": "",
        "img_size": 224,
        "reg_tokens": 4,
    },
    "bioptimus/H-optimus-0": {"img_size": 224, "global_pool": "token"},
    "bioptimus/H-optimus-1": {"img_size": 224, "global_pool": "token"},
    "bioptimus/H0-mini": {"img_size": 224, "global_pool": "", "mlp_ratio": 5.33334, "init_values": 1e-5},
    "prov-gigapath/prov-gigapath": {
        "img_size": 224,
        "patch_size": 16,
        "global_pool": "token",
        "mlp_ratio": 5.33334,
    },
}
BUILT = {  # name -> width of the embedding
    "uni": 1024,
    "uni2": 1536,
    "virchow": 2560,
    "virchow2": 2560,
    "h-optimus-0": 1536,
    "h-optimus-1": 1536,
    "h0-mini": 1536,
    "gigapath": 1536,
    "mstar": 1024,
    "lunit-bt": 2048,
    "lunit-dino-s8": 384,
    "lunit-dino-s16": 384,
}


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm build hub models with random weights, and the large ones with two blocks."""
    create = timm.create_model

    def created(name: str, *args: Any, **kwargs: Any) -> Any:
        hub = name.partition(":")[2]
        options = GIVEN.get(hub, {}) | kwargs | {"pretrained": False, "num_classes": 0}
        torch.manual_seed(0)
        shallow = {"depth": 2} if ARCHITECTURES[hub].startswith(("vit_large", "vit_huge", "vit_giant")) else {}
        return create(ARCHITECTURES[hub], *args, **options | shallow)

    monkeypatch.setattr(timm, "create_model", created)


def test_cards_tell_licence_and_terms() -> None:
    """All encoders of patches, none of slides, segmentation or stains; what is not told is said so."""
    cards = {card.name: card for card in foundation_cards()}
    assert {*BUILT, "conch", "phikonv2", "ctranspath", "hibou-b", "hibou-l", "gpfm", "plip"} <= set(cards)
    assert not {"cellpose", "madeleine", "grandqc-tissue", "rosie"} & set(cards)
    assert all(card.licence for card in cards.values())
    assert (cards["uni"].gated, cards["uni"].commercial, cards["uni"].width) == (True, False, 1024)
    notice = encoder_notice("lazyslide:uni")
    assert notice is not None
    for part in ("CC-BY-NC-ND-4.0", "not for commercial use", "agree to its terms at https://", "inherit"):
        assert part in notice


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("name", list(BUILT))
def test_patches_go_in_and_embeddings_and_maps_come_out(name: str) -> None:
    """Of any size; without gradients; tensors that a student's loss may keep."""
    loaded = resolve_encoder(f"lazyslide:{name}")
    assert loaded is not None
    encoder = loaded.encoder
    assert encoder.dim == BUILT[name]
    assert loaded.spec.licence not in ("", "unknown")
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    layers = list(encoder.layers)
    assert layers
    output = encoder(pixels, [layers[0], layers[-1]])
    assert output.embedding.shape == (2, BUILT[name])
    assert output.embedding.isfinite().all()
    for layer in (layers[0], layers[-1]):
        assert output.maps[layer].shape[:2] == (2, encoder.layers[layer])
        assert output.maps[layer].shape[2] == output.maps[layer].shape[3] > 1
    student = torch.ones(BUILT[name], requires_grad=True)
    (student * output.embedding).sum().backward()
    assert student.grad is not None


def test_phikon_v2_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class builds a DINOv2 of transformers and hands pixels to an image processor: both made here."""
    import transformers

    size = {"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "patch_size": 16, "image_size": 224}
    torch.manual_seed(0)
    network = transformers.Dinov2Model(transformers.Dinov2Config(**size)).eval()
    processor = transformers.BitImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **__: network)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda *_, **__: processor)
    encoder = load_foundation("lazyslide:phikonv2").encoder
    assert encoder.layers == {"block_1": 1024, "block_2": 1024}
    output = encoder(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8), ["block_2"])
    assert output.embedding.shape == (2, 1024) and output.maps["block_2"].shape == (2, 1024, 14, 14)


@pytest.mark.parametrize("name", ["ctranspath", "chief"])
def test_an_exported_program_is_used_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CTransPath and CHIEF come as programs of torch.export, which cannot be told to evaluate; here a small one."""
    import huggingface_hub

    program = torch.nn.Sequential(
        torch.nn.Conv2d(3, 768, 16, 16), torch.nn.BatchNorm2d(768), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(program, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=(batch,))
    torch.export.save(exported, tmp_path / "program.pt2")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "program.pt2"))
    encoder = load_foundation(f"lazyslide:{name}").encoder
    assert not encoder.train().eval().training and encoder.layers == {}
    output = encoder(torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8))
    assert output.embedding.shape == (3, 768) and output.embedding.isfinite().all()


@pytest.mark.usefixtures("without_weights")
def test_maps_keep_rows_before_columns() -> None:
    """A change in the upper right corner shows most in the map's upper right."""
    encoder = load_foundation("lazyslide:lunit-dino-s16").encoder
    plain = torch.full((1, 3, 224, 224), 128, dtype=torch.uint8)
    dotted = plain.clone()
    dotted[..., :32, 192:] = 255
    change = (
        (encoder(dotted, ["block_1"]).maps["block_1"] - encoder(plain, ["block_1"]).maps["block_1"]).abs().sum(1)[0]
    )
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < 2
    assert column >= change.shape[1] - 2


def test_a_local_file_of_weights(tmp_path: Path) -> None:
    """For sites without a way to the hub: classes that take a file."""
    torch.manual_seed(1)
    uni = timm.create_model(
        "vit_large_patch16_224", img_size=224, init_values=1e-5, num_classes=0, dynamic_img_size=True, pretrained=False
    )
    torch.save(uni.state_dict(), tmp_path / "uni.bin")
    loaded = load_foundation(f"lazyslide:uni@{tmp_path / 'uni.bin'}")
    assert torch.equal(loaded.encoder.net.cls_token, uni.cls_token)
    assert len(loaded.encoder.layers) == 24
    again = load_foundation(f"lazyslide:uni@{tmp_path / 'uni.bin'}")
    assert loaded.sha256 == again.sha256


def test_a_local_folder_of_weights(tmp_path: Path) -> None:
    """For sites without a way to the hub: a model's folder, as the hub has it, for all that timm builds."""
    from safetensors.torch import save_file

    torch.manual_seed(2)
    source = timm.create_model("vit_small_patch16_224", num_classes=0, pretrained=False)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_small_patch16_224", "num_classes": 0, "num_features": 384}
    config |= {"pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_foundation(f"lazyslide:lunit-dino-s16@{tmp_path}")
    assert torch.equal(loaded.encoder.net.cls_token, source.cls_token)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lazyslide:nothing", "no encoder lazyslide:nothing; available: "),
        ("lazyslide:cellpose", "no encoder lazyslide:cellpose"),
        ("lazyslide:uni@nowhere", "nowhere: there are no weights"),
        ("lazyslide:hibou-b", "lazyslide:hibou-b could not be loaded .*agree to its terms"),
        ("lazyslide:virchow", "lazyslide:virchow could not be loaded .*agree to its terms"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match=message) as caught:
        load_foundation(name)
    assert "\n" not in str(caught.value)


def test_a_file_for_a_class_that_takes_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(EncoderError, match="Virchow takes no file of weights"):
        load_foundation(f"lazyslide:virchow@{tmp_path / 'x.bin'}")


def test_it_is_a_teacher_only() -> None:
    """A student's weights must be ours to train and to share."""
    from napari_lrmil.core.encoders import EncoderSpec, build_encoder

    with pytest.raises(EncoderError, match="can be a frozen teacher only"):
        build_encoder(EncoderSpec("lazyslide", {"key": "uni"}, name="lazyslide:uni"))
    assert issubclass(FoundationEncoder, torch.nn.Module)
