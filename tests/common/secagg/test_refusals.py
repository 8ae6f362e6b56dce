"""Everything that must be refused: right error class, state unchanged, nothing released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto.primitives import AgreementKey, Identity
from common.errors import (
    BadKey,
    BadSignature,
    CohortRefused,
    DarkroomError,
    DuplicateMessage,
    MalformedMessage,
    ManifestError,
    MissingContributions,
    OutOfOrder,
    ReplayedStep,
    StaleSession,
    UnknownInstitution,
    WrongShape,
)
from common.secagg import aggregator, participant
from common.secagg.keys import Terms
from common.secagg.messages import (
    CONTRIBUTION_OVERHEAD_BYTES,
    MAX_CONTROL_BYTES,
    REQUEST_OVERHEAD_BYTES,
    KeyAdvert,
    MaskedContribution,
    OpenSession,
    RoundRequest,
    SessionKeys,
    Step,
    decode,
    encode,
    signed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

World = Any
HEAD = b"h" * 32


@pytest.fixture
def opened(world: Callable[..., World]) -> World:
    return world(4, dimension=8, minimum_cohort=3, rounds=10).open()


def opening(made: World) -> tuple[bytes, list[Any], list[bytes]]:
    """Opening message, waiting states, adverts."""
    made.server, data = made.server.create_open_session()
    pairs = [made.sites[place].handle_open_session(data) for place in sorted(made.sites)]
    return data, [state for state, _ in pairs], [advert for _, advert in pairs]


def session_keys(made: World, adverts: list[bytes], **changes: Any) -> bytes:
    fields = {"manifest": made.digest, "epoch": 0, "adverts": tuple(decode(each, KeyAdvert) for each in adverts)}
    return encode(signed(SessionKeys(**{**fields, **changes}), made.coordinator))


def request(made: World, signer: Identity | None = None, **changes: Any) -> bytes:
    fields = {
        "session": made.server.session,
        "round": 3,
        "attempt": 1,
        "cohort": tuple(sorted(made.sites)),
        "dimension": 8,
        "bits": 32,
        "head": HEAD,
        "adapter": b"adapter",
    }
    return encode(signed(RoundRequest(**{**fields, **changes}), signer or made.coordinator))


# --- opening a session


def test_opening_of_another_run_coordinator_or_number_is_refused(world: Callable[..., World]) -> None:
    made = world(3)
    site = made.sites[0]
    cases: list[tuple[type[Exception], OpenSession]] = [
        (StaleSession, signed(OpenSession(manifest=b"x" * 32, epoch=0), made.coordinator)),
        (BadSignature, signed(OpenSession(manifest=made.digest, epoch=0), made.identities[1])),
        (BadSignature, OpenSession(manifest=made.digest, epoch=0)),
    ]
    for error, message in cases:
        with pytest.raises(error):
            site.handle_open_session(encode(message))
    good = encode(signed(OpenSession(manifest=made.digest, epoch=5), made.coordinator))
    waiting, _ = site.handle_open_session(good)
    with pytest.raises(StaleSession, match="is over"):
        waiting.handle_open_session(good)


def test_every_session_has_a_fresh_key(world: Callable[..., World]) -> None:
    made = world(3)
    data, _, adverts = opening(made)
    _, second = made.sites[0].handle_open_session(data)
    assert decode(adverts[0], KeyAdvert).key != decode(second, KeyAdvert).key


def test_forged_or_misplaced_adverts_are_refused(world: Callable[..., World]) -> None:
    made = world(3)
    _, _, adverts = opening(made)
    good = decode(adverts[0], KeyAdvert)
    swapped = msgspec.structs.replace(good, key=AgreementKey.generate().public)
    moved = msgspec.structs.replace(good, place=1)
    cases: list[tuple[type[Exception], KeyAdvert]] = [
        (BadSignature, swapped),
        (BadSignature, moved),
        (BadSignature, signed(good, made.identities[1])),
        (UnknownInstitution, signed(msgspec.structs.replace(good, place=3), made.identities[0])),
        (StaleSession, signed(msgspec.structs.replace(good, epoch=1), made.identities[0])),
        (StaleSession, signed(msgspec.structs.replace(good, manifest=b"x" * 32), made.identities[0])),
    ]
    for error, advert in cases:
        with pytest.raises(error):
            made.server.handle_advert(encode(advert))
    server = made.server.handle_advert(adverts[0])
    with pytest.raises(DuplicateMessage):
        server.handle_advert(adverts[0])


def test_too_few_adverts_make_no_session(world: Callable[..., World]) -> None:
    made = world(4, minimum_cohort=3)
    _, _, adverts = opening(made)
    server = made.server.handle_advert(adverts[0]).handle_advert(adverts[2])
    with pytest.raises(CohortRefused, match="at least 3"):
        server.create_session_keys()


def test_copied_session_key_is_refused_by_both_sides(world: Callable[..., World]) -> None:
    made = world(3)
    _, waiting, adverts = opening(made)
    copied = encode(
        signed(
            msgspec.structs.replace(decode(adverts[1], KeyAdvert), key=decode(adverts[0], KeyAdvert).key),
            made.identities[1],
        )
    )
    server = made.server
    for advert in (adverts[0], copied, adverts[2]):
        server = server.handle_advert(advert)
    with pytest.raises(BadKey, match="copied"):
        server.create_session_keys()
    with pytest.raises(BadKey, match="copied"):
        waiting[2].handle_session_keys(session_keys(made, [adverts[0], copied, adverts[2]]))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda key: key[:-1] + bytes([key[-1] | 0x80]),  # X25519 ignores bit 255
        lambda key: pow(int.from_bytes(key, "little"), -1, 2**255 - 19).to_bytes(32, "little"),  # plus (0, 0)
    ],
    ids=["bit 255", "a point of order 2 added"],
)
def test_a_session_key_copied_in_another_spelling_is_refused_by_both_sides(
    world: Callable[..., World], rewrite: Callable[[bytes], bytes]
) -> None:
    """The copy would agree on its original's secrets and count as a second institution."""
    made = world(3)
    _, waiting, adverts = opening(made)
    original = decode(adverts[0], KeyAdvert).key
    spelt = rewrite(original)
    copied = encode(signed(msgspec.structs.replace(decode(adverts[1], KeyAdvert), key=spelt), made.identities[1]))
    with pytest.raises(BadKey, match="pass for two"):
        made.server.handle_advert(copied)
    with pytest.raises(BadKey, match="pass for two"):
        waiting[2].handle_session_keys(session_keys(made, [adverts[0], copied, adverts[2]]))


