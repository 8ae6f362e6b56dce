"""``rotate-key``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rotate_key(
    config: Annotated[Path, typer.Option("--config", help="The site's settings.", dir_okay=False)] = Path("site.toml"),
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
