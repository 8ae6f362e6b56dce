"""Requests and join files: what is compared by telephone covers what is trusted, and nothing changed gets through."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import pytest

from common.crypto.certificates import create_node_key
from common.crypto.primitives import Identity, Label, Secret
from common.errors import ProvisioningError
from common.provisioning import (
    MAX_FILE_BYTES,
    JoinFile,
    SiteRequest,
    coordinator_fingerprint,
    create_request,
    encode_request,
    is_reachable,
    parse_join_file,
    parse_request,
    sign_join_file,
)
from tests.federation.live_federation import BUNDLE, federation_on_disk

if TYPE_CHECKING:
    from server.federation.directory import FederationDirectory

SITE = Identity(Secret(bytes(range(32))))
COORDINATOR = Identity(Secret(bytes(range(1, 33))))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> FederationDirectory:
    return federation_on_disk(tmp_path_factory.mktemp("coordinator"))


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> SiteRequest:
    line = create_node_key(tmp_path_factory.mktemp("keys") / "node")
    return create_request(name="aspen", contact="it@aspen.example", identity=SITE, node_key=line)


@pytest.fixture(scope="module")
def join(directory: FederationDirectory) -> JoinFile:
    return JoinFile(
        federation="Pilot",
        site="aspen",
        identity=SITE.public.hex(),
        address="coordinator.example:443",
        authority=directory.file("ca.crt").read_text(),
        coordinator=COORDINATOR.public.hex(),
        bundle=BUNDLE,
        darkroom="0.1.0",
        flower="1.42.0",
    )


def test_a_request_comes_back_as_it_was(request_of: SiteRequest) -> None:
    assert parse_request(encode_request(request_of), source="file") == request_of


def test_a_fingerprint_is_thirty_digits_in_groups_of_five(request_of: SiteRequest) -> None:
    assert re.fullmatch(r"(\d{5} ){5}\d{5}", request_of.fingerprint())
    assert re.fullmatch(r"(\d{5} ){5}\d{5}", coordinator_fingerprint(COORDINATOR.public))


@pytest.mark.parametrize("field", ["name", "contact", "identity", "node_key", "signature"])
def test_a_changed_request_is_refused(
    request_of: SiteRequest, field: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = {
        "name": "birch",
        "contact": "it@evil.example",
        "identity": COORDINATOR.public.hex(),
        "node_key": create_node_key(tmp_path_factory.mktemp("other") / "node"),
        "signature": "0" * 128,
    }
    changed = msgspec.structs.replace(request_of, **{field: other[field]})
    with pytest.raises(ProvisioningError, match="was changed"):
        parse_request(encode_request(changed), source="file")
    if field in {"name", "identity", "node_key"}:
        assert changed.fingerprint() != request_of.fingerprint()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b"x" * (MAX_FILE_BYTES + 1)],
    ids=["empty", "no fields", "deep", "not text", "too large"],
)
def test_bytes_that_are_no_request_are_refused(data: bytes) -> None:
    with pytest.raises(ProvisioningError):
        parse_request(data, source="file")


@pytest.mark.parametrize("contact", ["", "a\x1b[2Jb", "a\u202eb", "a\nb", "a\u200bb"])
def test_a_contact_that_could_mislead_a_terminal_is_refused(request_of: SiteRequest, contact: str) -> None:
    with pytest.raises(ProvisioningError):
        create_request(name="aspen", contact=contact, identity=SITE, node_key=request_of.node_key)


@pytest.mark.parametrize("ending", [" comment", "\n", "\necdsa-sha2-nistp384 AAAA"])
def test_a_node_key_with_anything_after_it_is_refused(request_of: SiteRequest, ending: str) -> None:
    with pytest.raises(ProvisioningError, match="public key"):
        create_request(name="aspen", contact="x", identity=SITE, node_key=request_of.node_key + ending)


def test_a_join_file_opens_with_the_fingerprint_however_it_is_typed(join: JoinFile) -> None:
    data = sign_join_file(join, COORDINATOR)
    said = coordinator_fingerprint(COORDINATOR.public)
    for typed in (said, said.replace(" ", ""), said.replace(" ", "-"), f" {said}\n"):
        opened = parse_join_file(data, identity=SITE.public, fingerprint=typed, source="file")
        assert msgspec.structs.replace(opened, signature="0" * 128) == join


@pytest.mark.parametrize(
    "field",
    ["federation", "site", "identity", "address", "authority", "coordinator", "bundle", "darkroom", "flower"],
)
def test_a_changed_join_file_is_refused(join: JoinFile, field: str) -> None:
    other = {
        "federation": "Other",
        "site": "birch",
        "identity": "1" * 64,
        "address": "evil.example:443",
        "authority": "none",
        "coordinator": SITE.public.hex(),
        "bundle": "sha256:" + "cd" * 32,
        "darkroom": "0.2.0",
        "flower": "1.40.0",
    }
    signed = msgspec.json.decode(sign_join_file(join, COORDINATOR), type=JoinFile)
    data = msgspec.json.encode(msgspec.structs.replace(signed, **{field: other[field]}))
    with pytest.raises(ProvisioningError, match="was changed"):
        parse_join_file(
            data, identity=SITE.public, fingerprint=coordinator_fingerprint(COORDINATOR.public), source="file"
        )


def test_another_coordinators_join_file_is_refused(join: JoinFile) -> None:
    impostor = Identity(Secret(bytes(range(2, 34))))
    data = sign_join_file(msgspec.structs.replace(join, coordinator=impostor.public.hex()), impostor)
    with pytest.raises(ProvisioningError, match="telephone"):
        parse_join_file(
            data, identity=SITE.public, fingerprint=coordinator_fingerprint(COORDINATOR.public), source="file"
        )


def test_a_wrong_fingerprint_is_not_answered_with_the_right_one(join: JoinFile) -> None:
    """Else it could be copied from the refusal, and nobody would have compared anything."""
    right = coordinator_fingerprint(COORDINATOR.public)
    data = sign_join_file(join, COORDINATOR)
    for typed in ("", "00000", "1" * 30, right[:-1] + "x"):
        with pytest.raises(ProvisioningError) as caught:
            parse_join_file(data, identity=SITE.public, fingerprint=typed, source="file")
        told = str(caught.value).replace(repr(typed), "")
        assert not any(group in told for group in right.split()), told
        assert join.coordinator not in told
        assert ("30 digits" in told) == (len(typed.replace(" ", "")) != 30)


@pytest.mark.parametrize("typed", ["", "00000", "1" * 30])
def test_a_part_of_a_fingerprint_is_not_enough(join: JoinFile, typed: str) -> None:
    with pytest.raises(ProvisioningError, match="telephone"):
        parse_join_file(sign_join_file(join, COORDINATOR), identity=SITE.public, fingerprint=typed, source="file")


def test_another_sites_join_file_is_refused(join: JoinFile) -> None:
    said = coordinator_fingerprint(COORDINATOR.public)
    with pytest.raises(ProvisioningError, match="another identity"):
        parse_join_file(sign_join_file(join, COORDINATOR), identity=b"\x07" * 32, fingerprint=said, source="file")


@pytest.mark.parametrize("field", ["name", "contact", "identity", "node_key", "signature"])
@pytest.mark.parametrize("more", ["\n", " "])
def test_no_field_of_a_request_has_a_second_spelling(request_of: SiteRequest, field: str, more: str) -> None:
    """``bytes.fromhex`` skips white space, so a revoked key with a newline behind it would pass for another one."""
    if (field, more) == ("contact", " "):
        return  # words for people
    spelled = msgspec.structs.replace(request_of, **{field: getattr(request_of, field) + more})
    with pytest.raises(ProvisioningError):
        parse_request(encode_request(_signed(spelled)), source="file")


def _signed(request: SiteRequest) -> SiteRequest:
    """By the site itself, which may sign what it likes; its hexadecimal digits are read as bytes first."""
    signature = SITE.sign(Label.SITE_REQUEST, *request.signed_parts()).hex()
    ending = request.signature[128:]
    return msgspec.structs.replace(request, signature=signature + ending)


@pytest.mark.parametrize("address", ["a:1", "federation.example.org:443", "10.0.0.1:65535", "[::1]:8443"])
def test_what_a_connection_can_be_tried_to(address: str) -> None:
    assert is_reachable(address)


@pytest.mark.parametrize(
    "address",
    [
        *("a", "a:", "a:0", "a:65536", "a:١", ":443", "a..b:443", ".a:443", "-a:443", f"{'a' * 64}:443"),
        *("[::1:443", "::1:443", "[::::]:443", "[10.0.0.1]:443", "a b:443", "a\n:443", "a:443\n", "a:" + "9" * 5000),
    ],
)
def test_what_none_can_be_tried_to(address: str) -> None:
    assert not is_reachable(address)
