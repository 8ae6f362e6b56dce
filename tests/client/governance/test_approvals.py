"""A site's word on a run: nobody else can give it, and it can be taken back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from client.governance.approvals import MAX_PENDING, ApprovalStore
from client.governance.briefing import brief, budget_line
from client.governance.ledger import Spent
from client.governance.policy import ANY_INSTITUTION
from common.config import BaseModelConfig, PrivacyConfig, RunConfig, ServerConfig
from common.crypto.primitives import Identity, Secret
from common.errors import ApprovalError, ManifestError, UnknownInstitution
from common.manifest.manifest import Manifest, open_manifest, sign_manifest
from common.manifest.words import terms_words
from common.provisioning import institution_fingerprint
from tests.client.governance.test_policy import COORDINATOR, SITES, ZERO, Simple, manifest, policy

if TYPE_CHECKING:
    from pathlib import Path

COORDINATORS_KEY = Identity(Secret(b"c" * 32))
OURS, THEIRS = Identity(Secret(bytes([1]) * 32)), Identity(Secret(bytes([2]) * 32))


def signed(number: int = 1, **changes: object) -> bytes:
    return sign_manifest(manifest(run=f"{number:032x}", **changes), COORDINATORS_KEY)


@pytest.fixture
def store(tmp_path: Path) -> ApprovalStore:
    return ApprovalStore(folder=tmp_path / "approvals", identity=OURS, coordinators=(COORDINATOR,))


def digest_of(data: bytes) -> bytes:
    return open_manifest(data)[1]


def test_a_proposal_approves_nothing(store: ApprovalStore) -> None:
    store.note_proposal(signed())
    assert not store.is_approved(digest_of(signed()))
    assert [each.state for each in store.proposals()] == ["pending"]


def test_approve_then_withdraw_then_approve(store: ApprovalStore) -> None:
    digest = digest_of(signed())
    store.note_proposal(signed())
    assert store.approve(signed()).state == "approved"
    assert store.is_approved(digest)
    assert not store.is_approved(digest_of(signed(2)))
    store.withdraw(digest)
    assert not store.is_approved(digest)
    store.note_proposal(signed())  # the coordinator asks again: no person said yes
    assert not store.is_approved(digest)
    assert [each.state for each in store.proposals()] == ["withdrawn"]
    store.approve(signed())
    assert store.is_approved(digest)


def test_a_word_of_somebody_else_is_none(store: ApprovalStore) -> None:
    digest = digest_of(signed())
    ApprovalStore(folder=store.folder, identity=THEIRS, coordinators=(COORDINATOR,)).approve(signed())
    assert not store.is_approved(digest)


def test_a_word_about_another_run_is_none(store: ApprovalStore) -> None:
    store.approve(signed(1))
    decided = store.folder / "decided"
    word = (decided / f"{digest_of(signed(1)).hex()}.word").read_bytes()
    (decided / f"{digest_of(signed(2)).hex()}.word").write_bytes(word)
    assert not store.is_approved(digest_of(signed(2)))


def test_a_withdrawn_word_cannot_be_turned_round(store: ApprovalStore) -> None:
    digest = digest_of(signed())
    store.approve(signed())
    store.withdraw(digest)
    path = store.folder / "decided" / f"{digest.hex()}.word"
    fields = msgspec.msgpack.decode(path.read_bytes())
    path.write_bytes(msgspec.msgpack.encode(fields | {"decision": "approved"}))
    assert not store.is_approved(digest)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"\x91" * 5000])
def test_a_damaged_word_is_none(store: ApprovalStore, content: bytes) -> None:
    store.approve(signed())
    digest = digest_of(signed())
    (store.folder / "decided" / f"{digest.hex()}.word").write_bytes(content)
    assert not store.is_approved(digest)


def test_proposals_are_capped_and_others_than_named_coordinators_are_refused(store: ApprovalStore) -> None:
    for number in range(MAX_PENDING + 3):
        store.note_proposal(signed(number))
    assert len(store.proposals()) == MAX_PENDING
    stranger = Identity(Secret(b"s" * 32))
    with pytest.raises(ManifestError, match="does not name"):
        store.note_proposal(sign_manifest(manifest(coordinator=stranger.public.hex()), stranger))
    with pytest.raises(ManifestError):
        store.note_proposal(b"junk")


def test_a_run_without_this_site_is_not_approved(store: ApprovalStore) -> None:
    outsider = ApprovalStore(folder=store.folder, identity=Identity(Secret(b"o" * 32)), coordinators=store.coordinators)
    with pytest.raises(UnknownInstitution):
        outsider.approve(signed())


def test_a_run_is_found_by_the_beginning_of_its_digest(store: ApprovalStore) -> None:
    store.note_proposal(signed())
    name = digest_of(signed()).hex()
    assert store.signed_manifest(name[:8]) == signed()
    for odd in ("", "../../etc", "zz" * 8, "0" * 64):
        with pytest.raises(ApprovalError):
            store.signed_manifest(odd)


def said(made: Manifest, last: Manifest | None = None, **rules: Any) -> str:
    return brief(made, b"\x01" * 32, policy(**rules), own=OURS.public, accountant=Simple(), last=last).as_text()


def test_a_briefing_names_parties_changes_and_every_reason() -> None:
    text = said(manifest(base_digest="sha256:" + "2" * 64, privacy_unit="image"), last=manifest())
    assert all(member.name in text for member in manifest().roster)
    assert "base model (base_digest) changes from" in text.replace("the base model", "base model")
    assert "FORBIDS" in text
    assert "policy.base_digests" in text
    assert "policy.privacy.units" in text
    assert ZERO in text


def private_manifest() -> Manifest:
    """With settings from which the four figures can be worked out."""
    config = RunConfig(
        name="lungs",
        rounds=20,
        privacy=PrivacyConfig(epsilon=6.0, delta=1e-5, clip=1.0, population=100, sampling_rate=0.5),
        base=BaseModelConfig(path="bundled"),
        server=ServerConfig(minimum_institutions=5),
    )
    return manifest(config=config)


def test_a_briefing_shows_whom_the_policy_names_and_the_line_that_would_name_all() -> None:
    text = said(manifest(), institutions=SITES[:3])
    lines = {line.split()[1]: line for line in text.splitlines() if re.match(r"- site-\d  (\d{5} ){6}", line)}
    assert ["NOT NAMED" in lines[f"site-{place}"] for place in range(5)] == [False, False, False, True, True]
    assert ["this site" in lines[f"site-{place}"] for place in range(5)] == [True, False, False, False, False]
    assert institution_fingerprint(bytes.fromhex(SITES[4])) in lines["site-4"]
    (pasted,) = [line for line in text.splitlines() if line.startswith("institutions = ")]
    assert set(msgspec.toml.decode(pasted)["institutions"]) == set(SITES)
    assert "institutions = " not in said(manifest())


def test_a_briefing_tells_what_noise_and_price_rest_on() -> None:
    privacy = PrivacyConfig(
        epsilon=6.0, delta=1e-5, clip=0.0625, population=123, largest_site=77, sampling_rate=0.375, draws=4
    )
    made = private_manifest()
    changed = msgspec.structs.replace(made, config=msgspec.structs.replace(made.config, privacy=privacy))
    text = "\n".join(terms_words(changed, bytes(32)))
    for words in ("Clip: 0.0625,", "the mean of 4 draws", "Sampling rate: 0.375,", "least 123 of", "largest site: 77,"):
        assert words in text
    assert "largest site: 100," in "\n".join(terms_words(made, bytes(32)))  # all together, where none is given


def test_a_briefing_says_which_figure_holds() -> None:
    assert "the figures hold that are stated" in said(private_manifest())
    any_one = {
        "institutions": (),
        "any_institution": ANY_INSTITUTION,
        "privacy_rely_on_secure_aggregation": False,
    }
    text = said(private_manifest(), **any_one)
    fallback = re.search(r"if secure aggregation fails for one institution: epsilon = ([0-9.]+)\.\n", text)
    server = re.search(r"Against the coordinator with colluding .*: epsilon = ([0-9.]+)\.\n", text)
    assert fallback
    assert server
    assert f"learns up to epsilon = {fallback[1]}, and not {server[1]}." in text
    assert "institutions = " not in text


def test_terms_that_do_not_follow_from_the_settings_forbid_the_run() -> None:
    """The manifest of these tests states privacy terms beside a configuration without any."""
    briefing = brief(manifest(), b"\x01" * 32, policy(), own=OURS.public, accountant=Simple(), last=None)
    assert not briefing.allowed
    assert "do not follow" in briefing.as_text()


def test_a_coordinator_cannot_move_the_cursor() -> None:
    config = msgspec.structs.replace(manifest().config, title="a\x1b[2J\u202eb")
    text = said(manifest(config=config))
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_budget_is_told() -> None:
    line = budget_line(policy().account("scans", private=True), Spent(lifetime=5.0, run=1.0))
    assert "ε = 5 of 20 spent" in line
    assert "15 left" in line
