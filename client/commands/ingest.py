"""``ingest``, ``ingest-rules``, ``pseudonym`` and ``receipt verify``."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from client.commands.options import Site

if TYPE_CHECKING:
    from rich.table import Table

    from client.intake.ingest import Intake
    from client.intake.outcomes import IntakeReport
    from client.intake.rules import IntakeRules

Folder = Annotated[Path, typer.Argument(help="Folder of pictures, with metadata.jsonl, metadata.csv or neither.")]
Commit = Annotated[bool, typer.Option("--commit/--dry-run", help="Add to the vault, or only look.")]
RulesPath = Annotated[Path | None, typer.Option(help="ingest.toml; absent: the defaults, see ingest-rules.")]
ReportPath = Annotated[Path | None, typer.Option(help="Contact sheet to write, before and after (dry run).")]
ReceiptPath = Annotated[Path | None, typer.Option(help="Receipt to write; absent: in receipts beside the vault.")]
AcceptText = Annotated[bool, typer.Option("--accept-text", help="Keep pictures with text in them.")]
Workers = Annotated[int | None, typer.Option(min=1, max=64, help="Processes that decode; absent: one a core.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before adding.")]
MatchesNobody = Annotated[
    bool, typer.Option("--opt-out-matches-nobody", help="Add although the opt-out list matches nobody.")
]
ListPath = Annotated[
    Path | None, typer.Option("--list", help="Names of files that would be left out, to write (dry run).")
]
NOTHING: Final = 3
"""Exit code where nothing was taken, or would be."""
_INTERRUPTED: Final = 130
_SPLITS: Final = {"train": "to train with", "holdout": "held out, never trained with"}


def ingest(
    folder: Folder,
    config: Site = Path("site.toml"),
    commit: Commit = False,
    rules: RulesPath = None,
    report: ReportPath = None,
    receipt: ReceiptPath = None,
    accept_text: AcceptText = False,
    workers: Workers = None,
    yes: Yes = False,
    opt_out_matches_nobody: MatchesNobody = False,
    list_: ListPath = None,
) -> None:
    """Take a folder of pictures into the vault, de-identified; without --commit only look. Stop the steward first.

    A dry run can do without the site's settings. Exit code 3: nothing was taken, or would be.
    """
    from client.intake.ingest import Intake

    intake = Intake(
        folder=folder,
        rules=_rules(rules, accept_text),
        commit=commit,
        workers=workers or len(os.sched_getaffinity(0)),
        opt_out_may_match_nobody=opt_out_matches_nobody,
    )
    if not commit:
        found = _look(intake, config, list_)
        _print(found, "Dry run: nothing was added")
        if report is not None:
            _sheet(found, report)
    elif yes or typer.confirm(f"Add the pictures of {folder} to the vault?", default=False):
        found = _add(intake, config, receipt)
        _print(found, "Added to the vault" if found.kept else "Nothing was added to the vault")
    else:
        typer.echo("nothing was added")
        raise typer.Exit(NOTHING)
    if not found.kept:
        typer.echo("no file was taken" if commit else "no file would be taken")
        raise typer.Exit(NOTHING)


def check() -> None:
    """Say which commands look at a folder now."""
    typer.echo("to look at a folder of pictures: darkroom-client ingest FOLDER, or darkroom-sim check FOLDER", err=True)
    raise typer.Exit(2)


def ingest_rules() -> None:
    """Print ingest.toml: every rule of an intake, with its default and what it means."""
    from client.intake.rules import RULES_TOML

    typer.echo(RULES_TOML, nl=False)


def pseudonym(config: Site = Path("site.toml")) -> None:
    """Print the subject id under which a DICOM patient is in the vault, to erase or look up. Asks for the PatientID."""
    from client.intake.subjects import IntakeKey
    from client.site.settings import read_site
    from common.crypto.identity_file import read_identity_file

    key = IntakeKey.of(read_identity_file(read_site(config).identity))
    # asked for, since arguments show in the shell's history and to other users
    typer.echo(key.pseudonym(typer.prompt("PatientID, or IssuerOfPatientID/PatientID if objects name an issuer")))


receipt_app = typer.Typer(help="Receipts of intakes.", no_args_is_help=True, pretty_exceptions_enable=False)


@receipt_app.callback()
def receipts() -> None:
    """Receipts of intakes."""


@receipt_app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="The receipt.")],
    key: Annotated[str, typer.Option(help="Public key of the site that signed it, 64 hexadecimal digits.")],
) -> None:
    """Check that a receipt is this site's and was not altered, and say what it counts."""
    from client.intake.receipt import check_receipt

    typer.echo(check_receipt(path, key))


