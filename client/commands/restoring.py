"""``accept-vault`` and ``accept-clock``: an operator's word, after a disk was restored or a clock was wrong."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.site.settings import SiteConfig
    from common.audit_log import AuditLog

Site = Annotated[Path, typer.Option("--config", help="The site's settings.", dir_okay=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def accept_vault(config: Site = Path("site.toml"), yes: Yes = False) -> None:
    """Go on with a vault that was restored from a backup, or made anew. Stop the steward first."""
    from client.governance.rollback import VAULT, VAULT_ACCEPTED, noted_in
    from client.site.settings import read_site
    from client.site.vault_access import open_vault
    from common.audit_log import read_entries

    site = read_site(config)
    with ExitStack() as stack:
        audit = _audit(site, stack)
        state = stack.enter_context(open_vault(site.vault)).state().text()
        noted = noted_in(read_entries(audit.path)).vault
        typer.echo(f"the audit log says: {'no vault yet' if noted is None else noted.text()}")
        typer.echo(f"the vault here is:  {state}")
        if noted is not None and noted.text() == state:
            typer.echo("they agree: there is nothing to accept")
            return
        typer.echo("Whoever was erased, or added, after this copy was made is back, or gone: erase and ingest again.")
        if yes or typer.confirm("Is this the vault to go on with?", default=False):
            audit.append(VAULT_ACCEPTED, {VAULT: state})
            typer.echo("accepted")
        else:
            typer.echo("nothing was changed")
            raise typer.Exit(1)


def accept_clock(config: Site = Path("site.toml"), yes: Yes = False) -> None:
    """Say that the clock is right now, and was wrong when the ledger's last entry was made. Stop the steward first."""
    from client.site.open_site import open_site

    site = open_site(config)
    with ExitStack() as stack:
        audit = _audit(site.config, stack)
        typer.echo(f"the clock says {site.ledger.now().isoformat(timespec='seconds')}")
        if yes or typer.confirm("Is that right?", default=False):
            site.ledger.accept_clock()
            audit.append("clock_accepted", {})
            typer.echo("accepted")
        else:
            typer.echo("nothing was changed")
            raise typer.Exit(1)


def _audit(site: SiteConfig, stack: ExitStack) -> AuditLog:
    """The site's log, with the steward's place held, because it has one writer."""
    from client.governance.rollback import open_log
    from client.steward.process import socket_place
    from client.steward.socket import held
    from common.crypto.identity_file import read_identity_file

    stack.enter_context(held(socket_place(site.service)))
    return open_log(Path(site.audit_log), read_identity_file(Path(site.identity)))
