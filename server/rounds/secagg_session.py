"""Secure aggregation over a transport: who takes part, under which session keys, and one masked round at a time.

The protocol itself is :mod:`common.secagg.aggregator`; here are the messages sent and the replies waited for. A node is
matched with an institution by the session key that the institution signed, never by the node's own word.

A run's directory is that of one manifest: its log names the manifest, as its checkpoints do.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from common.audit_log import HEADS, read_entries
from common.durable_files import write_atomically
from common.errors import (
    CheckpointError,
    CohortRefused,
    ManifestError,
    ProtocolError,
    RoundFailed,
    TooFewInstitutions,
)
from common.manifest.manifest import open_manifest, verify_countersignature
from common.secagg import aggregator
from common.secagg.messages import KeyAdvert, Step, decode
from common.wire.messages import (
    Accepted,
    ContributeMasked,
    OpenSecureSession,
    Propose,
    SessionKeyAdvert,
    SessionReady,
    ShareSessionKeys,
    encode,
)
from server.rounds.answers import decode_answer, reason_of
from server.rounds.dropouts import LOST_SESSION, PROTOCOL, UNWELL, Dropouts
from server.rounds.optimizer import to_bytes
from server.rounds.rounds import MaskedCollecting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from common.audit_log import AuditLog
    from common.crypto.primitives import Identity
    from common.wire.messages import Request
    from server.rounds.answers import Answer
    from server.rounds.rounds import ReadyForRound
    from server.rounds.transport import Transport

SESSION: Final = "session"
"""Kind of the coordinator's log entry on each session, before any request of it."""
MANIFEST: Final = "manifest"
"""Detail of such an entry: digest of the run's manifest, hex."""
COUNTERSIGNATURES: Final = "countersignatures"
"""Folder of the institutions' acceptances in a run's directory, one file each."""
_EPOCH: Final = "session.json"
_Epoch = Annotated[int, Meta(ge=0)]
_HEADS_PER_ENTRY: Final = 512
"""Some 35 KiB: all of 1024 institutions would pass an entry's limit."""
_OPTIONAL_SECONDS: Final = 30.0
"""Longest wait for the answer to a proposal where enough others take part: one that hangs must not hold them up."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SecureRun:
    """What a coordinator needs for masked sums.

    Attributes:
        manifest: the signed manifest's bytes.
        identity: the coordinator's key, which the manifest names.
        audit: the coordinator's own log.

    """

    manifest: bytes
    identity: Identity = field(repr=False)
    audit: AuditLog = field(repr=False)


class SecAggSession:
    """The sessions of one run, one at a time.

    Guarantee: a session number is on disk before it is used, so that no number is used twice, whatever crashes; masked
    answers are given to :class:`common.secagg.aggregator.Collecting` alone, which has no way to part of a sum.
    """

    def __init__(
        self,
        run: SecureRun,
        transport: Transport,
        directory: Path,
        *,
        timeout_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the manifest; nothing is sent yet.

        Raises:
            ManifestError: Not signed, without secure aggregation, or of another coordinator.
            CheckpointError: The session number of an earlier start cannot be read.

        """
        self._run = run
        self._transport = transport
        self._directory = directory
        self._timeout_s = timeout_s
        self.manifest, digest = open_manifest(run.manifest)
        self.digest = digest.hex()
        idle = aggregator.start(self.manifest, digest, run.identity, epoch=_read_epoch(directory / _EPOCH))
        self._state: aggregator.Aggregator = idle
        self._accepted: set[int] = set()
        self._dropouts = Dropouts(now=now)
        self._places: dict[int, int] = {}

    def members(self, nodes: Iterable[int]) -> tuple[int, ...]:
        """Nodes at hand that hold this session's keys, sorted."""
        return tuple(sorted(set(nodes) & set(self._places)))

    def leave(self, failures: Mapping[int, str]) -> None:
        """Take out of the session who has lost it, to be asked anew at once, and who is unwell, to be asked later."""
        for node, reason in failures.items():
            if reason in LOST_SESSION or reason in UNWELL:
                self._places.pop(node, None)
                self._accepted.discard(node)
            if reason in UNWELL:
                self._dropouts.note(node, reason)

    def ensure(self, nodes: Iterable[int], *, minimum: int) -> None:
        """Have at least ``minimum`` of these nodes in a session, and everybody in it who wants to be.

        Raises:
            TooFewInstitutions: And why the others do not.

        """
        at_hand = sorted(set(nodes))
        are_enough = len(self.members(at_hand)) >= minimum
        if not are_enough:
            self._dropouts.let_all_be_asked()  # somebody may have approved meanwhile
        newcomers = [node for node in at_hand if node not in self._places and node not in self._dropouts]
        if are_enough and not newcomers:
            return
        self._propose(
            [node for node in newcomers if node not in self._accepted],
            timeout_s=min(self._timeout_s, _OPTIONAL_SECONDS) if are_enough else self._timeout_s,
        )
        willing = [node for node in at_hand if node in self._accepted]
        if len(willing) < minimum:
            raise TooFewInstitutions(self._too_few(willing, at_hand, minimum))
        if set(willing) != set(self.members(at_hand)):
            self._open(willing, at_hand)
        if len(self.members(at_hand)) < minimum:
            raise TooFewInstitutions(self._too_few(self.members(at_hand), at_hand, minimum))

    def start_round(self, ready: ReadyForRound, nodes: Iterable[int]) -> tuple[MaskedCollecting, bytes]:
        """The state that collects this attempt's masked vectors, and the encoded request for every one of the nodes.

        Raises:
            ProtocolError: Without a session, or a step or cohort that does not fit it.

        """
        places = {node: self._places[node] for node in nodes}
        step, cohort = _step(ready), tuple(sorted(places.values()))
        head = self._write("requested", ready, {"cohort": ",".join(map(str, cohort))})
        state, request = self._state.create_round_request(
            step, adapter=to_bytes(ready.adapter), cohort=cohort, head=head
        )
        collecting = MaskedCollecting(ready=ready, participants=tuple(sorted(places)), places=places, state=state)
        return collecting, encode(ContributeMasked(message=request))

    def end_round(self, collecting: MaskedCollecting) -> ReadyForRound:
        """What follows the attempt; the institutions' log heads are written down.

        Raises:
            RoundFailed: It was the round's last attempt, or the step gave values that are not finite.
            SumTooLong: Noise and cap cannot explain the mean.

        """
        self._state = collecting.state.abort()
        self.leave(collecting.failures)
        try:
            following, self._state = collecting.close()
        except RoundFailed:
            self._write_end("aborted", collecting)
            raise
        self._write_end("summed" if following.round > collecting.ready.round else "aborted", collecting)
        return following

    def _write_end(self, kind: str, collecting: MaskedCollecting) -> None:
        """How the attempt ended, with the heads of all who answered; before it, such as do not fit into its entry."""
        told = [f"{place}:{head.hex()}" for place, head in sorted(collecting.state.heads)]
        while len(told) > _HEADS_PER_ENTRY:
            self._write("heads", collecting.ready, {HEADS: ",".join(told[:_HEADS_PER_ENTRY])})
            told = told[_HEADS_PER_ENTRY:]
        self._write(kind, collecting.ready, {HEADS: ",".join(told)})

    def _write(self, kind: str, ready: ReadyForRound, details: dict[str, str]) -> bytes:
        return self._run.audit.append(kind, {"round": ready.round, "attempt": ready.attempt, **details})

    def _too_few(self, have: Collection[int], at_hand: Collection[int], wanted: int) -> str:
        away = len(self.manifest.roster) - len(at_hand)
        said = [f"{away} of the manifest's {len(self.manifest.roster)} are not connected"] if away > 0 else []
        if reasons := self._dropouts.reasons():
            said.append(reasons)
        why = f" ({'; '.join(said)})" if said else ""
        return f"{len(have)} institutions take part, {wanted} are needed{why}; the run goes on when enough of them do"

    def _propose(self, nodes: Iterable[int], *, timeout_s: float) -> None:
        proposal = Propose(manifest=self._run.manifest)
        for node, reply in self._ask(dict.fromkeys(nodes, proposal), timeout_s=timeout_s):
            if not isinstance(reply, Accepted):
                self._dropouts.note(node, reason_of(reply))
                continue
            try:
                member = verify_countersignature(self.manifest, reply.countersignature)
            except (ManifestError, ProtocolError) as error:
                _log.warning("acceptance of node %d refused: %s", node, error)
                self._dropouts.note(node, PROTOCOL)
                continue
            write_atomically(self._directory / COUNTERSIGNATURES / f"{member.name}.bin", reply.countersignature)
            self._accepted.add(node)
            self._dropouts.back(node)

    def _open(self, nodes: Iterable[int], at_hand: Collection[int]) -> None:
        """A new session with everybody who answers in time; whatever session there was is over.

        Raises:
            TooFewInstitutions: Too few of them did.

        """
        self._places = {}
        opening, request = self._state.create_open_session()
        write_atomically(self._directory / _EPOCH, msgspec.json.encode(opening.epoch))
        self._state = opening
        for node, reply in self._ask(dict.fromkeys(nodes, OpenSecureSession(message=request))):
            if isinstance(reply, SessionKeyAdvert):
                try:
                    opening = opening.handle_advert(reply.message)
                    self._places[node] = decode(reply.message, KeyAdvert).place
                    continue
                except ProtocolError as error:
                    _log.warning("session key of node %d refused: %s", node, error)
            self._accepted.discard(node)  # a steward that started anew has to be asked anew
            self._dropouts.note(node, reason_of(reply))
        self._share_keys(opening, at_hand)

    def _share_keys(self, opening: aggregator.Opening, at_hand: Collection[int]) -> None:
        try:
            opened, request = opening.create_session_keys()
        except CohortRefused as error:
            have, self._places = tuple(self._places), {}
            raise TooFewInstitutions(self._too_few(have, at_hand, opening.terms.minimum_cohort)) from error
        self._state = opened
        for node, reply in self._ask(dict.fromkeys(tuple(self._places), ShareSessionKeys(message=request))):
            if not isinstance(reply, SessionReady):
                self._dropouts.note(node, reason_of(reply))
                self._places.pop(node, None)
        said = {"epoch": opening.epoch, "institutions": len(self._places)}
        self._run.audit.append(SESSION, {**said, MANIFEST: self.digest})
        _log.info("session=%d institutions=%d", opening.epoch, len(self._places))

    def _ask(self, requests: Mapping[int, Request], *, timeout_s: float | None = None) -> Iterator[tuple[int, Answer]]:
        encoded = {node: encode(request) for node, request in requests.items()}
        for node, outcome in self._transport.exchange(encoded, timeout_s=timeout_s or self._timeout_s):
            yield node, decode_answer(node, outcome)


def _step(ready: ReadyForRound) -> Step:
    """The protocol counts rounds from 0."""
    return Step(ready.round - 1, ready.attempt)


def _read_epoch(path: Path) -> int:
    try:
        number: int = msgspec.json.decode(path.read_bytes(), type=_Epoch)
    except FileNotFoundError:
        return -1
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it, or start a new run") from error
    return number


def check_log_belongs(path: Path, manifest: str) -> None:
    """Refuse a coordinator's log, verified before, in which a session of another manifest stands.

    Two runs of one configuration and roster differ in their manifest alone. A log or a checkpoint of the one in the
    other's directory would have that one released with a wrong count of attempts, and so with a wrong ε.

    Raises:
        CheckpointError: One does, or an earlier version's that names none.
        AuditLogError: The log cannot be read.

    """
    for entry in read_entries(path):
        named = entry.details.get(MANIFEST, "none")
        if entry.kind == SESSION and named != manifest:
            raise CheckpointError(
                f"{path}: entry {entry.index} is of a run with manifest {named}, this run's is {manifest}; restore its "
                "own log, or start a new run in another directory"
            )
