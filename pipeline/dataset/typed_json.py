"""Dataclasses made of JSON, held against their own type hints: JSON says nothing of types, and files can be changed."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def find_misfit(value: Any, hint: Any = None, place: str = "") -> str | None:
    """Return where a value is not what its type says, `None` where it is.

    Args:
        value: a dataclass, or a part of one.
        hint: the part's type; by default that of the value.
        place: the part's name.
    """
    hint = hint or type(value)
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    parts: list[tuple[Any, Any, str]] = []
    if hint is Any:
        return None
    if kind is types.UnionType:
        return None if value is None else find_misfit(value, arguments[0], place)
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not 0 <= value < 1 << 63)):
        expected = "a whole number" if kind is int else kind.__name__
        return f"field {place}: expected {expected}, got {value!r:.80}"
    if dataclasses.is_dataclass(value):
        hints: dict[str, Any] = _hints(kind)
        parts = [(getattr(value, name), hints[name], f"{place}.{name}".strip(".")) for name in hints]
    elif isinstance(value, Mapping):
        parts = [(key, arguments[0], place) for key in value]
        parts += [(item, arguments[1], f"{place}.{key}") for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(item, arguments[0], place) for item in value]
    return next((misfit for part in parts if (misfit := find_misfit(*part))), None)
