"""Fields of a configuration: values as people write them in YAML, and bounds beyond any use."""

from __future__ import annotations

import math
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

# Upper bounds beyond any use: a slip of the keyboard must not fill memory or run for ever.
MAX_EPOCHS, MAX_COUNT, MAX_WIDTH, MAX_RUNS, MAX_SEED, MAX_RATE = 1_000_000, 1_000_000, 65_536, 1_000, 2**31, 100.0


class Fields(BaseModel):
    """Frozen fields; a key that is none of them is refused."""

    # YAML reads 1e-4 as text and precision=32 as a number, so both are converted.
    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _coerce(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept what people write in YAML: a single value for a list, a number for a name, text for a number."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):  # Python counts true as 1
            raise ValueError("expected a number")
        # layers: block_12 and lr: 1e-4 are written without brackets where the field takes several values.
        if get_origin(kind) is tuple and not isinstance(value, list | tuple):
            return _as_tuple(value)
        if get_origin(kind) is Literal and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if kind in (int, int | None) and isinstance(value, str):
            return _number(value)
        return value


def _as_tuple(value: Any) -> Any:
    """Return a single value as a tuple; text is split at commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value if value is None or isinstance(value, dict) else (value,)


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text  # the type check refuses it and quotes it
    return value if math.isfinite(value) else text
