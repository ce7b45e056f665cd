"""Encoders as others publish them: a folder or hub repository with ``config.json`` and safetensors."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import HALF, IMAGENET, TRAINABLE, EncoderSpec, NetworkEncoder, Rgb
from napari_lrmil.core.encoders.weights import LoadedEncoder, file_sha256, read_tensors
from napari_lrmil.core.errors import EncoderError


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let ``transformers`` tell errors only, and draw no bars, for a while."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


HUB_PREFIX = "hf:"
CONFIG, PREPROCESSOR, README = "config.json", "preprocessor_config.json", "README.md"
OUTPUTS = ("out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states")  # of a backbone
HUB_FILES = (CONFIG, PREPROCESSOR, README, "*.safetensors", "*.safetensors.index.json")


def load_published(folder: Path, weights: Path | None = None, *, name: str = "") -> LoadedEncoder:
    """Return the encoder of a folder with ``config.json`` and safetensors, as model hubs have them.

    Parameters
    ----------
    folder
        With ``config.json``; its ``preprocessor_config.json`` tells the normalisation, its ``README.md`` the licence.
    weights
        One file of weights; all safetensors of the folder where not given.
    name
        What to call it; the folder's name where not given.

    Raises
    ------
    EncoderError
        Where the architecture is not one of ours, or weights are missing or do not fit.
    """
    files = [weights] if weights else sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = next((p.name for p in folder.glob("*.bin")), None)
        found = f"{pickled}, a pickle, which could run code when it is read" if pickled else "no weights"
        raise EncoderError(f"{folder}: found {found}; expected .safetensors beside {CONFIG}")
    spec = _spec(folder / CONFIG, name or folder.name)
    tensors = {key: value for file in files for key, value in read_tensors(file)[0].items()}
    encoder = build_encoder(spec)
    _fill(encoder, tensors, folder)
    digest = hashlib.sha256("".join(file_sha256(f) for f in (folder / CONFIG, *files)).encode()).hexdigest()
    return LoadedEncoder(encoder, digest)


def build_untrained(path: Path) -> LoadedEncoder:
    """Return an encoder with random weights from a configuration alone (JSON or YAML); the file fixes the weights.

    Raises
    ------
    EncoderError
        Where the file is no configuration of a family that is known.
    """
    spec = _spec(path, f"{path.stem} (untrained)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(path.read_bytes()))
        return LoadedEncoder(build_encoder(spec), file_sha256(path))


def _spec(path: Path, name: str) -> EncoderSpec:
    config = _mapping(path)
    family = str(config.get("model_type", ""))
    if family not in TRAINABLE:
        raise EncoderError(
            f"{path}: model_type is '{family}', which is not supported; expected one of {', '.join(TRAINABLE)}"
        )
    mean, deviation = _normalisation(path.parent / PREPROCESSOR, family)
    return EncoderSpec(family, _architecture(config, family), _licence(path.parent / README), name, mean, deviation)


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)  # YAML reads 1e-06 as text
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EncoderError(f"{path}: not a readable configuration ({error}); expected JSON or YAML") from error
    if not isinstance(found, dict):
        raise EncoderError(f"{path}: expected a configuration with keys and values, found {type(found).__name__}")
    return found


def _architecture(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return the entries that shape the network and differ from its defaults; the rest is of a head or a task."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    if family not in CONFIG_MAPPING:  # written here
        return {key: value for key, value in config.items() if key == "width"}
    defaults, every = CONFIG_MAPPING[family](), PretrainedConfig()
    own = {key: value for key, value in config.items() if hasattr(defaults, key) and not hasattr(every, key)}
    return {key: value for key, value in own.items() if getattr(defaults, key) != value and key not in OUTPUTS}


def _normalisation(path: Path, family: str) -> tuple[Rgb, Rgb]:
    if not path.exists():
        halves = ("mobilenet_v2", "mobilenet_v3_large", "vit")
        return (HALF, HALF) if family in halves else IMAGENET  # what their authors trained with
    told = _mapping(path)
    mean, deviation = told.get("image_mean", HALF), told.get("image_std", HALF)
    try:
        (a, b, c), (d, e, f) = mean, deviation
        return (float(a), float(b), float(c)), (float(d), float(e), float(f))
    except (TypeError, ValueError) as error:
        raise EncoderError(f"{path}: image_mean and image_std are not three numbers each") from error


def _licence(readme: Path) -> str:
    """Return the licence that a model card names at its head."""
    import yaml

    if not readme.exists():
        return "unknown"
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    try:
        told = yaml.safe_load(head) or {}
    except yaml.YAMLError:
        return "unknown"
    return str(told.get("license", "unknown")) if isinstance(told, dict) else "unknown"


def _fill(encoder: NetworkEncoder, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load published weights: prefixes, heads and older names are ``transformers``' business, missing tensors ours."""
    net: Any = encoder.net
    if not hasattr(net, "config"):  # written here: others have other names for its tensors
        family = encoder.spec.family
        raise EncoderError(f"{folder}: weights of {family} are read from a .safetensors file that this program wrote")
    bare = {"add_pooling_layer": False} if encoder.spec.family in ("vit", "mobilenet_v2") else {}  # we pool ourselves
    with quiet_transformers():
        loaded, report = type(net).from_pretrained(
            None, config=net.config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True, **bare
        )
    lacking = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lacking:
        raise EncoderError(
            f"{folder}: the weights do not fit {CONFIG}: {len(lacking)} tensors are missing or of another shape, "
            f"first {lacking[0]}"
        )
    net.load_state_dict({key: value.float() for key, value in loaded.state_dict().items()})


