"""Sessions and masked rounds against institutions that lie, leave and come back; no model and no Flower."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from flwr.app import Context, RecordDict

from common.audit_log import AuditLog, read_entries, verify_log, witnessed_heads
from common.crypto.identity_file import create_identity_file
from common.crypto.primitives import Identity, Secret
from common.errors import CheckpointError, ManifestError, RoundFailed, SumTooLong
from common.manifest.manifest import Member, countersign, open_manifest, sign_manifest
from common.manifest.terms import draft_manifest
from common.privacy.run_plan import private_plan
from common.secagg.masking import vector_bytes
from common.secagg.messages import MaskedContribution, RoundRequest, decode, signed
from common.secagg.messages import encode as encode_inner
from common.secagg.participant import enrol
from common.secagg.ring import Summand
from common.wire.messages import (
    Accepted,
    ContributeMasked,
    MaskedAnswer,
    OpenSecureSession,
    Propose,
    Refusal,
    RefusalCode,
    SessionKeyAdvert,
    SessionReady,
    ShareSessionKeys,
    decode_request,
    encode,
)
from server.app import run_deployed
from server.rounds.rounds import draw_participants
from server.rounds.secagg_session import SecureRun
from server.rounds.sum_norm import longest_honest_sum
from server.rounds.transport import Failure, FailureKind
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS, Coordinator
from server.run.leadership import standing
from server.run.waiting import WaitsForInstitutions
from tests.server.toy import Recorder, ToySpec, private_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.manifest.manifest import Manifest
    from common.secagg.participant import Participant
    from common.wire.messages import Request
    from common.wire.replies import Reply

SPEC = ToySpec()
DIGEST = "sha256:" + "0" * 64


def identity(number: int) -> Identity:
    return Identity(Secret(number.to_bytes(32, "big")))


@dataclass
class Site:
    """An honest institution whose every vector is ``value``; each message can be answered otherwise."""

    manifest: Manifest
    digest: bytes
    place: int
    value: int = 1
    identity: Identity = field(init=False)
    state: Participant = field(init=False)
    asked: list[str] = field(default_factory=list)
    lies: dict[type, Any] = field(default_factory=dict)
    """By kind of request: gives another reply or a failure for it, or None to be honest."""

    def __post_init__(self) -> None:
        self.identity = identity(self.place + 1)
        self.restart()

    def restart(self) -> None:
        self.state = enrol(self.manifest, self.digest, self.identity)

    def answer(self, request: Request) -> Reply | Failure | bytes:
        self.asked.append(type(request).__name__)
        lie = self.lies.get(type(request), lambda _request: None)(request)
        if lie is not None:
            return lie
        match request:
            case Propose():
                return Accepted(countersignature=countersign(self.manifest, self.identity))
            case OpenSecureSession():
                self.state, advert = self.state.handle_open_session(request.message)
                return SessionKeyAdvert(message=advert)
            case ShareSessionKeys():
                self.state = self.state.handle_session_keys(request.message)
                return SessionReady()
            case ContributeMasked():
                return self.contribute(request)
            case _:
                raise AssertionError(request)

    def contribute(self, request: ContributeMasked) -> MaskedAnswer:
        state = self.state.handle_round_request(request.message)
        words = np.full(self.manifest.dimension, self.value, dtype=np.uint32)
        cohort = len(state.context.cohort)
        summand = Summand(words=words, bits=state.context.bits, cohort=cohort)
        self.state, answer = state.create_contribution(summand, head=bytes([self.place % 256]) * 32)
        return MaskedAnswer(message=answer)


@dataclass
class Sites:
    """A transport; node numbers have nothing to do with places."""

    by_node: dict[int, Site]

    def nodes(self, *, at_least: int, timeout_s: float) -> tuple[int, ...]:
        del at_least, timeout_s
        return tuple(sorted(self.by_node))

    def exchange(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[tuple[int, bytes | Failure]]:
        del timeout_s
        for node, request in requests.items():
            reply = self.by_node[node].answer(decode_request(request))
            yield node, reply if isinstance(reply, Failure | bytes) else encode(reply)


@dataclass
class Ring:
    sites: list[Site]
    transport: Sites
    secure: SecureRun
    directory: Path
    manifest: Manifest
    recorder: Recorder = field(default_factory=Recorder)

    def coordinator(self) -> Coordinator:
        return Coordinator(
            config=self.manifest.config,
            spec=SPEC,
            initial=np.zeros(SPEC.dimension, dtype=np.float32),
            transport=self.transport,
            observer=self.recorder,
            directory=self.directory,
            secure=self.secure,
        )

    def lead(self) -> Any:
        return self.coordinator().run(resume=False)

    def kinds(self) -> list[str]:
        lines = (self.directory / "audit.log").read_bytes().splitlines()
        return [msgspec.json.decode(line)["kind"] for line in lines]


def make_ring(
    directory: Path,
    count: int = 4,
    *,
    minimum: int = 3,
    rounds: int = 2,
    attempts: int = 5,
    spec: ToySpec | AdapterSpec = SPEC,
    owner: Identity | None = None,
    **privacy: Any,
) -> Ring:
    config = private_config(
        rounds,
        aggregation="secure",
        base={"path": "bundled", "digest": DIGEST},
        server={"minimum_institutions": minimum, "attempts": attempts},
        privacy={"repeats": 8, **privacy},
    )
    owner = owner or identity(0xC0FFEE)
    manifest = draft_manifest(
        config,
        base_digest=DIGEST,
        adapter_digest=spec.digest,
        dimension=spec.dimension,
        coordinator=owner.public,
        roster=[Member(name=f"site-{place:04d}", key=identity(place + 1).public.hex()) for place in range(count)],
        code_version=version("darkroom"),
    )
    data = sign_manifest(manifest, owner)
    _, digest = open_manifest(data)
    sites = [Site(manifest, digest, place) for place in range(count)]
    transport = Sites({1000 - 7 * site.place: site for site in sites})
    directory.mkdir(parents=True, exist_ok=True)
    secure = SecureRun(manifest=data, identity=owner, audit=AuditLog(path=directory / "audit.log", identity=owner))
    return Ring(sites, transport, secure, directory, manifest)


def answered(ring: Ring) -> list[tuple[int, int, int]]:
    return [(report.round, report.attempt, len(report.answered)) for report in ring.recorder.rounds]


def test_the_sum_of_exactly_the_minimum_is_stepped_with(tmp_path: Path) -> None:
    ring = make_ring(tmp_path)
    ring.lead()
    assert answered(ring) == [(1, 0, 3), (2, 0, 3)]
    assert ring.kinds() == ["session", "requested", "summed", "requested", "summed"]
    for site in ring.sites:  # one message each way per round, after three to begin with
        assert site.asked[:3] == ["Propose", "OpenSecureSession", "ShareSessionKeys"]
        assert set(site.asked[3:]) <= {"ContributeMasked"}
    assert sorted(path.name for path in (tmp_path / "countersignatures").iterdir()) == [
        f"site-{place:04d}.bin" for place in range(4)
    ]


def test_an_institution_cannot_answer_for_another(tmp_path: Path) -> None:
    """A thief sends the victim's answer first: it is passed over from then on, not the victim."""
    ring = make_ring(tmp_path, rounds=1)
    drawn = draw_participants(sorted(ring.transport.by_node), count=3, seed=ring.manifest.config.seed, round_number=1)
    thief, victim = (ring.transport.by_node[node] for node in drawn[:2])
    stolen: list[Reply] = []

    def steal(request: ContributeMasked) -> Reply:
        thief.lies.clear()
        stolen.append(victim.contribute(request))
        return stolen[-1]

    def send_it_all_the_same(_request: ContributeMasked) -> Reply:
        victim.lies.clear()
        return stolen[-1]

    thief.lies[ContributeMasked] = steal
    victim.lies[ContributeMasked] = send_it_all_the_same
    ring.lead()
    assert answered(ring) == [(1, 1, 3)]
    assert drawn[0] not in ring.recorder.rounds[0].participants
    assert drawn[1] in ring.recorder.rounds[0].participants


