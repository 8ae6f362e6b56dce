"""Take a folder into the vault: list, clean, judge, and add in batches.

Guarantee: one file, however bad, never keeps another from its outcome; every file and every bad row has exactly one.
Guarantee: after a kill at any moment, running it again adds what is missing and nothing twice.
Guarantee: a dry run writes nothing.

Resuming needs no journal: a picture that is in the vault is recognised by its pixels. Files are decoded again for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from client.site_vault import today as day_of_expiry
from client.vault.captions import CaptionScrubber, Names, read_list
from client.vault.intake_report import IntakeReport
from client.vault.judge import Judge, KnownSubjects, Verdict
from client.vault.kept_pictures import search_of_vault
from client.vault.looked_at import LookedAt
from client.vault.outcomes import Reason, Refused
from client.vault.presidio import load_presidio
from client.vault.sources import Candidate, Rejected, list_folder
from client.vault.subjects import OptOut
from client.vault.workers import WorkerPool
from common.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from client.vault.deidentify import Cleaned
    from client.vault.intake_rules import IntakeRules
    from client.vault.records import NewRecord, RecordHashes, RecordId, RecordInfo, StoredRecord, Subject, VaultState
    from client.vault.sources import Listed
    from client.vault.subjects import IntakeKey

BATCH_RECORDS = 64
BATCH_BYTES = 32 << 20
"""A batch is one transaction: what a kill may cost, and what is held in memory."""


class IntakeVault(Protocol):
    """What an intake needs of :class:`client.vault.store.Vault`."""

    def state(self) -> VaultState:
        """Before and after, for the receipt."""
        ...

    def add(self, records: Sequence[NewRecord]) -> tuple[RecordId, ...]:
        """All or none, durably."""
        ...

    def infos(self) -> tuple[RecordInfo, ...]:
        """Of every record."""
        ...

    def read(self, record_id: RecordId) -> StoredRecord:
        """A record, to compare a near-duplicate with."""
        ...

    def hashes(self) -> Iterator[RecordHashes]:
        """Of every record."""
        ...

    def find_subject(self, subject_id: str) -> Subject | None:
        """The subject's number."""
        ...


@dataclass(frozen=True, kw_only=True)
class Intake:
    """One folder and one set of rules."""

    folder: Path
    rules: IntakeRules
    commit: bool = False
    workers: int = 2
    today: date = field(default_factory=day_of_expiry)

    def run(self, key: IntakeKey, vault: IntakeVault | None = None) -> IntakeReport:
        """Do it, or without ``commit`` see what would be done; without a vault there is nothing to add to.

        Raises:
            DataError: The folder cannot be used.
            ConfigError: A list or an extra that the rules name is missing.
            VaultError: The vault cannot be read or written.

        """
        listed = list_folder(self.folder, self.rules)
        report = IntakeReport()
        judge = self._judge(listed, key, vault)
        if vault is not None:
            report.state_before = vault.state().text()
            report.opted_out_inside = _opted_out(judge.opt_out, key, vault)
        batch: list[NewRecord] = []
        for verdict in self._verdicts(listed, judge):
            report.note(verdict.example)
            report.caption_rules.update(dict(verdict.caption_rules))
            if verdict.record is not None:
                report.splits[verdict.record.split] += 1
                batch.append(verdict.record)
            if len(batch) >= BATCH_RECORDS or sum(len(record.image) for record in batch) >= BATCH_BYTES:
                self._add(batch, vault)
        self._add(batch, vault)
        report.state_after = vault.state().text() if vault is not None else ""
        return report

    def _add(self, batch: list[NewRecord], vault: IntakeVault | None) -> None:
        if self.commit and vault is not None and batch:
            vault.add(tuple(batch))
        batch.clear()

    def _judge(self, listed: tuple[Listed, ...], key: IntakeKey, vault: IntakeVault | None) -> Judge:
        captions, subjects, pixels = self.rules.captions, self.rules.subjects, self.rules.pixels
        names = read_list(Path(captions.names)) if captions.names else ()
        finder = load_presidio(captions.presidio) if captions.presidio != "off" else None
        return Judge(
            rules=self.rules,
            key=key,
            scrubber=CaptionScrubber(names=Names(names), max_characters=captions.max_characters, finder=finder),
            opt_out=OptOut.read(Path(subjects.opt_out)) if subjects.opt_out else OptOut(),
            looked_at=LookedAt.read(Path(pixels.looked_at)) if pixels.looked_at else LookedAt(),
            search=search_of_vault(vault, pixels),
            known=KnownSubjects.of(vault),
            today=self.today,
            names_subjects=any(isinstance(each, Candidate) and each.subject_id is not None for each in listed),
        )

    def _verdicts(self, listed: tuple[Listed, ...], judge: Judge) -> Iterator[Verdict]:
        """In the order of the list; a file that may not be used is not even opened."""
        refused = {index: refusal for index, each in enumerate(listed) if (refusal := judge.refuse_early(each))}
        paths = (each.path for index, each in enumerate(listed) if index not in refused and isinstance(each, Candidate))
        with (
            WorkerPool(self.workers, self.rules, previews=not self.commit) as pool,
            bar("ingest", len(listed)) as advance,
        ):
            cleaned = pool.clean(paths)
            for index, each in enumerate(listed):
                if index in refused or isinstance(each, Rejected):
                    yield judge.refusal(each, refused[index])
                else:
                    yield from judge.decide(each, _next(cleaned))
                advance(1)


def _opted_out(listed: OptOut, key: IntakeKey, vault: IntakeVault) -> int:
    """Subjects on the list, as ids or as patients' numbers, that the vault holds."""
    names = (name for subject in listed.subjects for name in (subject, key.pseudonym(subject)))
    return sum(vault.find_subject(name) is not None for name in names)


def _next(cleaned: Iterator[Cleaned]) -> Cleaned:
    return next(cleaned, Refused(Reason.CRASHED, "its decoder gave no answer"))
