"""The coordinator's side of the protocol, without I/O.

::

    Idle ─create_open_session─▶ Opening ─handle_advert…, create_session_keys─▶ Open ─create_round_request─▶ Collecting
        any state ─create_open_session─▶ Opening                              ▲ ▲                         │  │
                                                                              │ └─────── create_sum ──────┘  │
                                                                              └────────── abort ─────────────┘

There is no function that gives a part of a sum: :meth:`Collecting.create_sum` refuses until everybody answered, and
an aborted attempt's vectors are useless to an honest and to a dishonest coordinator alike, because their masks never
repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from common.errors import (
    CohortRefused,
    DuplicateMessage,
    ManifestError,
    MissingContributions,
    OutOfOrder,
    ReplayedStep,
    StaleSession,
    UnknownInstitution,
)
from common.secagg import masking
from common.secagg.keys import Terms, check_advert, check_session
from common.secagg.messages import (
    CONTRIBUTION_OVERHEAD_BYTES,
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
    from common.crypto.primitives import Identity
    from common.manifest.manifest import Manifest
    from common.secagg.messages import RoundContext
    from common.secagg.ring import VectorSum, Words


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregator:
    """What every state knows."""

    terms: Terms
    identity: Identity
    epoch: int = -1
    last: Step | None = None

    def create_open_session(self) -> tuple[Opening, bytes]:
        """Ask every institution for a fresh session key; whatever session there was is over."""
        message = OpenSession(manifest=self.terms.manifest, epoch=self.epoch + 1)
        state = Opening(terms=self.terms, identity=self.identity, epoch=self.epoch + 1, last=self.last)
        return state, encode(signed(message, self.identity))

    def handle_advert(self, data: bytes) -> Opening:
        """Raises OutOfOrder unless a session is being opened."""
        raise self._out_of_order("a session key", data)

    def create_session_keys(self) -> tuple[Open, bytes]:
        """Raises OutOfOrder unless a session is being opened."""
        raise self._out_of_order("the end of a session's opening")

    def create_round_request(
        self, step: Step, *, adapter: bytes, cohort: tuple[int, ...], head: bytes
    ) -> tuple[Collecting, bytes]:
        """Raises OutOfOrder unless there is a session and no step is open."""
        raise self._out_of_order(f"a request for {step}", adapter, cohort, head)

    def handle_contribution(self, data: bytes) -> Collecting:
        """Raises OutOfOrder unless a step is open."""
        raise self._out_of_order("a masked contribution", data)

    def create_sum(self) -> tuple[Open, VectorSum]:
        """Raises OutOfOrder unless a step is open."""
        raise self._out_of_order("the end of a step")

    def abort(self) -> Open:
        """Raises OutOfOrder unless a step is open."""
        raise self._out_of_order("the abortion of a step")

    def _out_of_order(self, got: str, *_: object) -> OutOfOrder:
        return OutOfOrder(expected=self._expected(), got=got)

    def _expected(self) -> str:
        return "a session to be opened"


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle(Aggregator):
    """There is no session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening(Aggregator):
    """Session keys are coming in."""

    adverts: tuple[KeyAdvert, ...] = ()
    """By place."""

    def handle_advert(self, data: bytes) -> Opening:
        """Keep an institution's session key.

        Raises:
            MalformedMessage: Not such a message.
            StaleSession: Another run or session.
            UnknownInstitution: No such place in the roster.
            BadSignature: Not the institution's.
            DuplicateMessage: Its key is here.

        """
        advert = decode(data, KeyAdvert)
        check_advert(advert, self.terms, epoch=self.epoch)
        if advert.place in self.places():
            raise DuplicateMessage(f"place {advert.place} has advertised a key in session {self.epoch}")
        return replace(self, adverts=tuple(sorted((*self.adverts, advert), key=lambda each: each.place)))

    def places(self) -> frozenset[int]:
        """Whose keys are here."""
        return frozenset(advert.place for advert in self.adverts)

    def create_session_keys(self) -> tuple[Open, bytes]:
        """Close the session's list; who is not on it waits for the next session.

        Raises:
            CohortRefused: Fewer than the minimum cohort.
            BadKey: Two institutions show one key.

        """
        if len(self.adverts) < self.terms.minimum_cohort:
            raise CohortRefused(f"{len(self.adverts)} session keys; at least {self.terms.minimum_cohort} are needed")
        message = SessionKeys(manifest=self.terms.manifest, epoch=self.epoch, adverts=self.adverts)
        message = signed(message, self.identity)
        check_session(message, self.terms, epoch=self.epoch)
        state = Open(
            terms=self.terms,
            identity=self.identity,
            epoch=self.epoch,
            last=self.last,
            session=message.transcript(),
            places=self.places(),
        )
        return state, encode(message)

    def _expected(self) -> str:
        return "session keys"