@pytest.mark.parametrize("kind", [Propose, OpenSecureSession])
def test_an_institution_cannot_take_part_twice(tmp_path: Path, kind: type) -> None:
    """A second node with the same key, or with words that were copied from the first, gets no place of its own."""
    ring = make_ring(tmp_path, count=3)
    double = Site(ring.manifest, ring.sites[0].digest, 0)
    ring.transport.by_node[2000] = double
    if kind is OpenSecureSession:
        copied: list[Reply] = []

        def advertise(request: OpenSecureSession) -> Reply:
            ring.sites[0].state, advert = ring.sites[0].state.handle_open_session(request.message)
            copied.append(SessionKeyAdvert(message=advert))
            return copied[-1]

        ring.sites[0].lies[OpenSecureSession] = advertise
        double.lies[OpenSecureSession] = lambda _request: copied[-1]
    ring.lead()
    assert answered(ring) == [(1, 0, 3), (2, 0, 3)]
    assert "ContributeMasked" not in double.asked


WORDS = (
    b"\xc1",
    Accepted(countersignature=b"nothing"),
    Accepted(countersignature=b""),
    Refusal(code=RefusalCode.AWAITING_APPROVAL),
    SessionReady(),
    Failure(FailureKind.TIMEOUT),
)
"""None of them is the answer to a message of a session's opening, but the fifth to the last of these."""


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (kind, word)
        for kind in (Propose, OpenSecureSession, ShareSessionKeys)
        for word in WORDS
        if (kind, word) != (ShareSessionKeys, SessionReady())
    ],
)
def test_the_others_go_on_without_one_that_does_not_open(tmp_path: Path, kind: type, word: Any) -> None:
    ring = make_ring(tmp_path)
    ring.sites[2].lies[kind] = lambda _request: word
    ring.lead()
    assert answered(ring) == [(1, 0, 3), (2, 0, 3)]
    assert "ContributeMasked" not in ring.sites[2].asked
    alone = make_ring(tmp_path / "alone", count=3)
    alone.sites[2].lies[kind] = lambda _request: word
    with pytest.raises(RoundFailed, match="2 institutions take part, 3 are needed"):
        alone.lead()
    assert not (tmp_path / "alone" / "attempts.json").exists()  # nothing was asked for, so nothing is used up


