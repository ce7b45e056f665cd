"""Pathology foundation encoders as frozen teachers, through the registry of ``lazyslide-models`` (extra `encoders`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from napari_lrmil.core.encoders.base import (
    CLASS_TOKEN,
    EncoderOutput,
    NetworkEncoder,
    capture_activations,
    map_layer,
)
from napari_lrmil.core.encoders.spec import FROZEN, EncoderSpec
from napari_lrmil.core.encoders.weights import LoadedEncoder, module_sha256
from napari_lrmil.core.errors import EncoderError

FOUNDATION_PREFIX = f"{FROZEN}:"
PROBE_PX = 224  # side of a blank patch that reveals output widths; every registry model resizes its input
TIMM_HUB_PREFIXES = ("hf-hub:", "hf_hub:")  # timm accepts both
CNN_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class EncoderCard:
    """Description of a foundation encoder in the registry.

    Attributes
    ----------
    name
        NAME in ``lazyslide:NAME``.
    licence
        Licence of the weights.
    gated
        Whether its hub page requires an agreement.
    commercial
        Whether the licence allows commercial use; None if it is not stated.
    url
        Address of its description.
    width
        Width of the embedding, if it is stated.
    parameters
        Number of parameters, if it is stated.
    about
        Description in one sentence.
    """

    name: str
    licence: str
    gated: bool
    commercial: bool | None
    url: str
    width: int | None
    parameters: str
    about: str

    @property
    def notice(self) -> str:
        """Licence and terms, shown before a download."""
        use = {True: "", False: ", not for commercial use", None: ""}[self.commercial]
        gated = f"; gated: agree to its terms at {self.url} and call `hf auth login` once" if self.gated else ""
        terms = f"licence {self.licence}{use}{gated}; models trained with it inherit these terms"
        return f"{FOUNDATION_PREFIX}{self.name}: {terms}"


def foundation_cards() -> list[EncoderCard]:
    """Return the patch encoders of the registry.

    Raises
    ------
    EncoderError
        If the extra is not installed.
    """
    registry = _registry()
    return [_card(name, registry[name]) for name in sorted(registry) if hasattr(registry[name], "encode_image")]


def foundation_card(name: str) -> EncoderCard:
    """Return one of `foundation_cards`; raise `EncoderError` for an unknown name."""
    return _card(name, _model_class(name))


class FoundationEncoder(NetworkEncoder):
    """Frozen encoder of the registry, with its own preprocessing; maps if the architecture keeps positions.

    Parameters
    ----------
    spec
        Specification whose settings hold the registry's name.
    model
        Model object of the registry.

    Raises
    ------
    EncoderError
        If the model gives no embedding of a patch.
    """

    def __init__(self, spec: EncoderSpec, model: Any) -> None:
        super().__init__(spec)
        if not isinstance(getattr(model, "model", None), nn.Module):
            raise EncoderError(f"{spec.name} holds no torch network; choose another encoder of the registry")
        self._model = (model,)  # in a tuple, so that torch does not register its network a second time
        self.net = _frozen(model.model)
        self.training = False
        self._prepare: Callable[[Any], Any] | None = model.get_transform()
        self._map_layers = _find_map_layers(self.net)
        blank = torch.zeros(1, 3, PROBE_PX, PROBE_PX, dtype=torch.uint8)
        probe = self._encode(blank, tuple(self._map_layers))
        self.dim = probe.embedding.shape[1]
        self._widths = {name: layer_map.shape[1] for name, layer_map in probe.maps.items()}
        self._set_embedding()

    def train(self, mode: bool = True) -> FoundationEncoder:
        """Do nothing: the encoder is frozen, and exported programs raise an error on a change of mode."""
        return self

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths; empty if the architecture has none."""
        return self._widths

    @property
    def poolable(self) -> dict[str, int]:
        """Names of the layers, for the mean of their map, and with ``.cls`` for the class token of a block with one."""
        has_token = [name for name, (_, prefix_tokens) in self._map_layers.items() if prefix_tokens]
        return self._widths | {f"{name}{CLASS_TOKEN}": self._widths[name] for name in has_token}

    def with_spec(self, spec: EncoderSpec) -> FoundationEncoder:
        """Return the same network with the embedding of another specification: other layers, or a reduction."""
        return FoundationEncoder(spec, self._model[0])

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        prepared = self._prepare(pixels) if self._prepare else pixels
        with capture_activations({name: self._map_layers[map_layer(name)][0] for name in layers}) as outputs:
            embedding = torch.as_tensor(self._model[0].encode_image(prepared))
        if embedding.ndim != 2 or len(embedding) != len(pixels):
            raise EncoderError(
                f"{self.spec.name} gives {tuple(embedding.shape)} for {len(pixels)} patches, not a vector each"
            )
        # Copies outside inference mode: the student's loss needs tensors that autograd can save.
        maps = {name: self._as_map(name, outputs[name].clone()) for name in layers}
        return EncoderOutput(embedding.to(pixels.device).clone(), maps)

    def _as_map(self, name: str, output: Tensor) -> Tensor:
        if name.endswith(CLASS_TOKEN):
            return output[:, 0, :, None, None]
        return _as_map(output, self._map_layers[name][1])