def test_key_lists_that_a_liar_could_send_are_refused(world: Callable[..., World]) -> None:
    made = world(4, minimum_cohort=3)
    _, waiting, adverts = opening(made)
    weak = encode(signed(msgspec.structs.replace(decode(adverts[1], KeyAdvert), key=bytes(32)), made.identities[1]))
    _, other_own = made.sites[0].handle_open_session(
        encode(signed(OpenSession(manifest=made.digest, epoch=0), made.coordinator))
    )
    forged = encode(msgspec.structs.replace(decode(adverts[1], KeyAdvert), key=b"\x09" + bytes(31)))
    cases: list[tuple[type[Exception], bytes]] = [
        (BadKey, session_keys(made, [adverts[0], weak, *adverts[2:]])),
        (BadKey, session_keys(made, adverts[1:])),  # without this institution
        (BadKey, session_keys(made, [other_own, *adverts[1:]])),  # with a key of its own that is not this session's
        (BadSignature, session_keys(made, [adverts[0], forged, *adverts[2:]])),
        (CohortRefused, session_keys(made, adverts[:2])),
        (CohortRefused, session_keys(made, [adverts[1], adverts[0], adverts[2]])),
        (CohortRefused, session_keys(made, [adverts[0], adverts[1], adverts[1]])),
        (StaleSession, session_keys(made, adverts, epoch=1)),
        (StaleSession, session_keys(made, adverts, manifest=b"x" * 32)),
        (
            BadSignature,
            encode(msgspec.structs.replace(decode(session_keys(made, adverts), SessionKeys), signature=bytes(64))),
        ),
    ]
    for error, data in cases:
        with pytest.raises(error):
            waiting[0].handle_session_keys(data)
    waiting[0].handle_session_keys(session_keys(made, adverts))  # what was refused did not use the secret up