def _rules(path: Path | None, accept_text: bool) -> IntakeRules:
    import msgspec

    from client.intake.rules import IntakeRules, read_rules

    rules = read_rules(path) if path else IntakeRules()
    if accept_text:
        rules = msgspec.structs.replace(rules, pixels=msgspec.structs.replace(rules.pixels, text="keep"))
    return rules


def _look(intake: Intake, config: Path, names: Path | None) -> IntakeReport:
    from client.intake.outcomes import LeftOut

    if names is None:
        return _against_vault(intake, config)
    with LeftOut.create(names) as listed:
        found = _against_vault(replace(intake, on_file=listed.note), config)
    typer.echo(f"files that would be left out, by name: {names}")
    return found


def _against_vault(intake: Intake, config: Path) -> IntakeReport:
    """What would be done, with the site's vault, if there is a site and it has one yet."""
    from client.governance.rollback import read_noted
    from client.intake.subjects import IntakeKey
    from client.operations.intake_papers import unfinished
    from client.site.settings import read_site
    from client.site.vault_access import forget_passphrase, open_vault
    from common.audit_log import read_entries
    from common.crypto.identity_file import read_identity_file
    from common.crypto.primitives import random_key

    if not config.exists():
        typer.echo(f"no {config}: looking without a vault; who would be held out is drawn anew each time")
        return intake.run(IntakeKey(random_key()))
    site = read_site(config)
    identity = read_identity_file(site.identity)
    noted = read_noted(site.audit_log, identity.public)
    if noted.vault is None and not site.vault.directory.exists():
        return intake.run(IntakeKey.of(identity))
    with open_vault(site.vault, expected=noted.vault) as vault:
        forget_passphrase(site.vault)
        if unfinished(read_entries(site.audit_log)) is not None:
            typer.echo("the last intake left no receipt; the next one with --commit writes it for what was added")
        return intake.run(IntakeKey.of(identity), vault)


def _add(intake: Intake, config: Path, receipt: Path | None) -> IntakeReport:
    from client.operations.intake_papers import Papers, add_to_vault
    from client.site.settings import read_site
    from common.command_line import TERMINATED, Terminated
    from common.errors import ConfigError

    site = read_site(config)
    path = receipt or site.vault.directory.parent / "receipts" / _file_name()
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path}: exists; a receipt is not overwritten: give another path")
    try:
        return add_to_vault(site, intake, Papers(receipt=path, say=typer.echo))
    except KeyboardInterrupt as stopped:
        code = TERMINATED if isinstance(stopped, Terminated) else _INTERRUPTED
    # what was added, and how to go on, has been said: with the interrupt behind it, "stopped" would be said once more
    raise typer.Exit(code)


def _print(found: IntakeReport, title: str) -> None:
    from rich.console import Console

    from common.command_line import spelt_out

    Console().print(_table(found, title))
    for note in found.notes:
        typer.echo(spelt_out(note))
    if found.opted_out_inside:
        typer.echo(f"{found.opted_out_inside} subjects on the opt-out list are in the vault from before: erase them")


def _table(found: IntakeReport, title: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in ("outcome", "why", "files"):
        table.add_column(heading, justify="right" if heading == "files" else "left")
    for (outcome, why), number in sorted(found.outcomes.items()):
        table.add_row(outcome, why, str(number))
    for split, number in sorted(found.splits.items()):
        table.add_row("kept", _SPLITS[split], str(number), style="dim")
    for rule, number in sorted(found.caption_rules.items()):
        table.add_row("captions", Text(f"[{rule}]"), str(number), style="dim")
    return table


def _sheet(found: IntakeReport, path: Path) -> None:
    from client.intake.outcomes import write_contact_sheet

    write_contact_sheet(found, path, now=datetime.now(UTC))
    typer.echo(f"contact sheet: {path} (shows pictures as they came in: delete it after a look)")


def _file_name() -> str:
    return f"ingest-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.json"
