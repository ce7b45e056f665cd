"""Attention MIL heads of other programs: CLAM_SB, torchmil's ABMIL and STAMP's marugoto, read by the names of weights.

A file is read with ``weights_only``: code in it never runs. Every tensor must have a known place, or be one that the
output of a bag does not depend on; otherwise the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrmil_training.data.teacher_targets import FeatureStatistics
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.formatting import shorten
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.models.mil import GatedAttentionMIL

OPEN_GATE = 30.0  # sigmoid(30) is 1 in float32, so the gate passes everything: attention without a gate
BATCH_NORM_EPS = 1e-5  # of torch, which STAMP does not change
MAX_SEEN, MAX_REASON_CHARS = 8, 160  # in messages
NESTED = ("state_dict", "model_state_dict", "model")  # keys under which programs put the weights
# Tensors that the output of a bag does not depend on: instance classifiers of CLAM, and weights of losses.
UNUSED = re.compile(
    r"(^|\.)((instance|inst)_(classifiers|loss_fn)|criterion|loss|loss_fn|class_weights)(\.|$)|num_batches_tracked$"
)
REFUSED = (  # layers of networks that are no attention MIL, and what they are
    ("classifiers.0.weight", "CLAM_MB has an attention for each class"),
    ("feat_ext.", "the file does not say which activation follows the layers of feat_ext"),
    ("class_token", "a vision transformer (STAMP's vit) has no score for each patch"),
    ("cls_token", "a transformer (TransMIL) has no score for each patch"),
    ("pos_layer.", "a transformer (TransMIL) has no score for each patch"),
    ("mlp.0.weight", "a network on the mean of the patches (STAMP's mlp) has no attention"),
    ("fc.weight", "a linear layer on the mean of the patches (STAMP's linear) has no attention"),
)
EXPECTED = (
    "CLAM_SB (attention_net.0, attention_net.3.attention_a.0, attention_b.0, attention_c, classifiers), torchmil's "
    "ABMIL (pool.fc1, pool.fc_gated, pool.fc2, classifier) or STAMP's attention MIL (encoder.0, attention.0, "
    "attention.2, head.3)"
)


@dataclass(frozen=True)
class Layer:
    """Linear layer: (O, I) weight and (O,) bias."""

    weight: Tensor
    bias: Tensor

    def after(self, mean: Tensor, deviation: Tensor) -> Layer:
        """Return the layer on standardised inputs that gives what this one gives on raw inputs."""
        return Layer(self.weight * deviation, self.bias + self.weight @ mean)


@dataclass(frozen=True)
class MilHead:
    """Attention MIL of another program, on the raw embeddings of its encoder.

    Attributes
    ----------
    layout
        Network that the names belong to, such as ``CLAM_SB``.
    V, w, classifier
        Layers of the attention and of the classes. A bias of the attention score cancels in the softmax.
    U
        Layer of the gate; None for attention without a gate.
    projection
        Layer before attention and classifier, followed by ReLU; None if there is none.
    note
        What the file does not say and is assumed; empty if nothing is.
    file, sha256
        Name of the file without folders, and the hash of its content.
    order
        Output of the file that each class is, if they were reordered; empty: as in the file.
    """

    layout: str
    V: Layer
    w: Tensor
    classifier: Layer
    U: Layer | None = None
    projection: Layer | None = None
    note: str = ""
    file: str = field(default="", kw_only=True)
    sha256: str = field(default="", kw_only=True)
    order: tuple[int, ...] = field(default=(), kw_only=True)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return (self.projection or self.V).weight.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.classifier.bias)

    def with_order(self, order: Sequence[int]) -> MilHead:
        """Return the head with its classes in another order: output i is that of class ``order[i]``."""
        rows, before = list(order), self.order or tuple(range(self.classes))
        classifier = Layer(self.classifier.weight[rows], self.classifier.bias[rows])
        return replace(self, classifier=classifier, order=tuple(before[i] for i in rows))

    @property
    def fingerprint(self) -> str:
        """Text that identifies the weights and the order of the classes."""
        is_moved = self.order != tuple(sorted(self.order))
        return f"{self.sha256} {','.join(map(str, self.order))}" if is_moved else self.sha256

    def build(self, statistics: FeatureStatistics) -> GatedAttentionMIL:
        """Return the head as a frozen MIL that standardises embeddings first, with the same output.

        The first layers absorb the statistics. The student's embeddings are standardised, so the same weights serve it.

        Parameters
        ----------
        statistics
            (D,) mean and deviation of the training slides' embeddings.
        """
        mean, deviation = statistics.mean.double(), statistics.deviation.double()
        layers = {"V": self.V, "U": self.U or self._open_gate(), "classifier": self.classifier}
        if self.projection is None:
            layers = {name: layer.after(mean, deviation) for name, layer in layers.items()}
        else:
            layers["projection"] = self.projection.after(mean, deviation)
        state = {
            f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")
        }
        state |= {"w.weight": self.w, "mean": mean, "deviation": deviation}
        width = None if self.projection is None else len(self.projection.bias)
        mil = GatedAttentionMIL(self.dim, self.classes, len(self.V.bias), width)
        mil.load_state_dict({name: value.float() for name, value in state.items()})
        return mil.eval().requires_grad_(False)

    def _open_gate(self) -> Layer:
        return Layer(torch.zeros_like(self.V.weight), torch.full_like(self.V.bias, OPEN_GATE))


# ---------------------------------------------------------------- the file


def read_mil_head(path: Path) -> MilHead:
    """Return the attention MIL of a file of another program; see the module's text for what is read.

    Parameters
    ----------
    path
        Weights as ``torch.save`` writes them (``.pt``, ``.pth``, ``.ckpt``), or a safetensors file.

    Raises
    ------
    ConfigError
        If the file is missing, holds more than weights, or its tensors are not those of a known head.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected the weights of an attention MIL (teacher.mil)")
    tensors = _find_tensors(path, _load(path))
    named = _drop_wrappers(path, tensors)
    layout, prefix = _recognise(path, named)
    own = {name.removeprefix(prefix): t for name, t in named.items() if name.startswith(prefix)}
    taken = _Taken(path, own)
    head = layout.read(taken)
    left = [prefix + name for name in taken.left] + [name for name in named if not name.startswith(prefix)]
    unknown = [name for name in left if not UNUSED.search(name)]
    if unknown:
        raise _refusal(
            path, f"it has the layers of {layout.name}, and tensors that {layout.name} does not have", unknown
        )
    return replace(head, file=path.name, sha256=file_sha256(path))


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"{path}: not a safetensors file ({shorten(str(error), MAX_REASON_CHARS)})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises errors of any kind
        refused = re.search(r"(?:GLOBAL|Unsupported \w+:?|class) ([\w.]+)", str(error))
        what = f"more than weights ({refused[1]})" if refused else "no weights that can be read safely"
        raise ConfigError(
            f"{path}: the file holds {what}, and code in it is never run; save the weights alone, with "
            "torch.save(model.state_dict(), FILE) in the program that trained it"
        ) from error


