"""Who takes part, the session keys they sign, and the pairwise keys that only two of them share.

A session key is made afresh for every session, never leaves memory, and is dropped once the pairwise keys are
derived: a restarted steward cannot resume an old session, so it cannot derive an old mask again, and a long-term key
stolen later does not open an earlier session (forward secrecy).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from common.crypto.primitives import AgreementKey, Label, check_agreement_key, derive_key, expand_key, frame
from common.errors import (
    BadKey,
    CohortRefused,
    ManifestError,
    MaskReuse,
    StaleSession,
    UnknownInstitution,
    WrongShape,
)
from common.secagg.messages import KeyAdvert, SessionKeys, signed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.crypto.primitives import Identity, Secret
    from common.manifest.manifest import Manifest
    from common.secagg.messages import Bits, RoundContext, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the manifest fixes for every sum of the run."""

    manifest: bytes
    coordinator: bytes
    roster: tuple[bytes, ...]
    """Ed25519 keys by place."""
    rounds: int
    dimension: int
    bits: Bits
    minimum_cohort: int

    @classmethod
    def of(cls, manifest: Manifest, digest: bytes, *, minimum_cohort: int = 2) -> Terms:
        """The terms of a verified manifest; a site's own larger minimum cohort wins.

        Raises:
            ManifestError: The manifest has no secure aggregation.

        """
        terms = manifest.secure_aggregation
        if terms is None:
            raise ManifestError(f"run {manifest.config.name!r} does not use secure aggregation")
        return cls(
            manifest=digest,
            coordinator=bytes.fromhex(manifest.coordinator),
            roster=tuple(bytes.fromhex(member.key) for member in manifest.roster),
            rounds=manifest.config.rounds,
            dimension=manifest.dimension,
            bits=terms.bits,
            minimum_cohort=max(terms.minimum_cohort, minimum_cohort, 2),
        )

    def check_cohort(self, cohort: tuple[int, ...], *, session: frozenset[int]) -> None:
        """Check a list of participants.

        Raises:
            CohortRefused: Too few, repeated or out of order.
            UnknownInstitution: Somebody is not in the session.

        """
        if list(cohort) != sorted(set(cohort)):
            raise CohortRefused(f"wanted each participant once and in order, got {list(cohort)}")
        if len(cohort) < self.minimum_cohort:
            raise CohortRefused(f"wanted at least {self.minimum_cohort} participants, got {len(cohort)}")
        if strangers := set(cohort) - session:
            raise UnknownInstitution(f"places {sorted(strangers)} have no key in this session")

    def check_request(self, context: RoundContext, *, session: bytes) -> None:
        """Check what a step is bound to, apart from its cohort and order.

        Raises:
            StaleSession: Another session.
            WrongShape: Another dimension or word size, or a round beyond the run.

        """
        if context.session != session:
            raise StaleSession(f"wanted session {session.hex()}, got {context.session.hex()}")
        if (context.dimension, context.bits) != (self.dimension, self.bits):
            raise WrongShape(
                f"wanted {self.dimension} words of {self.bits} bits, got {context.dimension} of {context.bits}"
            )
        if context.step.round >= self.rounds:
            raise WrongShape(f"round {context.step.round}, but the run has rounds 0 to {self.rounds - 1}")


def create_advert(terms: Terms, *, epoch: int, place: int, identity: Identity, key: bytes) -> KeyAdvert:
    """This institution's signed session key."""
    advert = KeyAdvert(manifest=terms.manifest, epoch=epoch, place=place, key=key)
    return signed(advert, identity)


def check_advert(advert: KeyAdvert, terms: Terms, *, epoch: int) -> None:
    """Check one institution's session key against the roster.

    Raises:
        StaleSession: For another run or session.
        UnknownInstitution: No such place in the roster.
        BadSignature: Not signed with the roster's key.
        BadKey: A session key that no honest institution makes.

    """
    if (advert.manifest, advert.epoch) != (terms.manifest, epoch):
        raise StaleSession(f"key of place {advert.place} is for another run or session; wanted session {epoch}")
    if advert.place >= len(terms.roster):
        raise UnknownInstitution(f"place {advert.place}; the roster has {len(terms.roster)}")
    advert.check_signature(terms.roster[advert.place])
    check_agreement_key(advert.key)


