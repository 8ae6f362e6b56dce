"""The frozen vectors beside this file: what an earlier version wrote is still read, and written, bit by bit."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from client.governance.ledger_store import chain_of, connection, read_rows
from client.vault.index import RecordRow, SubjectRow
from client.vault.sealing import Purpose as VaultPurpose
from client.vault.sealing import (
    VaultKeys,
    kind_tag,
    open_facts,
    padded_size,
    record_key,
    subject_key,
    subject_name,
    subject_tag,
    unlock_vault_key,
)
from common.audit_log import verify_log
from common.crypto.primitives import (
    AgreementKey,
    Identity,
    Label,
    Secret,
    check_agreement_key,
    check_identity,
    derive_key,
    digest,
    expand_key,
    frame,
    keyed_tag,
    open_sealed,
    verify_signature,
)
from common.errors import AuditLogError, BadKey, ConfigErrors, CryptoError, ManifestError
from common.manifest.manifest import (
    canonical_bytes,
    countersign,
    manifest_digest,
    open_manifest,
    parse_manifest,
    sign_manifest,
    verify_countersignature,
)
from common.release.statement import ReleaseError, file_bytes, parse_release, parse_word
from common.secagg.keys import SessionSecret, Terms, check_session
from common.secagg.masking import mask, open_sum, unpack
from common.secagg.messages import (
    KeyAdvert,
    MaskedContribution,
    OpenSession,
    RoundRequest,
    SessionKeys,
    decode,
    encode,
    signed,
)
from common.secagg.ring import Summand, word_type

HERE = Path(__file__).parent


def read(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def hexes(*texts: str) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, texts))


def identity(seed: str) -> Identity:
    return Identity(Secret(bytes.fromhex(seed)))


def refused(name: str) -> list[Any]:
    return [pytest.param(case, id=f"{case['class']}: {case['why']}") for case in read(name)["refused"]]


def test_labels_digests_keys_and_signatures_are_those_of_the_vectors() -> None:
    made = read("primitives")
    assert {(case["label"], case["value"]) for case in made["digest"]} <= {
        (label.name, label.value.decode()) for label in Label
    }
    for case in made["digest"]:
        assert digest(Label[case["label"]], *hexes(*case["parts"])).hex() == case["digest"]
    for case in made["frame"]:
        assert frame(Label[case["label"]], *hexes(*case["parts"])).hex() == case["frame"]
    for case in made["derive_key"]:
        shared, salt, info = hexes(case["shared"], case["salt"], case["info"])
        assert derive_key(Secret(shared), salt=salt, info=info).reveal().hex() == case["key"]
    for case in made["expand_key"]:
        key, info = hexes(case["key"], case["info"])
        assert expand_key(Secret(key), info=info).reveal().hex() == case["out"]
    for case in made["keyed_tag"]:
        tag = keyed_tag(Secret(bytes.fromhex(case["key"])), Label[case["label"]], *hexes(*case["parts"]))
        assert tag.hex() == case["tag"]
    for case in made["sign"]:
        who, parts = identity(case["seed"]), hexes(*case["parts"])
        assert who.public.hex() == case["public"]
        assert who.sign(Label[case["label"]], *parts).hex() == case["signature"]
        verify_signature(who.public, bytes.fromhex(case["signature"]), Label[case["label"]], *parts)
    for case in made["seal"]:
        key, sealed, context, plain = hexes(case["key"], case["sealed"], case["context"], case["plain"])
        assert open_sealed(Secret(key), sealed, context=context) == plain
        with pytest.raises(CryptoError):
            open_sealed(Secret(key), sealed, context=context + b"\0")


def test_a_manifest_has_the_bytes_of_the_vectors() -> None:
    made = read("manifest")
    data = made["canonical"].encode()
    manifest = parse_manifest(data)
    assert canonical_bytes(manifest) == data
    assert manifest_digest(data).hex() == made["digest"]
    file = base64.b64decode(made["signed"])
    assert open_manifest(file) == (manifest, bytes.fromhex(made["digest"]))
    assert sign_manifest(manifest, identity((10_000).to_bytes(32, "little").hex())) == file
    word = bytes.fromhex(made["countersignature"])
    assert verify_countersignature(manifest, word).name == made["member"]
    assert countersign(manifest, identity((2).to_bytes(32, "little").hex())) == word


KEY_CHECKS = {"identity": check_identity, "session_key": check_agreement_key}


@pytest.mark.parametrize("kind", KEY_CHECKS)
def test_public_keys_are_taken_in_one_spelling_alone(kind: str) -> None:
    vectors, check = read("public_keys")[kind], KEY_CHECKS[kind]
    for key in vectors["accepted"]:
        check(bytes.fromhex(key))
    for case in vectors["refused"]:
        with pytest.raises(BadKey):
            check(bytes.fromhex(case["key"]))


@pytest.mark.parametrize("case", refused("manifest"))
def test_a_manifest_is_refused(case: Any) -> None:
    with pytest.raises((ManifestError, ConfigErrors)):
        open_manifest(base64.b64decode(case["signed"]))


@pytest.mark.parametrize("run", read("secagg")["runs"], ids=lambda run: f"{run['bits']} bits")
def test_a_masked_sum_is_that_of_the_vectors(run: Any) -> None:
    manifest, name = open_manifest(bytes.fromhex(run["manifest"]))
    terms = Terms.of(manifest, name)
    identities = [identity(seed) for seed in run["identity_seeds"]]
    coordinator = identity((10_000).to_bytes(32, "little").hex())
    opening = decode(bytes.fromhex(run["open_session"]), OpenSession)
    assert encode(signed(OpenSession(manifest=name, epoch=run["epoch"]), coordinator)) == encode(opening)
    keys = decode(bytes.fromhex(run["session_keys"]), SessionKeys)
    assert [encode(advert).hex() for advert in keys.adverts] == run["adverts"]
    check_session(keys, terms, epoch=run["epoch"])
    assert keys.transcript().hex() == run["transcript"]
    request = decode(bytes.fromhex(run["round_request"]), RoundRequest)
    request.check_signature(coordinator.public)
    context = request.context()
    assert context.digest().hex() == run["context"]

    total = np.zeros(run["dimension"] + len(bytes(16)) // (run["bits"] // 8), dtype=word_type(run["bits"]))
    for place in run["cohort"]:
        agreement = AgreementKey(Secret(bytes.fromhex(run["agreement_secrets"][place])))
        advert = KeyAdvert(manifest=name, epoch=run["epoch"], place=place, key=agreement.public)
        assert encode(signed(advert, identities[place])).hex() == run["adverts"][place]
        pairwise = SessionSecret(agreement).agree(keys, place=place)
        masks = pairwise.take(context)
        assert {str(peer): key.reveal().hex() for peer, key in masks.items()} == run["mask_keys"][str(place)]
        for peer, shared in pairwise._shared.items():
            low, high = sorted((place, peer))
            assert shared.reveal().hex() == run["pair_keys"][f"{low}-{high}"]
        words = np.frombuffer(bytes.fromhex(run["summands"][str(place)]), dtype=word_type(run["bits"]))
        summand = Summand(words=words, bits=run["bits"], cohort=len(run["cohort"]))
        masked = mask(summand, context, masks, place=place)
        assert masked.words.tobytes().hex() == run["masked"][str(place)]
        contribution = decode(bytes.fromhex(run["contributions"][str(place)]), MaskedContribution)
        contribution.check_signature(identities[place].public)
        assert contribution.vector == masked.words.tobytes()
        total += unpack(contribution.vector, context).words
    assert open_sum(total, context).words.tolist() == run["sum"]


def test_a_ledger_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    made = read("ledger")
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(zlib.decompress(base64.b64decode(made["file"])))
    with connection(path, busy_seconds=1) as store:
        rows = read_rows(store)
    assert [chain_of(rows[: length + 1]).hex() for length in range(len(rows))] == made["chains"]
    assert ([rows[-1].round, rows[-1].attempt], rows[-1].run) == (made["last_step"], made["run"])


def test_an_audit_log_of_an_earlier_version_is_verified(tmp_path: Path) -> None:
    made = read("audit_log")
    path = tmp_path / "audit.log"
    path.write_text(made["log"])
    checked = verify_log(path, bytes.fromhex(made["owner"]), witnessed=hexes(*made["heads"]))
    assert (checked.entries, checked.head.hex()) == (len(made["heads"]) - 1, made["heads"][-1])


@pytest.mark.parametrize("case", refused("audit_log"))
def test_an_audit_log_is_refused(case: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text(case["log"])
    with pytest.raises(AuditLogError):
        verify_log(path, bytes.fromhex(read("audit_log")["owner"]))


def test_a_release_statement_of_an_earlier_version_is_read() -> None:
    made = read("release")
    release = parse_release(made["release"].encode())
    assert release.digest().hex() == made["digest"]
    assert file_bytes(release).decode() == made["release"]
    word = parse_word(made["word"].encode(), key=made["word_key"], source="word")
    assert word.release == made["digest"]


@pytest.mark.parametrize("case", refused("release"))
def test_a_release_statement_is_refused(case: Any) -> None:
    with pytest.raises(ReleaseError):
        parse_release(case["release"].encode())


def test_a_vault_of_an_earlier_version_is_opened() -> None:
    made = read("vault")
    vault, master, slot, locked = hexes(made["vault"], made["master_key"], made["slot"], made["locked"])
    vault_key = unlock_vault_key(Secret(master), locked, vault=vault, slot=slot)
    assert vault_key.reveal().hex() == made["vault_key"]
    keys = VaultKeys(vault, vault_key)
    subject = row_of(SubjectRow, made["subject"])
    record = row_of(RecordRow, made["record"])
    above = subject_key(keys, subject)
    assert above.reveal().hex() == made["subject_key"]
    assert subject_name(keys, subject) == made["subject_id"]
    assert subject_tag(keys, made["subject_id"]) == subject.tag
    key = record_key(keys, record, above)
    assert key.reveal().hex() == made["record_key"]
    assert open_facts(keys, record, key).caption == made["caption"]
    picture = keys.open(key, VaultPurpose.PICTURE, bytes.fromhex(made["picture"]), record.record_id, record.blob)
    assert picture.hex() == made["image"]
    assert kind_tag(Secret(b"\x24" * 32), "latents/1").hex() == made["kind_tag"]
    assert {size: padded_size(int(size)) for size in made["padded"]} == made["padded"]


def row_of(kind: Any, values: dict[str, Any]) -> Any:
    """A row whose columns of bytes stand in hexadecimal."""
    hints = msgspec.inspect.type_info(kind).fields
    return kind(**{each.name: as_column(each.type, values[each.name]) for each in hints})


def as_column(hint: object, value: Any) -> Any:
    return bytes.fromhex(value) if isinstance(hint, msgspec.inspect.BytesType) else value
