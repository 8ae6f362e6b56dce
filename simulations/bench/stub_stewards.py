"""Stewards without pictures: real keys, sessions and masks over a constant vector, for measuring what surrounds them.

Nothing here is private, and nothing is charged: for benchmarks of a federation's transport alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from client.steward.service import Limits, StewardService, serve
from client.steward.socket import SocketPlace, create_token_file
from common.errors import OutOfOrder
from common.manifest.manifest import countersign, open_manifest
from common.secagg.participant import enrol
from common.secagg.ring import Summand
from common.wire.messages import (
    Accepted,
    ContributeMasked,
    MaskedAnswer,
    OpenSecureSession,
    Propose,
    SessionKeyAdvert,
    SessionReady,
    ShareSessionKeys,
    decode_request,
    encode,
)
from common.wire.steward_link import read_token

if TYPE_CHECKING:
    from pathlib import Path

    from client.steward.service import Serving
    from common.crypto.primitives import Identity
    from common.secagg.participant import Participant
    from common.wire.messages import Request, SecureReply

_HEAD: Final = bytes(32)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One masked vector: seconds of the system's clock when it was asked for and when it was ready."""

    asked: float
    ready: float


@dataclass
class StubSteward:
    """A participant of one run whose every vector is 1."""

    identity: Identity = field(repr=False)
    answered: list[Answered] = field(default_factory=list)
    _state: Participant | None = None

    def answer(self, request: bytes) -> bytes:
        """The reply of an honest institution."""
        return encode(self._reply(decode_request(request)))

    def _reply(self, request: Request) -> SecureReply:
        asked = time.time()
        match request:
            case Propose():
                manifest, digest = open_manifest(request.manifest)
                self._state = enrol(manifest, digest, self.identity)
                return Accepted(countersignature=countersign(manifest, self.identity))
            case OpenSecureSession():
                self._state, advert = self._enrolled().handle_open_session(request.message)
                return SessionKeyAdvert(message=advert)
            case ShareSessionKeys():
                self._state = self._enrolled().handle_session_keys(request.message)
                return SessionReady()
            case ContributeMasked():
                return self._contribute(request, asked)
            case _:
                raise OutOfOrder(expected="a message of a run with masked sums", got=type(request).__name__)

    def _contribute(self, request: ContributeMasked, asked: float) -> MaskedAnswer:
        state = self._enrolled().handle_round_request(request.message)
        ones = np.ones(state.context.dimension)
        words = ones.astype(np.uint32) if state.context.bits == 32 else ones.astype(np.uint64)
        summand = Summand(words=words, bits=state.context.bits, cohort=len(state.context.cohort))
        self._state, answer = state.create_contribution(summand, head=_HEAD)
        self.answered.append(Answered(asked=asked, ready=time.time()))
        return MaskedAnswer(message=answer)

    def _enrolled(self) -> Participant:
        if self._state is None:
            raise OutOfOrder(expected="a manifest to be proposed", got="a message of its run")
        return self._state


def serve_stub(steward: StubSteward, folder: Path) -> Serving:
    """Listen on ``folder/run/steward.sock`` with a token beside it."""
    place, token = SocketPlace(path=folder / "run" / "steward.sock"), folder / "run" / "token"
    place.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_token_file(token)
    service = StewardService(
        steward=steward, token=read_token(token), turned_away=lambda _: None, limits=Limits(waiting=0)
    )
    return serve(service, place)
