"""Attention MIL heads of CLAM, torchmil and STAMP: the output on a bag is that of the program that saved them."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmil.models import ABMIL
from torchmil.models import CLAM_SB as TORCHMIL_CLAM

from lrmil_training.data.mil_head import read_mil_head
from lrmil_training.data.teacher_targets import FeatureStatistics
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.models.mil import pool_bag
from napari_lrmil.core.models.pooling import pool_instances

DIM, COUNT = 1024, 500
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
LOGITS = {"rtol": 1e-5, "atol": 1e-5}  # sums of 512 products in single precision, of size 5


def drawn(seed: int, **shapes: tuple[int, ...]) -> OrderedDict[str, Tensor]:
    """Return random tensors of a size that makes attention uneven; ``__`` in a name stands for a dot."""
    rng = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (name.replace("__", "."), 0.1 * torch.randn(shape, generator=rng)) for name, shape in shapes.items()
    )


def layers(**sizes: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weight and bias of linear layers, given as (outputs, inputs)."""
    weights = {f"{name}__weight": size for name, size in sizes.items()}
    return weights | {f"{name}__bias": size[:1] for name, size in sizes.items()}


def clam(hidden: int = 256, place: int = 3, classes: int = 2, *, gated: bool = True) -> OrderedDict[str, Tensor]:
    """Return a CLAM_SB of the published sizes: 1024-512-256 (small) or 1024-512-384 (big)."""
    net = f"attention_net__{place}"
    attention = (
        {f"{net}__attention_a__0": (hidden, 512), f"{net}__attention_b__0": (hidden, 512)}
        | {f"{net}__attention_c": (1, hidden)}
        if gated
        else {f"{net}__module__0": (hidden, 512), f"{net}__module__{place}": (1, hidden)}
    )
    instance = {f"instance_classifiers__{i}": (2, 512) for i in range(classes)}
    sizes = {"attention_net__0": (512, DIM)} | attention | {"classifiers": (classes, 512)} | instance
    return drawn(0, **layers(**sizes))


def bag(seed: int = 1) -> tuple[Tensor, FeatureStatistics]:
    """Return a bag whose dimensions have means and deviations of their own, and these statistics."""
    rng = torch.Generator().manual_seed(seed)
    mean, deviation = torch.randn(DIM, generator=rng), torch.rand(DIM, generator=rng) + 0.5
    return torch.randn(COUNT, DIM, generator=rng) * deviation + mean, FeatureStatistics(mean, deviation)


def published_clam(w: dict[str, Tensor], x: Tensor, place: int = 3, *, gated: bool = True) -> tuple[Tensor, Tensor]:
    """Return attention and logits by the formula of CLAM_SB in double precision."""
    w, x = {name: t.double() for name, t in w.items()}, x.double()

    def linear(name: str, rows: Tensor) -> Tensor:
        return rows @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    h, net = torch.relu(linear("attention_net.0", x)), f"attention_net.{place}"
    if gated:
        gate = torch.tanh(linear(f"{net}.attention_a.0", h)) * torch.sigmoid(linear(f"{net}.attention_b.0", h))
        scores = linear(f"{net}.attention_c", gate)
    else:
        scores = linear(f"{net}.module.{place}", torch.tanh(linear(f"{net}.module.0", h)))
    attention = torch.softmax(scores.T, dim=1)
    return attention[0], linear("classifiers", attention @ h)[0]


def assert_same(path: Path, attention: Tensor, logits: Tensor) -> None:
    """Check that the head, in torch and as arrays, gives this attention and these logits on the bag."""
    x, statistics = bag()
    mil = read_mil_head(path).build(statistics)
    output = mil(x)
    np.testing.assert_allclose(output.attention, attention, **CLOSE)
    np.testing.assert_allclose(output.logits, logits, **LOGITS)
    for pooled in (pool_instances(mil.weights(), x.numpy()), pool_bag(mil, x.numpy(), torch.device("cpu"), 128)):
        np.testing.assert_allclose(pooled.attention, attention, **CLOSE)
        np.testing.assert_allclose(pooled.logits, logits, **LOGITS)
        centred = pooled.evidence.sum(axis=0) + mil.centred_bias.numpy()
        np.testing.assert_allclose(centred, logits - logits.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "place", "gated"), [(256, 3, True), (384, 2, True), (256, 3, False)])
def test_clam_sb_gives_the_published_attention(tmp_path: Path, hidden: int, place: int, gated: bool) -> None:
    """Small and big, with the dropout layer and without, gated or not; instance classifiers change nothing."""
    weights, file = clam(hidden, place, gated=gated), tmp_path / "s_0_checkpoint.pt"
    torch.save(weights, file)
    attention, logits = published_clam(weights, bag()[0], place, gated=gated)
    assert attention.max() > 3 / COUNT, "attention that is flat would agree by chance"
    assert_same(file, attention, logits)


@pytest.mark.parametrize("wrap", ["module.", "model.model.", "net.module."])
def test_prefixes_and_lightning_checkpoints_are_read(tmp_path: Path, wrap: str) -> None:
    weights, file = clam(), tmp_path / "last.ckpt"
    wrapped = {f"{wrap}{name}": value for name, value in weights.items()}
    wrapped["instance_loss_fn.labels"] = torch.arange(2)
    torch.save({"epoch": 3, "state_dict": wrapped, "hyper_parameters": {"lr": 1e-4}}, file)
    assert_same(file, *published_clam(weights, bag()[0]))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("model", [ABMIL, TORCHMIL_CLAM])