@dataclass(frozen=True, kw_only=True, slots=True)
class Open(Aggregator):
    """The session is made; a step may start."""

    session: bytes
    places: frozenset[int]

    def create_round_request(
        self, step: Step, *, adapter: bytes, cohort: tuple[int, ...], head: bytes
    ) -> tuple[Collecting, bytes]:
        """One message for the whole cohort.

        Args:
            step: Later than every step before it in the run; a retry takes the next attempt.
            adapter: The global adapter's bytes.
            cohort: Places, increasing.
            head: 32-byte head of the coordinator's audit log.

        Raises:
            ReplayedStep: Not later than the last step.
            CohortRefused: Too few, repeated or out of order.
            UnknownInstitution: Somebody without a key in this session.
            WrongShape: A round beyond the run.

        """
        if self.last is not None and step <= self.last:
            raise ReplayedStep(f"wanted a step after {self.last}, got {step}")
        self.terms.check_cohort(cohort, session=self.places)
        message = RoundRequest(
            session=self.session,
            round=step.round,
            attempt=step.attempt,
            cohort=cohort,
            dimension=self.terms.dimension,
            bits=self.terms.bits,
            head=head,
            adapter=adapter,
        )
        context = message.context()
        self.terms.check_request(context, session=self.session)
        opened = replace(self, last=step)
        state = Collecting(
            terms=self.terms, identity=self.identity, epoch=self.epoch, last=step, context=context, opened=opened
        )
        return state, encode(signed(message, self.identity))

    def _expected(self) -> str:
        return "a step to be started"


@dataclass(frozen=True, kw_only=True, slots=True)
class Collecting(Aggregator):
    """Masked vectors are coming in; the running total is uniform until the last one is there."""

    context: RoundContext
    opened: Open
    """What an end or an abort of the step leads to."""
    heads: tuple[tuple[int, bytes], ...] = ()
    """(place, audit-log head) of those who answered, for the coordinator's own log."""
    total: Words | None = field(default=None, repr=False, compare=False)

    def missing(self) -> tuple[int, ...]:
        """Who has not answered."""
        answered = {place for place, _ in self.heads}
        return tuple(place for place in self.context.cohort if place not in answered)

    def handle_contribution(self, data: bytes) -> Collecting:
        """Add one institution's masked vector.

        Raises:
            MalformedMessage: Not such a message, or too large.
            UnknownInstitution: Not in this step's cohort.
            BadSignature: Not the institution's.
            StaleSession: The institution saw another step, adapter, cohort or session.
            DuplicateMessage: It answered before.
            WrongShape: Another number of bytes.

        """
        limit = masking.vector_bytes(self.context) + CONTRIBUTION_OVERHEAD_BYTES
        message = decode(data, MaskedContribution, limit=limit)
        if message.place not in self.context.cohort:
            raise UnknownInstitution(f"place {message.place} is not in the cohort of this step")
        message.check_signature(self.terms.roster[message.place])
        if message.context != self.context.digest():
            raise StaleSession(f"place {message.place} answers another step, adapter, cohort or session")
        if message.place not in self.missing():
            raise DuplicateMessage(f"place {message.place} has answered {self.context.step}")
        words = masking.unpack(message.vector, self.context).words
        total = words if self.total is None else self.total + words
        return replace(self, total=total, heads=(*self.heads, (message.place, message.head)))

    def create_sum(self) -> tuple[Open, VectorSum]:
        """The checked sum; the step is over.

        Raises:
            MissingContributions: Somebody has not answered.
            MasksDidNotCancel: The check coordinates are wrong.

        """
        if self.total is None or self.missing():
            raise MissingContributions(self.missing())
        return self.opened, masking.open_sum(self.total, self.context)

    def abort(self) -> Open:
        """Forget what came in; the next step needs a higher attempt, fresh samples, fresh noise."""
        return self.opened

    def _expected(self) -> str:
        return f"masked contributions from {list(self.missing())}, or an abort"


def start(manifest: Manifest, name: bytes, identity: Identity, *, epoch: int = -1, last: Step | None = None) -> Idle:
    """Start, or go on after a restart.

    Args:
        manifest: As opened by :func:`common.manifest.manifest.open_manifest`.
        name: Its digest.
        identity: The coordinator's key.
        epoch: Last session number used, from the checkpoint.
        last: Last step asked for, from the checkpoint.

    Raises:
        ManifestError: The run has no secure aggregation, or has another coordinator.

    """
    terms = Terms.of(manifest, name)
    if identity.public != terms.coordinator:
        raise ManifestError("this key is not the coordinator's that the manifest names")
    return Idle(terms=terms, identity=identity, epoch=epoch, last=last)