def test_advert_of_an_earlier_session_is_refused(world: Callable[..., World]) -> None:
    made = world(3)
    _, _, old = opening(made)
    made.open()
    made.server, data = made.server.create_open_session()
    waiting, own = made.sites[0].handle_open_session(data)
    with pytest.raises(StaleSession):
        waiting.handle_session_keys(session_keys(made, [own, *old[1:]], epoch=2))


# --- a round's request


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (StaleSession, {"session": b"x" * 32}),
        (WrongShape, {"dimension": 9}),
        (WrongShape, {"bits": 64}),
        (WrongShape, {"round": 10}),
        (CohortRefused, {"cohort": (0, 1)}),
        (CohortRefused, {"cohort": (1, 2, 3)}),
        (CohortRefused, {"cohort": (0, 2, 1)}),
        (CohortRefused, {"cohort": (0, 1, 1, 2)}),
        (UnknownInstitution, {"cohort": (0, 1, 2, 9)}),
        (MalformedMessage, {"adapter": bytes(4 * 8 + REQUEST_OVERHEAD_BYTES)}),
    ],
)
def test_requests_that_do_not_fit_are_refused(opened: World, error: type[Exception], changes: dict[str, Any]) -> None:
    with pytest.raises(error):
        opened.sites[0].handle_round_request(request(opened, **changes))
    opened.sites[0].handle_round_request(request(opened))


def test_request_by_somebody_else_is_refused(opened: World) -> None:
    with pytest.raises(BadSignature):
        opened.sites[0].handle_round_request(request(opened, signer=opened.identities[1]))


@pytest.mark.parametrize("field", ["session", "round", "attempt", "cohort", "head", "adapter"])
def test_request_altered_on_the_way_is_refused(opened: World, field: str) -> None:
    good = decode(request(opened), RoundRequest)
    other = {
        "session": b"x" * 32,
        "round": 4,
        "attempt": 2,
        "cohort": (0, 1, 2),
        "head": b"x" * 32,
        "adapter": b"other",
    }
    altered = msgspec.structs.replace(good, **{field: other[field]})
    with pytest.raises(BadSignature):
        opened.sites[0].handle_round_request(encode(altered))


@pytest.mark.parametrize(("round_number", "attempt"), [(3, 1), (3, 0), (2, 9), (0, 0)])
def test_replayed_or_earlier_step_is_refused(opened: World, round_number: int, attempt: int) -> None:
    working = opened.sites[0].handle_round_request(request(opened))
    ready, _ = working.create_contribution(opened.share([0] * 8), head=HEAD)
    for state in (working, ready):
        with pytest.raises(ReplayedStep):
            state.handle_round_request(request(opened, round=round_number, attempt=attempt))
        state.handle_round_request(request(opened, round=3, attempt=2))


def test_site_minimum_above_the_manifests_holds(world: Callable[..., World]) -> None:
    made = world(4, dimension=8)
    made.sites[0] = participant.enrol(made.manifest, made.digest, made.identities[0], minimum_cohort=4)
    made.open()
    with pytest.raises(CohortRefused, match="at least 4"):
        made.sites[0].handle_round_request(request(made, cohort=(0, 1, 2)))
    made.sites[1].handle_round_request(request(made, cohort=(0, 1, 2)))


@pytest.mark.parametrize("changes", [{"words": [0] * 7}, {"words": [0] * 9}, {"words": [0] * 8, "cohort": 3}])
def test_share_made_for_another_step_is_refused_and_the_step_stays_open(opened: World, changes: dict[str, Any]) -> None:
    working = opened.sites[0].handle_round_request(request(opened))
    with pytest.raises(WrongShape):
        working.create_contribution(opened.share(**changes), head=HEAD)
    working.create_contribution(opened.share([0] * 8), head=HEAD)


# --- collecting


def contribution(made: World, place: int, data: bytes) -> MaskedContribution:
    return decode(made.answer(place, data, [1] * 8), MaskedContribution)


