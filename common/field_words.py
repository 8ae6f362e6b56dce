"""What a field of a file wants and what it got, in words for whoever wrote the file, who knows TOML and no Python."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

from msgspec import inspect

_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `([^`]*)`")
_STEP: Final = re.compile(r"\.\w+|\[[^\]]*\]")
_LONGEST: Final = 80
"""Characters of a value that are shown."""


def wanted(kind: Any) -> str:  # noqa: ANN401 - a type annotation
    """What a value of this annotation has to be: its own description if it has one, else its type and range."""
    return _words(inspect.type_info(kind))


def not_wanted(key: str, kind: Any, value: Any) -> str:  # noqa: ANN401 - as above
    """The fault of a value: what was wanted in its place, and what was got unless it could be a secret."""
    got = "; got another text" if _is_secret(inspect.type_info(kind)) else f"; got {shown(value)}"
    return f"{key}: wanted {wanted(kind)}{got}"


def _is_secret(kind: inspect.Type) -> bool:
    """Whether the annotation says ``writeOnly``, JSON Schema's word for what is never shown again."""
    match kind:
        case inspect.Metadata(extra_json_schema=extra):
            return bool((extra or {}).get("writeOnly"))
        case inspect.UnionType(types=kinds):
            return any(map(_is_secret, kinds))
        case _:
            return False


def decoding_fault(error: Exception, into: type) -> str:
    """What is wrong with a file that was to be decoded into a struct, from msgspec's error.

    msgspec names the place and speaks of Python's types; what is wanted there is said in this module's words.
    """
    said = " ".join(str(error).splitlines())  # it may quote the file, which must not write a line of its own
    told, _, place = said.partition(" - at `$")
    path = place.rstrip("`")
    if found := _FIELD.search(told):
        return f"{f'{path}.{found[2]}'.lstrip('.')}: {'missing' if found[1] == 'missing required' else 'unknown key'}"
    if not told.startswith(("Expected", "Invalid")):
        return said
    kind = _at(inspect.type_info(into), path)
    where = f"{path.lstrip('.')}: " if path else ""
    return f"{where}wanted {'another kind of value' if kind is None else _words(kind)}"


def _at(kind: inspect.Type, path: str) -> inspect.Type | None:
    """The type at msgspec's path, such as ``.roster[2].name``; None: it is not found."""
    place: inspect.Type | None = kind
    for step in _STEP.findall(path):
        while isinstance(place, inspect.Metadata):
            place = place.type
        options = place.types if isinstance(place, inspect.UnionType) else (place,)
        if step.startswith("["):
            place = next((each.item_type for each in options if isinstance(each, inspect.VarTupleType)), None)
            continue
        fields = [field for each in options if isinstance(each, inspect.StructType) for field in each.fields]
        place = next((field.type for field in fields if field.encode_name == step[1:]), None)
    return place


def shown(value: Any) -> str:  # noqa: ANN401 - what TOML can hold
    """A value as its file has it, cut where it is long; the contents of tables are not repeated."""
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return "a table"
        case list() | tuple():
            text = f"[{', '.join(shown(each) for each in value)}]"
        case dt.date() | dt.time():
            text = value.isoformat()
        case None:
            return "nothing"
        case _:
            text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            words = (extra or {}).get("description") or _words(inner)
        case inspect.UnionType(types=kinds):
            # TOML has no null: a key that may be nothing is left out
            words = " or ".join(_words(each) for each in kinds if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType(values=values):
            texts = [f'"{value}"' if isinstance(value, str) else shown(value) for value in values]
            words = texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"
        case inspect.BoolType():
            words = "true or false"
        case inspect.IntType():
            words = f"a whole number{_range(kind)}"
        case inspect.FloatType():
            words = f"a finite number{_range(kind)}"
        case inspect.StrType():
            words = f"text{_length(kind.min_length, kind.max_length, 'characters')}"
        case inspect.ListType() | inspect.VarTupleType():
            words = f"a list{_length(kind.min_length, kind.max_length, 'entries')}, each {_words(kind.item_type)}"
        case inspect.StructType() | inspect.DictType():
            words = "a table"
        case _:
            words = "another kind of value"
    return str(words)


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.ge == kind.le:
        return f", {_figure(kind.ge)}"
    if kind.ge is not None and kind.le is not None:
        return f" from {_figure(kind.ge)} to {_figure(kind.le)}"
    named = (("of at least", kind.ge), ("above", kind.gt), ("of at most", kind.le), ("below", kind.lt))
    found = [f" {word} {_figure(value)}" for word, value in named if value is not None]
    return " and".join(found)


def _figure(value: int | float) -> str:  # noqa: PYI041 - whole numbers are written out
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _length(least: int | None, most: int | None, what: str) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return " that is not empty" if least == 1 else f" of at least {least} {what}"
    return f" of at most {most} {what}" if not least else f" of {least} to {most} {what}"
