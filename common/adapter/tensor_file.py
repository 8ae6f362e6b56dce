"""Safetensors files that are the same bytes for the same tensors."""

from __future__ import annotations

import json


def in_order(data: bytes) -> bytes:
    """The safetensors file with its metadata in order: safetensors itself writes them in another order each time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
