"""A run's directory is that of one manifest: its log names the manifest, as its checkpoints do.

Two runs of one configuration and roster differ in their manifest alone. A log or a checkpoint of the one in the other's
directory would have that one released with a wrong count of attempts, and so with a wrong ε.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.audit_log import read_entries
from common.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

SESSION: Final = "session"
"""Kind of the coordinator's log entry on each session, before any request of it."""
MANIFEST: Final = "manifest"
"""Detail of such an entry: digest of the run's manifest, hex."""


def check_log_belongs(path: Path, manifest: str) -> None:
    """Refuse a coordinator's log, verified before, in which a session of another manifest stands.

    Raises:
        CheckpointError: One does, or an earlier version's that names none.
        AuditLogError: The log cannot be read.

    """
    for entry in read_entries(path):
        named = entry.details.get(MANIFEST, "none")
        if entry.kind == SESSION and named != manifest:
            raise CheckpointError(
                f"{path}: entry {entry.index} is of a run with manifest {named}, this run's is {manifest}; restore its "
                "own log, or start a new run in another directory"
            )