def test_a_word_for_another_run_or_with_another_key_is_none(tmp_path: Path) -> None:
    ring, other = make_ring(tmp_path / "a"), make_ring(tmp_path / "b")
    ring.sites[0].lies[Propose] = other.sites[0].answer
    stranger = msgspec.structs.replace(
        ring.manifest, roster=(Member(name="site-0001", key=identity(77).public.hex()), *ring.manifest.roster[2:])
    )
    ring.sites[1].lies[Propose] = lambda _request: Accepted(countersignature=countersign(stranger, identity(77)))
    with pytest.raises(RoundFailed, match=r"2 institutions take part.*does not fit the run"):
        ring.lead()


@pytest.mark.parametrize("code", [RefusalCode.NO_SESSION, RefusalCode.AWAITING_APPROVAL])
def test_one_that_lost_its_session_is_asked_anew(tmp_path: Path, code: RefusalCode) -> None:
    ring = make_ring(tmp_path, count=3)
    site = ring.sites[1]

    def once(_request: ContributeMasked) -> Reply:
        site.lies.clear()
        site.restart()
        return Refusal(code=code)

    site.lies[ContributeMasked] = once
    ring.lead()
    assert answered(ring) == [(1, 1, 3), (2, 0, 3)]
    assert site.asked.count("Propose") == 2
    assert ring.kinds().count("session") == 2


def test_one_that_started_anew_before_the_session_is_asked_from_the_beginning(tmp_path: Path) -> None:
    """It has forgotten that it accepted; when it is needed, it must be proposed to and not only asked for a key."""
    ring = make_ring(tmp_path, rounds=3)
    forgetful, leaver = ring.sites[3], ring.sites[0]

    def forget(_request: OpenSecureSession) -> Reply | None:
        return (
            Refusal(code=RefusalCode.NO_SESSION) if forgetful.asked[-2:] != ["Propose", "OpenSecureSession"] else None
        )

    def forget_once(_request: OpenSecureSession) -> Reply:
        forgetful.lies[OpenSecureSession] = forget
        return Refusal(code=RefusalCode.NO_SESSION)

    def leave(_request: Any) -> Reply:
        leaver.lies = dict.fromkeys((ContributeMasked, Propose), leave)
        return Refusal(code=RefusalCode.AWAITING_APPROVAL)

    forgetful.lies[OpenSecureSession] = forget_once
    leaver.lies[ContributeMasked] = leave
    ring.lead()
    assert [done for _, _, done in answered(ring)] == [3, 3, 3]
    assert forgetful.asked.count("Propose") == 2
    assert "ContributeMasked" in forgetful.asked


def test_one_that_took_its_word_back_is_replaced_and_left_alone(tmp_path: Path) -> None:
    ring = make_ring(tmp_path, rounds=4)
    site = ring.sites[0]
    refuse = lambda _request: Refusal(code=RefusalCode.AWAITING_APPROVAL)  # noqa: E731 - one lie for two requests
    site.lies = {ContributeMasked: refuse, Propose: lambda _request: refuse(0) if len(site.asked) > 4 else None}
    ring.lead()
    assert [done for _, _, done in answered(ring)] == [3, 3, 3, 3]
    assert site.asked.count("ContributeMasked") == 1
    assert site.asked.count("Propose") == 2