# ---------------------------------------------------------------- hub


@dataclass(frozen=True)
class HubName:
    """``hf:owner/name`` or ``hf:owner/name@revision``."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Return the parts of a name; raises `EncoderError` where it is none."""
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        if len(parts := repository.split("/")) != 2 or not all(parts):
            raise EncoderError(
                f"{name}: no hub id; expected {HUB_PREFIX}owner/name, or {HUB_PREFIX}owner/name@revision"
            )
        return cls(repository, revision or None)


def load_from_hub(name: str) -> LoadedEncoder:
    """Return an encoder from the Hugging Face hub, or from the cache where it was fetched before.

    Access to gated models is the user's own: ``hf auth login`` keeps a token where Hugging Face wants it.

    Raises
    ------
    EncoderError
        Where the hub cannot be reached, does not have it, or asks for an agreement first.
    """
    asked = HubName.parse(name)
    folder = _cached(asked) or _fetched(asked)
    return load_published(folder, name=asked.repository)


def _cached(asked: HubName) -> Path | None:
    """Return where it lies in the cache, config and weights; None where it does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        where = snapshot_download(
            asked.repository, revision=asked.revision, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(where)
    return folder if (folder / CONFIG).exists() and any(folder.glob("*.safetensors")) else None


def _fetched(asked: HubName) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    page = f"https://huggingface.co/{asked.repository}"
    if constants.HF_HUB_OFFLINE:
        raise EncoderError(
            f"{HUB_PREFIX}{asked.repository} was not fetched before and HF_HUB_OFFLINE is set; "
            "unset it, or give a folder"
        )
    try:
        return Path(snapshot_download(asked.repository, revision=asked.revision, allow_patterns=list(HUB_FILES)))
    except errors.GatedRepoError as error:
        raise EncoderError(
            f"{HUB_PREFIX}{asked.repository} is gated; agree to its terms at {page}, then call `hf auth login` once"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(f"{page} is not there, or private; check the id, or call `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise EncoderError(f"{page} has no revision {asked.revision}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        told = f"{page}, where its licence and terms are, could not be fetched"
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise EncoderError(f"{told} ({why}); see whether there is a network, or give a local folder") from error


def hub_notice(name: str) -> str | None:
    """Return licence and terms of a hub model that is about to be fetched; None where it is in the cache already."""
    from huggingface_hub import HfApi, constants

    asked = HubName.parse(name)
    if constants.HF_HUB_OFFLINE or _cached(asked) is not None:
        return None
    try:
        info = HfApi().model_info(asked.repository, revision=asked.revision)
    except Exception:  # whatever a connection that is not there raises: fetching will say why
        return None
    licence = getattr(info.card_data, "license", None) or "not told"
    gated = f"; gated: agree to its terms at https://huggingface.co/{asked.repository} first" if info.gated else ""
    return f"{name} will be fetched from huggingface.co; its licence: {licence}{gated}"