def load_foundation(name: str) -> LoadedEncoder:
    """Return ``lazyslide:NAME``, or ``lazyslide:NAME@PATH`` with weights from a local file or model folder.

    Without a path, weights come from the Hugging Face cache or are fetched with the user's own login.

    Raises
    ------
    EncoderError
        If the extra is not installed, the name is unknown, or the weights cannot be loaded.
    """
    key, _, path = name.removeprefix(FOUNDATION_PREFIX).partition("@")
    card, kind = foundation_card(key), _model_class(key)
    try:
        model = _load_local_model(kind, Path(path)) if path else kind()
    except EncoderError:
        raise
    except Exception as error:  # the registry's many sources raise many types
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        gated = f"; agree to its terms at {card.url} and call `hf auth login`" if card.gated else ""
        raise EncoderError(f"{FOUNDATION_PREFIX}{key} could not be loaded ({reason}){gated}") from error
    spec = EncoderSpec(FROZEN, {"key": key}, card.licence, f"{FOUNDATION_PREFIX}{key}")
    encoder = FoundationEncoder(spec, model)
    return LoadedEncoder(encoder, module_sha256(encoder.net))


def _load_local_model(kind: Any, path: Path) -> Any:
    """Return a model with local weights: a file if its class accepts one, a model folder if timm builds it."""
    if not path.exists():
        raise EncoderError(f"{path}: there are no weights; expected a file, or a model's folder with config.json")
    if path.is_dir():
        with _redirect_timm(path) as hub_names:
            model = kind()
        if not hub_names:
            raise EncoderError(
                f"{kind.__name__} is not built by timm, so it takes no folder; copy the Hugging Face cache instead"
            )
        return model
    if inspect.getsource(kind.__init__).count("model_path") < 2:  # in the signature only: the argument is ignored
        raise EncoderError(f"{kind.__name__} takes no file of weights; give its model folder with config.json")
    return kind(model_path=str(path))


@contextmanager
def _redirect_timm(folder: Path) -> Iterator[list[str]]:
    """Let timm build hub models from a local folder; yields the list of requested names."""
    import timm

    create, requested = timm.create_model, []

    def create_from_folder(name: str, *args: Any, **kwargs: Any) -> Any:
        requested.append(name)
        return create(f"local-dir:{folder}" if name.startswith(TIMM_HUB_PREFIXES) else name, *args, **kwargs)

    timm.create_model = create_from_folder
    try:
        yield requested
    finally:
        timm.create_model = create


def _frozen(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode, without gradients."""
    # A program of torch.export was exported in evaluation mode and raises an error on eval().
    if not isinstance(network, torch.fx.GraphModule):
        network.eval()
    return network.requires_grad_(False)


def _find_map_layers(network: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Return layer name -> (module whose output keeps positions, number of prefix tokens without a position)."""
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.ModuleList | nn.Sequential):  # timm's ViT
        prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        return {f"block_{i}": (block, prefix_tokens) for i, block in enumerate(blocks, start=1)}
    config = getattr(network, "config", None)
    prefix_tokens = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
    for name in ("layers", "encoder.layer"):  # ViT and DINOv2 of transformers
        try:
            blocks = network.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(blocks, nn.ModuleList):
            return {f"block_{i}": (block, prefix_tokens) for i, block in enumerate(blocks, start=1)}
    if all(isinstance(getattr(network, name, None), nn.Module) for name in CNN_STAGES):
        return {f"stage_{name[-1]}": (network.get_submodule(name), 0) for name in CNN_STAGES}
    return {}


def _as_map(output: Tensor, prefix_tokens: int) -> Tensor:
    """Return the (B, C, h, w) map of (B, T, C) tokens; the output of a CNN stage is such a map already."""
    if output.ndim == 4:
        return output
    side = round((output.shape[1] - prefix_tokens) ** 0.5)  # inputs are square
    return output[:, prefix_tokens:].transpose(1, 2).reshape(len(output), -1, side, side)


def _registry() -> Any:
    try:
        from lazyslide_models import MODEL_REGISTRY
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise EncoderError(
            f'foundation encoders need lazyslide-models and timm ({error}); pip install "napari-lrmil[encoders]"'
        ) from error
    return MODEL_REGISTRY


def _model_class(name: str) -> Any:
    registry = _registry()
    if name not in registry or not hasattr(registry[name], "encode_image"):
        available = ", ".join(card.name for card in foundation_cards())
        raise EncoderError(f"no encoder {FOUNDATION_PREFIX}{name}; available: {available}")
    return registry[name]


def _card(name: str, kind: Any) -> EncoderCard:
    licence = kind.license if isinstance(kind.license, str) else ", ".join(kind.license or ()) or "not told"
    url = kind.hf_url or kind.github_url or ""
    parameters, about = str(kind.param_size or "not told"), str(kind.description or "")
    return EncoderCard(name, licence, bool(kind.is_gated), kind.commercial, url, kind.encode_dim, parameters, about)
