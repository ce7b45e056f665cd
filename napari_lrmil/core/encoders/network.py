"""What all families of encoders share: normalisation inside, and maps where named modules put them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.spec import Encoded, EncoderSpec


class NetworkEncoder(nn.Module):
    """What all families share: normalisation, and maps taken where named modules put them out.

    Parameters
    ----------
    spec
        How the network is built.

    Raises
    ------
    EncoderError
        Where the settings are no configuration of the family.
    """

    mean: Tensor
    deviation: Tensor
    net: Any  # of transformers, which tells no types, but for our own
    dim: int

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        for name, values in (("mean", spec.mean), ("deviation", spec.deviation)):  # no weights: the spec holds them
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> Encoded:
        """Encode (B, 3, h, w) uint8 RGB pixels.

        Raises
        ------
        EncoderError
            Where a layer does not exist.
        """
        raise NotImplementedError

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) float pixels as the weights expect them, in memory with channels last.

        Pixels are read with channels last, and are computed on in that order, so that nothing has to be moved.
        """
        last = pixels.permute(0, 2, 3, 1).to(self.mean.dtype)  # (B, h, w, 3)
        return ((last - self.mean.flatten()) / self.deviation.flatten()).permute(0, 3, 1, 2)


@contextmanager
def taken(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules put out while the network runs: name -> tensor."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return keep

    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
