"""A site for tests of the intake: a vault, an identity, and one call that takes a folder in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from client.intake.ingest import Intake
from client.intake.outcomes import Accepted, Converted, Duplicate, Refused
from client.intake.rules import IntakeRules
from client.intake.subjects import IntakeKey
from client.vault.master_key import create_key_file
from client.vault.vault import Vault
from common.config import parse_config
from common.crypto.primitives import Identity, Secret

if TYPE_CHECKING:
    from pathlib import Path

    from client.intake.outcomes import IntakeReport, Outcome

TODAY = date(2026, 6, 1)
IDENTITY = Identity(Secret(bytes(range(32))))


@dataclass
class Site:
    root: Path
    vault: Vault

    @classmethod
    def make(cls, root: Path) -> Site:
        return cls(root, Vault.create(root / "vault", create_key_file(root / "key")))

    def take(
        self, folder: Path, *, commit: bool = True, workers: int = 0, rules: dict[str, Any] | None = None
    ) -> IntakeReport:
        return Intake(
            folder=folder,
            rules=rules_of(rules or {}),
            commit=commit,
            workers=workers,
            today=TODAY,
        ).run(IntakeKey.of(IDENTITY), self.vault)

    def captions(self) -> dict[str, str]:
        return {record.source_name: record.caption for record in self.records()}

    def records(self) -> list[Any]:
        return [self.vault.read(info.record_id) for info in self.vault.infos()]


def rules_of(tables: dict[str, Any]) -> IntakeRules:
    return parse_config(tables, IntakeRules, source="test")


def word(outcome: Outcome) -> str:
    match outcome:
        case Accepted():
            return "accepted"
        case Converted():
            return "converted"
        case Duplicate():
            return "duplicate"
        case Refused(reason, _):
            return f"refused: {reason.name}"


def outcomes(report: IntakeReport) -> dict[str, str]:
    return {example.name: word(example.outcome) for example in report.examples}
