"""A student's patch classifier for WSInfer: the file that QuPath reads gives what the bundle gives, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.encoders import AlignedEncoder, EncoderSpec, build_encoder
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.features.torch_encoding import encode
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL, LinearTopkMIL
from napari_lrmil.core.models.networks import StudentNetwork, write_bundle
from napari_lrmil.core.models.patch_scores import patch_class_logits
from napari_lrmil.core.models.wsinfer_model import CONFIG, SCRIPT, write_wsinfer_model, wsinfer_limits
from napari_lrmil.core.patching.stain import StainStatistics, StainTarget

REQUIRED = {  # of WSInfer's model-config.schema.json, with the type of each
    "spec_version": str,
    "architecture": str,
    "num_classes": int,
    "patch_size_pixels": int,
    "spacing_um_px": float,
    "class_names": list,
    "transform": list,
}


@pytest.fixture(scope="module", params=["demo", "breast-idc"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """Return a bundle and the folder of its export; breast-idc resizes patches for its encoder."""
    bundle, folder = Bundle(request.param), tmp_path_factory.mktemp("model") / request.param
    write_wsinfer_model(folder, bundle)
    return bundle, folder


def prepared(config: dict[str, Any], pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return (B, h, w, 3) pixels after the transforms of a config, as WSInfer applies them with Pillow."""
    batch = []
    for patch in pixels:
        value: Any = Image.fromarray(patch)
        for step in config["transform"]:
            if step["name"] == "Resize":
                value = value.resize((step["arguments"]["size"],) * 2, Image.Resampling.BILINEAR)
            elif step["name"] == "ToTensor":
                value = torch.from_numpy(np.array(value)).permute(2, 0, 1).float() / 255
            else:
                mean, std = (torch.tensor(step["arguments"][key]).reshape(3, 1, 1) for key in ("mean", "std"))
                value = (value - mean) / std
        batch.append(value)
    return torch.stack(batch)


def require_same(exported: tuple[Bundle, Path], pixels: NDArray[np.uint8]) -> None:
    """Compare the exported file with the bundle on patches of the model's size."""
    bundle, folder = exported
    config = json.loads((folder / CONFIG).read_text())
    script: Any = torch.jit.load(folder / SCRIPT)  # type: ignore[no-untyped-call]
    embedding = encode(bundle.student.encoder, pixels, bundle.card.student_input_px, "cpu").embedding
    expected = bundle.student.mil.patch_logits(embedding)
    with torch.no_grad():
        for _ in range(3):  # later calls run what TorchScript has optimised
            found = script(prepared(config, pixels))
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_file_gives_what_the_bundle_gives_on_real_crops(exported: tuple[Bundle, Path], shared_data: Path) -> None:
    side = exported[0].card.lr_patch_px
    paths = sorted((shared_data / "patches" / "glas").rglob("*.png"))[:2]
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    crops = [image[y : y + side, x : x + side] for image in images for x, y in ((0, 0), (200, 90), (350, 250))]
    require_same(exported, np.stack(crops))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_patches_at_once(exported: tuple[Bundle, Path], count: int) -> None:
    side = exported[0].card.lr_patch_px
    require_same(exported, np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_the_config_has_what_the_schema_requires(exported: tuple[Bundle, Path]) -> None:
    (bundle, folder), card = exported, exported[0].card
    config = json.loads((folder / CONFIG).read_text())
    assert {key: type(value) for key, value in config.items()} == REQUIRED and config["spec_version"] == "1.0"
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (card.lr_patch_px, card.lr_mpp)
    assert config["class_names"] == list(card.classes) and config["num_classes"] == len(card.classes)
    assert [step["name"] for step in config["transform"]] == ["Resize", "ToTensor", "Normalize"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, SCRIPT, "README.md"])
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "Research use only" in readme and all(text in readme for text in wsinfer_limits(bundle.card))


def test_what_wsinfer_cannot_do_is_said(exported: tuple[Bundle, Path]) -> None:
    card = exported[0].card
    texts = " ".join(wsinfer_limits(card))
    assert "Attention" in texts and "not calibrated" in texts and "normalises colour" not in texts
    stain = StainTarget("reinhard", StainStatistics((0.4, 0.5, 0.3), (60.0, 20.0, 0.0), (9.0, 9.0, 9.0), 9000))
    assert "normalises colour (reinhard)" in " ".join(wsinfer_limits(card.model_copy(update={"stain": stain})))


TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
FAMILIES = {  # encoder, and the side to which patches of 64 px are resized
    "mobilenet_v3_large": ({"width": 0.25}, None, ()),
    "convnext": ({"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}, None, ("stage_2",)),
    "vit": (TOKENS | {"intermediate_size": 64, "patch_size": 16}, 48, ("block_1", "block_2.cls")),
    "dinov2": (TOKENS | {"mlp_ratio": 2, "patch_size": 14}, None, ()),
    "dinov2_with_registers": (TOKENS | {"mlp_ratio": 2, "patch_size": 14}, 56, ("block_2",)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_exported(tmp_path: Path, family: str) -> None:
    """The check of the writer, on another number of patches than the traced one, passes for each architecture."""
    settings, input_px, pooled = FAMILIES[family]
    torch.manual_seed(5)
    encoder = build_encoder(EncoderSpec(family, settings, "BSD-3-Clause", family, pooled=pooled))
    student = StudentNetwork(AlignedEncoder(encoder, encoder.dim), GatedAttentionMIL(encoder.dim, 2, 4)).eval()
    card = {"name": family, "classes": ("a", "b"), "hr_mpp": 0.5, "lr_mpp": 2.0, "hr_patch_px": 64, "lr_patch_px": 64}
    bundle = write_bundle(tmp_path / "bundle", card | {"student_input_px": input_px}, student, None)
    write_wsinfer_model(tmp_path / "model", bundle)
    assert (tmp_path / "model" / SCRIPT).stat().st_size > 10_000


def test_a_file_that_would_differ_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: Any, *_: object, **__: object) -> Any:
        return lambda patches: module(patches) + 0.01

    monkeypatch.setattr(torch.jit, "trace", wrong)
    with pytest.raises(BundleError, match="as TorchScript differs by"):
        write_wsinfer_model(tmp_path / "model", Bundle("demo"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "mil",
    [GatedAttentionMIL(6, 3, 4), GatedAttentionMIL(6, 3, 4, projection=5), LinearTopkMIL(6, 3, 0.5)],
    ids=["gated", "projected", "linear"],
)
def test_scores_of_patches_are_those_of_the_network(mil: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    mil.set_standard(torch.randn(6, generator=generator) * 5, torch.rand(6, generator=generator) + 0.1)
    instances = torch.randn(11, 6, generator=generator)
    with torch.no_grad():
        expected = mil.patch_logits(instances).numpy()
    np.testing.assert_allclose(patch_class_logits(mil.weights(), instances.numpy(), chunk_rows=4), expected, atol=1e-5)
    with torch.no_grad():
        alone = mil(instances[:1]).logits.numpy()
    np.testing.assert_allclose(expected[0], alone, atol=1e-5, err_msg="they are the logits of a bag of one patch")
