"""What a coordinator reads: every reply, those in the clear included, which only simulations send.

They stand apart from the other messages so that no room of an institution knows them: it cannot so much as name an
answer that is not masked (a contract of import-linter).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from common.wire.messages import Message, Refusal, Round, SecureReply, decode_as


class PlainContribution(Message, frozen=True, kw_only=True, tag="plain_contribution"):
    """Institution → coordinator without privacy: a weighted vector (float32, little-endian) and its weight.

    fedsgd: the sum of per-picture gradients, and the public expected batch size; fedavg: weight times the change of the
    adapter. Either way the coordinator uses sum(vector) / sum(weight).
    """

    round: Round
    attempt: Round
    vector: bytes
    weight: Annotated[float, Meta(gt=0)]
    train_loss: float


class NoisedContribution(Message, frozen=True, kw_only=True, tag="noised_contribution"):
    """Institution → coordinator with privacy: the clipped, noised sum modulo 2^bits, and nothing else of the data.

    ``values`` are unsigned little-endian integers of the width that the run's noise plan has, 32 or 64 bits. There is
    neither loss nor count: each would be a release of its own.
    """

    round: Round
    attempt: Round
    values: bytes


class PlainEvaluation(Message, frozen=True, kw_only=True, tag="plain_evaluation"):
    """Institution → coordinator without privacy: mean hold-out loss and the number of hold-out pictures."""

    round: Round
    institution: Annotated[str, Meta(max_length=200)]
    loss: float
    pictures: Annotated[int, Meta(ge=1)]


Contribution: TypeAlias = PlainContribution | NoisedContribution
Reply: TypeAlias = Contribution | PlainEvaluation | SecureReply | Refusal
_REPLIES: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def decode_reply(data: bytes) -> Reply:
    """Parse an institution's bytes.

    Raises:
        ProtocolError: Too large, not msgpack, another version, or a field of wrong type or range.

    """
    return decode_as(data, _REPLIES)
