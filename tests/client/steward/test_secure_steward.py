"""A steward against coordinators that lie: everything but the agreed run's next round is refused, once, with a code."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from client.governance import pricing
from client.governance.ledger import Ledger, PldAccountant
from client.governance.policy import ANY_INSTITUTION, contribution_event
from client.governance.pricing import PricedAside
from client.training.latents import EncodingPlan
from client.training.private_update import PrivateUpdate
from common.adapter.model import Family, open_base
from common.audit_log import verify_log
from common.crypto.primitives import Identity, Secret
from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
from common.errors import AccountingError, BadCaption, BadImage, ClippingError, MechanismError, StaleSession
from common.manifest.manifest import Member, open_manifest, sign_manifest
from common.privacy.run_plan import private_plan
from common.secagg.messages import MaskedContribution, Step, decode
from common.wire.messages import (
    Accepted,
    Contribute,
    ContributeMasked,
    Evaluate,
    MaskedAnswer,
    OpenSecureSession,
    Propose,
    Refusal,
    SessionKeyAdvert,
    ShareSessionKeys,
    encode,
)
from simulations.scenario.folder_latents import encode_folder
from simulations.scenario.imagefolder import read_imagefolder
from tests.client.rings import HEAD, Desk, Ring, make_ring, secure_config
from tests.client.sites import Site, write_folder
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from pathlib import Path

    from client.training.private_update import AnswerTimes


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("ward")
    base = open_base(write_tiny_base(root / "base", Family.SD1))
    folder = write_folder(root / "pictures")
    plan = EncodingPlan(resolution=base.resolution, horizontal_flips=False)
    return Site(base, folder, encode_folder(base, folder, read_imagefolder(folder), plan))


@pytest.fixture
def ring(ward: Site, tmp_path: Path) -> Ring:
    return make_ring(ward, tmp_path)


def words(answer: bytes) -> Any:
    vector = decode(answer, MaskedContribution, limit=1 << 20).vector
    return np.frombuffer(vector, dtype="<u4")


def test_a_whole_round_gives_the_sum_and_nothing_less(ring: Ring) -> None:
    opened = ring.open()
    state, request = ring.request(opened, Step(0, 0))
    for place in range(3):
        state = state.handle_contribution(ring.answer(place, request))
    _, total = state.create_sum()
    assert total.words.shape == (ring.trainer.spec.dimension,)
    for place in range(3):
        kinds = [entry["kind"] for entry in ring.entries(place)]
        assert kinds == ["joined", "session", "charged", "contributed"]
        verify_log(ring.folder / str(place) / "audit.log", ring.identities[place].public)


def test_the_ledger_and_the_log_are_written_before_the_answer_leaves(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, request = ring.request(ring.open(), Step(0, 0))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PrivateUpdate, "share", killed)
    with pytest.raises(KeyboardInterrupt):
        ring.ask(0, request)
    assert ring.charged(0) == 1


def test_one_round_and_attempt_is_answered_once_and_after_a_restart_not_again(ring: Ring) -> None:
    opened = ring.open()
    _, request = ring.request(opened, Step(1, 1))
    ring.answer(0, request)
    assert ring.refused(0, request) == "replayed"
    ring.stewards[0] = ring.start(0)
    assert ring.refused(0, request) == "no_session"
    for place in (1, 2):
        ring.stewards[place] = ring.start(place)
    again = ring.open(epoch=7)
    for step in (Step(1, 1), Step(1, 0), Step(0, 5)):
        assert ring.refused(0, ring.request(again, step)[1]) == "replayed"
    assert len(words(ring.answer(0, ring.request(again, Step(1, 2))[1])))


def test_two_adapters_for_two_sites_give_a_void_sum(ring: Ring) -> None:
    opened = ring.open()
    state, request = ring.request(opened, Step(0, 0))
    other = np.frombuffer(ring.adapter(), dtype="<f4") + np.float32(1e-3)
    _, twisted = ring.request(opened, Step(0, 0), other.astype("<f4").tobytes())
    shown = [ring.answer(0, request), ring.answer(1, request), ring.answer(2, twisted)]
    total = sum(words(answer).astype(np.uint64) for answer in shown).astype(np.uint32)
    assert not (total[-4:] == 3).any()  # the check coordinates
    assert uniform(total[:-4]) > 1e-3
    for answer in shown[:2]:
        state = state.handle_contribution(answer)
    with pytest.raises(StaleSession):
        state.handle_contribution(shown[2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", 3.9),
        ("noise_multiplier", 0.11),
        ("maximum_units", 10**6),
        ("clip", 0.016),
        ("sampling_rate", 0.4),
        ("slack", 0.0),
        ("lost", 1e-4),
        ("delta", 9e-4),
    ],
)
def test_privacy_terms_that_do_not_follow_from_the_settings_are_refused(
    ward: Site, tmp_path: Path, field: str, value: object
) -> None:
    honest = make_ring(ward, tmp_path / "honest").manifest.privacy
    assert honest is not None
    ring = make_ring(ward, tmp_path / "lying", privacy=msgspec.structs.replace(honest, **{field: value}))
    assert ring.refused(0, Propose(manifest=ring.signed)) in {"bad_manifest", "not_allowed"}
    assert ring.prepared == 0


@pytest.mark.parametrize(("field", "value"), [("bits", 64), ("minimum_cohort", 2), ("colluders", 0)])
def test_aggregation_terms_that_do_not_follow_from_the_settings_are_refused(
    ward: Site, tmp_path: Path, field: str, value: object
) -> None:
    honest = make_ring(ward, tmp_path / "honest").manifest.secure_aggregation
    assert honest is not None
    changed = msgspec.structs.replace(honest, **{"colluders": 0, field: value} if field != "bits" else {field: value})
    ring = make_ring(ward, tmp_path / "lying", secure_aggregation=changed)
    assert ring.refused(0, Propose(manifest=ring.signed)) in {"bad_manifest", "not_allowed"}


def test_a_run_without_masks_or_without_noise_is_refused(ward: Site, tmp_path: Path) -> None:
    ring = make_ring(ward, tmp_path, secure_aggregation=None)
    assert ring.refused(0, Propose(manifest=ring.signed)) == "bad_manifest"


def test_a_coordinator_cannot_choose_noise_that_it_knows(ward: Site, tmp_path: Path) -> None:
    ring = make_ring(ward, tmp_path, secure_config(repeatable=REPEATABLE_WORDS))
    assert ring.refused(0, Propose(manifest=ring.signed)) == "not_allowed"
    assert ring.prepared == 0


def test_a_manifest_for_another_model_adapter_or_dimension_is_refused(ward: Site, tmp_path: Path) -> None:
    other = "sha256:" + "1" * 64
    for number, changes in enumerate(({"adapter_digest": other}, {"dimension": 7})):
        ring = make_ring(ward, tmp_path / str(number), **changes)
        assert ring.refused(0, Propose(manifest=ring.signed)) == "bad_manifest"


def test_a_stranger_a_forger_and_garbage_are_refused(ring: Ring) -> None:
    stranger = Identity(Secret(b"x" * 32))
    theirs = msgspec.structs.replace(ring.manifest, coordinator=stranger.public.hex())
    assert ring.refused(0, Propose(manifest=sign_manifest(theirs, stranger))) == "not_allowed"
    forged = bytearray(ring.signed)
    forged[-1] ^= 1
    assert ring.refused(0, Propose(manifest=bytes(forged))) == "bad_manifest"
    assert ring.refused(0, Propose(manifest=b"nothing")) == "bad_manifest"
    assert ring.refused(0, b"\xc1") == "malformed"
    assert ring.prepared == 0


def test_a_roster_without_this_institution_or_with_a_stranger_is_refused(ward: Site, tmp_path: Path) -> None:
    ring = make_ring(ward, tmp_path / "a")
    stranger = Member(name="site-9", key=Identity(Secret(b"s" * 32)).public.hex())
    without = msgspec.structs.replace(ring.manifest, roster=(*ring.manifest.roster[1:], stranger))
    ring.stewards[0] = ring.start(0, institutions=tuple(member.key for member in without.roster))
    assert ring.refused(0, Propose(manifest=sign_manifest(without, ring.coordinator))) == "bad_manifest"
    grown = msgspec.structs.replace(ring.manifest, roster=(*ring.manifest.roster, stranger))
    assert ring.refused(1, Propose(manifest=sign_manifest(grown, ring.coordinator))) == "not_allowed"


def test_a_site_that_names_nobody_takes_no_run_and_keeps_what_is_proposed_for_its_people(ring: Ring) -> None:
    """They name the institutions by the roster that they are shown."""
    ring.desks[0] = Desk(approve=False)
    ring.stewards[0] = ring.start(0, institutions=())
    assert ring.refused(0, Propose(manifest=ring.signed)) == "awaiting_approval"
    assert ring.desks[0].proposals == [ring.signed]
    ring.desks[0].approve = True
    assert ring.refused(0, Propose(manifest=ring.signed)) == "not_allowed"
    assert ring.prepared == 0


def test_where_any_institution_will_do_each_contribution_is_charged_by_the_sites_own_share(
    ward: Site, tmp_path: Path
) -> None:
    """Three institutions, one of them may collude: each share has half of the variance that the manifest promises."""
    ring = make_ring(ward, tmp_path)
    named, limits = ring.policy(), ring.policy().privacy
    alone = msgspec.structs.replace(limits, rely_on_secure_aggregation=False, epsilon_per_run=50, epsilon_lifetime=50)
    changes: dict[str, Any] = {"institutions": (), "any_institution": ANY_INSTITUTION, "privacy": alone}
    assert not list(msgspec.structs.replace(named, **changes).faults())
    ring.stewards[0] = ring.start(0, **changes)
    opened = ring.open()
    ring.answer(0, ring.request(opened, Step(0, 0))[1])
    ring.answer(1, ring.request(opened, Step(0, 0))[1])
    spent = []
    for place in (0, 1):
        ledger = Ledger.open(ring.folder / str(place) / "ledger.sqlite", PldAccountant())
        spent.append(ledger.spent(named.account("ward", private=True), run=open_manifest(ring.signed)[1].hex()).run)
    stated = private_plan(ring.manifest.config)
    assert stated is not None
    figures = stated.report(1).statements
    assert figures is not None
    assert figures.server.epsilon is not None
    assert figures.fallback.epsilon is not None
    assert spent == pytest.approx([figures.fallback.epsilon, figures.server.epsilon], rel=1e-3)
    assert spent[0] > 1.2 * spent[1]


def test_nothing_is_read_before_somebody_approved(ring: Ring) -> None:
    ring.desks[0] = Desk(approve=False)
    ring.stewards[0] = ring.start(0)
    assert ring.refused(0, Propose(manifest=ring.signed)) == "awaiting_approval"
    assert (ring.desks[0].proposals, ring.prepared) == ([ring.signed], 0)
    assert ring.refused(0, OpenSecureSession(message=b"")) == "no_session"
    ring.desks[0].approve = True
    assert isinstance(ring.ask(0, Propose(manifest=ring.signed)), Accepted)
    assert ring.prepared == 1
    assert isinstance(ring.ask(0, Propose(manifest=ring.signed)), Accepted)
    assert ring.prepared == 1


def test_a_run_of_another_version_of_the_code_is_refused(ward: Site, tmp_path: Path) -> None:
    ring = make_ring(ward, tmp_path, code_version="0.0.9")
    assert ring.refused(0, Propose(manifest=ring.signed)) == "bad_manifest"
    assert ring.prepared == 0


def test_the_policy_is_asked_first(ring: Ring) -> None:
    ring.stewards[0] = ring.start(0, minimum_cohort=4)
    assert ring.refused(0, Propose(manifest=ring.signed)) == "not_allowed"
    assert ring.desks[0].proposals == []


def test_a_changed_run_in_the_middle_is_another_run(ring: Ring) -> None:
    opened = ring.open()
    ring.answer(0, ring.request(opened, Step(0, 0))[1])
    config = msgspec.structs.replace(ring.manifest.config, rounds=ring.manifest.config.rounds + 1)
    changed = msgspec.structs.replace(ring.manifest, config=config)
    code = ring.refused(0, Propose(manifest=sign_manifest(changed, ring.coordinator)))
    assert code in {"bad_manifest", "not_allowed"}
    ring.answer(0, ring.request(opened, Step(0, 1))[1])  # the agreed run goes on


def test_losses_and_clear_contributions_are_never_given(ring: Ring) -> None:
    ring.open()
    spec = ring.trainer.spec.digest
    assert ring.refused(0, Evaluate(round=1, spec_digest=spec, adapter=ring.adapter())) == "not_allowed"
    assert ring.refused(0, Contribute(round=1, attempt=0, spec_digest=spec, adapter=ring.adapter())) == "not_allowed"


def test_messages_out_of_order_are_refused(ring: Ring) -> None:
    opened = ring.open()
    _, request = ring.request(opened, Step(0, 0))
    fresh = ring.start(0)
    ring.stewards[0] = fresh
    for early in (request, ShareSessionKeys(message=b""), OpenSecureSession(message=b"")):
        assert ring.refused(0, early) == "no_session"
    ring.ask(0, Propose(manifest=ring.signed))
    assert ring.refused(0, request) == "no_session"


def test_an_adapter_of_wrong_size_or_content_costs_nothing(ring: Ring) -> None:
    opened = ring.open()
    bad = np.frombuffer(ring.adapter(), dtype="<f4").copy()
    bad[3] = np.nan
    for attempt, adapter in enumerate((ring.adapter()[:-4], ring.adapter() + b"\0", bad.tobytes())):
        assert ring.refused(0, ring.request(opened, Step(0, attempt), adapter)[1]) == "malformed"


def test_the_budget_ends_the_run_and_nothing_leaves_beyond_it(ring: Ring) -> None:
    limits = msgspec.structs.replace(ring.policy().privacy, epsilon_lifetime=4.0, epsilon_per_run=4.0)
    ring.stewards[0] = ring.start(0, privacy=limits)
    opened = ring.open()
    plan = private_plan(ring.manifest.config)
    assert plan is not None
    for attempt in range(plan.attempts):
        ring.answer(0, ring.request(opened, Step(0, attempt))[1])
    assert ring.refused(0, ring.request(opened, Step(0, plan.attempts))[1]) == "over_budget"
    assert ring.charged(0) == plan.attempts


def test_no_more_is_given_than_the_run_promised_whatever_the_policy_allows(ring: Ring) -> None:
    limits = msgspec.structs.replace(ring.policy().privacy, epsilon_lifetime=50.0, epsilon_per_run=50.0)
    ring.stewards[0] = ring.start(0, privacy=limits)
    opened = ring.open()
    plan = private_plan(ring.manifest.config)
    assert plan is not None
    for attempt in range(plan.attempts):
        ring.answer(0, ring.request(opened, Step(0, attempt))[1])
    assert ring.refused(0, ring.request(opened, Step(1, 0))[1]) == "over_budget"


def test_a_word_taken_back_ends_the_run_at_once_and_for_as_long(ring: Ring) -> None:
    opened = ring.open()
    ring.answer(0, ring.request(opened, Step(0, 0))[1])
    ring.desks[0].approve = False
    assert ring.refused(0, ring.request(opened, Step(0, 1))[1]) == "awaiting_approval"
    assert ring.refused(0, ring.request(opened, Step(0, 2))[1]) == "no_session"  # its keys are gone
    assert ring.refused(0, Propose(manifest=ring.signed)) == "awaiting_approval"
    ring.desks[0].approve = True
    assert ring.refused(0, ring.request(opened, Step(0, 3))[1]) == "no_session"
    for place in (1, 2):
        ring.stewards[place] = ring.start(place)
    ring.answer(0, ring.request(ring.open(epoch=3), Step(0, 4))[1])


def test_a_word_taken_back_holds_against_a_proposal_that_was_accepted(ring: Ring) -> None:
    ring.open()
    ring.desks[0].approve = False
    assert ring.refused(0, Propose(manifest=ring.signed)) == "awaiting_approval"


def test_a_stranger_cannot_make_it_compute(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that anybody can sign may need more time and memory than there is."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("worked something out for a stranger")

    monkeypatch.setattr(PldAccountant, "epsilon", refuse)
    for name in ("client.governance.pricing.private_plan", "common.manifest.terms.private_plan"):
        monkeypatch.setattr(name, refuse)
    stranger = Identity(Secret(b"x" * 32))
    theirs = msgspec.structs.replace(ring.manifest, coordinator=stranger.public.hex())
    assert ring.refused(0, Propose(manifest=sign_manifest(theirs, stranger))) == "not_allowed"


def test_nothing_is_worked_out_before_somebody_approved(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.desks[0] = Desk(approve=False)
    ring.stewards[0] = ring.start(0)
    monkeypatch.setattr("client.governance.pricing.plan_of", raising(AssertionError("worked something out")))
    assert ring.refused(0, Propose(manifest=ring.signed)) == "awaiting_approval"
    assert ring.desks[0].proposals == [ring.signed]


def test_a_run_goes_on_while_another_is_priced(
    ring: Ring, ward: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.pricing, done = PricedAside(), threading.Event()
    ring.stewards[0] = ring.start(0)
    opened = ring.open()
    other = make_ring(ward, tmp_path / "other")
    work_out = pricing.work_out

    def slowly(*given: Any, **named: Any) -> Any:
        done.wait()
        return work_out(*given, **named)

    monkeypatch.setattr(pricing, "work_out", slowly)
    monkeypatch.setattr("client.steward.steward.PATIENCE_SECONDS", 0.0)
    for attempt in range(2):
        assert ring.refused(0, Propose(manifest=other.signed)) == "busy"
        ring.answer(0, ring.request(opened, Step(0, attempt))[1])
    done.set()
    monkeypatch.setattr("client.steward.steward.PATIENCE_SECONDS", 600.0)
    assert isinstance(ring.ask(0, Propose(manifest=other.signed)), Accepted)


def test_more_units_than_a_run_allows_are_answered_as_if_nobody_had_approved(
    ward: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a coordinator would learn N by halving: each approved manifest told whether it is above ``largest_site``."""
    ring = make_ring(ward, tmp_path, secure_config(largest_site=5))  # it has 6
    ask = Propose(manifest=ring.signed)
    approved = ring.stewards[0].answer(encode(ask))
    assert "more than 5 privacy units" in caplog.text  # the site's own people are told
    ring.desks[0] = Desk(approve=False)
    ring.stewards[0] = ring.start(0)
    assert ring.stewards[0].answer(encode(ask)) == approved
    assert ring.refusals(0) == ["awaiting_approval"] * 2
    assert ring.prepared == 0


