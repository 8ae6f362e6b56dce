"""An intake that adds to a site's vault, and what it leaves on paper: entries in the audit log, a receipt, a list.

Guarantee: every record that an intake adds is under a receipt, whatever moment the intake ends at: by itself, by an
error, by Ctrl-C or SIGTERM, with the receipt of what was added until then; by a kill, a power cut or a disk that is too
full even for that, with one that the next intake writes before it adds anything.

Assumes that the audit log, whose entry ``ingesting`` names the vault's state before, is the site's newest. Room for the
receipt is taken on the disk before anything is added. A receipt that is written later says how many records there are
and not what became of other files.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from client.governance.rollback import VAULT, noted_in
from client.intake.outcomes import SUFFIX, IntakeReport, LeftOut
from client.intake.receipt import DRAFT_SUFFIX, INGESTED, Room, make_receipt, verify_receipt
from client.intake.subjects import IntakeKey
from client.site.vault_access import forget_passphrase, master_key, open_noted
from client.steward.process import writing
from client.vault.errors import ForeignVault, VaultRolledBack
from client.vault.records import VaultState
from client.vault.vault import Vault
from common.audit_log import read_entries
from common.errors import BadSignature, ConfigError, DarkroomError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from client.intake.ingest import Intake
    from client.intake.receipt import Receipt
    from client.site.settings import SiteConfig
    from common.audit_log import AuditLog, Entry

INGESTING: Final = "ingesting"
"""Kind of the entry that names the vault's state before an intake."""
CUT_OFF: Final = ("accepted or converted", "in an intake that was cut off; what became of other files is not known")


@dataclass(frozen=True, kw_only=True)
class Papers:
    """Where an intake's papers go, and who is told."""

    receipt: Path
    say: Callable[[str], None]

    @property
    def left_out(self) -> Path:
        """The list of files that are left out."""
        return self.receipt.with_name(self.receipt.stem + SUFFIX)


def add_to_vault(site: SiteConfig, intake: Intake, papers: Papers) -> IntakeReport:
    """Take the folder in, with the steward's place held, because the audit log has one writer.

    Raises:
        ConfigError: There is such a receipt already, or no room for one; nothing was added.
        DarkroomError: See :meth:`client.intake.ingest.Intake.run`. What was added until then is under the receipt.

    """
    with contextlib.ExitStack() as stack:
        audit = stack.enter_context(writing(site))
        vault = stack.enter_context(_vault(site, audit))
        forget_passphrase(site.vault)
        desk = _Desk(audit, vault, papers)
        desk.finish_earlier()
        room = _room(papers.receipt)
        try:
            listed = stack.enter_context(LeftOut.create(papers.left_out))
            return desk.take_in(intake, listed, room)
        finally:
            room.give_back()  # of a receipt that was written, nothing is left to give


def unfinished(entries: Iterable[Entry]) -> VaultState | None:
    """The vault's state before an intake that left no receipt, if the last one did not."""
    before: VaultState | None = None
    for entry in entries:
        if entry.kind == INGESTING:
            before = VaultState.parse(str(entry.details.get(VAULT)))
        elif entry.kind == INGESTED:
            before = None
    return before


