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
from common.field_words import not_wanted, wanted

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
            faults.append(f"{prefix}{key}: missing; wanted {wanted(field.type)}")
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
    if get_origin(_bare(kind)) is tuple and isinstance(value, list):
        return _parse_list(value, kind, key, faults)
    if isinstance(value, float) and not math.isfinite(value):  # TOML has inf and nan, JSON and a range check do not
        faults.append(not_wanted(key, kind, value))
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:  # its own words are of Python's types
        faults.append(not_wanted(key, kind, value))
        return None


def _parse_list(value: list[Any], kind: Any, key: str, faults: list[str]) -> Any:  # noqa: ANN401 - as above
    """Each entry by itself, so that the one at fault is named; then how many there are."""
    before, member = len(faults), get_args(_bare(kind))[0]
    entries = tuple(_parse_value(item, member, f"{key}[{place}]", faults) for place, item in enumerate(value))
    if len(faults) > before:
        return None
    try:
        return msgspec.convert(entries, kind)
    except msgspec.ValidationError:
        faults.append(not_wanted(key, kind, value))
        return None


def _bare(kind: Any) -> Any:  # noqa: ANN401 - a type annotation
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - a type annotation
    """The struct type of an annotation ``S`` or ``S | …``, if there is exactly one."""
    options = [kind, *get_args(kind)] if get_origin(kind) is not tuple else []
    structs = [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    return structs[0] if len(structs) == 1 else None


def _unknown(path: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"
