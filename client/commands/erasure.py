"""``erase`` and ``expire``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.open_site import OpenSite
    from client.vault.records import Erased, ErasurePlan

Site = Annotated[Path, typer.Option("--config", help="The site's settings.", dir_okay=False)]
Commit = Annotated[bool, typer.Option("--commit", help="Destroy; without it only tell what would be destroyed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def erase(
    subject: Annotated[str, typer.Option(help="The subject's id, as it stood at intake.")],
    config: Site = Path("site.toml"),
    commit: Commit = False,
    yes: Yes = False,
) -> None:
    """Forget a subject: keys, pictures and what was computed from them. Stop the steward first."""
    from client.open_site import open_site
    from client.vault.store import Vault
    from client.vault_records import master_key

    site = open_site(config)
    with Vault.open(
        Path(site.config.vault.directory), master_key(site.config.vault), access="write" if commit else "read"
    ) as vault:
        plan = vault.plan_erasure(subject)
        if _agreed(plan, site, commit=commit, yes=yes):
            _destroy(site, "erased", lambda: vault.erase_subject(subject))


def expire(config: Site = Path("site.toml"), commit: Commit = False, yes: Yes = False) -> None:
    """Forget what may no longer be used, by its date. Stop the steward first."""
    from client.open_site import open_site
    from client.vault.store import Vault
    from client.vault_records import master_key, today

    site = open_site(config)
    with Vault.open(
        Path(site.config.vault.directory), master_key(site.config.vault), access="write" if commit else "read"
    ) as vault:
        day = today()
        if _agreed(vault.plan_expiry(day), site, commit=commit, yes=yes):
            _destroy(site, "expired", lambda: vault.erase_expired(day))


def _agreed(plan: ErasurePlan, site: OpenSite, *, commit: bool, yes: bool) -> bool:
    from client.erasure import describe, runs_of

    for line in describe(plan, runs_of(plan, site)):
        typer.echo(line)
    if not commit:
        typer.echo("nothing was destroyed; do it with --commit")
        return False
    if yes or typer.confirm("Destroy this? It cannot be undone.", default=False):
        return True
    typer.echo("nothing was destroyed")
    return False


def _destroy(site: OpenSite, kind: str, act: Callable[[], Erased]) -> None:
    """With the steward's place held, because the audit log has one writer."""
    from client.erasure import note_erasure
    from client.service_socket import held
    from client.steward_process import socket_place
    from common.audit_log import AuditLog

    with held(socket_place(site.config.service)):
        audit = AuditLog(path=Path(site.config.audit_log), identity=site.identity)
        note_erasure(audit, kind, act())
    typer.echo(f"{kind}; a signed entry is in {site.config.audit_log}")
