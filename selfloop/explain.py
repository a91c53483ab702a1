"""Faults in our words from those of pydantic: what is allowed, what was given, the nearest valid name."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from selfloop import registry
from selfloop.reading import Fault, Path_, shown

ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text (quote it)",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section key: value",
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "<= {le:g}",
}
"""The faults that pydantic finds, in our words."""


def explained(error: ValidationError, path: Path_, options: Mapping[str, Any], failed: set[Any]) -> list[Fault]:
    """pydantic's faults in our words; the branches of a union become one fault."""
    found: dict[Path_, list[Any]] = {}
    for item in error.errors():
        loc: Path_ = tuple(step for step in item["loc"] if isinstance(step, int) or step == item["loc"][0])
        if not loc or loc[0] not in failed:
            found.setdefault(loc, []).append(item)
    out = []
    for loc, items in found.items():
        context, given = items[0].get("ctx", {}), items[0]["input"]
        if items[0]["type"] in ("value_error", "assertion_error"):
            out.append(owned(str(context["error"]), (*path, *loc), {} if loc else options))
        elif items[0]["type"] != "too_short":
            out.append(Fault((*path, *loc), f"must be {' or '.join(map(_allowed, items))}; got {shown(given)}{_hint(items)}"))
        elif len(given) < context["min_length"]:  # else some of its items failed, of which pydantic tells too
            out.append(Fault((*path, *loc), f"must hold {context['min_length']} or more values; got {shown(given)}"))
    return out


def _allowed(item: Any) -> str:
    if item["type"] == "literal_error":
        names = _literals(item)
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    return ALLOWED.get(item["type"], f"such that: {item['msg']}").format(**item.get("ctx", {}))


def _hint(items: Sequence[Any]) -> str:
    names = [name for item in items if item["type"] == "literal_error" for name in _literals(item)]
    near = registry.nearest(items[0]["input"], names) if isinstance(items[0]["input"], str) else []
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _literals(item: Any) -> list[str]:
    return re.findall(r"'([^']*)'", item["ctx"]["expected"])


def owned(text: str, path: Path_, options: Mapping[str, Any]) -> Fault:
    """A fault at the first of the options that its text speaks of."""
    named = [name for name in re.findall(r"\w+", text) if name in options]
    return Fault((*path, named[0]), text.removeprefix(f"{named[0]} ")) if named else Fault(path, text)
