"""Somebody who has everything of a whole run but the keys in memory: what was planted in the vaults is nowhere."""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.training import vault_latents
from client.training.private_update import PrivateUpdate
from tests.simulations.vault_sites import NAMES, VaultSites, make_vault_sites, new_record, pixels_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICTURES = 6
PIECE = 16
"""Bytes; runs of noise as long as this do not occur by chance."""


@dataclass
class Planted:
    """What must be nowhere: words, and pieces of byte strings."""

    words: set[str] = field(default_factory=set)
    pieces: set[bytes] = field(default_factory=set)

    def cut(self, content: bytes) -> None:
        """Remember some pieces; those that are mostly zeros say nothing."""
        for at in range(0, len(content) - PIECE, max(PIECE, len(content) // 6 // 8 * 8)):
            piece = content[at : at + PIECE]
            if len(set(piece)) > PIECE // 2:
                self.pieces.add(piece)

    def needles(self) -> Iterator[bytes]:
        for word in self.words:
            yield from forms(word.encode())
            yield from (word.lower().encode(), word.upper().encode(), word.encode()[::-1])
            yield from (word.encode("utf-16-le"), word.encode("utf-16-be"))
        for piece in self.pieces:
            yield from forms(piece)

    def found(self, *places: Path) -> list[tuple[str, bytes]]:
        files = [each for place in places for each in place.rglob("*") if each.is_file()]
        contents = [(str(each), each.read_bytes()) for each in files] + [
            (str(each), str(each).encode()) for each in files
        ]
        needles = set(self.needles())
        return [(name, needle) for name, content in contents for needle in needles if needle in content]


def forms(plain: bytes) -> Iterator[bytes]:
    """As programs write bytes down."""
    yield plain
    yield plain.hex().encode()
    yield plain.hex().upper().encode()
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + plain)[4:-4]
        yield base64.urlsafe_b64encode(b"\0" * shift + plain)[4:-4]
    yield repr(plain)[2:-1].encode()


def plant_records(planted: Planted) -> None:
    for name in NAMES:
        for number in range(PICTURES):
            record = new_record(name, number)
            planted.words |= {record.caption, record.subject_id, record.label, record.source_name}
            planted.cut(record.image[64:])
            planted.cut(pixels_of(name, number).tobytes())
            pixels = pixels_of(name, number).astype("<f4") / 127.5 - 1
            planted.cut(pixels.tobytes())


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    """Also what is computed during the run: latents, embeddings, clipped sums, and sums with this site's noise."""
    kept = Planted()
    plant_records(kept)
    encode, clipped, share = vault_latents.encode_vault, PrivateUpdate.clipped, PrivateUpdate.share

    def watched_encode(*given: Any, **named: Any) -> Any:
        made = encode(*given, **named)
        for part in (made.shard.mean, made.shard.std, made.shard.captions.embeddings):
            for row in part.numpy():
                kept.cut(row.astype("<f2").tobytes())
                kept.cut(row.astype("<f4").tobytes())
        return made

    def watched_clipped(self: PrivateUpdate, *given: Any, **named: Any) -> Any:
        total = clipped(self, *given, **named)
        for kind in ("<f2", "<f4", "<f8"):
            kept.cut(np.asarray(total.vector).astype(kind).tobytes())
        return total

    def watched_share(self: PrivateUpdate, *given: Any, **named: Any) -> Any:
        made = share(self, *given, **named)
        values = np.asarray(made.values)
        kept.cut(values.astype("<i8").astype("<u4").tobytes())
        for kind in ("<i8", "<f4", "<f8"):
            kept.cut(values.astype(kind).tobytes())
        return made

    monkeypatch.setattr(vault_latents, "encode_vault", watched_encode)
    monkeypatch.setattr(PrivateUpdate, "clipped", watched_clipped)
    monkeypatch.setattr(PrivateUpdate, "share", watched_share)
    return kept


def write_down(sites: VaultSites, logs: str) -> Path:
    """What passed between shims and stewards, and every log line of every party, beside the folders that they have."""
    folder = sites.root / "seen"
    folder.mkdir()
    for number, message in enumerate(sites.passed):
        (folder / f"{number}.bin").write_bytes(message)
    (folder / "all.log").write_text(logs)
    return folder


def test_nothing_planted_is_anywhere_after_a_whole_run(
    planted: Planted, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    sites = make_vault_sites(tmp_path_factory.mktemp("v"), rounds=2, pictures=PICTURES)
    everywhere = [sites.root / name for name in NAMES]
    with caplog.at_level(logging.DEBUG):
        with sites.serving():
            sites.lead()
            assert planted.found(*everywhere) == []  # journals and temporary files, too
        everywhere += [sites.root / "coordinator", write_down(sites, caplog.text)]
    computed = [piece for piece in planted.pieces if len(piece) == PIECE]
    assert len(computed) > 500
    assert len(sites.passed) == 2 * 3 * (3 + 2)
    assert (sites.root / "coordinator" / "audit.log").stat().st_size > 0
    assert "request kind=contribute_masked" in caplog.text
    assert planted.found(*everywhere) == []


@pytest.mark.parametrize(
    "place", ["ash/vault/blobs/new", "birch/audit.log", "coordinator/checkpoints/x", "seen/all.log"]
)
def test_the_search_finds_what_is_planted(place: str, tmp_path: Path) -> None:
    planted = Planted()
    plant_records(planted)
    update = np.random.default_rng(1).standard_normal(100).astype("<f4")
    planted.cut(update.tobytes())
    record = new_record("birch", 2)
    leaks = [
        record.caption.encode(),
        f"x{record.subject_id}".encode("utf-16-le"),
        base64.b64encode(b"ab" + record.source_name.encode() + b"cd"),
        record.label.upper().encode(),
        b"junk" + record.image,
        pixels_of("ash", 0).tobytes().hex().encode(),
        base64.b64encode(b"q" + update.tobytes()),
        repr(update.tobytes()).encode(),
    ]
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    for leak in leaks:
        path.write_bytes(b"before" + leak + b"after")
        assert planted.found(tmp_path), leak[:40]
    path.write_bytes(b"before and after")
    assert planted.found(tmp_path) == []
    (path.parent / record.source_name).write_bytes(b"")
    assert planted.found(tmp_path)
