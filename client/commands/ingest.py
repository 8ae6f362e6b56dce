"""``ingest``: take a folder of pictures into the vault."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from client.vault.intake_report import IntakeReport
    from client.vault.intake_rules import IntakeRules
    from client.vault.interior import Access
    from client.vault.master_key import MasterKey
    from common.crypto import Identity

Folder = Annotated[Path, typer.Argument(help="Folder of pictures, with metadata.jsonl, metadata.csv or neither.")]
VaultFolder = Annotated[Path | None, typer.Option(help="The vault's directory. A dry run can do without.")]
KeyPath = Annotated[Path | None, typer.Option(help="File with the vault's master key.")]
KeyringName = Annotated[str | None, typer.Option(help="Name of the vault's key in the system's keyring.")]
PassphrasePath = Annotated[Path | None, typer.Option(help="File with the vault's passphrase; absent: it is asked for.")]
IdentityPath = Annotated[Path | None, typer.Option(help="The site's identity: names patients, signs the receipt.")]
RulesPath = Annotated[Path | None, typer.Option(help="ingest.toml; absent: the defaults.")]
Report = Annotated[Path | None, typer.Option(help="Contact sheet to write, before and after (dry run).")]
Receipt = Annotated[Path | None, typer.Option(help="Receipt to write; absent: beside the vault (commit).")]


def ingest(
    folder: Folder,
    commit: Annotated[bool, typer.Option("--commit/--dry-run", help="Add to the vault, or only look.")] = False,
    vault: VaultFolder = None,
    key_file: KeyPath = None,
    keyring: KeyringName = None,
    passphrase_file: PassphrasePath = None,
    identity: IdentityPath = None,
    rules: RulesPath = None,
    report: Report = None,
    receipt: Receipt = None,
    accept_text: Annotated[bool, typer.Option("--accept-text", help="Keep pictures with text in them.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that decode; absent: as many as there are cores.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before adding.")] = False,
) -> None:
    """Take a folder of pictures into the vault, de-identified. Without --commit nothing is changed."""
    from client.vault.ingest import Intake
    from client.vault.store import Vault
    from client.vault.subjects import IntakeKey
    from common.crypto import random_key
    from common.errors import ConfigError
    from common.identity_file import read_identity_file

    if commit and (vault is None or identity is None):
        raise ConfigError("--commit needs --vault and --identity")
    chosen = _rules(rules, accept_text)
    signer = read_identity_file(identity) if identity else None
    if commit and not yes:
        typer.confirm(f"Add the pictures of {folder} to the vault {vault}?", abort=True)
    with ExitStack() as stack:
        opened = None
        if vault is not None:
            access: Access = "write" if commit else "read"
            opened = stack.enter_context(
                Vault.open(vault, _master_key(key_file, keyring, passphrase_file), access=access)
            )
        found = Intake(
            folder=folder,
            rules=chosen,
            key=IntakeKey.of(signer) if signer else IntakeKey(random_key()),
            vault=opened,
            commit=commit,
            workers=workers or len(os.sched_getaffinity(0)),
        ).run()
    _print(found, commit)
    if commit and signer is not None and vault is not None:
        _receipt(found, chosen, signer, receipt or vault.with_name(f"{vault.name}-receipts") / _file_name())
    elif report is not None:
        _sheet(found, report)


def _rules(path: Path | None, accept_text: bool) -> IntakeRules:
    import msgspec

    from client.vault.intake_rules import IntakeRules, read_rules

    rules = read_rules(path) if path else IntakeRules()
    if accept_text:
        rules = msgspec.structs.replace(rules, pixels=msgspec.structs.replace(rules.pixels, text="keep"))
    return rules


def _master_key(key_file: Path | None, keyring: str | None, passphrase_file: Path | None) -> MasterKey:
    from client.vault.master_key import KeyFile, OsKeyring, Passphrase
    from common.errors import ConfigError

    if sum(source is not None for source in (key_file, keyring, passphrase_file)) > 1:
        raise ConfigError("wanted one of --key-file, --keyring and --passphrase-file")
    if key_file is not None:
        return KeyFile(key_file)
    if keyring is not None:
        return OsKeyring(keyring)
    if passphrase_file is not None:
        return Passphrase.of(passphrase_file.read_text("utf-8").removesuffix("\n"))
    return Passphrase.of(typer.prompt("Vault passphrase", hide_input=True))


def _print(found: IntakeReport, commit: bool) -> None:
    from rich.console import Console

    Console().print(_table(found, "Added to the vault" if commit else "Dry run: nothing was added"))
    if found.opted_out_inside:
        typer.echo(f"{found.opted_out_inside} subjects on the opt-out list are in the vault from before: erase them")


def _table(found: IntakeReport, title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("outcome", "why", "files"):
        table.add_column(heading, justify="right" if heading == "files" else "left")
    for (outcome, why), number in sorted(found.outcomes.items()):
        table.add_row(outcome, why, str(number))
    for split, number in sorted(found.splits.items()):
        table.add_row(f"records, {split}", "", str(number), style="dim")
    for rule, number in sorted(found.caption_rules.items()):
        table.add_row("captions", f"[{rule}]".replace("[", r"\["), str(number), style="dim")
    return table


def _receipt(found: IntakeReport, rules: IntakeRules, signer: Identity, path: Path) -> None:
    from client.vault.receipt import make_receipt, write_receipt

    write_receipt(make_receipt(found, rules, signer, now=datetime.now(UTC)), path)
    typer.echo(f"receipt: {path}")


def _sheet(found: IntakeReport, path: Path) -> None:
    from client.vault.contact_sheet import write_contact_sheet

    write_contact_sheet(found, path, now=datetime.now(UTC))
    typer.echo(f"contact sheet: {path} (shows pictures as they came in: delete it after a look)")


def _file_name() -> str:
    return f"ingest-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.json"


def ingest_rules() -> None:
    """Print ingest.toml: every rule of an intake, with its default and what it means."""
    from client.vault.intake_rules import RULES_TOML

    typer.echo(RULES_TOML, nl=False)
