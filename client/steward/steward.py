"""The steward of private runs with secure aggregation: one institution, one run at a time, while the process lives.

Every request passes the same doors: schema → manifest → policy → approval → order → ledger → act → audit. The first
that is shut answers with a code; the reason stays in this institution's own log. Manifest and policy do not change
while the process lives, so they are asked once, when it joins a run; the approval may, and is asked every time.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from client.governance.ledger import Head
from client.governance.policy import contribution_event
from client.governance.refusals import loggable, refusal_code
from client.governance.rollback import CHARGED, CHARGED_CHAIN, CHARGED_ROW
from client.steward.membership import Membership, join
from client.training.private_update import adapter_vector, contribution_randomness
from common.audit_log import ADAPTER, COORDINATOR_HEAD
from common.errors import DarkroomError, ModelError, NotApproved, OutOfOrder, ProtocolError, RequestNotAllowed
from common.manifest.manifest import open_manifest
from common.secagg.ring import from_integers
from common.wire.messages import (
    Accepted,
    Contribute,
    ContributeMasked,
    Evaluate,
    MaskedAnswer,
    OpenSecureSession,
    Propose,
    Refusal,
    RefusalCode,
    Request,
    SecureReply,
    SessionKeyAdvert,
    SessionReady,
    ShareSessionKeys,
    decode_request,
    encode,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.steward.membership import SiteRecords, TrainingProvider
    from common.secagg.participant import Contributing

PATIENCE_SECONDS: Final = 5.0
"""How long a run under way may be kept waiting until another is priced."""
_LOG: Final = logging.getLogger(__name__)


class SecureSteward:
    """One institution.

    Guarantee: a masked vector leaves only after the ledger has its charge on disk and the audit log its entry; at most
    one for each round and attempt of a run, whatever is asked, and over restarts; only for a manifest that :func:`join`
    let in; and made of clipped gradients and noise alone. Anything else is answered with a code, and written down once.
    No code depends on who was sampled (:mod:`client.training.private_update`).
    """

    def __init__(self, name: str, records: SiteRecords, provider: TrainingProvider) -> None:
        """Stand ready; ``name`` is what this institution is called in its own log lines."""
        self._name = name
        self._records = records
        self._provider = provider
        self._membership: Membership | None = None
        self._known = records.ledger.head()
        self._lock = threading.Lock()

    def answer(self, request: bytes) -> bytes:
        """Reply bytes to request bytes; never raises for anything the request does."""
        with self._lock:
            return encode(self._guarded(request))

    def forget(self) -> None:
        """Drop the run with its encoded pictures, because some may no longer be used; it must be proposed anew."""
        with self._lock:
            self._membership = None

    def _guarded(self, data: bytes) -> SecureReply | Refusal:
        kind = "unreadable"
        try:
            request = decode_request(data)
            kind = type(request).__name__
            return self._act(request)
        except DarkroomError as error:
            return self._refused(kind, refusal_code(error), error)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not reach the coordinator as text
            return self._refused(kind, RefusalCode.INTERNAL, error)

    def _refused(self, kind: str, code: RefusalCode, error: Exception) -> Refusal:
        _LOG.warning("%s refused %s: %s: %s", self._name, kind, code.value, loggable(error))
        try:
            self._records.audit.append("refused", {"request": kind, "code": code.value})
        except DarkroomError as fault:  # the refusal stands; what is wrong with the log must be seen here
            _LOG.error("%s cannot write its audit log: %s", self._name, fault)
        return Refusal(code=code)

    def _act(self, request: Request) -> SecureReply:
        match request:
            case Propose():
                return self._join(request)
            case OpenSecureSession():
                return self._open(request)
            case ShareSessionKeys():
                return self._share(request)
            case ContributeMasked():
                return self._contribute(request)
            case Contribute() | Evaluate():
                raise RequestNotAllowed(f"this institution answers masked rounds alone, not {type(request).__name__}")

    def _member(self) -> Membership:
        if self._membership is None:
            raise OutOfOrder(expected="a manifest to be proposed", got="a message of its run")
        return self._still_approved(self._membership)

    def _still_approved(self, member: Membership) -> Membership:
        """The same, unless somebody here has taken their word back: then its keys are dropped with it."""
        if not self._records.approvals.is_approved(member.digest):
            self._membership = None
            raise NotApproved(f"run {member.run} is no longer approved at this institution")
        return member

    def _join(self, request: Propose) -> Accepted:
        current = self._membership
        if current is not None and open_manifest(request.manifest)[1] == current.digest:
            return Accepted(countersignature=self._still_approved(current).countersignature)
        # whoever is in a run already does not wait for another to be priced
        patience = None if current is None else PATIENCE_SECONDS
        current = join(request.manifest, self._records, self._provider, patience=patience)
        self._records.audit.append("joined", {"run": current.run})
        self._membership = current
        return Accepted(countersignature=current.countersignature)

    def _open(self, request: OpenSecureSession) -> SessionKeyAdvert:
        member = self._member()
        state, advert = member.participant.handle_open_session(request.message)
        self._membership = replace(member, participant=state)
        return SessionKeyAdvert(message=advert)

    def _share(self, request: ShareSessionKeys) -> SessionReady:
        member = self._member()
        state = member.participant.handle_session_keys(request.message)
        self._membership = replace(member, participant=state)
        self._records.audit.append("session", {"run": member.run, "epoch": state.epoch})
        return SessionReady()

    def _contribute(self, request: ContributeMasked) -> MaskedAnswer:
        member = self._member()
        state = member.participant.handle_round_request(request.message)
        _load(adapter_vector(state.adapter, member.manifest.dimension), member)
        self._membership = replace(member, participant=state)
        self._charge(member, state)
        step, seed = state.context.step, member.manifest.config.seed
        stream = f"{member.side.name}/{step.round + 1}/{step.attempt}"
        share = member.side.private_update(member.plan).share(contribution_randomness(member.plan, stream, seed=seed))
        summand = from_integers(share.values, bits=share.plan.bits, cohort=share.plan.institutions)
        head = self._records.audit.append("contributed", _step(member, state))
        ready, answer = state.create_contribution(summand, head=head)
        self._membership = replace(member, participant=ready)
        return MaskedAnswer(message=answer)

    def _charge(self, member: Membership, state: Contributing) -> None:
        """On disk before anything is computed: a crash, an abort or a lost answer stays charged."""
        step, records = state.context.step, self._records
        cohort = len(state.context.cohort)
        if cohort != member.plan.institutions:
            raise ProtocolError(f"a cohort of {cohort}; the noise is sized for {member.plan.institutions}")
        allowed = records.policy.account(records.collection, private=member.plan.config.is_private)
        # a policy may allow more than this run promised: the coordinator gets what was promised
        account = replace(allowed, attempts_per_run=member.plan.attempts)
        event = contribution_event(member.manifest, records.policy, cohort=cohort)
        receipt = records.ledger.charge(account, run=member.run, step=step, event=event, known=self._known)
        self._known = Head(receipt.row, receipt.chain)
        details = _step(member, state) | {CHARGED_ROW: receipt.row, CHARGED_CHAIN: receipt.chain.hex()}
        details |= {COORDINATOR_HEAD: state.coordinator_head.hex()}
        records.audit.append(CHARGED, details | {ADAPTER: hashlib.sha256(state.adapter).hexdigest()})


def _load(adapter: NDArray[np.float32], member: Membership) -> None:
    """Set the adapter, and see that it is there: a device that is gone refuses now, whoever would be sampled."""
    trainer = member.side.trainer
    trainer.set_adapter(adapter)
    if not np.array_equal(trainer.adapter(), adapter):
        raise ModelError(f"{trainer.device} does not hold the adapter that was put there: start the steward anew")


def _step(member: Membership, state: Contributing) -> dict[str, str | int | float | bool]:
    step = state.context.step
    return {"run": member.run, "round": step.round + 1, "attempt": step.attempt}