def check_session(keys: SessionKeys, terms: Terms, *, epoch: int) -> None:
    """Check every advert of a session and that they fit together.

    Raises:
        StaleSession: For another run or session.
        CohortRefused: Too few, repeated or out of order.
        BadKey: Two institutions show one key, or a key that no honest institution makes.
        UnknownInstitution: No such place in the roster.
        BadSignature: The coordinator's or an institution's signature is wrong.

    """
    if (keys.manifest, keys.epoch) != (terms.manifest, epoch):
        raise StaleSession(f"keys of another run or session; wanted session {epoch}, got {keys.epoch}")
    keys.check_signature(terms.coordinator)
    for advert in keys.adverts:
        check_advert(advert, terms, epoch=epoch)
    places = tuple(advert.place for advert in keys.adverts)
    terms.check_cohort(places, session=frozenset(places))
    if len({advert.key for advert in keys.adverts}) < len(keys.adverts):
        raise BadKey("two institutions show the same session key; one of them copied it")


@final
@dataclass(kw_only=True, slots=True)
class PairwiseKeys:
    """One institution's shared keys in one session; hands out each step's mask keys at most once.

    Mutable on purpose, like :class:`SessionSecret`: states are values that a caller can keep and use again, and a mask
    used for two vectors is a two-time pad, so the count of what was handed out must outlive the state.

    Guarantee: no call of :meth:`take` gives keys for a step equal to or earlier than one it gave keys for before,
    whatever states and threads call it. Assumes that the process is not copied (fork, VM snapshot) between calls.
    """

    session: bytes
    place: int
    _shared: Mapping[int, Secret] = field(repr=False)
    _last: Step | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _process: int = field(default_factory=os.getpid, repr=False)

    def places(self) -> frozenset[int]:
        """Everybody in the session."""
        return frozenset(self._shared) | {self.place}

    def take(self, context: RoundContext) -> dict[int, Secret]:
        """Mask keys of one step by peer; this step and all before it are then spent.

        Raises:
            MaskReuse: The step, or a later one, was taken before, or this is a copy of the process that made the keys.
            StaleSession: Another session's step.
            CohortRefused: A step without this institution.
            UnknownInstitution: Somebody without a key in this session.

        """
        if context.session != self.session:
            raise StaleSession("the step belongs to another session than these keys")
        peers = frozenset(context.cohort) - {self.place}
        if self.place not in context.cohort:
            raise CohortRefused(f"the step's cohort {list(context.cohort)} is without this institution, {self.place}")
        if strangers := peers - self._shared.keys():
            raise UnknownInstitution(f"places {sorted(strangers)} have no key in this session")
        if os.getpid() != self._process:
            raise MaskReuse("these keys belong to another process, which may use the same masks; open a new session")
        with self._lock:
            if self._last is not None and context.step <= self._last:
                raise MaskReuse(f"masks of {context.step} are spent (last: {self._last}); ask for a new attempt")
            self._last = context.step
        info = frame(Label.MASK, context.digest())
        return {peer: expand_key(self._shared[peer], info=info) for peer in peers}


@final
class SessionSecret:
    """The secret half of an advert, good for one session.

    Guarantee: :meth:`agree` succeeds at most once per object, so there is one :class:`PairwiseKeys`, hence one count of
    spent steps, per pairwise key.
    """

    __slots__ = ("_agreement", "_lock", "public")

    def __init__(self, agreement: AgreementKey | None = None) -> None:
        self._agreement: AgreementKey | None = agreement or AgreementKey.generate()
        self._lock = threading.Lock()
        self.public = self._agreement.public

    def agree(self, keys: SessionKeys, *, place: int) -> PairwiseKeys:
        """Agree with every other institution of a checked session, then forget the secret.

        Raises:
            BadKey: Somebody's key is of small order, or ours was swapped; the secret is kept.
            MaskReuse: This secret has made its session before.

        """
        adverts = {advert.place: advert.key for advert in keys.adverts}
        if adverts.pop(place, None) != self.public:
            raise BadKey("the session does not hold the key that this institution advertised")
        transcript = keys.transcript()
        with self._lock:
            agreement = self._agreement
            if agreement is None:
                raise MaskReuse("this session key has made its session before; open a new session")
            shared = {peer: _pair_key(agreement, key, (place, peer), transcript) for peer, key in adverts.items()}
            self._agreement = None
        return PairwiseKeys(session=transcript, place=place, _shared=shared)


def _pair_key(agreement: AgreementKey, peer_key: bytes, pair: tuple[int, int], transcript: bytes) -> Secret:
    low, high = sorted(pair)
    info = frame(Label.PAIR, low.to_bytes(8, "big"), high.to_bytes(8, "big"))
    return derive_key(agreement.agree(peer_key), salt=transcript, info=info)
