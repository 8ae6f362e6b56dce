"""What a site's audit log says that its ledger and its vault must hold.

The log is signed and chained, and the coordinator holds its heads; ledger and vault lie beside it. So an older copy of
either, put back by mistake or to spend a budget twice or to bring back who was erased, shows when the site is opened.
An older copy of the log itself shows in the coordinator's log alone: ``darkroom-client log verify --witness``.

Guarantee: a ledger that lacks the last contribution that the log says was charged, or holds another in its place or
before it, is refused.
Guarantee: a vault that was never in the last state that the log names is refused, and so is another vault.
Guarantee: a vault whose pictures were used under one collection's name is not used under another, and a collection
whose budget was kept for pictures is not taken for one of subjects: either would forget what was spent.

Assumes that the log was verified (:func:`common.audit_log.verify_log`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from client.governance.ledger_store import chain_of, rows_in
from client.vault.records import VaultState
from common.audit_log import AuditLog, read_entries, verify_log
from common.errors import AuditLogError, LedgerError

if TYPE_CHECKING:
    from pathlib import Path

    from common.audit_log import Detail
    from common.crypto.primitives import Identity

CHARGED: Final = "charged"
"""Kind of the entry that follows each row of the ledger."""
CHARGED_ROW: Final = "row"
CHARGED_CHAIN: Final = "ledger"
"""Detail of that entry: the ledger's chain with this row."""
VAULT: Final = "vault"
"""Detail of an entry, of whatever kind, that names a state of the vault."""
PREPARED: Final = "prepared"
"""Kind of the entry that says in which run the vault's pictures are about to be used."""
_COLLECTION: Final = "population"
"""Detail of that entry: the site's collection, as logs have always called it."""
VAULT_ACCEPTED: Final = "vault_accepted"
"""Kind of an operator's entry: from here on, this vault is the one."""


class LedgerRolledBack(LedgerError):
    """A ledger that lacks, or holds otherwise, what the audit log says was charged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """As what a vault's pictures are charged."""

    vault: str
    """The vault's id, in hexadecimal."""
    collection: str
    unit: str

    def details(self) -> dict[str, Detail]:
        """For the entry :data:`PREPARED`, beside the vault's state, which names the vault."""
        return {_COLLECTION: self.collection, "unit": self.unit}


@dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """The newest that a log says."""

    row: int = 0
    """Rows that the ledger has at least."""
    chain: bytes = b""
    """32 bytes that stand for these rows."""
    vault: VaultState | None = None
    uses: frozenset[Use] = frozenset()


def open_log(path: Path, identity: Identity) -> AuditLog:
    """A site's log for writing; never a new one, beside which an older ledger or vault would not be noticed.

    Raises:
        AuditLogError: The log is missing or damaged.

    """
    if not path.is_file():
        raise AuditLogError(
            f"{path}: missing; restore it, for without it nobody knows which ledger and vault are the last"
        )
    return AuditLog(path=path, identity=identity)


def read_noted(path: Path, owner: bytes, *, unfinished: Literal["refuse", "leave"] = "leave") -> Noted:
    """Verify a log, which as a rule a steward may be writing to just now, and see what it says.

    Raises:
        AuditLogError: The log is missing or damaged.

    """
    verify_log(path, owner, unfinished=unfinished)
    return noted_in(path)


def noted_in(path: Path) -> Noted:
    """What the entries of a verified log say.

    Raises:
        VaultError: An entry names a vault's state in words of another version.

    """
    row, chain, vault, uses = 0, b"", None, set[Use]()
    for entry in read_entries(path):
        details = entry.details
        number, link, state = details.get(CHARGED_ROW), details.get(CHARGED_CHAIN), details.get(VAULT)
        if entry.kind == CHARGED and isinstance(number, int) and isinstance(link, str):
            row, chain = number, bytes.fromhex(link)
        if isinstance(state, str):
            vault = VaultState.parse(state)
            if entry.kind == PREPARED:
                collection, unit = str(details.get(_COLLECTION)), str(details.get("unit"))
                uses.add(Use(vault=vault.vault.hex(), collection=collection, unit=unit))
    return Noted(row=row, chain=chain, vault=vault, uses=frozenset(uses))


def check_ledger(path: Path, noted: Noted) -> None:
    """Compare a ledger with what was noted *before* it is read: a steward writes to the ledger first.

    Raises:
        LedgerRolledBack: It is older, or another.
        LedgerError: It cannot be read.

    """
    rows = rows_in(path)
    if len(rows) < noted.row:
        raise LedgerRolledBack(
            f"{path}: holds {len(rows)} contributions, and the audit log says that {noted.row} were charged: an older "
            "copy was put in its place; restore the newest, for without it the spent budget is unknown"
        )
    if chain_of(rows[: noted.row]) != noted.chain:
        raise LedgerRolledBack(
            f"{path}: its first {noted.row} contributions are not those that the audit log says were charged; restore "
            "the ledger that belongs to the log"
        )


def check_use(noted: Noted, use: Use) -> None:
    """Refuse to charge a vault's pictures as something else than before.

    Raises:
        LedgerError: Another collection, or its budget was kept for pictures.

    """
    if names := sorted({each.collection for each in noted.uses if each.vault == use.vault} - {use.collection}):
        raise LedgerError(
            f"collection: this vault's pictures were charged as {', '.join(names)}, and {use.collection!r} has a "
            f'budget of its own, which would forget what was spent; write collection = "{names[0]}" in site.toml'
        )
    if use.unit == "subject" and any((each.collection, each.unit) == (use.collection, "image") for each in noted.uses):
        raise LedgerError(
            f"collection {use.collection!r}: its budget was kept for single pictures, and a subject of several spends "
            'more; go on with units = ["image"] in policy.toml, or begin a new site'
        )
