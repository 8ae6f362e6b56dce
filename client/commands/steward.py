"""``steward``."""

from __future__ import annotations

from pathlib import Path

from client.commands.options import Site


def steward(config: Site = Path("site.toml")) -> None:
    """Answer the coordinator's requests on the site's socket until SIGTERM or SIGINT."""
    from client.connection.endings import until_mended
    from client.governance.rollback import LedgerRolledBack
    from client.operations.compose import compose_steward
    from client.site.open_site import open_site
    from client.steward.process import run_until_signal
    from client.vault.errors import VaultRolledBack
    from common.command_line import last_words
    from common.errors import ConfigErrors, LedgerCorrupt

    with until_mended(ConfigErrors, LedgerCorrupt, LedgerRolledBack, VaultRolledBack):
        site = open_site(config)
        if missing := site.policy.unfinished():
            raise ConfigErrors(str(site.config.policy), missing)
        with last_words(lambda: "stopped before it served; no request was answered, and nothing was charged"):
            run_until_signal(site.config.service, lambda: compose_steward(site))