def test_contributions_that_do_not_fit_are_refused(opened: World) -> None:
    data = opened.request(Step(0, 0))
    good = contribution(opened, 0, data)
    again = opened.server.handle_contribution(encode(good))
    other = msgspec.structs.replace
    cases: list[tuple[type[Exception], bytes]] = [
        (BadSignature, encode(other(good, vector=bytes(len(good.vector))))),
        (BadSignature, encode(other(good, head=b"x" * 32))),
        (BadSignature, encode(other(good, place=1))),
        (BadSignature, encode(signed(good, opened.identities[1]))),
        (UnknownInstitution, encode(other(good, place=7))),
        (StaleSession, encode(signed(other(good, context=b"x" * 32), opened.identities[0]))),
        (WrongShape, encode(signed(other(good, vector=good.vector[:-4]), opened.identities[0]))),
        (WrongShape, encode(signed(other(good, vector=good.vector + bytes(4)), opened.identities[0]))),
        (WrongShape, encode(signed(other(good, vector=good.vector[:-1]), opened.identities[0]))),
        (WrongShape, encode(signed(other(good, vector=b""), opened.identities[0]))),
        (MalformedMessage, encode(other(good, vector=bytes(CONTRIBUTION_OVERHEAD_BYTES + 48)))),
        (MalformedMessage, encode(good)[:-1]),
        (MalformedMessage, encode(good) + b"\x00"),
    ]
    for error, message in cases:
        with pytest.raises(error):
            opened.server.handle_contribution(message)
    with pytest.raises(DuplicateMessage):
        again.handle_contribution(encode(good))
    assert again.missing() == (1, 2, 3)


def test_contribution_of_a_member_outside_the_cohort_is_refused(opened: World) -> None:
    opened.request(Step(0, 0), cohort=(0, 1, 2))
    late = request(_before(opened), round=0, attempt=0)
    with pytest.raises(UnknownInstitution, match="not in the cohort"):
        opened.server.handle_contribution(opened.answer(3, late, [1] * 8))


def _before(made: World) -> World:
    return type(made)(
        manifest=made.manifest,
        coordinator=made.coordinator,
        identities=made.identities,
        server=made.server.opened,
        sites=made.sites,
    )


def test_answer_to_an_aborted_attempt_is_refused(opened: World) -> None:
    late = encode(contribution(opened, 0, opened.request(Step(0, 0))))
    opened.server = opened.server.abort()
    opened.request(Step(0, 1))
    with pytest.raises(StaleSession):
        opened.server.handle_contribution(late)


def test_no_sum_before_everybody_answered(opened: World) -> None:
    data = opened.request(Step(0, 0))
    with pytest.raises(MissingContributions):
        opened.server.create_sum()
    for place in range(3):
        opened.server = opened.server.handle_contribution(opened.answer(place, data, [1] * 8))
        with pytest.raises(MissingContributions):
            opened.server.create_sum()


@pytest.mark.parametrize(
    ("error", "step", "cohort"),
    [
        (CohortRefused, Step(5, 0), (0, 1)),
        (CohortRefused, Step(5, 0), (2, 1, 0)),
        (UnknownInstitution, Step(5, 0), (0, 1, 7)),
        (ReplayedStep, Step(4, 0), (0, 1, 2)),
        (WrongShape, Step(10, 0), (0, 1, 2)),
    ],
)
def test_coordinator_refuses_to_ask_what_sites_would_refuse(
    opened: World, error: type[Exception], step: Step, cohort: tuple[int, ...]
) -> None:
    opened.request(Step(4, 0))
    opened.server = opened.server.abort()
    with pytest.raises(error):
        opened.server.create_round_request(step, adapter=b"", cohort=cohort, head=HEAD)


# --- order


def test_each_state_refuses_the_steps_of_others(world: Callable[..., World]) -> None:
    made = world(3, dimension=8)
    enrolled = made.sites[0]
    idle = made.server
    _, waiting, adverts = opening(made)
    opening_state = made.server
    made.open()
    ready = made.sites[0]
    open_state = made.server
    made.request(Step(0, 0))
    share = made.share([0] * 8)

    calls: dict[str, Callable[[Any], Any]] = {
        "open": lambda state: state.handle_session_keys(adverts[0]),
        "request": lambda state: state.handle_round_request(adverts[0]),
        "contribute": lambda state: state.create_contribution(share, head=HEAD),
        "advert": lambda state: state.handle_advert(adverts[0]),
        "keys": lambda state: state.create_session_keys(),
        "ask": lambda state: state.create_round_request(Step(1, 0), adapter=b"", cohort=(0, 1, 2), head=HEAD),
        "answer": lambda state: state.handle_contribution(adverts[0]),
        "sum": lambda state: state.create_sum(),
        "abort": lambda state: state.abort(),
    }
    wrong: list[tuple[Any, str]] = [
        (enrolled, "open request contribute"),
        (waiting[0], "request contribute"),
        (ready, "open contribute"),
        (idle, "advert keys ask answer sum abort"),
        (opening_state, "ask answer sum abort"),
        (open_state, "advert keys answer sum abort"),
        (made.server, "advert keys ask"),
    ]
    for state, names in wrong:
        for name in names.split():
            with pytest.raises(OutOfOrder, match=r"^expected .*, got .*"):
                calls[name](state)
    working = ready.handle_round_request(request(_before(made)))
    with pytest.raises(OutOfOrder, match="expected a contribution to be created, got session keys"):
        working.handle_session_keys(adverts[0])


