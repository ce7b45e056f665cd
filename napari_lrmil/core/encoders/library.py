"""Compatibility with ``transformers``: settings, activations and initial weights of networks that we define ourselves.

Importing the library takes three CPU-seconds and blocks other threads of Python meanwhile. MobileNetV2 and ConvNeXt are
therefore defined here, with the library's names of settings and tensors and the same random weights for a seed. The
library is imported only for settings that our definitions do not accept: it has the reason, or a use for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, get_origin, get_type_hints

from torch import nn

from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.formatting import shorten

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}
DEFAULT_DEVIATION = 0.02  # of initial weights, also if initializer_range is 0


def library_config(name: str, spec: EncoderSpec) -> Any:
    """Return the ``transformers`` configuration of a specification.

    Parameters
    ----------
    name
        Class of the configuration.
    spec
        Architecture of the network.

    Raises
    ------
    EncoderError
        If a setting is unknown, has the wrong type, or does not fit the others.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    kind = getattr(transformers, name)
    defaults = kind()
    unknown = [setting for setting in spec.settings if not hasattr(defaults, setting)]
    if unknown:
        raise EncoderError(f"{spec.name}: {spec.family} has no setting {', '.join(unknown)}")
    try:
        return kind(**spec.settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise settings_error(spec, reason) from error


def settings_error(spec: EncoderSpec, reason: str) -> EncoderError:
    """Return the error for settings of which no network can be built."""
    return EncoderError(f"{spec.name}: the settings of {spec.family} cannot be combined ({shorten(reason, 300)})")


@dataclass(frozen=True)
class LibrarySettings:
    """Settings of a network, with the names and defaults of ``transformers``.

    Attributes
    ----------
    num_channels
        Number of channels of the input.
    initializer_range
        Standard deviation of initial weights; 0 stands for `DEFAULT_DEVIATION`.
    image_size
        Setting of pretraining, which has no effect here. Published configurations contain it.
    """

    config_name: ClassVar[str]  # class of the configuration in transformers
    num_channels: int = 3
    initializer_range: float = DEFAULT_DEVIATION
    image_size: int = 224

    @classmethod
    def from_spec(cls, spec: EncoderSpec) -> Self:
        """Return the settings of a specification, completed with defaults.

        Raises
        ------
        EncoderError
            If a setting is unknown, has the wrong type, or does not fit the others.
        """
        hints, defaults = get_type_hints(cls), {field.name: field.default for field in fields(cls)}
        if all(name in defaults and _accepts(hints[name], defaults[name], v) for name, v in spec.settings.items()):
            return cls(**spec.settings)
        config = library_config(cls.config_name, spec)  # knows more settings, or the reason why one is wrong
        return cls(**{name: getattr(config, name) for name in defaults})


def _accepts(hint: Any, default: Any, value: Any) -> bool:
    """Return whether a value has the type of its setting, and is positive if the default is."""
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(type(item) is int and item > 0 for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) and (not isinstance(value, int | float) or value > 0 or value == default)


def build_activation(name: str, spec: EncoderSpec) -> nn.Module:
    """Return the activation of the library's name; raise `EncoderError` if it has none of this name."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]()
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise settings_error(spec, f"hidden_act is '{name}', expected one of {', '.join(sorted(ACT2FN))}")
    activation: nn.Module = ACT2FN[name]
    return activation


def initialise_weights(network: nn.Module, deviation: float) -> None:
    """Draw the weights of convolutions and linear layers from a normal distribution, in the order of the modules.

    Parameters
    ----------
    network
        Network whose biases become 0. Norms keep the values that torch gives them.
    deviation
        Standard deviation of the weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            # Drawing on the meta device would import torch._dynamo, which takes a second.
            nn.init.normal_(module.weight, std=deviation or DEFAULT_DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
