"""Published encoders: a local folder or hub repository with ``config.json`` and safetensors files."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import NetworkEncoder
from napari_lrmil.core.encoders.hub_name import HUB_PREFIX, HubName
from napari_lrmil.core.encoders.library import library_config
from napari_lrmil.core.encoders.spec import HALF, IMAGENET, TRAINABLE, EncoderSpec, Rgb
from napari_lrmil.core.encoders.weights import LoadedEncoder, read_tensors
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.heavy_imports import import_lock
from napari_lrmil.core.yaml_text import parse_yaml


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress log messages below errors and progress bars of ``transformers``, if it is loaded."""
    if "transformers" not in sys.modules:  # most networks do not need it, and importing it takes seconds
        yield
        return
    with import_lock:
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


CONFIG, PREPROCESSOR, README = "config.json", "preprocessor_config.json", "README.md"
OUTPUTS = ("out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states")  # backbone entries
HUB_FILES = (CONFIG, PREPROCESSOR, README, "*.safetensors", "*.safetensors.index.json")


def load_published(folder: Path, weights: Path | None = None, *, name: str = "") -> LoadedEncoder:
    """Return the encoder of a folder with ``config.json`` and safetensors files, the layout of model hubs.

    Parameters
    ----------
    folder
        Folder of the model. ``preprocessor_config.json`` gives the normalisation, ``README.md`` the licence.
    weights
        File of weights; by default all safetensors files of the folder.
    name
        Name of the encoder; by default the name of the folder.

    Raises
    ------
    EncoderError
        If the architecture is not supported, or weights are missing or do not fit.
    """
    files = [weights] if weights else sorted(folder.glob("*.safetensors"))
    if not files:
        pickle_name = next((p.name for p in folder.glob("*.bin")), None)
        content = f"{pickle_name}, a pickle, which could run code when it is read" if pickle_name else "no weights"
        raise EncoderError(f"{folder}: found {content}; expected .safetensors beside {CONFIG}")
    spec = _read_spec(folder / CONFIG, name or folder.name)
    tensors = {key: value for file in files for key, value in read_tensors(file)[0].items()}
    encoder = build_encoder(spec)
    _load_published_weights(encoder, tensors, folder)
    digest = hashlib.sha256("".join(file_sha256(f) for f in (folder / CONFIG, *files)).encode()).hexdigest()
    return LoadedEncoder(encoder, digest)


