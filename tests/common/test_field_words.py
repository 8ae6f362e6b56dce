"""No fault in any file of settings is told in the words of Python's types."""

from __future__ import annotations

import datetime as dt
import importlib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import inspect

from common.config import Config, parse_config
from common.errors import ConfigErrors, ProvisioningError
from common.field_words import decoding_fault, shown, wanted
from common.provisioning import parse_request, read_join_file

ROOT = Path(__file__).parents[2]
JARGON = re.compile(
    r"Annotated|Union|NoneType|None\b|msgspec|typing|Literal|`|\$|\\\w|\^|\[a-z|tuple|Struct|Expected|\bstr\b|\bint\b"
    r"|\bdict\b|datetime|True|False"
)
WRONG: tuple[Any, ...] = (
    *(True, 7, -1, 10**30, 0.5, -1e300, float("inf"), float("nan"), "", "Ä b\x00c", "x" * 5000),
    *([], [1], ["", 3], [[]], {}, {"x": 1}, [{}], dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
)


def settings() -> list[type[msgspec.Struct]]:
    """Every struct that a person's file is read into, wherever it is defined."""
    for package in ("client", "common", "server", "simulations"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "Config, frozen=True" in path.read_text():
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found: set[type[msgspec.Struct]] = set()
    waiting: list[type[msgspec.Struct]] = [Config]
    while waiting:
        waiting += (subclasses := waiting.pop().__subclasses__())
        found.update(each for each in subclasses if not each.__module__.startswith("tests"))
    return sorted(found, key=lambda each: (each.__module__, each.__qualname__))


def faults_of(table: dict[str, Any], into: type[msgspec.Struct]) -> tuple[str, ...]:
    try:
        parse_config(table, into, source="a file")
    except ConfigErrors as errors:
        return errors.faults
    except Exception as error:  # noqa: BLE001 - whatever a rule over the whole struct makes of odd values
        pytest.fail(f"{into.__name__} {table}: {error!r}")
    return ()


def without_quotes(fault: str) -> str:
    """Without what the file itself holds."""
    words, _, got = fault.partition("; got ")
    return words + "; got " + re.sub(r"'.*'", "", got)


def test_no_fault_of_any_setting_speaks_of_types() -> None:
    found = settings()
    assert {"RunConfig", "Scenario", "SiteConfig", "SitePolicy", "IntakeRules", "FederationConfig", "Roster"} <= {
        each.__name__ for each in found
    }
    for struct in found:
        for field in msgspec.structs.fields(struct):
            refused = 0
            for value in WRONG:
                name = field.encode_name
                told = [fault for fault in faults_of({name: value}, struct) if fault.startswith(name)]
                refused += bool(told)
                for fault in told:
                    assert not JARGON.search(without_quotes(fault)), f"{struct.__name__}: {fault}"
                    assert "got" in fault or "missing" in fault or "unknown key" in fault, f"{struct.__name__}: {fault}"
            assert refused, f"{struct.__name__}.{field.name}: takes anything"


def test_a_missing_setting_is_asked_for_in_words() -> None:
    for struct in settings():
        for fault in faults_of({}, struct):
            assert not JARGON.search(fault), f"{struct.__name__}: {fault}"
            assert re.search(r'(^|: (missing; )?)wanted [\w"]', fault), f"{struct.__name__}: {fault}"


def test_every_pattern_is_described() -> None:
    """A pattern without a description would be told as text, which is what it refused."""

    def undescribed(kind: inspect.Type) -> bool:
        match kind:
            case inspect.Metadata(extra_json_schema=extra) if (extra or {}).get("description"):
                return False
            case inspect.Metadata(type=inner):
                return undescribed(inner)
            case inspect.UnionType(types=kinds):
                return any(map(undescribed, kinds))
            case inspect.VarTupleType(item_type=item):
                return undescribed(item)
            case inspect.StrType(pattern=pattern):
                return pattern is not None
        return False

    bare = [
        f"{struct.__name__}.{field.name}"
        for struct in settings()
        for field in msgspec.structs.fields(struct)
        if undescribed(inspect.type_info(field.type))
    ]
    assert not bare


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a finite number"),
        (str | None, "text"),
        (tuple[int, ...], "a list, each a whole number"),
        (Config, "a table"),
        (Config | None, "a table"),
    ],
)
def test_what_is_wanted_in_plain_words(kind: object, words: str) -> None:
    assert wanted(kind) == words


def test_a_value_is_shown_as_its_file_has_it() -> None:
    got = [shown(each) for each in (True, None, {"a": 1}, [1, "b"], dt.date(2026, 1, 2), 0.5)]
    assert got == ["true", "nothing", "a table", "[1, 'b']", "2026-01-02", "0.5"]
    assert len(shown("x" * 5000)) < 100


class Member(msgspec.Struct, forbid_unknown_fields=True):
    age: Annotated[int, msgspec.Meta(ge=0, le=150)]


class Club(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    member: tuple[Member, ...] = ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{}", "name: missing"),
        (b"[]", "wanted a table"),
        (b'{"name": 1}', "name: wanted text"),
        (b'{"name": "x", "colour": 1}', "colour: unknown key"),
        (b'{"name": "x", "member": [{"age": 1}, {"age": 151}]}', "member[1].age: wanted a whole number from 0 to 150"),
        (b'{"name": "x", "member": [{}]}', "member[0].age: missing"),
        (b"{", "Input data was truncated"),
    ],
)
def test_what_is_wrong_with_a_file_that_was_sent(text: bytes, words: str) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text, type=Club)
    assert decoding_fault(caught.value, Club) == words


@pytest.mark.parametrize("parse", [parse_request, read_join_file])
@pytest.mark.parametrize("text", [b"", b"nonsense", b"[]", b"{}", b'{"version": 2}', b'{"version": "`str`"}'])
def test_files_that_people_send_are_refused_without_the_names_of_types(parse: Any, text: bytes) -> None:
    with pytest.raises(ProvisioningError) as caught:
        parse(text, source="sent.file")
    assert not re.search(r"SiteRequest|JoinFile|Expected|`", str(caught.value))
    assert "get it again" in str(caught.value)