def test_units_that_came_while_pictures_were_made_ready_are_answered_so_as_well(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = dataclasses.replace(ring.prepare(ring.manifest), units=((0,),) * 9)
    monkeypatch.setattr(ring, "prepare", lambda _: many)
    assert ring.refused(0, Propose(manifest=ring.signed)) == "awaiting_approval"


def test_a_session_of_another_run_and_stolen_keys_are_refused(ring: Ring, ward: Site, tmp_path: Path) -> None:
    other = make_ring(ward, tmp_path / "other")
    opening, request = other.idle().create_open_session()
    ring.ask(0, Propose(manifest=ring.signed))
    assert ring.refused(0, OpenSecureSession(message=request)) == "no_session"
    opening, request = ring.idle().create_open_session()
    adverts = []
    for place in range(3):
        ring.ask(place, Propose(manifest=ring.signed))
        reply = ring.ask(place, OpenSecureSession(message=request))
        assert isinstance(reply, SessionKeyAdvert)
        adverts.append(reply.message)
        opening = opening.handle_advert(reply.message)
    _, keys = opening.create_session_keys()
    swapped = keys.replace(adverts[1][-40:], adverts[2][-40:])
    assert swapped != keys
    assert ring.refused(0, ShareSessionKeys(message=swapped)) == "malformed"
    assert ring.refused(0, ShareSessionKeys(message=keys[:-1])) == "malformed"


def test_with_equal_seeds_the_masked_sum_is_the_sum_of_the_shares(ward: Site, tmp_path: Path) -> None:
    ring = make_ring(ward, tmp_path, secure_config(repeatable=REPEATABLE_WORDS))
    ring.stewards = [ring.start(place, repeatable=REPEATABLE_WORDS) for place in range(3)]
    state, request = ring.request(ring.open(), Step(0, 0))
    for place in range(3):
        state = state.handle_contribution(ring.answer(place, request))
    _, total = state.create_sum()
    plan = private_plan(ring.manifest.config)
    assert plan is not None
    side = ring.prepare(ring.manifest)
    update = PrivateUpdate(side=side, plan=plan)
    expected = np.zeros(ring.trainer.spec.dimension, dtype=np.uint32)
    for _ in range(3):
        randomness = repeatable_randomness("ward/1/0", seed=ring.manifest.config.seed, acknowledge=REPEATABLE_WORDS)
        expected += update.share(randomness).ring().astype(np.uint32)
    assert (total.words == expected).all()


def test_what_leaves_looks_like_uniform_words_and_less_a_mask_it_does_not(ring: Ring) -> None:
    opened = ring.open()
    sent = words(ring.answer(0, ring.request(opened, Step(0, 0))[1]))[:-4]
    assert uniform(sent) > 1e-3
    total = sum(words(ring.answer(place, ring.request(opened, Step(1, 0))[1])).astype(np.uint64) for place in range(3))
    assert uniform(total.astype(np.uint32)[:-4]) < 1e-3  # masks gone: the noise is far from filling the ring


def uniform(values: Any) -> float:
    """p-value that the top four bits are uniform: those that a small signal cannot reach."""
    counts = np.bincount(values >> 28, minlength=16)
    return float(stats.chisquare(counts).pvalue)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), kind=st.sampled_from([OpenSecureSession, ShareSessionKeys, ContributeMasked]))
