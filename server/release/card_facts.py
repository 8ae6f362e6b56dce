"""The facts file of ``release make --facts``: what the coordinator says in a release's card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from common.config import parse_config, read_toml
from common.errors import ConfigErrors
from common.release.card_facts import CardFacts, every_fault, word_fault

if TYPE_CHECKING:
    from pathlib import Path

    from common.manifest.manifest import Manifest
    from common.release.statement import RosterKind


def read_facts(path: Path) -> CardFacts:
    """The facts file.

    Raises:
        ConfigError: Missing or not TOML.
        ConfigErrors: Every fault in it.

    """
    return parse_config(read_toml(path), CardFacts, source=str(path))


def stated_facts(facts: CardFacts, manifest: Manifest, roster: RosterKind) -> CardFacts:
    """The same for this run, with its title.

    Raises:
        ConfigErrors: Words that a card may not have, or an institution that is not in the roster or not to be named.

    """
    faults = list(every_fault(facts))
    title = manifest.config.title or None
    if facts.title is None and title is not None and (fault := word_fault(title)) is not None:
        faults.append(f"title: the run's own cannot stand in a card ({fault}); give another one as title (--facts)")
    names = {member.name for member in manifest.roster} if roster == "public" else set()
    why = "the roster is not public" if roster == "private" else "it is not in the roster"
    faults += [
        f"data.institution: {each.institution} is named, and {why}"
        for each in facts.data
        if each.institution is not None and each.institution not in names
    ]
    if faults:
        raise ConfigErrors("model card", tuple(faults))
    return msgspec.structs.replace(facts, title=facts.title or title)