def _find_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the tensors by name, from the file's top or from where programs nest them."""
    for nested in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(nested), Mapping):
            content = content[nested]
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected tensors by name, found {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        seen = ", ".join(map(str, list(content)[:MAX_SEEN])) or "nothing"
        raise ConfigError(f"{path}: no tensors by name; seen: {seen}; expected weights, or a key state_dict with them")
    broken = next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise ConfigError(f"{path}: tensor {broken} has values that are NaN or infinite; the training has diverged")
    return tensors


def _drop_wrappers(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without ``module`` in their names, which wrappers (DataParallel, LazyLinear) add."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = ".".join(part for part in name.split(".") if part != "module")
        if short in named:
            raise ConfigError(f"{path}: two tensors are named {short} without 'module'; save one network alone")
        named[short] = value
    return named


# ---------------------------------------------------------------- the layouts


class _Taken:
    """Tensors of a file, of which a layout takes those it has a place for."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.left = path, dict(tensors)

    def tensor(self, name: str) -> Tensor:
        if name not in self.left:
            raise _refusal(self.path, f"tensor {name} is missing", self.left)
        return self.left.pop(name).double()

    def layer(self, name: str, width: int | None = None, outputs: int | None = None) -> Layer:
        """Return a linear layer, whose inputs and outputs must be as many as stated."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        shape = tuple(weight.shape)
        fits = len(shape) == 2 and width in (None, shape[1]) and outputs in (None, shape[0])
        if not fits or tuple(bias.shape) != shape[:1]:
            expected = f"({outputs or 'O'}, {width or 'I'}) and ({outputs or 'O'},)"
            raise ConfigError(
                f"{self.path}: layer {name} has weight {shape} and bias {tuple(bias.shape)}; expected {expected}"
            )
        return Layer(weight, bias)

    def score(self, name: str, hidden: int) -> Tensor:
        """Return the (1, H) weight of the attention score; its bias, if any, cancels in the softmax."""
        self.left.pop(f"{name}.bias", None)
        weight = self.tensor(f"{name}.weight")
        if tuple(weight.shape) != (1, hidden):
            raise ConfigError(
                f"{self.path}: layer {name} has weight {tuple(weight.shape)}; expected (1, {hidden}), one attention "
                "for all classes"
            )
        return weight

    def has(self, name: str) -> bool:
        return name in self.left

    def first(self, names: Sequence[str]) -> str:
        """Return the first of the layers that exists, or the last."""
        return next((name for name in names if self.has(f"{name}.weight")), names[-1])


def _read_clam(taken: _Taken) -> MilHead:
    """Return CLAM_SB. The attention is layer 3, or 2 in versions that had no dropout layer if it was off."""
    projection = taken.layer("attention_net.0")
    width = len(projection.bias)
    place = taken.first(["attention_net.2.attention_c", "attention_net.3.attention_c"]).removesuffix(".attention_c")
    if taken.has(f"{place}.attention_c.weight"):
        V = taken.layer(f"{place}.attention_a.0", width)
        U: Layer | None = taken.layer(f"{place}.attention_b.0", width, len(V.bias))
        w = taken.score(f"{place}.attention_c", len(V.bias))
    else:  # gate=False
        place = taken.first(["attention_net.2.0", "attention_net.3.0"]).removesuffix(".0")
        V, U = taken.layer(f"{place}.0", width), None
        w = taken.score(taken.first([f"{place}.2", f"{place}.3"]), len(V.bias))
    return MilHead("CLAM_SB", V, w, taken.layer("classifiers", width), U, projection)


def _read_torchmil(taken: _Taken) -> MilHead:
    """Return torchmil's ABMIL or CLAM_SB. Its one output is the logit of the second of two classes."""
    V = taken.layer("pool.fc1")
    dim, hidden = V.weight.shape[1], len(V.bias)
    U = taken.layer("pool.fc_gated", dim, hidden) if taken.has("pool.fc_gated.weight") else None
    w = taken.score("pool.fc2", hidden)
    return MilHead(
        "torchmil ABMIL",
        V,
        w,
        _two_classes(taken.layer("classifier", dim)),
        U,
        note="the file does not say the activation of the attention (att_act); tanh is assumed, torchmil's default",
    )


def _read_marugoto(taken: _Taken) -> MilHead:
    """Return the attention MIL of STAMP's marugoto; a batch norm before the classes is folded into them."""
    projection = taken.layer("encoder.0")
    width = len(projection.bias)
    V = taken.layer("attention.0", width)
    w = taken.score("attention.2", len(V.bias))
    norm = ("weight", "bias", "running_mean", "running_var")
    scale, shift = torch.ones(width).double(), torch.zeros(width).double()
    if taken.has("head.1.running_mean"):
        weight, bias, mean, variance = (taken.tensor(f"head.1.{part}") for part in norm)
        scale = weight / (variance + BATCH_NORM_EPS).sqrt()
        shift = bias - mean * scale
    place = taken.first(["head.1", "head.2", "head.3"])
    classifier = _two_classes(taken.layer(place, width).after(shift, scale))
    return MilHead("STAMP attention MIL", V, w, classifier, None, projection)


def _two_classes(layer: Layer) -> Layer:
    """Return a classifier of one output, the logit of the second class, as one of two classes; others unchanged."""
    if len(layer.bias) != 1:
        return layer
    return Layer(
        torch.cat([torch.zeros_like(layer.weight), layer.weight]), torch.cat([torch.zeros_like(layer.bias), layer.bias])
    )


@dataclass(frozen=True)
class _Layout:
    """Network by which a file is read, with the tensors whose names show it."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[_Taken], MilHead]


LAYOUTS = (
    _Layout("CLAM_SB", ("attention_net.0.weight", "classifiers.weight"), _read_clam),
    _Layout("torchmil's ABMIL", ("pool.fc1.weight", "pool.fc2.weight"), _read_torchmil),
    _Layout("STAMP's attention MIL", ("encoder.0.weight", "attention.0.weight"), _read_marugoto),
)


def _recognise(path: Path, named: Mapping[str, Tensor]) -> tuple[_Layout, str]:
    """Return the layout of the tensors, and what stands in front of all its names, such as ``model.``."""
    for mark, reason in REFUSED:
        if any(f".{name}".find(f".{mark}") >= 0 for name in named):
            raise _refusal(path, reason, named)
    for layout in LAYOUTS:
        prefixes = [name.removesuffix(layout.marks[0]) for name in named if f".{name}".endswith(f".{layout.marks[0]}")]
        for prefix in prefixes:
            if all(prefix + mark in named for mark in layout.marks):
                return layout, prefix
    raise _refusal(path, "the tensors are not those of a known attention MIL", named)


def _refusal(path: Path, reason: str, names: Mapping[str, Any] | Sequence[str]) -> ConfigError:
    seen, more = (
        ", ".join(list(names)[:MAX_SEEN]),
        f" and {len(names) - MAX_SEEN} more" if len(names) > MAX_SEEN else "",
    )
    return ConfigError(f"{path}: {reason}; seen: {seen}{more}; expected {EXPECTED}")
