from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.manifest.manifest import MAX_MANIFEST_BYTES
from common.wire import messages
from common.wire.messages import (
    MAX_CONTROL_BYTES,
    Accepted,
    Contribute,
    ContributeMasked,
    Evaluate,
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
from common.wire.replies import NoisedContribution, PlainContribution, PlainEvaluation, decode_reply

SPEC = "sha256:" + "0" * 64
REQUESTS = (
    Contribute(round=3, attempt=0, spec_digest=SPEC, adapter=b"\0" * 8),
    Evaluate(round=0, spec_digest=SPEC, adapter=b""),
    Propose(manifest=b"\2" * 40),
    OpenSecureSession(message=b"\3" * 40),
    ShareSessionKeys(message=b"\4" * 40),
    ContributeMasked(message=b"\5" * 40),
)
REPLIES = (
    PlainContribution(round=3, attempt=1, vector=b"\1" * 4, weight=2.0, train_loss=0.5),
    NoisedContribution(round=3, attempt=1, values=b"\1" * 8),
    PlainEvaluation(round=0, institution="a", loss=0.25, pictures=7),
    Refusal(code=RefusalCode.NO_DATA),
    Accepted(countersignature=b"\6" * 40),
    SessionKeyAdvert(message=b"\7" * 40),
    SessionReady(),
    MaskedAnswer(message=b"\10" * 40),
)


def test_messages_come_back_as_they_were() -> None:
    assert tuple(decode_request(encode(message)) for message in REQUESTS) == REQUESTS
    assert tuple(decode_reply(encode(message)) for message in REPLIES) == REPLIES


def test_a_request_is_no_reply_and_the_other_way_round() -> None:
    for request in REQUESTS:
        with pytest.raises(ProtocolError):
            decode_reply(encode(request))
    for reply in REPLIES:
        with pytest.raises(ProtocolError):
            decode_request(encode(reply))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"round": -1},
        {"round": 2**31},
        {"attempt": "0"},
        {"spec_digest": "sha256:xyz"},
        {"adapter": 7},
        {"surprise": 1},
        {"type": "other"},
    ],
)
def test_fields_of_wrong_type_or_range_are_refused(change: dict[str, object]) -> None:
    fields = {"type": "contribute", **msgspec.to_builtins(REQUESTS[0], builtin_types=(bytes,)), **change}
    with pytest.raises(ProtocolError):
        decode_request(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_are_positive(weight: float) -> None:
    fields = {**msgspec.to_builtins(REPLIES[0], builtin_types=(bytes,)), "weight": weight}
    with pytest.raises(ProtocolError):
        decode_reply(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_truncated_bytes_are_refused(cut: int) -> None:
    with pytest.raises(ProtocolError):
        decode_request(encode(REQUESTS[0])[:cut])


def test_oversized_bytes_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 10)
    with pytest.raises(ProtocolError, match="at most 10"):
        decode_request(encode(REQUESTS[0]))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.binary(max_size=200))
def test_any_bytes_decode_or_are_a_protocol_error(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(data)
        except ProtocolError:
            continue


@settings(derandomize=True, deadline=None, max_examples=600)
@given(message=st.sampled_from((*REQUESTS, *REPLIES)), place=st.integers(0, 120), value=st.integers(0, 255))
def test_a_changed_byte_decodes_or_is_a_protocol_error(message: Any, place: int, value: int) -> None:
    data = bytearray(encode(message))
    data[place % len(data)] = value
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(ProtocolError):
            decode(bytes(data))


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES])
def test_every_truncation_is_refused(message: Any) -> None:
    data = encode(message)
    decode = decode_request if message in REQUESTS else decode_reply
    for cut in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:cut])
    with pytest.raises(ProtocolError):
        decode(data + b"\0")


@pytest.mark.parametrize(
    ("message", "field", "most"),
    [
        (REQUESTS[2], "manifest", MAX_MANIFEST_BYTES + 1024),
        (REQUESTS[3], "message", MAX_CONTROL_BYTES),
        (REQUESTS[4], "message", MAX_CONTROL_BYTES),
        (REPLIES[4], "countersignature", 1024),
        (REPLIES[5], "message", MAX_CONTROL_BYTES),
    ],
)
def test_messages_of_a_sessions_opening_are_short(message: Any, field: str, most: int) -> None:
    decode = decode_request if message in REQUESTS else decode_reply
    fits = msgspec.structs.replace(message, **{field: bytes(most)})
    assert decode(encode(fits)) == fits
    with pytest.raises(ProtocolError):
        decode(encode(msgspec.structs.replace(message, **{field: bytes(most + 1)})))
