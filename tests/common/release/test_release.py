"""Statements and words: one content has one form, and every altered bit, key or purpose is noticed."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from common.config import BaseModelConfig, PrivacyConfig, RunConfig, ServerConfig
from common.crypto.primitives import Identity, Label, Secret
from common.crypto.randomness import REPEATABLE_WORDS
from common.privacy.run_plan import private_plan
from common.privacy.statements import Adversary
from common.release.card_facts import CardFacts, DataCategory
from common.release.statement import (
    Release,
    ReleasedFile,
    ReleaseError,
    SiteWord,
    StatedEpsilon,
    StatedPrivacy,
    file_bytes,
    parse_release,
    parse_word,
    sign_release,
    sign_word,
    stated_privacy,
)
from common.release.words import privacy_section

if TYPE_CHECKING:
    from collections.abc import Iterator

COORDINATOR, SITE, OTHER = (Identity(Secret(bytes([seed]) * 32)) for seed in (1, 2, 3))
EPSILON = StatedEpsilon(attempts=3, server=2.5, institutions=2.5, public=1.5, fallback=None)
RELEASE = sign_release(
    Release(
        name="trial",
        manifest="ab" * 32,
        coordinator=COORDINATOR.public.hex(),
        base="sha256:" + "cd" * 32,
        family="sd1",
        adapter_spec="sha256:" + "ef" * 32,
        adapter="sha256:" + "01" * 32,
        dimension=7,
        rounds=2,
        rounds_planned=2,
        privacy=StatedPrivacy(
            unit="image",
            relation="adding or removing one unit",
            delta=1e-5,
            secure_aggregation=True,
            accountant="dp-accounting",
            sent=EPSILON,
            planned=msgspec.structs.replace(EPSILON, attempts=4),
        ),
        roster="public",
        institutions=3,
        card=CardFacts(
            title="Trial",
            summary="Draws noise.",
            licence="mit",
            base_model="someone/tiny",
            contact="someone",
            data=(DataCategory(category="noise", source="made", institution="ash"),),
            intended=("teaching",),
            not_intended=("work",),
            limits=("noise only",),
        ),
        coordinator_log="23" * 32,
        coordinator_entries=9,
        logs=(),
        code_version="0.1.0",
        time="2026-03-01T12:00:00+00:00",
        files=(ReleasedFile(name="README.md", size=3, digest="sha256:" + "45" * 32),),
    ),
    COORDINATOR,
)
WORD = sign_word(
    SiteWord(
        release=RELEASE.digest().hex(), place=1, institution="birch", attempts=2, time="2026-03-01T12:00:00+00:00"
    ),
    SITE,
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in plain JSON."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


OTHER_WORDS = {"image": "subject", "public": "private", "sd1": "sd2"}


def changed(value: Any) -> Any:
    """Another value that the field's type allows."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value >= 1 else value / 2
    if isinstance(value, str):
        turned = value[:-1] + ("1" if value.endswith("0") else "0") if value[-1] in string.hexdigits else f"{value}x"
        return OTHER_WORDS.get(value, turned)
    return 1.0 if value is None else [{"place": 0, "head": "00" * 32}]


def altered(data: bytes, path: tuple[Any, ...]) -> bytes:
    plain = msgspec.json.decode(data)
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "2027-03-01T12:00:00+00:00" if path[-1] == "time" else changed(inner[path[-1]])
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2) + b"\n"


RELEASE_PATHS = list(leaves(msgspec.json.decode(file_bytes(RELEASE))))
WORD_PATHS = list(leaves(msgspec.json.decode(file_bytes(WORD))))


def test_what_is_signed_is_read_back() -> None:
    assert parse_release(file_bytes(RELEASE)) == RELEASE
    assert parse_word(file_bytes(WORD), key=SITE.public.hex(), source="word") == WORD


@pytest.mark.parametrize("path", RELEASE_PATHS, ids=str)
def test_every_altered_field_of_a_statement_is_noticed(path: tuple[Any, ...]) -> None:
    data = altered(file_bytes(RELEASE), path)
    assert data != file_bytes(RELEASE)
    # but for the version, each is a statement like another and fails at the signature alone
    wanted = "cannot be read" if path == ("version",) else "was changed, or is not signed"
    with pytest.raises(ReleaseError, match=wanted):
        parse_release(data)


@pytest.mark.parametrize("path", WORD_PATHS, ids=str)
def test_every_altered_field_of_a_word_is_noticed(path: tuple[Any, ...]) -> None:
    wanted = "cannot be read" if path == ("version",) else "was changed, or is not signed"
    with pytest.raises(ReleaseError, match=wanted):
        parse_word(altered(file_bytes(WORD), path), key=SITE.public.hex(), source="word")


