"""Components: frozen dataclasses that check their fields wherever they are made, in Python or from a YAML file.

A component's fields are the keys of its section in the YAML file; their types are its rules. A field marked `AT_SAMPLING`
changes how a fitted model is sampled and not the fit: sweep points that differ only in such fields share their fits.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BeforeValidator, ConfigDict, Strict, WithJsonSchema
from pydantic.dataclasses import dataclass as _dataclass

AT_SAMPLING = "at sampling"
T = TypeVar("T")

Count = Annotated[int, Strict(), Ge(1)]
Real = Annotated[float, Strict()]
Positive = Annotated[float, Strict(), Gt(0)]
NonNegative = Annotated[float, Strict(), Ge(0)]
Fraction = Annotated[float, Strict(), Ge(0), Le(1)]
Omega = Annotated[float, Strict(), Ge(-1), AT_SAMPLING]
Switch = Annotated[bool, Strict()]

SETTINGS = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, validate_default=True)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass whose fields are validated; unknown keys are errors."""
    made: Any = _dataclass(frozen=True, kw_only=True, config=SETTINGS)(cls)
    return cast(type[T], made)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _one_or_many(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


Counts = Annotated[tuple[Count, ...], BeforeValidator(_as_tuple), Len(1), _one_or_many({"type": "integer", "minimum": 1})]
"""A number, or one for each generation: the last goes on."""
Ratios = Annotated[
    tuple[Positive, ...], BeforeValidator(_as_tuple), Len(1), _one_or_many({"type": "number", "exclusiveMinimum": 0})
]
Fractions = Annotated[
    tuple[Annotated[float, Strict(), Gt(0), Lt(1)], ...],
    BeforeValidator(_as_tuple),
    Len(1),
    _one_or_many({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
]


def scheduled(values: Sequence[T], generation: int) -> T:
    """The value of a schedule at a generation, counted from 1; the last value goes on for ever."""
    return values[min(generation, len(values)) - 1]
