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
    FROZEN,
    EncoderOutput,
    EncoderSpec,
    NetworkEncoder,
    capture_activations,
    require_layers,
)
from napari_lrmil.core.encoders.weights import LoadedEncoder, module_sha256
from napari_lrmil.core.errors import EncoderError

FOUNDATION_PREFIX = f"{FROZEN}:"
PROBE_PX = 224  # of a patch that tells widths; every model of the registry resizes to its own size
TIMM_HUB_PREFIXES = ("hf-hub:", "hf_hub:")  # timm takes both
CNN_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class EncoderCard:
    """What the registry tells of an encoder.

    Attributes
    ----------
    name
        As ``lazyslide:NAME`` has it.
    licence
        Of the weights.
    gated
        Whether its hub page asks for an agreement.
    commercial
        Whether the licence allows commercial use; None where it is not told.
    url
        Where it is described.
    width
        Of the embedding, where it is told.
    parameters
        How many, where it is told.
    about
        A sentence.
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
        """Licence and terms, as they are told before a download."""
        use = {True: "", False: ", not for commercial use", None: ""}[self.commercial]
        gated = f"; gated: agree to its terms at {self.url} and call `hf auth login` once" if self.gated else ""
        terms = f"licence {self.licence}{use}{gated}; models made with it inherit these terms"
        return f"{FOUNDATION_PREFIX}{self.name}: {terms}"


def foundation_cards() -> list[EncoderCard]:
    """Return the encoders of the registry that turn patches into embeddings.

    Raises
    ------
    EncoderError
        Where the extra is not installed.
    """
    registry = _registry()
    return [_card(name, registry[name]) for name in sorted(registry) if hasattr(registry[name], "encode_image")]


def foundation_card(name: str) -> EncoderCard:
    """Return one of `foundation_cards`; raises `EncoderError` where there is none of that name."""
    return _card(name, _model_class(name))


class FoundationEncoder(NetworkEncoder):
    """A frozen encoder of the registry; its own preparation of pixels, maps where the architecture has places.

    Parameters
    ----------
    spec
        With the registry's name in its settings.
    model
        The registry's object.

    Raises
    ------
    EncoderError
        Where the model gives no embedding of a patch.
    """

    def __init__(self, spec: EncoderSpec, model: Any) -> None:
        super().__init__(spec)
        if not isinstance(getattr(model, "model", None), nn.Module):
            raise EncoderError(f"{spec.name} holds no torch network; choose another encoder of the registry")
        self._model = (model,)  # in a tuple: what it holds is the network below, which is moved and hashed
        self.net = _frozen(model.model)
        self.training = False
        self._prepare: Callable[[Any], Any] | None = model.get_transform()
        self._places = _find_map_layers(self.net)
        probe = self._encoded(torch.zeros(1, 3, PROBE_PX, PROBE_PX, dtype=torch.uint8), tuple(self._places))
        self.dim = probe.embedding.shape[1]
        self._widths = {name: found.shape[1] for name, found in probe.maps.items()}

    def train(self, mode: bool = True) -> FoundationEncoder:
        """Stay as it is: it is frozen, and an exported program refuses to be told."""
        return self

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths; none where the architecture yields none."""
        return self._widths

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB pixels, always without gradients; see `NetworkEncoder.forward`."""
        require_layers(self, layers)
        return self._encoded(pixels, layers)

    def _encoded(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        prepared = self._prepare(pixels) if self._prepare else pixels
        with capture_activations({name: self._places[name][0] for name in layers}) as found:
            embedding = torch.as_tensor(self._model[0].encode_image(prepared))
        if embedding.ndim != 2 or len(embedding) != len(pixels):
            raise EncoderError(
                f"{self.spec.name} gives {tuple(embedding.shape)} for {len(pixels)} patches, not a vector each"
            )
        # Copies made outside inference mode: a student's loss needs tensors that autograd may keep.
        maps = {name: _as_map(found[name].clone(), self._places[name][1]) for name in layers}
        return EncoderOutput(embedding.to(pixels.device).clone(), maps)


def load_foundation(name: str) -> LoadedEncoder:
    """Return ``lazyslide:NAME``, or ``lazyslide:NAME@PATH`` with weights from a local file or model folder.

    Without a path weights come from the Hugging Face cache, or are fetched with the user's own login.

    Raises
    ------
    EncoderError
        Where the extra is not installed, the name unknown, or the weights cannot be had.
    """
    key, _, where = name.removeprefix(FOUNDATION_PREFIX).partition("@")
    card, kind = foundation_card(key), _model_class(key)
    try:
        model = _load_local_model(kind, Path(where)) if where else kind()
    except EncoderError:
        raise
    except Exception as error:  # whatever the registry's many sources raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        gated = f"; agree to its terms at {card.url} and call `hf auth login`" if card.gated else ""
        raise EncoderError(f"{FOUNDATION_PREFIX}{key} could not be loaded ({reason}){gated}") from error
    spec = EncoderSpec(FROZEN, {"key": key}, card.licence, f"{FOUNDATION_PREFIX}{key}")
    encoder = FoundationEncoder(spec, model)
    return LoadedEncoder(encoder, module_sha256(encoder.net))


def _load_local_model(kind: Any, where: Path) -> Any:
    """Return a model with weights from `where`: a file if its class takes one, a model folder if timm builds it."""
    if not where.exists():
        raise EncoderError(f"{where}: there are no weights; expected a file, or a model's folder with config.json")
    if where.is_dir():
        with _timm_from(where) as used:
            model = kind()
        if not used:
            raise EncoderError(
                f"{kind.__name__} is not built by timm, so it takes no folder; copy the Hugging Face cache instead"
            )
        return model
    if inspect.getsource(kind.__init__).count("model_path") < 2:  # it has the argument and does not look at it
        raise EncoderError(f"{kind.__name__} takes no file of weights; give its model folder with config.json")
    return kind(model_path=str(where))


@contextmanager
def _timm_from(folder: Path) -> Iterator[list[str]]:
    """Let timm build hub models from a local folder instead; yields the hub names that were asked for."""
    import timm

    create, asked = timm.create_model, []

    def created(name: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        return create(f"local-dir:{folder}" if name.startswith(TIMM_HUB_PREFIXES) else name, *args, **kwargs)

    timm.create_model = created
    try:
        yield asked
    finally:
        timm.create_model = create


def _frozen(network: nn.Module) -> nn.Module:
    """Return the network without gradients, as for inference; a program of torch.export was saved so."""
    if not isinstance(network, torch.fx.GraphModule):
        network.eval()
    return network.requires_grad_(False)


def _find_map_layers(network: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Return layer name -> module whose output has places, and how many leading tokens stand for none."""
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.ModuleList | nn.Sequential):  # timm's ViT
        before = int(getattr(network, "num_prefix_tokens", 0))
        return {f"block_{i}": (one, before) for i, one in enumerate(blocks, start=1)}
    config = getattr(network, "config", None)
    before = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
    for where in ("layers", "encoder.layer"):  # ViT and DINOv2 of transformers
        try:
            blocks = network.get_submodule(where)
        except AttributeError:
            continue
        if isinstance(blocks, nn.ModuleList):
            return {f"block_{i}": (one, before) for i, one in enumerate(blocks, start=1)}
    if all(isinstance(getattr(network, name, None), nn.Module) for name in CNN_STAGES):
        return {f"stage_{name[-1]}": (network.get_submodule(name), 0) for name in CNN_STAGES}
    return {}


