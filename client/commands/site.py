"""Commands about a site itself: init, status, preflight, units."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options import Bundle, Directory, Fingerprint, JoinPath, Port, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Group
    from rich.table import Table

    from client.operations.status import SiteStatus, Spending
    from client.site.settings import VaultConfig
    from common.host.preflight import Check


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new site.")],
    name: Annotated[str, typer.Option(help="The institution's name: small letters, digits and dashes.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be made.")] = False,
    passphrase_env: Annotated[
        str | None, typer.Option(help="Lock the vault with the passphrase in this environment variable.")
    ] = None,
    keyring: Annotated[
        str | None, typer.Option(help="Lock the vault with a new key of this name in the system's keyring.")
    ] = None,
) -> None:
    """Make a site's folder: settings, policy, keys, vault, ledger, audit log and token. Nothing is overwritten."""
    from client.operations.new_site import make_site, site_steps
    from common.crypto.identity_file import read_identity_file
    from common.provisioning import institution_fingerprint

    key = _key_source(passphrase_env, keyring)
    steps = site_steps(folder, name, key) if dry_run else make_site(folder, name, key)
    for step in steps:
        note = " (exists)" if dry_run and step.path.exists() else ""
        typer.echo(f"{'would make' if dry_run else 'made'} {step.path}: {step.what}{note}")
    if dry_run:
        there = any(step.path.exists() for step in steps)
        typer.echo("nothing was made" + (", and nothing would be, for what exists is not overwritten" if there else ""))
        raise typer.Exit(1 if there else 0)
    public = read_identity_file(folder / "identity.key").public
    typer.echo(f"public key: {public.hex()}")
    typer.echo(f"its fingerprint, to read out to the other institutions: {institution_fingerprint(public)}")
    typer.echo("next: fill in base in site.toml; coordinators, base_digests and institutions in policy.toml")


def _key_source(passphrase_env: str | None, keyring: str | None) -> VaultConfig:
    from client.operations.new_site import KEY_FILE
    from client.site.settings import VaultConfig
    from common.config import parse_config
    from common.errors import ConfigError

    if passphrase_env is None and keyring is None:
        return KEY_FILE
    if passphrase_env is not None and keyring is not None:
        raise ConfigError("wanted one of --passphrase-env and --keyring, for a vault has one key; got both")
    given = {"passphrase_env": passphrase_env, "keyring": keyring}
    named = {name: value for name, value in given.items() if value is not None}
    return parse_config(named, VaultConfig, source="the vault's key")


def status(
    config: Site = Path("site.toml"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until interrupted.")] = False,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between looks.")] = 5.0,
) -> None:
    """Show budgets, rounds, the vault, refusals, waiting approvals, last contact and the steward's health."""
    from rich.console import Console
    from rich.live import Live

    from client.operations.status import site_status, vault_words
    from client.site.open_site import open_site

    site = open_site(config)
    vault = vault_words(site)  # once: a passphrase takes a second to stretch
    if not watch:
        Console().print(_tables(site_status(site), vault))
        return
    try:
        with Live(_tables(site_status(site), vault), refresh_per_second=2) as live:
            while True:
                time.sleep(every)
                live.update(_tables(site_status(site), vault))
    except KeyboardInterrupt:
        return


def _tables(found: SiteStatus, vault: str) -> Group:
    from rich.console import Group
    from rich.table import Table

    budget = Table(title="Privacy budget", title_justify="left")
    budget.add_column("", overflow="fold", ratio=1)
    for heading in ("ε spent", "ε left", "limit", "δ", "charges", "round"):
        budget.add_column(heading, justify="right", no_wrap=True)
    for each in found.collections:
        budget.add_row(f"collection {each.name}", *_figures(each))
    for each in found.runs:
        budget.add_row(f"run {each.name[:16]}", *_figures(each))
    return Group(budget, _facts(found, vault))


def _figures(each: Spending) -> tuple[str, ...]:
    return (
        f"{each.spent:.4g}",
        f"{each.left:.4g}",
        f"{each.allowed:.4g}",
        f"{each.delta:.3g}",
        str(each.contributions),
        "" if each.last_round is None else str(each.last_round),
    )


