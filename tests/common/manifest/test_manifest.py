"""Manifests: one content, one digest; each field counts; signatures of the right parties only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import PLAIN_WORDS, AdapterConfig, BaseModelConfig, RunConfig
from common.crypto.primitives import Identity, Label, Secret
from common.errors import BadSignature, ConfigErrors, DarkroomError, ManifestError, UnknownInstitution
from common.manifest import manifest as module
from common.manifest.manifest import (
    Countersignature,
    Manifest,
    Member,
    PrivacyTerms,
    SecureAggregationTerms,
    SignedManifest,
    canonical_bytes,
    countersign,
    manifest_digest,
    open_manifest,
    parse_manifest,
    sign_manifest,
    verify_countersignature,
)
from common.manifest.words import describe_changes

if TYPE_CHECKING:
    from collections.abc import Iterator

ZERO = "sha256:" + "0" * 64
ONE = "sha256:" + "1" * 64


def who(number: int) -> Identity:
    return Identity(Secret(number.to_bytes(32, "big")))


COORDINATOR = who(99)
SITES = tuple(who(number) for number in range(1, 5))


def make(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "run": "0123456789abcdef" * 2,
        "config": RunConfig(
            name="lungs", rounds=500, privacy="none", acknowledge=PLAIN_WORDS, base=BaseModelConfig(path="bundled")
        ),
        "base_digest": ZERO,
        "adapter_digest": ONE,
        "dimension": 1000,
        "coordinator": COORDINATOR.public.hex(),
        "roster": tuple(Member(name=f"site-{i}", key=site.public.hex()) for i, site in enumerate(SITES)),
        "privacy": PrivacyTerms(
            unit="subject",
            epsilon=8.0,
            delta=1e-5,
            clip=1.0,
            sampling_rate=0.1,
            noise_multiplier=1.5,
            maximum_units=2048,
        ),
        "secure_aggregation": SecureAggregationTerms(minimum_cohort=3, colluders=1),
        "code_version": "0.1.0",
    }
    return Manifest(**{**fields, **changes})


def test_signed_manifest_opens_to_what_was_signed() -> None:
    manifest, name = open_manifest(sign_manifest(make(), COORDINATOR))
    assert manifest == make()
    assert name == manifest_digest(canonical_bytes(make()))


def test_canonical_bytes_are_a_fixed_point() -> None:
    data = canonical_bytes(make())
    assert canonical_bytes(parse_manifest(data)) == data


def test_numbers_have_one_spelling() -> None:
    whole = make(config=msgspec.structs.replace(make().config, adapter=AdapterConfig(alpha=16)))
    assert canonical_bytes(whole) == canonical_bytes(make())


@pytest.mark.parametrize(
    "spelling",
    [
        lambda data: data + b" ",
        lambda data: data.replace(b'"dimension":1000', b'"dimension": 1000'),
        lambda data: data.replace(b'"dimension":1000', b'"dimension":1000,"dimension":1000'),
        lambda data: data.replace(b'"delta":0.00001', b'"delta":1e-5'),
        lambda data: data.replace(b'"clip":1.0', b'"clip":1'),
        lambda data: data.replace(b'"lungs"', b'"\\u006cungs"'),
        lambda data: data.replace(b'"version":1', b'"version":1,"version":1'),
    ],
)
def test_other_spellings_of_the_same_content_are_refused(spelling: Any) -> None:
    data = spelling(canonical_bytes(make()))
    assert data != canonical_bytes(make())
    with pytest.raises(ManifestError, match="not canonical"):
        parse_manifest(data)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.25
    if value is None:
        return 1
    return value[:-1] + ("0" if value[-1:] != "0" else "1") if value else "x"


def test_any_altered_field_breaks_the_signature() -> None:
    signed = msgspec.msgpack.decode(sign_manifest(make(), COORDINATOR), type=SignedManifest)
    tree = msgspec.json.decode(signed.manifest)
    paths = list(leaves(tree))
    assert len(paths) > 50
    for path, value in paths:
        changed = msgspec.json.decode(signed.manifest)
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = altered(value)
        data = msgspec.json.encode(changed, order="sorted")
        with pytest.raises((ManifestError, ConfigErrors)):
            open_manifest(msgspec.msgpack.encode(SignedManifest(manifest=data, signature=signed.signature)))


def test_manifest_of_another_coordinator_is_refused() -> None:
    with pytest.raises(ManifestError, match="names coordinator"):
        sign_manifest(make(), who(98))
    data = canonical_bytes(make())
    signature = who(98).sign(Label.MANIFEST_SIGNED, manifest_digest(data))
    with pytest.raises(ManifestError, match="not signed by its coordinator"):
        open_manifest(msgspec.msgpack.encode(SignedManifest(manifest=data, signature=signature)))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"{}", b"x" * (module.MAX_MANIFEST_BYTES + 2000), b"\x91" * 5000])
def test_unreadable_envelopes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        open_manifest(data)


def test_oversized_manifest_is_refused() -> None:
    with pytest.raises(ManifestError, match="at most"):
        parse_manifest(b" " * (module.MAX_MANIFEST_BYTES + 1))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_mutated_manifests_raise_only_our_errors(data: st.DataObject) -> None:
    good = sign_manifest(make(), COORDINATOR)
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, min(start + 20, len(good))))
    bad = good[:start] + data.draw(st.binary(max_size=20)) + good[end:]
    if bad != good:
        with pytest.raises(DarkroomError):
            open_manifest(bad)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_random_bytes_raise_only_our_errors(data: bytes) -> None:
    for reader in (open_manifest, parse_manifest, lambda each: verify_countersignature(make(), each)):
        with pytest.raises(DarkroomError):
            reader(data)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"roster": tuple(reversed(make().roster))}, "sorted by name"),
        ({"roster": (make().roster[0],) * 3}, "each institution once"),
        ({"roster": (*make().roster[:3], Member(name="site-9", key=SITES[0].public.hex()))}, "key of its own"),
        ({"coordinator": SITES[0].public.hex()}, "key of its own"),
        ({"coordinator": "00" * 32}, "small order"),
        ({"roster": (*make().roster[:3], Member(name="site-9", key="ee" + "ff" * 30 + "7f"))}, "small order"),
        ({"roster": (*make().roster[:3], Member(name="site-9", key="f0" + "ff" * 30 + "7f"))}, "pass for two"),
        ({"roster": (*make().roster[:3], Member(name="site-9", key="f0" + "ff" * 31))}, "pass for two"),
        ({"roster": make().roster[:2]}, "the roster holds 2"),
        ({"privacy": None}, "with privacy terms only"),
        ({"secure_aggregation": SecureAggregationTerms(minimum_cohort=3, colluders=2)}, "colluders \\+ 2"),
        ({"config": msgspec.structs.replace(make().config, base=BaseModelConfig(path="x", digest=ONE))}, "base_digest"),
        ({"config": msgspec.structs.replace(make().config, acknowledge="")}, "config.acknowledge"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigErrors, match=word):
        canonical_bytes(make(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 0},
        {"dimension": -1},
        {"run": "x"},
        {"code_version": ""},
        {"version": 2},
        {"privacy": msgspec.structs.replace(make().privacy, relation="replace_one")},
        {"secure_aggregation": SecureAggregationTerms(scale=1024.0, minimum_cohort=3, colluders=1)},  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        canonical_bytes(make(**changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ManifestError):
        canonical_bytes(make(privacy=msgspec.structs.replace(make().privacy, epsilon=value)))


def test_countersignature_names_its_institution() -> None:
    for index, site in enumerate(SITES):
        assert verify_countersignature(make(), countersign(make(), site)).name == f"site-{index}"


def test_countersignature_is_for_one_manifest_and_one_institution() -> None:
    word = countersign(make(), SITES[0])
    with pytest.raises(ManifestError, match="countersigned manifest"):
        verify_countersignature(make(dimension=1001), word)
    with pytest.raises(UnknownInstitution):
        countersign(make(), who(50))
    parsed = msgspec.msgpack.decode(word, type=Countersignature)
    stolen = msgspec.msgpack.encode(msgspec.structs.replace(parsed, institution="site-1"))
    with pytest.raises(BadSignature):
        verify_countersignature(make(), stolen)
    stranger = msgspec.msgpack.encode(msgspec.structs.replace(parsed, institution="site-9"))
    with pytest.raises(UnknownInstitution):
        verify_countersignature(make(), stranger)
    with pytest.raises(ManifestError, match="not a countersignature"):
        verify_countersignature(make(), b"\xc1")


def test_new_runs_differ() -> None:
    assert module.new_run() != module.new_run()
    assert canonical_bytes(make(run=module.new_run())) != canonical_bytes(make(run=module.new_run()))


def test_changes_are_told_in_words() -> None:
    old = make()
    assert describe_changes(old, old) == ()
    new = make(
        config=msgspec.structs.replace(old.config, rounds=600, adapter=AdapterConfig(rank=8)),
        roster=(
            Member(name="site-0", key=who(20).public.hex()),
            *old.roster[1:3],
            Member(name="site-9", key=who(21).public.hex()),
        ),
        privacy=msgspec.structs.replace(old.privacy, epsilon=10.0),
        secure_aggregation=None,
    )
    told = "\n".join(describe_changes(old, new))
    for line in (
        f"institution site-0 has another key: {SITES[0].public.hex()} before, {who(20).public.hex()} now",
        "institution site-3 leaves",
        f"institution site-9 joins with key {who(21).public.hex()}",
        "the number of rounds (config.rounds) changes from 500 to 600",
        "the adapter's rank (config.adapter.rank) changes from 16 to 8",
        "the promised ε (privacy.epsilon) changes from 8.0 to 10.0",
        "secure aggregation (secure_aggregation) is removed",
    ):
        assert line in told
    assert "secure aggregation (secure_aggregation) is added" in "\n".join(describe_changes(new, old))
    assert len(describe_changes(old, new)) == 7
