"""Take a folder into the vault: list, clean, judge, and add in batches.

Guarantee: one file, however bad, never keeps another from its outcome; every file and every bad row has exactly one.
Guarantee: after a kill at any moment, running it again adds what is missing and nothing twice.
Guarantee: a dry run writes nothing.

Resuming needs no journal: a picture that is in the vault is recognised by its pixels. Files are decoded again for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client.intake.captions import CaptionScrubber, Names, load_presidio
from client.intake.duplicates import search_of_vault
from client.intake.folder import Candidate, Rejected, list_folder
from client.intake.judge import Judge, KnownSubjects, same_person
from client.intake.outcomes import IntakeReport, Reason, Refused
from client.intake.rules import LookedAt, read_list
from client.intake.subjects import OptOut
from client.intake.workers import WorkerPool
from client.vault.records import today as day_of_expiry
from common.errors import ConfigError
from common.host.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

    from client.intake.deidentify import Cleaned
    from client.intake.folder import Listed
    from client.intake.outcomes import Example, Verdict
    from client.intake.rules import IntakeRules
    from client.intake.subjects import IntakeKey
    from client.vault.records import NewRecord
    from client.vault.vault import Vault

BATCH_RECORDS = 64
BATCH_BYTES = 32 << 20
"""A batch is one transaction: what a kill may cost, and what is held in memory."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """One folder and one set of rules."""

    folder: Path
    rules: IntakeRules
    commit: bool = False
    workers: int = 2
    today: date = field(default_factory=day_of_expiry)
    opt_out_may_match_nobody: bool = False
    """That an opt-out list without a match was looked at and is right."""
    on_file: Callable[[Example], None] | None = None
    """Told of each file's outcome at once."""

    def run(self, key: IntakeKey, vault: Vault | None = None, report: IntakeReport | None = None) -> IntakeReport:
        """Do it, or without ``commit`` see what would be done; without a vault there is nothing to add to.

        A ``report`` that is handed in tells what was done up to then if this is cut off.

        Raises:
            DataError: The folder cannot be used.
            ConfigError: A list or an extra that the rules name is missing; or the opt-out list matches nobody.
            VaultError: The vault cannot be read or written.

        """
        report = IntakeReport() if report is None else report
        listing = list_folder(self.folder, self.rules)
        judge = self._judge(listing.entries, key, vault)
        report.notes += listing.notes
        if vault is not None:
            report.state_before = vault.state().text()
            report.opted_out_inside = _opted_out(judge.opt_out, key, vault)
        self._check_opt_out(listing.entries, judge, key, vault)
        batch: list[NewRecord] = []
        for verdict in self._verdicts(listing.entries, judge):
            report.note(verdict.example)
            if self.on_file is not None:
                self.on_file(verdict.example)
            if verdict.record is not None:
                report.hold(verdict.record, verdict)
                batch.append(verdict.record)
            if len(batch) >= BATCH_RECORDS or sum(len(record.image) for record in batch) >= BATCH_BYTES:
                self._add(batch, vault, report)
        self._add(batch, vault, report)
        report.notes += self._notes(judge, report)
        report.state_after = vault.state().text() if vault is not None else ""
        return report

    def _add(self, batch: list[NewRecord], vault: Vault | None, report: IntakeReport) -> None:
        if self.commit and vault is not None and batch:
            vault.add(tuple(batch))
        report.added()
        batch.clear()

    def _check_opt_out(self, entries: tuple[Listed, ...], judge: Judge, key: IntakeKey, vault: Vault | None) -> None:
        """Before anything is added: a list that matches nobody may be of another place, or written another way."""
        if not self.commit or not self.rules.subjects.opt_out or self.opt_out_may_match_nobody or judge.opt_out.met:
            return
        if any(judge.refuse_early(entry) == Refused(Reason.OPTED_OUT) for entry in entries):
            return
        looking = self._judge(entries, key, vault)  # one of its own: its search for duplicates fills up
        for verdict in self._verdicts(entries, looking):
            if verdict.example.outcome == Refused(Reason.OPTED_OUT):
                return
        raise ConfigError(
            f"{self.rules.subjects.opt_out}: none of its {len(judge.opt_out.entries)} lines matches anybody in this "
            "folder or in the vault, so nothing was added; if that is right, say --opt-out-matches-nobody, else mend "
            "the list: one subject id, PatientID or SHA-256 of a file a line"
        )

    def _notes(self, judge: Judge, report: IntakeReport) -> Iterator[str]:
        listed = judge.opt_out
        if self.rules.subjects.opt_out and not listed.met:
            yield (
                f"the opt-out list matches nobody: none of its {len(listed.entries)} lines; with --commit say "
                "--opt-out-matches-nobody if that is right, else mend the list"
            )
        elif listed.met < len(listed.entries):
            yield f"opt-out list: {listed.met} of {len(listed.entries)} lines match something here"
        if alike := judge.search.alike_in_shape:
            yield f"{alike} pictures have the shape of another and other colours: they count as different"
        kept, held_out = report.splits.total(), report.splits["holdout"]
        if held_out > 1.5 * self.rules.subjects.holdout * kept and held_out > 1:
            people = {side: len(each) for side, each in report.subjects.items()}
            yield (
                f"{held_out} of {kept} pictures are held out and never trained with: the share "
                f"{self.rules.subjects.holdout:g} is of subjects ({people.get('holdout', 0)} of {sum(people.values())} "
                "here), drawn at random, however many pictures each has; with 0, nobody new is held out"
            )

    def _judge(self, listed: tuple[Listed, ...], key: IntakeKey, vault: Vault | None) -> Judge:
        captions, subjects, pixels = self.rules.captions, self.rules.subjects, self.rules.pixels
        names = read_list(Path(captions.names)) if captions.names else ()
        finder = load_presidio(captions.presidio) if captions.presidio != "off" else None
        rows = (each for each in listed if isinstance(each, Candidate))
        said = [(each.subject_id, each.consent) for each in rows if each.subject_id is not None]
        return Judge(
            rules=self.rules,
            key=key,
            scrubber=CaptionScrubber(names=Names(names), max_characters=captions.max_characters, finder=finder),
            opt_out=OptOut.read(Path(subjects.opt_out)) if subjects.opt_out else OptOut(),
            looked_at=LookedAt.read(Path(pixels.looked_at)) if pixels.looked_at else LookedAt(),
            search=search_of_vault(vault, pixels),
            known=KnownSubjects.of(vault),
            today=self.today,
            names_subjects=bool(said),
            refusing=frozenset(same_person(subject) for subject, consent in said if consent is False),
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


def _opted_out(listed: OptOut, key: IntakeKey, vault: Vault) -> int:
    """Subjects on the list, as ids or as patients' numbers, that the vault holds."""
    if not listed.entries:
        return 0
    inside = frozenset(vault.subject_ids())
    found = {subject for subject in inside if listed.covers((subject,), b"")}
    for name in listed.subjects:
        if (pseudonym := key.pseudonym(name)) in inside and listed.covers((name,), b""):
            found.add(pseudonym)
    return len(found)


def _next(cleaned: Iterator[Cleaned]) -> Cleaned:
    return next(cleaned, Refused(Reason.CRASHED, "its decoder gave no answer"))
