"""Names of repositories on the Hugging Face hub: ``hf:owner/name`` and ``hf:owner/name@revision``. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from napari_lrmil.core.errors import EncoderError

HUB_PREFIX = "hf:"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # no path, such as hf:C:\\models/x or hf:./x


@dataclass(frozen=True)
class HubName:
    """Hub id and revision of ``hf:owner/name`` or ``hf:owner/name@revision``."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Return the parts of a name; raise `EncoderError` if it does not have this form."""
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        if not _REPOSITORY.fullmatch(repository):
            raise EncoderError(
                f"{name}: no hub id; expected {HUB_PREFIX}owner/name, or {HUB_PREFIX}owner/name@revision; a file or "
                f"folder is given without {HUB_PREFIX}"
            )
        return cls(repository, revision or None)

    @property
    def text(self) -> str:
        """The name as the user writes it."""
        return f"{HUB_PREFIX}{self.repository}{f'@{self.revision}' if self.revision else ''}"