def test_an_earlier_versions_statement_can_still_be_read() -> None:
    """A site keeps those that it signed, and must be able to tell of them."""
    old = msgspec.structs.replace(RELEASE, version=1, card=UNSET, institutions=UNSET)
    data = file_bytes(sign_release(old, COORDINATOR))
    assert not {"card", "institutions"} & set(msgspec.json.decode(data))
    assert parse_release(data).version == 1
    for mixed in (
        msgspec.structs.replace(RELEASE, version=1),
        msgspec.structs.replace(RELEASE, card=UNSET),
        msgspec.structs.replace(RELEASE, institutions=UNSET),
    ):
        with pytest.raises(ReleaseError, match="wanted card and institutions"):
            parse_release(file_bytes(sign_release(mixed, COORDINATOR)))


@pytest.mark.parametrize("version", ["0.1 ε=0.01", "0.1\x1b[2J", "0.1\u202e", "<b>1</b>", "", "`1`"])
def test_a_code_version_is_no_place_for_words(version: str) -> None:
    with pytest.raises(ReleaseError, match="code_version"):
        parse_release(file_bytes(sign_release(msgspec.structs.replace(RELEASE, code_version=version), COORDINATOR)))


def test_another_signer_is_noticed() -> None:
    signature = OTHER.sign(Label.RELEASE_SIGNED, RELEASE.digest()).hex()
    with pytest.raises(ReleaseError, match="not signed"):
        parse_release(file_bytes(msgspec.structs.replace(RELEASE, signature=signature)))
    with pytest.raises(ReleaseError, match="not signed"):
        parse_word(file_bytes(sign_word(WORD, OTHER)), key=SITE.public.hex(), source="word")
    with pytest.raises(ReleaseError, match="names coordinator"):
        sign_release(RELEASE, OTHER)


def test_a_signature_for_another_purpose_is_none() -> None:
    for label in (Label.MANIFEST_SIGNED, Label.RELEASE_COUNTERSIGNED, Label.RELEASE):
        signature = COORDINATOR.sign(label, RELEASE.digest()).hex()
        with pytest.raises(ReleaseError, match="not signed"):
            parse_release(file_bytes(msgspec.structs.replace(RELEASE, signature=signature)))
    for label in (Label.RELEASE_SIGNED, Label.MANIFEST_ACCEPTED):
        signature = SITE.sign(label, WORD.content()).hex()
        with pytest.raises(ReleaseError, match="not signed"):
            parse_word(file_bytes(msgspec.structs.replace(WORD, signature=signature)), key=SITE.public.hex(), source="")


@pytest.mark.parametrize(
    "alter",
    [
        lambda data: data + b"\n",
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b'  "rounds": 2', b'  "rounds": 2,\n  "rounds": 2', 1),
        lambda data: data.replace(b'"delta": 0.00001', b'"delta": 1e-5'),
        lambda data: msgspec.json.encode(msgspec.json.decode(data)),
    ],
    ids=["more", "line-ends", "twice", "other-digits", "dense"],
)
def test_one_content_has_one_form(alter: Any) -> None:
    data = alter(file_bytes(RELEASE))
    assert data != file_bytes(RELEASE)
    with pytest.raises(ReleaseError, match="not in the form"):
        parse_release(data)


def test_a_run_that_is_not_private_has_nothing_to_state() -> None:
    privacy = PrivacyConfig(
        epsilon=4.0,
        delta=1e-5,
        clip=0.05,
        population=24,
        largest_site=8,
        sampling_rate=0.5,
        repeatable=REPEATABLE_WORDS,
    )
    plan = private_plan(
        RunConfig(
            name="trial",
            rounds=2,
            privacy=privacy,
            base=BaseModelConfig(path="base"),
            server=ServerConfig(minimum_institutions=3),
        )
    )
    assert plan is not None
    with pytest.raises(ReleaseError, match="not private"):
        stated_privacy(plan.report(2), plan.report(4))


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    for parse in (parse_release, lambda data: parse_word(data, key=SITE.public.hex(), source="word")):
        with pytest.raises(ReleaseError):
            parse(data)


def test_what_is_too_large_or_too_deep_is_not_read() -> None:
    for data in (b" " * (2 << 20), b"[" * 100_000):
        with pytest.raises(ReleaseError):
            parse_release(data)
        with pytest.raises(ReleaseError):
            parse_word(data, key=SITE.public.hex(), source="word")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a" * 129, "a\x00b", "ä"])
def test_a_file_name_leads_nowhere_else(name: str) -> None:
    files = (msgspec.structs.replace(RELEASE.files[0], name=name),)
    data = file_bytes(sign_release(msgspec.structs.replace(RELEASE, files=files), COORDINATOR))
    with pytest.raises(ReleaseError, match="cannot be read"):
        parse_release(data)


def test_the_privacy_section_says_which_figure_holds_if_institutions_are_invented_or_nothing_is_masked() -> None:
    clear = msgspec.structs.replace(RELEASE.privacy, secure_aggregation=False)
    words = [privacy_section(each) for each in (RELEASE, msgspec.structs.replace(RELEASE, privacy=clear))]
    assert "had the coordinator invented all others, the last row would hold" in words[0]
    assert "against it the last row holds" in words[1]
    for each in words:  # the last row is the one that is meant
        assert [row for row in each.splitlines() if row.startswith("|")][-1].startswith(f"| {Adversary.FALLBACK} |")
