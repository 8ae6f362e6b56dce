"""Locking a vault with another master key, without touching a picture.

The vault key and every subject key are made anew, and record keys, tags and the rest of the index are sealed again
under them; the keys of the records themselves stay, and so do their files. Wrapping the old vault key anew would have
been enough to change a passphrase, but whoever left with an old passphrase and an old copy of the index would then open
everything that is added later. So he opens what he could open when he left, and nothing since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.vault.index import DerivedRow, RecordRow, RunRow, SubjectRow
from client.vault.sealing import (
    Purpose,
    open_facts,
    open_run,
    record_key,
    seal_run,
    seal_subject,
    subject_key,
    subject_name,
)
from common.crypto.primitives import random_key

if TYPE_CHECKING:
    from client.vault.commitment import Change
    from client.vault.sealing import VaultKeys


def rekey(change: Change, old: VaultKeys, new: VaultKeys, *, slot: bytes, wrapped: bytes) -> None:
    """Seal every row again under new keys, within one change."""
    index = change.index
    subjects, records = index.rows(SubjectRow), index.rows(RecordRow)
    derived, runs = index.rows(DerivedRow), index.rows(RunRow)
    for rows in (subjects, records, derived, runs):
        change.delete(rows)
    change.rekey(new, slot, wrapped)
    change.insert(*derived)  # tagged by their record's key, which stays
    change.insert(*(seal_run(new, open_run(old, row), high_water=row.high_water) for row in runs))
    above = {row.subject: (subject_key(old, row), random_key()) for row in subjects}
    change.insert(
        *(seal_subject(new, row.subject, subject_name(old, row), key=above[row.subject][1]) for row in subjects)
    )
    for row in records:
        before, after = above[row.subject]
        key = record_key(old, row, before)
        exact_hash = open_facts(old, row, key).exact_hash
        change.insert(
            row._replace(
                exact_tag=new.tag(Purpose.EXACT_HASH, exact_hash),
                wrapped=new.wrap_key(after, Purpose.RECORD_KEY, key, row.record_id),
            )
        )