def _facts(found: SiteStatus, vault: str) -> Table:
    from rich.table import Table

    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column()
    facts.add_row("steward", _health(found))
    facts.add_row("vault", vault)
    facts.add_row("this institution", found.fingerprint)
    facts.add_row("policy", "\n".join(found.policy))
    facts.add_row("refusals", _counts(found.refusals))
    facts.add_row("turned away", _counts(found.turned_away))
    waiting = [f"{each.manifest.config.name} {each.digest.hex()[:16]}" for each in found.pending]
    facts.add_row("waiting for approval", "\n".join(waiting) or "none")
    facts.add_row("last contact", found.last_contact or "never")
    facts.add_row("audit log", f"{found.entries} entries, head {found.head[:16]}")
    return facts


def _health(found: SiteStatus) -> str:
    health = found.health
    if isinstance(health, str):
        return health
    words = ["serving" if health.serving else "stopping", "busy" if health.busy else "idle"]
    words.append("base loaded" if health.model_loaded else "base not loaded yet")
    if not health.policy_ok:
        words.append("POLICY, LEDGER OR AUDIT LOG NOT IN ORDER: see its log")
    if health.waiting:
        words.append(f"{health.waiting} waiting")
    return ", ".join(words)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def preflight(
    directory: Directory = Path("site"),
    join_file: Annotated[
        Path | None, typer.Option(help="The join file: look at the connection, too. With --bundle and --fingerprint.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The app bundle, a .fab file.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="The coordinator's, as heard by telephone.")] = None,
    port: Port = 9094,
    connection_only: Annotated[
        bool, typer.Option("--connection-only", help="As the SuperNode's user, who cannot read the vault.")
    ] = False,
) -> None:
    """Look at what steward and connection need; exit code 0 if all is well, 1 if not. Nothing is changed."""
    from rich.console import Console

    from common.errors import ProvisioningError
    from common.host.preflight import exit_code, findings_table, look_at

    sent = (join_file, bundle, fingerprint)
    if any(part is None for part in sent) and (connection_only or any(part is not None for part in sent)):
        raise ProvisioningError("give --join-file, --bundle and --fingerprint together, or none of them")
    findings = look_at(_checks(directory.resolve(), join_file, bundle, fingerprint, port, connection_only))
    Console().print(findings_table(findings))
    raise typer.Exit(exit_code(findings))


def _checks(
    directory: Path, join_file: Path | None, bundle: Path | None, fingerprint: str | None, port: int, only: bool
) -> Iterator[Check]:
    from client.connection.supernode import SuperNode
    from client.operations.preflight import Joining, connection_checks, steward_checks
    from client.site.layout import SiteLayout
    from client.site.settings import read_limits, read_site

    layout = SiteLayout(directory)
    if not only:
        yield from steward_checks(read_site(layout.site_file))
    limits, whose = read_limits(layout.site_file)
    if only:
        typer.echo(f"limits of clock, disk and certificate: {whose}", err=True)
    if join_file is not None and bundle is not None and fingerprint is not None:
        join = SuperNode(layout).open_join_file(join_file, fingerprint=fingerprint)
        yield from connection_checks(Joining(layout=layout, join=join, bundle=bundle, port=port, limits=limits))


def units(
    join_file: JoinPath,
    bundle: Bundle,
    fingerprint: Fingerprint,
    directory: Directory = Path("site"),
    out: Annotated[Path, typer.Option(help="Folder for the service files.")] = Path("units"),
    port: Port = 9094,
    steward_user: Annotated[str, typer.Option(help="Unix user of the steward.")] = "darkroom-steward",
    supernode_user: Annotated[str, typer.Option(help="Unix user of the SuperNode.")] = "darkroom-supernode",
) -> None:
    """Write systemd service files, hardened, and print what an administrator runs. Nothing is installed."""
    from client.connection.supernode import SuperNode
    from client.operations.systemd import SiteServices, Users
    from client.site.layout import SiteLayout
    from client.site.settings import read_site
    from common.host.systemd import Installation, write_service_files

    layout = SiteLayout(directory.resolve())
    SuperNode(layout).open_join_file(join_file, fingerprint=fingerprint)
    services = SiteServices(
        layout=layout,
        site=read_site(layout.site_file),
        users=Users(steward=steward_user, supernode=supernode_user),
        installation=Installation.of_this_process(),
        fingerprint=fingerprint,
        port=port,
    )
    for path in write_service_files(services.service_files(), out):
        typer.echo(f"# wrote {path}")
    typer.echo("# read them, then run as root:")
    for step in services.steps(files=out.resolve(), join_file=join_file.resolve(), bundle=bundle.resolve()):
        typer.echo(step)