@dataclass(frozen=True)
class _Desk:
    """Where one intake's papers are written."""

    audit: AuditLog
    vault: Vault
    papers: Papers

    def take_in(self, intake: Intake, listed: LeftOut, room: Room) -> IntakeReport:
        """Run the intake, and write its receipt whatever happens."""
        report, before = IntakeReport(), self.vault.state()
        self.audit.append(INGESTING, {VAULT: before.text()})
        try:
            replace(intake, on_file=listed.note).run(IntakeKey.of(self.audit.identity), self.vault, report)
        except BaseException:
            with _undisturbed():
                self._cut_off(intake, report, before, room)
            raise
        with _undisturbed():
            self._finish(make_receipt(report, intake.rules, self.audit.identity, now=datetime.now(UTC)), room)
        self.papers.say(f"receipt: {self.papers.receipt}")
        self._say_left_out(report)
        return report

    def _say_left_out(self, report: IntakeReport) -> None:
        if report.left_out:
            self.papers.say(f"files that were left out, by name: {self.papers.left_out}")

    def finish_earlier(self) -> None:
        """Write the receipt of an intake that was cut off before it could write one itself."""
        before = unfinished(read_entries(self.audit.path))
        for draft in self.papers.receipt.parent.glob(f".*{DRAFT_SUFFIX}"):
            draft.unlink(missing_ok=True)  # this process alone holds the steward's place
        if before is None:
            return
        try:
            added = self.vault.added_since(before)
        except (ForeignVault, VaultRolledBack):  # another vault was accepted since
            return
        if not added:
            return
        now = datetime.now(UTC)
        path = self.papers.receipt.parent / f"ingest-{now:%Y%m%dT%H%M%S.%fZ}-cut-off.json"
        receipt = self._written(before)
        if receipt is None:
            report = IntakeReport(state_before=before.text(), state_after=self.vault.state().text())
            report.outcomes[CUT_OFF] = len(added)
            report.splits.update(info.split for info in added)
            self._finish(make_receipt(report, None, self.audit.identity, now=now), _room(path))
            self.papers.say(f"an earlier intake was cut off after {len(added)} pictures; their receipt: {path}")
        else:
            self._note(receipt)

    def _written(self, before: VaultState) -> Receipt | None:
        """A receipt that was written, though the log was not told of it."""
        for path in sorted(self.papers.receipt.parent.glob("*.json")):
            try:
                receipt = verify_receipt(path.read_bytes(), self.audit.identity.public)
            except (DataError, BadSignature, OSError):
                continue
            if receipt.vault_before == before.text():
                return receipt
        return None

    def _cut_off(self, intake: Intake, report: IntakeReport, before: VaultState, room: Room) -> None:
        """An intake ended early: say what is in the vault, and leave a receipt of it."""
        try:
            number = len(self.vault.added_since(before))
            report.cut_off(number)
            report.state_after = self.vault.state().text()
            if not number:
                self.papers.say("stopped: nothing was added")
                return
            self._finish(make_receipt(report, intake.rules, self.audit.identity, now=datetime.now(UTC)), room)
        except (DarkroomError, OSError) as error:
            self.papers.say(
                f"stopped, and the receipt could not be written ({error}): the next ingest --commit writes it first"
            )
            return
        self._say_left_out(report)
        self.papers.say(
            f"stopped: {number} pictures were added; receipt: {self.papers.receipt}\n"
            "to go on, run the same command again: they are recognised, and the rest is added"
        )

    def _finish(self, receipt: Receipt, room: Room) -> None:
        try:
            room.fill(receipt)
        except OSError as error:
            added = sum(count.number for count in receipt.records)
            raise ConfigError(
                f"{added} pictures were added, and {room.path} cannot be written ({error.strerror}); make room: the "
                "next ingest --commit writes their receipt before it adds anything"
            ) from error
        self._note(receipt)

    def _note(self, receipt: Receipt) -> None:
        self.audit.append(INGESTED, {"receipt": receipt.digest().hex(), VAULT: receipt.vault_after})


def _room(path: Path) -> Room:
    try:
        return Room.take(path)
    except OSError as error:
        raise ConfigError(f"{path}: no receipt can be written ({error.strerror}), so nothing was added") from error


def _vault(site: SiteConfig, audit: AuditLog) -> Vault:
    """The site's vault for writing; its first intake makes it."""
    if noted_in(audit.path).vault is None and not site.vault.directory.exists():
        return Vault.create(site.vault.directory, master_key(site.vault))
    return open_noted(site.vault, audit, access="write")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C, or SIGTERM, does not cost the receipt."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    earlier = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
