"""Outcomes as rows of a CSV file, one appended and synced after each training, so that a stopped sweep goes on."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from common.errors import ConfigError
from simulations.sweep.trial import Trial
from simulations.sweep.workers import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_TRIAL: Final = Trial.__struct_fields__
_RESULT: Final = tuple(name for name in Outcome.__struct_fields__ if name != "trial")
COLUMNS: Final = (*_TRIAL, *_RESULT)


def append_outcome(path: Path, outcome: Outcome) -> None:
    """Add a row, after the header where the file is new."""
    values = msgspec.structs.asdict(outcome.trial) | {name: getattr(outcome, name) for name in _RESULT}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(values)
    with path.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def read_outcomes(path: Path) -> tuple[Outcome, ...]:
    """Every whole row; a last line that a crash left without its end is passed over.

    Raises:
        ConfigError: Not such a file.

    """
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = csv.DictReader(lines)
    if lines and tuple(rows.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"{path}: not a sweep of this version; move it away, or choose another --runs")
    return tuple(_outcome(row, path) for row in rows)


def _outcome(row: Mapping[str, Any], path: Path) -> Outcome:
    try:
        trial = msgspec.convert({name: row[name] for name in _TRIAL}, Trial, strict=False)
        return msgspec.convert({name: row[name] for name in _RESULT} | {"trial": trial}, Outcome, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: a row cannot be read ({error}); remove it, and its trial is run again") from error
