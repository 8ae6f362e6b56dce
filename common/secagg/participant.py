"""The institution's side of the protocol, without I/O.

::

    Enrolled ──open_session──▶ AwaitingKeys ──session_keys──▶ Ready ──round_request──▶ Contributing
        any state ──open_session──▶ AwaitingKeys                ▲                          │ │
                                                                └── create_contribution ───┘ └─ round_request (retry)

Each state is a value; ``handle_*`` takes wire bytes and returns the next state, ``create_*`` returns the next state
and wire bytes. A refused message raises and leaves the caller with the state it had. What must not happen twice even
if a caller keeps an old state is counted in :class:`~common.secagg.keys.SessionSecret` and
:class:`~common.secagg.keys.PairwiseKeys`.

``last`` is the last step answered in this run, from the site's ledger after a restart; nothing at or before it is
answered again. Masks stay fresh even if it is lost, because session keys die with the process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.errors import CohortRefused, OutOfOrder, ReplayedStep, StaleSession
from common.secagg import masking
from common.secagg.keys import PairwiseKeys, SessionSecret, Terms, check_session, create_advert
from common.secagg.messages import (
    REQUEST_OVERHEAD_BYTES,
    MaskedContribution,
    OpenSession,
    RoundContext,
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
    from common.secagg.ring import Summand


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """What every state knows: the run, this institution and how far it came."""

    terms: Terms
    place: int
    identity: Identity
    epoch: int = -1
    last: Step | None = None

    def handle_open_session(self, data: bytes) -> tuple[AwaitingKeys, bytes]:
        """Make a fresh session key and its signed advert; whatever session there was is over.

        Raises:
            MalformedMessage: Not such a message.
            StaleSession: Another run, or a session number that was used.
            BadSignature: Not the coordinator's.

        """
        message = decode(data, OpenSession)
        message.check_signature(self.terms.coordinator)
        if message.manifest != self.terms.manifest:
            raise StaleSession(f"wanted run {self.terms.manifest.hex()}, got {message.manifest.hex()}")
        if message.epoch <= self.epoch:
            raise StaleSession(f"session {message.epoch} is over; wanted one after {self.epoch}")
        secret = SessionSecret()
        advert = create_advert(
            self.terms, epoch=message.epoch, place=self.place, identity=self.identity, key=secret.public
        )
        state = AwaitingKeys(
            terms=self.terms,
            place=self.place,
            identity=self.identity,
            epoch=message.epoch,
            last=self.last,
            secret=secret,
        )
        return state, encode(advert)

    def handle_session_keys(self, data: bytes) -> Ready:
        """Raises OutOfOrder unless a session is being opened."""
        raise self._out_of_order("session keys", data)

    def handle_round_request(self, data: bytes) -> Contributing:
        """Raises OutOfOrder unless there is a session."""
        raise self._out_of_order("a round request", data)

    def create_contribution(self, summand: Summand, *, head: bytes) -> tuple[Ready, bytes]:
        """Raises OutOfOrder unless a round is open."""
        raise self._out_of_order("a contribution", summand, head)

    def _out_of_order(self, got: str, *_: object) -> OutOfOrder:
        return OutOfOrder(expected=self._expected(), got=got)

    def _expected(self) -> str:
        return "a session to be opened"


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolled(Participant):
    """The manifest is accepted; there is no session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AwaitingKeys(Participant):
    """This institution's key is out; the others' are due."""

    secret: SessionSecret = field(repr=False)

    def handle_session_keys(self, data: bytes) -> Ready:
        """Check every key of the session and derive the pairwise ones.

        Raises:
            MalformedMessage: Not such a message.
            StaleSession: Another run or session.
            BadSignature: An advert is not its institution's, or the list is not the coordinator's.
            BadKey: A weak, repeated or swapped key.
            CohortRefused: Too few keys, or not in order.
            UnknownInstitution: Not in the roster.
            MaskReuse: This state's session was made before.

        """
        message = decode(data, SessionKeys)
        check_session(message, self.terms, epoch=self.epoch)
        pairwise = self.secret.agree(message, place=self.place)
        return Ready(
            terms=self.terms,
            place=self.place,
            identity=self.identity,
            epoch=self.epoch,
            last=self.last,
            pairwise=pairwise,
        )

    def _expected(self) -> str:
        return "the session's keys"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready(Participant):
    """The session is made; a round may come."""

    pairwise: PairwiseKeys = field(repr=False)

    def handle_round_request(self, data: bytes) -> Contributing:
        """Check a round's request; the step is used up whether or not an answer follows.

        Raises:
            MalformedMessage: Not such a message, or more bytes than an adapter of this run can take.
            StaleSession: Another session.
            WrongShape: Another dimension or word size, or a round beyond the run.
            BadSignature: Not the coordinator's.
            ReplayedStep: Not later than the last step.
            CohortRefused: Too few, out of order, or without this institution.
            UnknownInstitution: Somebody without a key in this session.

        """
        limit = 4 * self.terms.dimension + REQUEST_OVERHEAD_BYTES
        message = decode(data, RoundRequest, limit=limit)
        message.check_signature(self.terms.coordinator)
        context = message.context()
        self.terms.check_request(context, session=self.pairwise.session)
        if self.last is not None and context.step <= self.last:
            raise ReplayedStep(f"wanted a step after {self.last}, got {context.step}; raise the attempt")
        self.terms.check_cohort(context.cohort, session=self.pairwise.places())
        if self.place not in context.cohort:
            raise CohortRefused(f"asked for a round of {list(context.cohort)} without this institution, {self.place}")
        return Contributing(
            terms=self.terms,
            place=self.place,
            identity=self.identity,
            epoch=self.epoch,
            last=context.step,
            pairwise=self.pairwise,
            context=context,
            adapter=message.adapter,
            coordinator_head=message.head,
        )

    def _expected(self) -> str:
        return "a round request"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contributing(Ready):
    """A round is being computed; a later request for the same or another round takes its place."""

    context: RoundContext
    adapter: bytes = field(repr=False)
    coordinator_head: bytes

    def create_contribution(self, summand: Summand, *, head: bytes) -> tuple[Ready, bytes]:
        """Mask and sign; call it after the ledger was charged and send its bytes at most as often as you like.

        Args:
            summand: d words, made for ``len(self.context.cohort)`` institutions.
            head: 32-byte head of this institution's audit log.

        Raises:
            WrongShape: The summand has another dimension, word size or cohort.
            MaskReuse: This step's masks are spent.

        """
        masking.check_summand(summand, self.context)
        masked = masking.mask(summand, self.context, self.pairwise.take(self.context), place=self.place)
        vector = masked.words.tobytes()
        del masked
        message = MaskedContribution(context=self.context.digest(), place=self.place, head=head, vector=vector)
        ready = Ready(
            terms=self.terms,
            place=self.place,
            identity=self.identity,
            epoch=self.epoch,
            last=self.last,
            pairwise=self.pairwise,
        )
        return ready, encode(signed(message, self.identity))

    def _expected(self) -> str:
        return "a contribution to be created"


def enrol(
    manifest: Manifest, digest: bytes, identity: Identity, *, minimum_cohort: int = 2, last: Step | None = None
) -> Enrolled:
    """Start from a verified manifest that the site's policy allowed.

    Args:
        manifest: As opened by :func:`common.manifest.manifest.open_manifest`.
        digest: Its digest.
        identity: This institution's long-term key.
        minimum_cohort: The site's own minimum; the larger of it and the manifest's holds.
        last: Last step charged to the ledger for this run.

    Raises:
        ManifestError: The run has no secure aggregation.
        UnknownInstitution: This key is not in the roster.

    """
    terms = Terms.of(manifest, digest, minimum_cohort=minimum_cohort)
    return Enrolled(terms=terms, place=manifest.place_of(identity.public), identity=identity, last=last)