def test_a_faulty_vector_voids_the_sum_and_nobody_is_blamed(tmp_path: Path) -> None:
    ring = make_ring(tmp_path, count=3)
    site = ring.sites[0]

    def shifted(request: ContributeMasked) -> Reply:
        site.lies.clear()
        context = decode(request.message, RoundRequest, limit=1 << 26).context()
        site.contribute(request)
        vector = bytes(vector_bytes(context))
        message = MaskedContribution(context=context.digest(), place=0, head=bytes(32), vector=vector)

        return MaskedAnswer(message=encode_inner(signed(message, site.identity)))

    site.lies[ContributeMasked] = shifted
    ring.lead()
    assert answered(ring) == [(1, 1, 3), (2, 0, 3)]
    assert ring.kinds()[:5] == ["session", "requested", "aborted", "requested", "summed"]


def test_a_masked_summand_that_is_too_long_voids_the_sum_and_the_books_say_so(tmp_path: Path) -> None:
    """Its masks cancel like any other's, so nothing but the length of the sum tells."""
    ring = make_ring(tmp_path, count=3)
    plan = private_plan(ring.manifest.config)
    assert plan is not None
    noise = plan.noise(SPEC.dimension)
    ring.sites[0].value = int(2 * longest_honest_sum(noise) * noise.scale / np.sqrt(SPEC.dimension))
    with pytest.raises(SumTooLong, match="round 1, attempt 0 is void"):
        ring.lead()
    assert (len(ring.recorder.rounds), len(ring.recorder.voids)) == (0, 1)
    assert ring.kinds() == ["session", "requested", "aborted"]
    ring.sites[0].value = 1
    ring.coordinator().run(resume=True)
    assert answered(ring) == [(1, 1, 3), (2, 0, 3)]


def test_a_session_number_is_never_used_twice(tmp_path: Path) -> None:
    """Killed at any exchange, and started again: the institutions refuse a number that is not new."""
    ring = make_ring(tmp_path, count=3)
    epochs: list[int] = []

    class Killed(BaseException):
        pass

    def die(_request: Any) -> Reply:
        raise Killed

    for kind in (OpenSecureSession, ShareSessionKeys, OpenSecureSession):
        ring.sites[2].lies = {kind: die}
        with pytest.raises(Killed):
            ring.coordinator().run(resume=(tmp_path / "checkpoints").exists())
        epochs.append(int((tmp_path / "session.json").read_text()))
    ring.sites[2].lies = {}
    ring.coordinator().run(resume=True)
    assert [*epochs, int((tmp_path / "session.json").read_text())] == [0, 1, 2, 3]


def test_a_run_goes_on_from_an_earlier_checkpoint_than_its_last(tmp_path: Path) -> None:
    """Institutions answer no round before one that they have answered, so the rounds in between are lost."""
    ring = make_ring(tmp_path, count=3, rounds=5)

    class Killed(BaseException):
        pass

    def die(request: ContributeMasked) -> Reply:
        if len(ring.recorder.rounds) == 3:
            raise Killed
        return ring.sites[2].contribute(request)

    ring.sites[2].lies = {ContributeMasked: die}
    with pytest.raises(Killed):
        ring.lead()
    newest = max((tmp_path / "checkpoints").iterdir())
    assert "0003" in newest.name
    newest.write_bytes(newest.read_bytes()[:-1])
    ring.sites[2].lies = {}
    ring.coordinator().run(resume=True)
    # the others have answered round 4 already: it gets a second attempt, upon the adapter of round 2
    assert answered(ring) == [(1, 0, 3), (2, 0, 3), (3, 0, 3), (4, 1, 3), (5, 0, 3)]


def test_heads_of_very_many_institutions_are_all_written_down(tmp_path: Path) -> None:
    """One entry cannot hold them; a run of so many would otherwise end after its first sum."""
    count = 1000
    wide = {"population": 2000, "delta": 1e-4, "sampling_rate": 0.05}
    ring = make_ring(tmp_path, count, minimum=count, rounds=1, attempts=1, **wide)
    for site in ring.sites:
        site.lies[ShareSessionKeys] = lambda _request: SessionReady()
        site.lies[ContributeMasked] = _unmasked(site)
    with pytest.raises(RoundFailed, match="masks did not cancel"):
        ring.lead()
    path = tmp_path / "audit.log"
    verify_log(path, ring.secure.identity.public)
    assert all(len(list(witnessed_heads(path, place=place))) == 1 for place in (0, 511, 512, 999))


