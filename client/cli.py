"""``darkroom-client``: an institution's command line."""

from __future__ import annotations

import typer

from client.commands.ingest import check, ingest, ingest_rules, pseudonym, receipt_app
from client.commands.joining import install, join, request
from client.commands.pictures import app as picture
from client.commands.pictures import digest, generate
from client.commands.runs import app as release
from client.commands.runs import approvals, approve, countersign, revoke, withdraw
from client.commands.site import init, preflight, status, units
from client.commands.steward import steward
from client.commands.vault import accept_clock, accept_vault, erase, expire, rotate_key
from client.private_memory import keep_memory_private
from common.command_line import log_commands, run_command_line

app = typer.Typer(help="An institution's side of Darkroom.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(log_commands(place=0), name="log")
app.add_typer(release, name="release")
app.add_typer(receipt_app, name="receipt")
app.add_typer(picture, name="picture")

SITE = (init, request, preflight, install, join, units, steward, status)
RUNS = (approve, approvals, withdraw, countersign)
VAULT = (ingest, ingest_rules, pseudonym, erase, expire, rotate_key, accept_vault, accept_clock)
for command in (*SITE, *RUNS, *VAULT, generate, digest):
    app.command()(command)
for former in (check, revoke):
    app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(former)


def main() -> None:
    """Entry point."""
    keep_memory_private()
    run_command_line(app)


if __name__ == "__main__":
    main()
