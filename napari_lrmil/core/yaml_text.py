"""Reader of YAML that people write: values mean what they look like, or are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

MERGE, NULL, TRUTH, INTEGER, DECIMAL, OCTAL = (
    f"tag:yaml.org,2002:{kind}" for kind in ("merge", "null", "bool", "int", "float", "octal")
)
# Tag -> pattern of unquoted values, and their first characters. Everything else is text. YAML 1.1 would read 1:30 as 90
# (minutes and seconds), 010 as 8, `no` and `off` as false, and 2024-01-02 as a date.
VALUES = {
    TRUTH: (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    NULL: (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    MERGE: (r"<<", "<"),
    OCTAL: (r"[-+]?0[0-7_]+", "-+0"),
    INTEGER: (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    DECIMAL: (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}


class _PlainLoader(yaml.SafeLoader):
    """YAML loader that refuses a key that is written twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if doubled := _first_doubled(keys):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{doubled}' is written twice", node.start_mark
            )
        return dict(super().construct_mapping(node, deep))

    def refuse_octal(self, node: yaml.ScalarNode) -> Any:
        """Raise an error: some programs read 010 as 8, others as 10."""
        plain = node.value.replace("_", "").lstrip("+-0") or "0"
        problem = f"{node.value} is 8-based to YAML; write {plain}, or quote it if it is a name"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _TextLoader(_PlainLoader):
    """The same without numbers."""


_PlainLoader.yaml_implicit_resolvers = {}  # none of YAML 1.1
_TextLoader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in VALUES.items():
    for _loader in (_PlainLoader,) if _tag in (INTEGER, DECIMAL) else (_PlainLoader, _TextLoader):
        _loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
_PlainLoader.add_constructor(OCTAL, _PlainLoader.refuse_octal)
_TextLoader.add_constructor(OCTAL, _PlainLoader.refuse_octal)


def _first_doubled(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")  # type: ignore[func-returns-value]


def parse_yaml(content: str | bytes, *, numbers: bool = True) -> Any:
    """Return the content of a YAML text. Bytes are read as UTF-8, or UTF-16 with a byte order mark.

    Unquoted values are numbers, ``true``, ``false`` and ``null`` where they look like them, and text otherwise. Without
    `numbers`, numbers are text as it is written, so that a name such as 1.10 stays what it is.

    Raises
    ------
    ValueError
        If it is not YAML, is nested too deeply, writes a key twice, or has a number such as 010. The message is one
        line, with the place that the parser states.
    """
    try:
        return yaml.load(content, Loader=_PlainLoader if numbers else _TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} at position {error.position}"
    return str(error).splitlines()[0]
