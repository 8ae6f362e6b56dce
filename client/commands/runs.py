"""Commands about runs and their releases: approve, approvals, withdraw, countersign, release verify."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options import Site, Yes, agree
from common.release.command import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.site.open_site import OpenSite
    from common.manifest.manifest import Manifest


def approve(
    manifest: Annotated[
        str, typer.Argument(help="A signed manifest's file, or the beginning of a proposed run's digest.")
    ],
    config: Site = Path("site.toml"),
    yes: Yes = False,
) -> None:
    """Show a run in plain words with this site's own ε, ask, and write down that the site takes part."""
    from client.governance.approvals import read_signed_manifest
    from client.governance.briefing import brief, budget_line
    from client.governance.pricing import work_out
    from client.site.open_site import open_site
    from common.errors import PolicyRefusal
    from common.manifest.manifest import open_manifest

    site = open_site(config)
    signed = (
        read_signed_manifest(Path(manifest)) if Path(manifest).is_file() else site.approvals.signed_manifest(manifest)
    )
    opened, digest = open_manifest(signed)
    opened.place_of(site.identity.public)
    typer.echo("working out what this run may make known ...", err=True)
    told = partial(
        brief,
        own=site.identity.public,
        accountant=site.ledger.accountant,
        last=site.approvals.last_approved(),
        more=tuple(_size_reasons(site, opened)),
    )
    briefing = work_out(told, opened, digest, site.policy)
    typer.echo(briefing.as_text())
    account = site.policy.account(site.config.collection, private=True)
    typer.echo(budget_line(account, site.ledger.spent(account, run=digest.hex())))
    for line in _older_policy_words(site, opened):
        typer.echo(line)
    if not briefing.allowed:
        raise PolicyRefusal(opened.config.name, briefing.reasons)
    agree("Take part in this run?", yes=yes, otherwise="nothing was approved")
    site.approvals.approve(signed)
    typer.echo(f"approved {digest.hex()}; take it back with: darkroom-client withdraw {digest.hex()[:16]}")


def _size_reasons(site: OpenSite, manifest: Manifest) -> Iterator[str]:
    """Told here, where a person decides: the steward would only answer as if nobody had approved."""
    from client.governance.policy import check_size
    from client.site.vault_access import count_units
    from client.vault.records import today
    from common.errors import ConfigError, TooManyUnits, VaultError

    privacy = manifest.config.privacy
    if privacy == "none":
        return
    try:
        check_size(count_units(site.config.vault, privacy.unit, day=today(), expected=site.noted.vault), privacy)
    except TooManyUnits as error:
        yield str(error)
    except (ConfigError, VaultError) as error:
        typer.echo(f"NOT LOOKED AT: whether this site has more privacy units than the run allows one ({error})\n")


def _older_policy_words(site: OpenSite, manifest: Manifest) -> Iterator[str]:
    """Where the running steward goes by another policy than the one that was just spoken for."""
    from client.governance.policy import refusal_reasons
    from client.governance.pricing import work_out
    from client.site.serving_policy import older_policy, restart_words

    older = older_policy(site)
    if older is None:
        return
    yield f"BUT {restart_words(older)}."
    priced = partial(refusal_reasons, accountant=site.ledger.accountant)
    if reasons := work_out(priced, manifest, older.policy):
        yield "Until then it refuses the run:"
        yield from (f"- {reason}" for reason in reasons)


def approvals(config: Site = Path("site.toml")) -> None:
    """List the runs that this site knows of: pending, with their institutions, approved, withdrawn."""
    from client.governance.briefing import roster_words
    from client.site.open_site import open_site

    site = open_site(config)
    known = site.approvals.proposals()
    if not known:
        typer.echo("no run yet: a coordinator proposes one by starting it, or sends a manifest's file to approve")
    for each in known:
        when = "" if each.word is None else f"  {each.word.time}"
        typer.echo(f"{each.state:<9} {each.digest.hex()}  {each.manifest.config.name}{when}")
        if each.word is None:
            for line in roster_words(each.manifest, site.policy, own=site.identity.public):
                typer.echo(line if line.startswith("institutions =") else f"    {line}")


def withdraw(
    digest: Annotated[str, typer.Argument(help="The beginning of the run's digest.")],
    config: Site = Path("site.toml"),
    yes: Yes = False,
) -> None:
    """Take no further part in a run, or refuse one that is proposed. What was sent before cannot be called back."""
    from client.site.open_site import open_site
    from common.manifest.manifest import open_manifest

    site = open_site(config)
    opened, found = open_manifest(site.approvals.signed_manifest(digest))
    asked = f"Take no further part in {opened.config.name!r} ({found.hex()[:16]})?"
    agree(asked, yes=yes, otherwise="nothing was changed")
    site.approvals.withdraw(found)
    typer.echo(f"withdrawn {found.hex()}")


def revoke() -> None:
    """Is called withdraw now, and does nothing: what is revoked is a site, by the coordinator."""
    from common.errors import ApprovalError

    raise ApprovalError("revoke is called withdraw now, and nothing was done: darkroom-client withdraw DIGEST")


app = typer.Typer(help="Releases of adapters.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """Releases of adapters."""


def countersign(
    folder: Annotated[Path, typer.Argument(help="The release's folder.")],
    config: Site = Path("site.toml"),
    yes: Yes = False,
) -> None:
    """Hold a release against this site's own books, ask, and write signatures/SITE.json; send that file back."""
    from client.operations.countersigning import countersign as sign
    from client.operations.countersigning import examine
    from client.site.open_site import open_site
    from common.command_line import last_words
    from common.release.folder import ReleaseFolder

    site, release = open_site(config), ReleaseFolder(folder)
    with last_words(lambda: "stopped; nothing was signed"):
        found = examine(release, site)
    for line in found.lines():
        typer.echo(line)
    if not found.faults:
        agree("Sign this release?", yes=yes, otherwise="nothing was signed")
    typer.echo(f"wrote {sign(release, site, found)}; send it to the coordinator")


app.command()(verify)
