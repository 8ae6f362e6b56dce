"""``erase`` and ``expire``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.operations.erasure import UsedIn, Verb
    from client.site.open_site import OpenSite
    from client.vault.access import Access
    from client.vault.records import Erased, ErasurePlan
    from client.vault.vault import Vault

Site = Annotated[Path, typer.Option("--config", help="The site's settings.", dir_okay=False)]
Commit = Annotated[bool, typer.Option("--commit", help="Destroy; without it only tell what would be.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def erase(config: Site = Path("site.toml"), commit: Commit = False, yes: Yes = False) -> None:
    """Forget a subject: keys, pictures and what was computed from them. Asks for its id. Stop the steward first."""
    # asked for, or read from standard input: arguments show in the shell's history and to every user of the machine
    subject: str = typer.prompt("subject's id as it stood at intake, or a DICOM patient's number")
    _forget(
        config,
        _Forgetting(
            lambda vault, site: _plan_of(subject, vault, site),
            lambda vault, site: vault.erase_subject(_known_as(subject, vault, site)),
            "erase",
        ),
        commit=commit,
        yes=yes,
    )


def expire(config: Site = Path("site.toml"), commit: Commit = False, yes: Yes = False) -> None:
    """Forget what may no longer be used, by its date; a running steward does so by itself. Stop it first."""
    from client.site.vault_access import today

    day = today()
    _forget(
        config,
        _Forgetting(lambda vault, _: vault.plan_expiry(day), lambda vault, _: vault.erase_expired(day), "expire"),
        commit=commit,
        yes=yes,
    )


class _Forgetting(NamedTuple):
    plan: Callable[[Vault, OpenSite], ErasurePlan]
    act: Callable[[Vault, OpenSite], Erased]
    verb: Verb


def _plan_of(subject: str, vault: Vault, site: OpenSite) -> ErasurePlan:
    pseudonym = _pseudonym(subject, site)
    if None not in {vault.find_subject(subject), vault.find_subject(pseudonym)}:
        typer.echo(f"this patient's DICOM objects are another subject, {pseudonym}: erase it as well")
    return vault.plan_erasure(_known_as(subject, vault, site))


def _known_as(subject: str, vault: Vault, site: OpenSite) -> str:
    """The id, or the pseudonym of the patient with this number if it alone is in the vault."""
    pseudonym = _pseudonym(subject, site)
    return pseudonym if vault.find_subject(subject) is None and vault.find_subject(pseudonym) is not None else subject


def _pseudonym(subject: str, site: OpenSite) -> str:
    from client.intake.subjects import IntakeKey

    return IntakeKey.of(site.identity).pseudonym(subject)


def _forget(config: Path, wanted: _Forgetting, *, commit: bool, yes: bool) -> None:
    """With the steward's place held before anything is opened for writing: vault and audit log have one writer."""
    from client.governance.rollback import open_log
    from client.operations.erasure import done_words, erase_noted, runs_of
    from client.site.open_site import open_site
    from client.steward.process import socket_place
    from client.steward.socket import held
    from common.command_line import last_words

    site = open_site(config)
    with ExitStack() as stack:
        if commit:
            stack.enter_context(held(socket_place(site.config.service)))
        vault = stack.enter_context(_open(site, "write" if commit else "read"))
        plan = wanted.plan(vault, site)
        used = runs_of(plan, site)
        if not _agreed(plan, used, commit=commit, yes=yes):
            return
        audit = open_log(Path(site.config.audit_log), site.identity)
        # also where nothing is left to destroy: an erasure that was broken off has no last entry yet
        with last_words(lambda: "stopped, maybe in part: give the same command again; it ends what is left"):
            erased = erase_noted(audit, wanted.verb, plan, lambda: wanted.act(vault, site), book=site.releases)
        typer.echo(f"{done_words(erased)}; signed entries are in {site.config.audit_log}")


def _open(site: OpenSite, access: Access) -> Vault:
    from client.site.vault_access import open_vault

    return open_vault(site.config.vault, access=access, expected=site.noted.vault)


def _agreed(plan: ErasurePlan, used: tuple[UsedIn, ...], *, commit: bool, yes: bool) -> bool:
    from client.operations.erasure import describe

    if not plan.records and not plan.subjects:
        typer.echo("there is nothing to destroy")
        return commit
    for line in describe(plan, used):
        typer.echo(line)
    if not commit:
        typer.echo("this was a dry run, and nothing was destroyed; do it with --commit")
        return False
    if yes or typer.confirm("Destroy this? It cannot be undone.", default=False):
        return True
    typer.echo("nothing was destroyed")
    raise typer.Exit(1)