def test_torchmil_gives_the_same_as_torchmil(tmp_path: Path, model: Any, gated: bool) -> None:
    """Torchmil's own network is the witness; its one logit is that of the second of two classes."""
    torch.manual_seed(0)
    theirs = model(in_shape=(DIM,), att_dim=128, gated=gated).eval()
    with torch.no_grad():
        theirs.pool.fc2.weight.mul_(8)
    file = tmp_path / "abmil.pth"
    torch.save(theirs.state_dict(), file)
    x, _ = bag()
    with torch.no_grad():
        logit, scores = copy.deepcopy(theirs).double()(x[None].double(), return_att=True)
    assert_same(file, torch.softmax(scores[0], dim=0), torch.tensor([0.0, float(logit)]))
    assert "tanh is assumed" in read_mil_head(file).note


class Marugoto(nn.Module):
    """The attention MIL of STAMP's marugoto, on one bag."""

    def __init__(self, classes: int, norm: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(DIM, 256), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 1))
        middle = [nn.BatchNorm1d(256)] if norm else []
        self.head = nn.Sequential(nn.Flatten(), *middle, nn.Dropout(), nn.Linear(256, classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        attention = torch.softmax(self.attention(h), dim=0)
        return attention[:, 0], self.head((attention * h).sum(0, keepdim=True))[0]


@pytest.mark.parametrize("norm", [True, False])
def test_stamp_gives_the_same_with_and_without_batch_norm(tmp_path: Path, norm: bool) -> None:
    torch.manual_seed(0)
    network, file = Marugoto(3, norm), tmp_path / "best_valid.pth"
    if norm:
        for _ in range(3):  # running statistics of its own
            network.head[1](2 * torch.randn(8, 256) + 1)
    torch.save({"model": network.state_dict()}, file)
    attention, logits = network.eval().double()(bag()[0].double())
    assert_same(file, attention.detach(), logits.detach())


def test_safetensors_and_half_precision_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    half = {name: value.half() for name, value in clam().items()}
    save_file(half, tmp_path / "head.safetensors")
    head = read_mil_head(tmp_path / "head.safetensors")
    assert (head.layout, head.dim, head.classes, head.file) == ("CLAM_SB", DIM, 2, "head.safetensors")
    assert len(head.sha256) == 64
    assert_same(tmp_path / "head.safetensors", *published_clam(half, bag()[0]))


def test_classes_change_places(tmp_path: Path) -> None:
    torch.save(clam(classes=3), tmp_path / "a.pt")
    head, (x, statistics) = read_mil_head(tmp_path / "a.pt"), bag()
    logits, ordered = head.build(statistics)(x).logits, head.with_order([2, 0, 1]).build(statistics)(x).logits
    torch.testing.assert_close(ordered, logits[[2, 0, 1]])


# ---------------------------------------------------------------- what is refused


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def _without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in clam().items() if key != name}


REFUSED = {
    "unknown names": ({"a.weight": torch.ones(2, 2)}, ["seen: a.weight", "expected CLAM_SB (attention_net.0"]),
    "CLAM_MB": (drawn(0, **layers(classifiers__0=(1, 512), attention_net__0=(512, 8))), ["CLAM_MB", "each class"]),
    "several attentions": (clam() | drawn(0, attention_net__3__attention_c__weight=(2, 256)), ["(2, 256)", "(1, 256)"]),
    "missing": (_without("classifiers.bias"), ["classifiers.bias is missing"]),
    "too much": (clam() | {"attention_net.4.weight": torch.ones(2)}, ["attention_net.4.weight", "does not have"]),
    "widths": (clam() | drawn(0, classifiers__weight=(2, 7)), ["classifiers", "(2, 7)", "(O, 512)"]),
    "NaN": (clam() | {"classifiers.bias": torch.tensor([0.0, torch.nan])}, ["classifiers.bias", "NaN"]),
    "ViT": ({"class_token": torch.ones(4)}, ["STAMP's vit", "no score for each patch"]),
    "mean": (drawn(0, **layers(mlp__0=(4, 8))), ["mean of the patches"]),
    "feat_ext": (drawn(0, **layers(feat_ext__0=(4, 8), pool__fc1=(2, 4))), ["activation"]),
    "no tensors": ({"epoch": 3, "optimiser": {}}, ["seen: epoch, optimiser"]),
    "no mapping": (torch.ones(3), ["found Tensor"]),
    "code": ({"state_dict": Payload()}, ["code in it is never run", "torch.save(model.state_dict(), FILE)"]),
    "twice": (clam() | {f"module.{k}": v for k, v in clam().items()}, ["two tensors"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_known_head_is_refused_in_a_sentence(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content, parts = REFUSED[case]
    torch.save(content, tmp_path / "head.pt")
    with pytest.raises(ConfigError) as error:
        read_mil_head(tmp_path / "head.pt")
    assert str(error.value).startswith(str(tmp_path / "head.pt"))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([1, 2]), b"PK\x03\x04" + bytes(50)])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("head.pt", "head.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="head"):
            read_mil_head(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        read_mil_head(tmp_path / "absent.pt")
