"""Strict settings: frozen, every field marked, an unknown key refused with the nearest known one named.

A field is *meaning* (it can change a result, so it enters the keys of the artifacts it shapes) or *execution*
(token budget, ports, logging: it changes no key). `recipe()` is what goes into a key.
"""

import difflib
import enum
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sail.core.errors import UserError

_REQUIRED: Any = ...


class Role(enum.StrEnum):
    MEANING = "meaning"
    EXECUTION = "execution"


def meaning(default: Any = _REQUIRED, doc: str = "", **constraints: Any) -> Any:
    """A field whose value can change a result."""
    return _marked(Role.MEANING, default, doc, constraints)


def execution(default: Any = _REQUIRED, doc: str = "", **constraints: Any) -> Any:
    """A field that says how a result is computed, never which."""
    return _marked(Role.EXECUTION, default, doc, constraints)


def _marked(role: Role, default: Any, doc: str, constraints: dict[str, Any]) -> Any:
    return Field(default, description=doc, json_schema_extra={"role": role.value}, **constraints)


class Settings(BaseModel):
    """Base of every settings section."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, populate_by_name=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        unmarked = [name for name in cls.model_fields if role_of(cls, name) is None]
        if unmarked:
            raise TypeError(f"{cls.__name__}: mark {unmarked} as meaning(...) or execution(...)")

    @model_validator(mode="before")
    @classmethod
    def _unknown_keys_name_the_nearest(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = cls.known_keys()
        for key in values:
            if key not in known:
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key '{key}'. {cure}",
                    {"key": str(key), "cure": nearest(str(key), known)},
                )
        return values

    @classmethod
    def known_keys(cls) -> list[str]:
        names = list(cls.model_fields)
        return names + [field.alias for field in cls.model_fields.values() if field.alias]

    def recipe(self) -> dict[str, Any]:
        """The meaning fields, nested, as plain JSON values: what a key is made of."""
        return {
            name: _plain(getattr(self, name))
            for name in type(self).model_fields
            if role_of(type(self), name) is Role.MEANING
        }

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        current = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(current | changes)


def role_of(section: type[BaseModel], name: str) -> Role | None:
    extra = section.model_fields[name].json_schema_extra
    return Role(str(extra["role"])) if isinstance(extra, dict) and "role" in extra else None


def nearest(word: str, known: list[str]) -> str:
    """'Did you mean ...?' or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(sorted(known))}"


_S = TypeVar("_S", bound=Settings)


def parse_settings(
    section: type[_S], values: Mapping[str, Any], source: str = "", unwritten: tuple[str | int, ...] = ()
) -> _S:
    """Build a section, or raise one UserError that names every wrong key, its value and the cure.

    Keys are named as the user wrote them, without the `unwritten` ones that a path may start with.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_one_line(problem, _written_path(problem, values, unwritten)) for problem in problems]
        raise UserError("; ".join(dict.fromkeys(lines)), where=source) from None


def _written_path(problem: Any, values: Any, unwritten: tuple[str | int, ...]) -> str:
    """The steps of a problem's location that are in `values`: not the names of union members, nor `loss.params`."""
    parts: list[str | int] = []
    for step in problem["loc"]:
        if _has(values, step):
            parts.append(step)
            values = values[step]
    if problem["type"] == "missing":
        parts.append(problem["loc"][-1])
    start = len(unwritten) if tuple(parts[: len(unwritten)]) == unwritten else 0
    return ".".join(map(str, parts[start:]))


def _has(values: Any, step: str | int) -> bool:
    if isinstance(values, Mapping):
        return step in values
    return isinstance(values, (list, tuple)) and isinstance(step, int) and step < len(values)


def _one_line(problem: Any, path: str) -> str:
    value, message = problem["input"], problem["msg"].removeprefix("Value error, ")
    if problem["type"].startswith("union_tag"):
        tag, known = problem["ctx"]["discriminator"], problem["ctx"].get("expected_tags", "reward_model, callable")
        return f"{path}: needs {tag.replace(chr(39), '')}: {known}"
    if problem["type"] in ("unknown_key", "missing"):
        return f"{path}: {message}" if path else message
    shown = repr(value) if not isinstance(value, (dict, BaseModel)) else "a mapping"
    return f"{path}: {message[0].lower()}{message[1:]}, got {shown[:120]}"


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.recipe()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
