"""Commands that write to a site's vault or books: erase, expire, rotate-key, accept-vault, accept-clock.

The last two are an operator's word, after a disk was restored or a clock was wrong.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from client.commands.options import Site, Yes, agree

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.operations.erasure import UsedIn, Verb
    from client.site.open_site import OpenSite
    from client.vault.access import Access
    from client.vault.records import Erased, ErasurePlan
    from client.vault.vault import Vault

Commit = Annotated[bool, typer.Option("--commit", help="Destroy; without it only tell what would be.")]


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
    from client.vault.records import today

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
    from client.operations.erasure import done_words, erase_noted, runs_of
    from client.site.open_site import open_site
    from client.site.vault_access import open_vault
    from client.steward.process import writing
    from common.command_line import last_words

    site = open_site(config)
    with ExitStack() as stack:
        audit = stack.enter_context(writing(site.config)) if commit else None
        access: Access = "write" if commit else "read"
        vault = stack.enter_context(open_vault(site.config.vault, access=access, expected=site.noted.vault))
        plan = wanted.plan(vault, site)
        used = runs_of(plan, site)
        if not _agreed(plan, used, commit=commit, yes=yes) or audit is None:
            return
        # also where nothing is left to destroy: an erasure that was broken off has no last entry yet
        with last_words(lambda: "stopped, maybe in part: give the same command again; it ends what is left"):
            erased = erase_noted(audit, wanted.verb, plan, lambda: wanted.act(vault, site), book=site.releases)
        typer.echo(f"{done_words(erased)}; signed entries are in {site.config.audit_log}")


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
    agree("Destroy this? It cannot be undone.", yes=yes, otherwise="nothing was destroyed")
    return True


def rotate_key(
    config: Site = Path("site.toml"),
    key_file: Annotated[str | None, typer.Option(help="A new key in this new file.")] = None,
    passphrase_env: Annotated[str | None, typer.Option(help="The passphrase in this environment variable.")] = None,
    keyring: Annotated[str | None, typer.Option(help="A new key of this name in the system's keyring.")] = None,
) -> None:
    """Lock the vault with another master key. Pictures are not encrypted again; stop the steward first."""
    import msgspec

    from client.operations.key_rotation import rotate_key as rotate
    from common.command_line import last_words
    from common.errors import ConfigError

    given = {"key_file": key_file, "passphrase_env": passphrase_env, "keyring": keyring}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in chosen) or "none"
        raise ConfigError(f"wanted one of --key-file, --passphrase-env and --keyring; got {named}")
    beside = config.with_suffix(".new.toml")
    told = f"stopped; {config} names the key that opens the vault, or {beside} does, if it is there"
    with last_words(lambda: told):
        rotate(config, msgspec.toml.encode(chosen).decode().strip())
    typer.echo("the vault is locked with the new key, and the settings name it")
    typer.echo("the old key still opens old backups of the vault: destroy it if they should be unreadable")


def accept_vault(config: Site = Path("site.toml"), yes: Yes = False) -> None:
    """Go on with a vault that was restored from a backup, or made anew. Stop the steward first."""
    from client.governance.rollback import VAULT, VAULT_ACCEPTED, noted_in
    from client.site.settings import read_site
    from client.site.vault_access import open_vault
    from client.steward.process import writing

    site = read_site(config)
    with writing(site) as audit, open_vault(site.vault) as vault:
        state, noted = vault.state().text(), noted_in(audit.path).vault
        typer.echo(f"the audit log says: {'no vault yet' if noted is None else noted.text()}")
        typer.echo(f"the vault here is:  {state}")
        if noted is not None and noted.text() == state:
            typer.echo("they agree: there is nothing to accept")
            return
        typer.echo("Whoever was erased, or added, after this copy was made is back, or gone: erase and ingest again.")
        agree("Is this the vault to go on with?", yes=yes, otherwise="nothing was changed")
        audit.append(VAULT_ACCEPTED, {VAULT: state})
        typer.echo("accepted")


def accept_clock(config: Site = Path("site.toml"), yes: Yes = False) -> None:
    """Say that the clock is right now, and was wrong when the ledger's last entry was made. Stop the steward first."""
    from client.site.open_site import open_site
    from client.steward.process import writing

    site = open_site(config)
    with writing(site.config) as audit:
        typer.echo(f"the clock says {site.ledger.now().isoformat(timespec='seconds')}")
        agree("Is that right?", yes=yes, otherwise="nothing was changed")
        site.ledger.accept_clock()
        audit.append("clock_accepted", {})
        typer.echo("accepted")