def test_runs_need_secure_aggregation_and_their_own_coordinator(world: Callable[..., World]) -> None:
    made = world(3)
    plain = msgspec.structs.replace(made.manifest, secure_aggregation=None)
    with pytest.raises(ManifestError, match="does not use secure aggregation"):
        Terms.of(plain, made.digest)
    with pytest.raises(ManifestError, match="not the coordinator's"):
        aggregator.start(made.manifest, made.digest, made.identities[0])
    with pytest.raises(UnknownInstitution):
        participant.enrol(made.manifest, made.digest, Identity.generate())


def test_states_do_not_show_secrets(opened: World) -> None:
    working = opened.sites[0].handle_round_request(request(opened))
    keys = [secret.reveal() for secret in opened.sites[0].pairwise._shared.values()]
    for text in (repr(working), repr(opened.sites[0].pairwise), repr(opened.server)):
        assert all(key.hex() not in text and repr(key) not in text for key in keys)
    assert "adapter=b'adapter'" not in repr(working)


# --- bytes


def entrances(made: World) -> list[tuple[Callable[[bytes], Any], bytes]]:
    """Every function that reads bytes, with bytes that it accepts."""
    enrolled = made.sites[0]
    first, waiting, adverts = opening(made)
    server = made.server
    keys = session_keys(made, adverts)
    made.open()
    asked = request(made, round=0, attempt=0)
    answer = made.answer(1, made.request(Step(0, 0)), [1] * 8)
    return [
        (enrolled.handle_open_session, first),
        (server.handle_advert, adverts[1]),
        (waiting[0].handle_session_keys, keys),
        (made.sites[0].handle_round_request, asked),
        (made.server.handle_contribution, answer),
    ]


@pytest.mark.parametrize("index", range(5))
def test_truncated_and_oversized_bytes_are_refused(world: Callable[..., World], index: int) -> None:
    read, good = entrances(world(3, dimension=8))[index]
    for size in range(len(good)):
        with pytest.raises(MalformedMessage):
            read(good[:size])
    for bad in (good + b"\x00", good + good, bytes(MAX_CONTROL_BYTES + 1), b"\xdd\xff\xff\xff\xff", b"\x91" * 4000):
        with pytest.raises(MalformedMessage):
            read(bad)


@pytest.mark.parametrize("index", range(5))
def test_other_versions_and_types_are_refused(world: Callable[..., World], index: int) -> None:
    made = world(3, dimension=8)
    ways = entrances(made)
    read, good = ways[index]
    tree = msgspec.msgpack.decode(good)
    for changed in ({**tree, "version": 2}, {**tree, "extra": 1}, {**tree, "type": "other"}, [tree]):
        with pytest.raises(MalformedMessage):
            read(msgspec.msgpack.encode(changed))
    for other, (_, data) in enumerate(ways):
        if other != index:
            with pytest.raises(MalformedMessage):
                read(data)


@pytest.mark.parametrize("index", range(5))
def test_fuzzed_bytes_raise_only_our_errors(world: Callable[..., World], index: int) -> None:
    read, good = entrances(world(3, dimension=8))[index]

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.data())
    def mutate(data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(good) - 1))
        end = data.draw(st.integers(start, min(start + 9, len(good))))
        bad = good[:start] + data.draw(st.binary(max_size=9)) + good[end:]
        if bad != good:
            with pytest.raises(DarkroomError):
                read(bad)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.binary(max_size=200))
    def random_bytes(bad: bytes) -> None:
        with pytest.raises(DarkroomError):
            read(bad)

    mutate()
    random_bytes()
    read(good)
