"""The fields of a recipe: a reference made of the docstrings under them, and what was meant by one that isn't there."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from deltamem_agents.errors import did_you_mean

Model = type[BaseModel]
WIDTH = 80
_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path", NoneType: "null"}


def reference(model: Model) -> str:
    """All fields with type, default and docstring, a section for the model and each of those inside it."""
    texts: list[str] = []
    shown: dict[Model, str] = {}
    for place, each in _sections(model):
        like = next((known for other, known in shown.items() if issubclass(other, each)), None)
        first, *_, last = each.model_fields
        described = _fields(each) if like is None else f"{first} to {last}, as in {like}"
        texts.append(f"{place}\n{'=' * len(place)}\n{described}")
        shown[each] = place
    return "\n\n".join(texts)


def explained(model: Model, error: ErrorDetails) -> str:
    """What is wrong where, of a validation error; for an unknown field, which one may have been meant."""
    place = ".".join(map(str, error["loc"])) or "recipe"
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']}"
    return f"{place}: no such field{_meant(model, error['loc'])} (`deltamem train --fields` lists all)"


def _meant(model: Model, loc: tuple[int | str, ...]) -> str:
    name, here = str(loc[-1]), _model_at(model, loc)
    elsewhere = [place for place, each in _sections(model) if name in each.model_fields]
    if elsewhere:
        return f"; {name} is the recipe's own" if elsewhere[0] == "recipe" else f"; did you mean {elsewhere[0]}.{name}?"
    return did_you_mean(name, here.model_fields)


def _model_at(model: Model, loc: tuple[int | str, ...]) -> Model:
    """The model that a field of `loc` would belong to."""
    keys = iter(loc[:-1])
    for key in keys:
        annotation = model.model_fields[str(key)].annotation
        inner = _model_in(annotation)
        if inner is None:
            break
        model = inner
        if not isinstance(annotation, type):
            next(keys, None)  # its place in a list or mapping
    return model


def _model_in(annotation: Any) -> Model | None:
    """The config that a field is, or holds several of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _sections(model: Model, place: str = "") -> Iterator[tuple[str, Model]]:
    """The model and those inside it, by where they stand."""
    yield place or "recipe", model
    for name, field in model.model_fields.items():
        if (inner := _model_in(field.annotation)) is not None:
            listed = ".0" if get_origin(field.annotation) is tuple else ""
            several = ".NAME" if _is_mapping(field.annotation) else listed
            yield from _sections(inner, f"{place}.{name}{several}".lstrip("."))


def _fields(model: Model) -> str:
    documented = _docstrings(model)
    lines: list[str] = []
    for name, field in model.model_fields.items():
        lines += textwrap.wrap(f"{name}: {_spec(field)}", WIDTH, subsequent_indent="        ", break_long_words=False)
        lines += textwrap.wrap(documented[name], WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _docstrings(model: Model) -> dict[str, str]:
    """The strings under the fields, inherited ones too."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if not (issubclass(each, BaseModel) and each is not BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _spec(field: FieldInfo) -> str:
    bounds = {type(m).__name__: m for m in field.metadata}
    low, high = (next((getattr(bounds[k], k.lower()) for k in kinds if k in bounds), None) for kinds in _BOUNDS)
    kind = _type(field.annotation)
    if low is not None and high is not None:
        kind += f" from {low:g} to {high:g}"
    elif low is not None:
        kind += f" of at least {low:g}" if "Ge" in bounds else f" above {low:g}"
    if "MinLen" in bounds:
        kind += ", not empty"
    return f"{kind}{_default(field)}"


_BOUNDS = (("Ge", "Gt"), ("Le", "Lt"))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return " (required)"
    if _model_in(field.annotation) is not None:
        named = list(field.default) if isinstance(field.default, Mapping) else None
        return f" = {', '.join(named)}" if named else ""
    value = to_jsonable_python(field.default)
    return f" = {value if isinstance(value, str) and value else json.dumps(value)}"


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in inner)
    if origin in (tuple, list):
        several = inner[-1] is Ellipsis or origin is list
        return f"list of {_type(inner[0])}" if several else f"{len(inner)} of {_type(inner[0])}"
    if _is_mapping(annotation):
        return f"{_type(inner[0])} to {_type(inner[1])}, any number"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{annotation.__name__}, see below"
    return _NAMES.get(annotation, "anything")


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)
