"""What the vault already holds, for the search for duplicates."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from client.intake.duplicates import DuplicateSearch, thumbnail

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.intake.ingest import IntakeVault
    from client.intake.rules import PixelRules
    from client.vault.records import RecordId


def search_of_vault(vault: IntakeVault | None, rules: PixelRules) -> DuplicateSearch:
    """A search that knows the vault's pictures; one of them is only opened when a hash comes near its own."""
    search = DuplicateSearch(rules)
    if vault is None:
        return search
    for hashes in vault.hashes():
        stored = partial(_stored_thumbnail, vault, hashes.record_id)
        search.add("", owner=hashes.subject, exact=hashes.exact, perceptual=hashes.perceptual, thumbnail=stored)
    return search


def _stored_thumbnail(vault: IntakeVault, record_id: RecordId) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(vault.read(record_id).image), formats=("PNG",)) as image:
        return thumbnail(np.array(image.convert("RGB")))