def _as_map(output: Tensor, before: int) -> Tensor:
    """Return (B, C, h, w) of what a block of tokens (B, T, C) or a stage of a CNN (B, C, h, w) puts out."""
    if output.ndim == 4:
        return output
    side = round((output.shape[1] - before) ** 0.5)  # inputs are square
    return output[:, before:].transpose(1, 2).reshape(len(output), -1, side, side)


def _registry() -> Any:
    try:
        from lazyslide_models import MODEL_REGISTRY
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise EncoderError(
            f"foundation encoders need lazyslide-models and timm ({error}); pip install 'napari-lrmil[encoders]'"
        ) from error
    return MODEL_REGISTRY


def _model_class(name: str) -> Any:
    registry = _registry()
    if name not in registry or not hasattr(registry[name], "encode_image"):
        there = ", ".join(card.name for card in foundation_cards())
        raise EncoderError(f"no encoder {FOUNDATION_PREFIX}{name}; there are: {there}")
    return registry[name]


def _card(name: str, kind: Any) -> EncoderCard:
    licence = kind.license if isinstance(kind.license, str) else ", ".join(kind.license or ()) or "not told"
    url = kind.hf_url or kind.github_url or ""
    told = str(kind.param_size or "not told"), str(kind.description or "")
    return EncoderCard(name, licence, bool(kind.is_gated), kind.commercial, url, kind.encode_dim, *told)