def test_no_bytes_make_it_raise(shared: Ring, data: bytes, kind: type[Any]) -> None:
    for request in (data, kind(message=data), Propose(manifest=data)):
        assert isinstance(shared.ask(0, request), Refusal)


@pytest.fixture(scope="module")
def shared(ward: Site, tmp_path_factory: pytest.TempPathFactory) -> Ring:
    ring = make_ring(ward, tmp_path_factory.mktemp("ring"))
    ring.open()
    return ring


def test_only_answers_to_rounds_hold_anything(ring: Ring) -> None:
    opened = ring.open()
    reply = ring.ask(0, ring.request(opened, Step(0, 0))[1])
    assert isinstance(reply, MaskedAnswer)
    message = decode(reply.message, MaskedContribution, limit=1 << 20)
    assert len(reply.message) - len(message.vector) < 512
    assert message.head != HEAD
    assert len(message.vector) == 4 * (ring.trainer.spec.dimension + 4)
    assert open_manifest(ring.signed)[0] == ring.manifest


def test_what_is_wrong_with_pictures_or_in_a_library_is_not_quoted_in_the_log(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (BadCaption("0001.png: the caption is 'Jane Roe, born 1970'"), RuntimeError("Jane Roe")):

        def prepare(_manifest: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ring, "prepare", prepare)
        ring.refused(0, Propose(manifest=ring.signed))
    assert "Jane" not in caplog.text
    assert "BadCaption at " in caplog.text
    ring.refused(0, Propose(manifest=b"nothing"))
    assert "not a signed manifest" in caplog.text


@pytest.mark.parametrize("text", ["\nforged line", "\r\x1b[2Jforged line", "\u2028forged line\u202e", "x" * 100_000])
def test_a_message_cannot_write_lines_of_its_own_into_the_log(
    ring: Ring, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    for message in ({"type": text}, {"type": "propose", "manifest": b"", text: 1}):
        ring.stewards[0].answer(msgspec.msgpack.encode(message))
    for record in caplog.records:
        line = record.getMessage()
        assert line.isprintable()
        assert len(line) < 3000
    assert len(caplog.records) == 2


def raising(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def loss_that_fails_backwards(*_: object) -> Any:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, x: Any) -> Any:  # type: ignore[override]
            return x

        @staticmethod
        def backward(_context: Any, _gradient: Any) -> Any:  # type: ignore[override]
            raise RuntimeError("Jane Roe")

    return Fails.apply(torch.ones(32, requires_grad=True))  # type: ignore[no-untyped-call]


FAILURES = {
    "choosing a unit's pictures": ("client.training.private_update.draw_images", raising(AccountingError("Jane Roe"))),
    "drawing": ("client.training.private_update.training_draws", raising(MemoryError("Jane Roe"))),
    "reading a picture late": ("client.training.trainer.Trainer._latents", raising(BadImage("Jane Roe.png"))),
    "reading a shard late": ("client.training.trainer.Trainer._latents", raising(OSError("/vault/Jane Roe"))),
    "the loss": ("client.training.trainer.Trainer.losses", raising(ValueError("Jane Roe"))),
    "the device's memory": ("client.training.trainer.Trainer.losses", raising(torch.OutOfMemoryError("Jane Roe"))),
    "memory": ("client.training.trainer.Trainer.losses", raising(MemoryError("Jane Roe"))),
    "the gradient": ("client.training.trainer.Trainer.losses", loss_that_fails_backwards),
    "clipping": ("client.training.private_update.clipped_sum", raising(ClippingError("Jane Roe"))),
    "scaling": ("client.training.private_update.quantise", raising(MechanismError("Jane Roe"))),
}


@pytest.mark.parametrize("times", ["as_computed", "even"])
@pytest.mark.parametrize("what", FAILURES)
def test_whatever_fails_after_sampling_is_answered_as_an_empty_sample_is(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str, times: AnswerTimes
) -> None:
    ring.answer_times = times
    opened = ring.open()
    monkeypatch.setattr("client.training.private_update.sample_units", lambda *_, **__: np.zeros(0, dtype=np.int64))
    empty = ring.answer(0, ring.request(opened, Step(0, 0))[1])
    monkeypatch.setattr("client.training.private_update.sample_units", lambda *_, **__: np.arange(6))
    where, fail = FAILURES[what]
    monkeypatch.setattr(where, fail)
    failed = ring.answer(0, ring.request(opened, Step(1, 0))[1])
    assert abs(len(failed) - len(empty)) <= 1  # the round's number
    assert [entry["kind"] for entry in ring.entries(0)][2:] == ["charged", "contributed"] * 2
    assert ring.charged(0) == 2
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told
    assert "Jane" not in caplog.text
    assert all("could not be computed" in line for line in told)


def test_what_fails_whoever_was_sampled_is_refused(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ring.open()
    with monkeypatch.context() as patch:
        patch.setattr("client.training.private_update.add_noise", raising(OSError("no entropy")))
        reply = ring.ask(0, ring.request(opened, Step(0, 0))[1])
        assert isinstance(reply, Refusal)
        assert reply.code == "internal"
    assert ring.charged(0) == 1
    ring.answer(0, ring.request(opened, Step(0, 1))[1])


def test_a_device_that_is_gone_costs_nothing(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ring.open()
    with monkeypatch.context() as patch:
        patch.setattr(ring.trainer, "set_adapter", raising(RuntimeError("CUDA error")))
        assert ring.refused(0, ring.request(opened, Step(0, 0))[1]) == "internal"
    with monkeypatch.context() as patch:
        patch.setattr(ring.trainer, "set_adapter", lambda _: None)
        other = np.frombuffer(ring.adapter(), dtype="<f4") + np.float32(1)
        assert ring.refused(0, ring.request(opened, Step(0, 1), other.tobytes())[1]) == "no_data"


def exchange(path: Path, other: Path) -> None:
    for each in path.parent.glob("ledger.sqlite*"):
        each.unlink()
    shutil.copy(other, path)


def rows_of(path: Path) -> int:
    with sqlite3.connect(path) as store:
        return int(store.execute("SELECT count(*) FROM contributions").fetchone()[0])


@pytest.mark.parametrize("other", ["older", "as many rows", "more rows"])
def test_a_ledger_that_is_exchanged_while_the_steward_runs_gives_nothing_away_however_often_it_is_asked(
    ring: Ring, tmp_path: Path, other: str
) -> None:
    """It has room in its budget for what was spent since. What it holds is compared, not how much."""
    opened = ring.open()
    path, swapped = ring.folder / "0" / "ledger.sqlite", tmp_path / "swapped.sqlite"
    if other == "older":
        shutil.copy(path, swapped)
    else:
        theirs = Ledger.create(swapped, PldAccountant())
        account = ring.policy().account("other", private=True)
        event = contribution_event(ring.manifest, ring.policy(), cohort=3)
        for number in range(2 if other == "as many rows" else 3):
            theirs.charge(account, run="ab" * 32, step=Step(number, 0), event=event)
    ring.answer(0, ring.request(opened, Step(0, 0))[1])
    ring.answer(0, ring.request(opened, Step(1, 0))[1])
    exchange(path, swapped)
    before = rows_of(path)
    for attempt in range(3):
        assert ring.refused(0, ring.request(opened, Step(2, attempt))[1]) == "internal"
    assert rows_of(path) == before


def test_a_ledger_that_is_exchanged_before_the_first_round_gives_nothing_away(ring: Ring, tmp_path: Path) -> None:
    older = tmp_path / "older.sqlite"
    shutil.copy(ring.folder / "0" / "ledger.sqlite", older)
    ring.answer(0, ring.request(ring.open(), Step(0, 0))[1])
    for place in range(3):
        ring.stewards[place] = ring.start(place)
    opened = ring.open(epoch=5)
    exchange(ring.folder / "0" / "ledger.sqlite", older)
    assert ring.refused(0, ring.request(opened, Step(1, 0))[1]) == "internal"
