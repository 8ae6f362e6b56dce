"""Read a TOML file into a typed struct and report every fault in it at once.

msgspec stops at the first fault; somebody who mends a configuration wants the whole list. So each key is converted by
itself, unknown keys are named with the nearest known one, and ``check`` methods add what types cannot say.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args, get_origin, runtime_checkable

import msgspec

from common.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

T = TypeVar("T", bound=msgspec.Struct)


@runtime_checkable
class Checked(Protocol):
    """A struct with rules beyond its types."""

    def faults(self) -> Iterator[str]:
        """One sentence for each rule that is broken."""
        ...


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables as plain values.

    Raises:
        ConfigError: The file is missing, unreadable or not TOML.

    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # with the mark that Windows editors write first
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOML's and Unicode's are ValueErrors, and so is a huge number
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_config(table: Mapping[str, Any], into: type[T], *, source: str) -> T:
    """Convert a table to the struct.

    Raises:
        ConfigErrors: Every unknown key, missing key, wrong type, value out of range and broken rule.

    """
    faults: list[str] = []
    parsed = _parse(table, into, "", faults)
    if faults or parsed is None:
        raise ConfigErrors(source, tuple(faults))
    return parsed


def _parse(table: Mapping[str, Any], into: type[T], prefix: str, faults: list[str]) -> T | None:
    """The struct, or None where a fault was added."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(into)}
    before = len(faults)
    faults += [_unknown(prefix + key, key, list(fields)) for key in table if key not in fields]
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key in table:
            values[field.name] = _parse_value(table[key], field.type, prefix + key, faults)
        elif field.required:
            faults.append(f"{prefix}{key}: missing; wanted {_describe(field.type)}")
    if len(faults) > before:
        return None
    made: object = into(**values)
    if isinstance(made, Checked):  # a struct may lack rules
        faults += [f"{prefix}{fault}" for fault in made.faults()]
    return made if isinstance(made, into) else None


def _parse_value(value: Any, kind: Any, key: str, faults: list[str]) -> Any:  # noqa: ANN401 - TOML values
    struct = _struct_in(kind)
    if struct is not None and isinstance(value, dict):
        return _parse(value, struct, f"{key}.", faults)
    member = _struct_in(get_args(kind)[0]) if get_origin(kind) is tuple else None
    if member is not None and isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return tuple(_parse(item, member, f"{key}[{i}].", faults) for i, item in enumerate(value))
    if isinstance(value, float) and not math.isfinite(value):  # TOML has inf and nan, JSON and a range check do not
        faults.append(f"{key}: wanted a finite number; got {value!r}")
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        faults.append(f"{key}: {_said_of(kind) or error}; got {value!r}")
        return None


def _said_of(kind: Any) -> str:  # noqa: ANN401 - a type annotation
    """What is wanted, in the words of the type's own description; empty if it has none."""
    words = [part.description for part in getattr(kind, "__metadata__", ()) if isinstance(part, msgspec.Meta)]
    return next((f"wanted {said}" for said in words if said), "")


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - a type annotation
    """The struct type of an annotation ``S`` or ``S | …``, if there is exactly one."""
    options = [kind, *get_args(kind)] if get_origin(kind) is not tuple else []
    structs = [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    return structs[0] if len(structs) == 1 else None


def _unknown(path: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


def _describe(kind: Any) -> str:  # noqa: ANN401 - a type annotation
    return getattr(kind, "__name__", str(kind).replace("typing.", ""))