def _unmasked(site: Site) -> Any:
    """Signed bytes of the right size: a thousand institutions would take a million key agreements."""

    def answer(request: ContributeMasked) -> Reply:

        context = decode(request.message, RoundRequest, limit=1 << 26).context()
        vector = bytes(vector_bytes(context))
        message = MaskedContribution(context=context.digest(), place=site.place, head=bytes(32), vector=vector)
        return MaskedAnswer(message=encode_inner(signed(message, site.identity)))

    return answer


def test_log_and_checkpoints_name_the_runs_manifest(tmp_path: Path) -> None:
    ring = make_ring(tmp_path, count=3)
    ring.lead()
    _, digest = open_manifest(ring.secure.manifest)
    sessions = [entry.details for entry in read_entries(tmp_path / "audit.log") if entry.kind == "session"]
    assert [details["manifest"] for details in sessions] == [digest.hex()]
    assert load_checkpoint(tmp_path / CHECKPOINTS).manifest == digest.hex()
    other = msgspec.structs.replace(ring.manifest, run="0" * len(ring.manifest.run))
    ring.secure = replace(ring.secure, manifest=sign_manifest(other, ring.secure.identity))
    with pytest.raises(CheckpointError, match="manifest: checkpoint"):
        ring.coordinator().run(resume=True)


def test_a_run_does_not_begin_on_another_runs_log(tmp_path: Path) -> None:
    ring = make_ring(tmp_path / "ring")
    owner = create_identity_file(tmp_path / "coordinator.key")
    manifest = msgspec.structs.replace(ring.manifest, coordinator=owner.public.hex())
    (tmp_path / "trial.manifest").write_bytes(sign_manifest(manifest, owner))
    (tmp_path / "run").mkdir()
    log = AuditLog(path=tmp_path / "run" / "audit.log", identity=owner)
    log.append("session", {"epoch": 0, "institutions": 3, "manifest": "0" * 64})
    settings = {
        "manifest": str(tmp_path / "trial.manifest"),
        "identity": str(tmp_path / "coordinator.key"),
        "directory": str(tmp_path / "run"),
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
    with pytest.raises(CheckpointError, match="is of a run with manifest 000"):
        run_deployed(ring.transport, context)


@pytest.mark.parametrize("content", [b"-5", b"x", b"\xff", b""])
def test_a_damaged_session_number_stops_the_run(tmp_path: Path, content: bytes) -> None:
    """A smaller one than was used would have a session number used twice."""
    ring = make_ring(tmp_path)
    (tmp_path / "session.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"session\.json: cannot be read"):
        ring.coordinator()


def test_a_run_whose_configuration_changed_says_from_what_to_what(tmp_path: Path) -> None:
    ring = make_ring(tmp_path)
    changed = msgspec.structs.replace(ring.manifest.config, rounds=5, seed=9)
    with pytest.raises(ManifestError) as raised:
        Coordinator(
            config=changed,
            spec=SPEC,
            initial=np.zeros(SPEC.dimension, dtype=np.float32),
            transport=ring.transport,
            observer=ring.recorder,
            directory=ring.directory,
            secure=ring.secure,
        )
    assert "the number of rounds (config.rounds) changes from 2 to 5" in str(raised.value)
    assert "config.seed changes from" in str(raised.value)
    assert "another directory" in str(raised.value)


def test_a_run_says_that_it_waits_only_while_it_does(tmp_path: Path) -> None:
    """A round may take an hour; the shortage before it is over when it begins."""
    ring, while_asked = make_ring(tmp_path, count=3), []
    site = ring.sites[2]
    site.lies = {Propose: lambda _request: Refusal(code=RefusalCode.AWAITING_APPROVAL)}

    def pause(_seconds: float) -> None:
        assert standing(tmp_path) is not None
        site.lies = {ContributeMasked: look}

    def look(_request: ContributeMasked) -> None:
        while_asked.append(standing(tmp_path))
        site.lies = {}

    Coordinator(
        config=ring.manifest.config,
        spec=SPEC,
        initial=np.zeros(SPEC.dimension, dtype=np.float32),
        transport=ring.transport,
        observer=ring.recorder,
        directory=ring.directory,
        secure=ring.secure,
        waiting=WaitsForInstitutions(tmp_path, sleep=pause),
    ).run(resume=False)
    assert while_asked == [None]
