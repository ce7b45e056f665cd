"""Errors travel between processes: an exception that cannot be unpickled ends the pool that it is raised in."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import pytest

from napari_lrmil.core import errors
from napari_lrmil.core.errors import LrmilError


def _kinds(kind: type[LrmilError]) -> Iterator[type[LrmilError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


KINDS = [kind for kind in {*_kinds(LrmilError)} if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_an_error_keeps_message_and_attributes_on_its_way(kind: type[LrmilError]) -> None:
    own = "__init__" in {name for parent in kind.__mro__ for name in vars(parent) if issubclass(parent, LrmilError)}
    names = [*inspect.signature(kind.__init__).parameters][1:] if own else ["message"]
    error = kind(*(f"the {name}" for name in names))
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is kind
    assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))