def build_untrained(path: Path) -> LoadedEncoder:
    """Return an encoder with random weights from a configuration file (JSON or YAML); the file content is the seed.

    Raises
    ------
    EncoderError
        If the file is not a configuration of a supported family.
    """
    spec = _read_spec(path, f"{path.stem} (untrained)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(path.read_bytes()))
        return LoadedEncoder(build_encoder(spec), file_sha256(path))


def _read_spec(path: Path, name: str) -> EncoderSpec:
    """Return the specification of a ``config.json`` and the files next to it."""
    config = _read_mapping(path)
    family = str(config.get("model_type", ""))
    if family not in TRAINABLE:
        raise EncoderError(
            f"{path}: model_type is '{family}', which is not supported; expected one of {', '.join(TRAINABLE)}"
        )
    mean, deviation = _read_normalisation(path.parent / PREPROCESSOR, family)
    settings, licence = _architecture_settings(config, family), _read_licence(path.parent / README)
    return EncoderSpec(family, settings, licence, name, mean, deviation)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        # YAML would read 1e-06 of a JSON file as text.
        mapping = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: not a readable configuration ({error}); expected JSON or YAML") from error
    if not isinstance(mapping, dict):
        raise EncoderError(f"{path}: expected a configuration with keys and values, found {type(mapping).__name__}")
    return mapping


def _architecture_settings(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return the entries that define the network and differ from its defaults, without those of heads and tasks."""
    with import_lock:
        from transformers import CONFIG_MAPPING, PretrainedConfig

    if family not in CONFIG_MAPPING:  # MobileNetV3, which is not a transformers model
        return {key: value for key, value in config.items() if key == "width"}
    # Entries of the base class describe training and output options, not the architecture.
    defaults, base = CONFIG_MAPPING[family](), PretrainedConfig()
    own = {key: value for key, value in config.items() if hasattr(defaults, key) and not hasattr(base, key)}
    return {key: value for key, value in own.items() if getattr(defaults, key) != value and key not in OUTPUTS}


def _read_normalisation(path: Path, family: str) -> tuple[Rgb, Rgb]:
    """Return mean and deviation of each channel, 0 .. 1; without a file those of the family's original training."""
    if not path.exists():
        uses_half = family in ("mobilenet_v2", "mobilenet_v3_large", "vit")
        return (HALF, HALF) if uses_half else IMAGENET
    entries = _read_mapping(path)
    mean, deviation = entries.get("image_mean", HALF), entries.get("image_std", HALF)
    try:
        (a, b, c), (d, e, f) = mean, deviation
        return (float(a), float(b), float(c)), (float(d), float(e), float(f))
    except (TypeError, ValueError) as error:
        raise EncoderError(f"{path}: image_mean and image_std are not three numbers each") from error


def _read_licence(readme: Path) -> str:
    """Return the licence in the YAML head of a model card, or "unknown"."""
    if not readme.exists():
        return "unknown"
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    try:
        entries = parse_yaml(head) or {}
    except ValueError:
        return "unknown"
    return str(entries.get("license", "unknown")) if isinstance(entries, dict) else "unknown"


def _load_published_weights(encoder: NetworkEncoder, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load published weights; ``transformers`` maps prefixes and old names, and missing tensors are an error here."""
    kind, config = _library_network(encoder, folder)
    # The encoders pool themselves; a pooling layer of the checkpoint would be missing or unused.
    options = {"add_pooling_layer": False} if encoder.spec.family in ("vit", "mobilenet_v2") else {}
    with quiet_transformers():
        loaded, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing:
        raise EncoderError(
            f"{folder}: the weights do not fit {CONFIG}: {len(missing)} tensors are missing or of another shape, "
            f"first {missing[0]}"
        )
    encoder.net.load_state_dict({key: value.float() for key, value in loaded.state_dict().items()})


def _library_network(encoder: NetworkEncoder, folder: Path) -> tuple[Any, Any]:
    """Return class and configuration in ``transformers`` of the network; raise `EncoderError` if it has none."""
    import transformers

    match encoder.spec.family:
        case "mobilenet_v2":
            return transformers.MobileNetV2Model, library_config("MobileNetV2Config", encoder.spec)
        case "convnext":
            return transformers.ConvNextModel, library_config("ConvNextConfig", encoder.spec)
        case "mobilenet_v3_large":  # published weights use other tensor names
            family = encoder.spec.family
            raise EncoderError(
                f"{folder}: weights of {family} are read from a .safetensors file that this program wrote"
            )
    return type(encoder.net), encoder.net.config


# ---------------------------------------------------------------- hub


def load_from_hub(name: str) -> LoadedEncoder:
    """Return an encoder from the Hugging Face hub, or from the local cache if it was fetched before.

    Gated models need the user's own access token, which ``hf auth login`` stores.

    Raises
    ------
    EncoderError
        If the hub cannot be reached, does not have the model, or requires an agreement first.
    """
    hub_name = HubName.parse(name)
    folder = _find_cached(hub_name) or _fetch(hub_name)
    return load_published(folder, name=hub_name.repository)


def _find_cached(hub_name: HubName) -> Path | None:
    """Return the folder in the local cache, or None if configuration or weights are not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            hub_name.repository, revision=hub_name.revision, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(snapshot)
    return folder if (folder / CONFIG).exists() and any(folder.glob("*.safetensors")) else None


def _fetch(hub_name: HubName) -> Path:
    """Download a model and return its folder; every failure becomes an `EncoderError` with the next step."""
    from huggingface_hub import constants, errors, snapshot_download

    page = f"https://huggingface.co/{hub_name.repository}"
    if constants.HF_HUB_OFFLINE:
        raise EncoderError(
            f"{HUB_PREFIX}{hub_name.repository} was not fetched before and HF_HUB_OFFLINE is set; "
            "unset it, or give a folder"
        )
    try:
        return Path(snapshot_download(hub_name.repository, revision=hub_name.revision, allow_patterns=list(HUB_FILES)))
    except errors.GatedRepoError as error:
        raise EncoderError(
            f"{HUB_PREFIX}{hub_name.repository} is gated; agree to its terms at {page}, then call `hf auth login` once"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(f"{page} is not there, or private; check the id, or call `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise EncoderError(f"{page} has no revision {hub_name.revision}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        failure = f"{page}, where its licence and terms are, could not be fetched"
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise EncoderError(f"{failure} ({why}); see whether there is a network, or give a local folder") from error


def hub_notice(name: str) -> str | None:
    """Return licence and terms of a hub model that is about to be fetched, or None if it is cached already."""
    from huggingface_hub import HfApi, constants

    hub_name = HubName.parse(name)
    if constants.HF_HUB_OFFLINE or _find_cached(hub_name) is not None:
        return None
    try:
        info = HfApi().model_info(hub_name.repository, revision=hub_name.revision)
    except Exception:  # many types without a connection; the download that follows reports the reason
        return None
    licence = getattr(info.card_data, "license", None) or "not told"
    gated = f"; gated: agree to its terms at https://huggingface.co/{hub_name.repository} first" if info.gated else ""
    return f"{name} will be fetched from huggingface.co; its licence: {licence}{gated}"
