"""A run's directory: what ran (``run.json``) and how it went (``metrics.jsonl``), complete after any crash.

``metrics.jsonl`` has one JSON object a line, ``"kind": "round"``, ``"evaluation"`` or ``"void"``: an attempt whose sum
no honest institutions make. A number that is not finite is null. Checkpoints lie beside it, in ``checkpoints/``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from common.durable_files import naming, sync, write_atomically
from server.rounds.reports import RunObserver
from server.run.checkpoint import package_versions, plain_values

if TYPE_CHECKING:
    from pathlib import Path

    from common.config import RunConfig
    from server.rounds.reports import EvaluationReport, RoundReport, RunFinish, RunStart, VoidReport

_log = logging.getLogger(__name__)

AUDIT_FILE: Final = "audit.log"
"""The coordinator's audit log."""
METRICS: Final = "metrics.jsonl"
DESCRIPTION: Final = "run.json"
_VOID: Final = "void"
LOG_FILE: Final = "coordinator.log"
"""What the coordinator's loop says, over all starts: Flower keeps each start's log apart, and loses the last lines of
one that is killed."""

PAST_THE_PROTOCOL: Final = (
    "measured by the simulation past the protocol: a real private run tells these losses and counts to nobody, and the "
    "stated epsilon does not cover them"
)
"""Beside losses that no institution was asked for."""


class RunDirectory(RunObserver):
    """A run observer that writes everything down.

    Guarantee: after a crash and a resume the metrics hold each round and evaluation once: rows beyond the checkpoint
    that the run goes on from are removed, a torn last line included. A void attempt stays: it is never sent again.
    """

    def __init__(self, path: Path) -> None:
        """Use the directory, which is made on the first write."""
        self._path = path

    def on_start(self, start: RunStart) -> None:
        """Describe the run, and remove what the coming rounds will write again."""
        kept = _rows_until(self._path / METRICS, start.round) if start.resumed else []
        write_atomically(self._path / METRICS, b"".join(kept))
        earlier = self._read_starts() if start.resumed else []
        made = _description(start) | {"starts": [*earlier, _started(start)]}
        if start.privacy is not None:
            made["privacy"] = {"planned": start.privacy.as_values()}
        self._write(made)

    def on_round(self, report: RoundReport) -> None:
        """Append the round."""
        row = dataclasses.asdict(report)
        row["failures"] = {str(node): reason for node, reason in sorted(report.failures.items())}
        self._append({"kind": "round", **row})

    def on_void(self, report: VoidReport) -> None:
        """Append the attempt."""
        self._append({"kind": _VOID, **dataclasses.asdict(report)})

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Append the evaluation: the mean, and each institution's loss."""
        self._append(
            {
                "kind": "evaluation",
                "round": report.round,
                "loss": report.loss,
                "pictures": report.pictures,
                "institutions": [dataclasses.asdict(row) for row in report.losses],
                "failures": {str(node): reason for node, reason in sorted(report.failures.items())},
                "seconds": report.seconds,
            }
            | ({} if report.asked else {"asked": False})
            | ({} if report.asked or not report.losses else {"note": PAST_THE_PROTOCOL})
        )

    def on_finish(self, finish: RunFinish) -> None:
        """Add the result to the description."""
        result = {"time": _now(), "round": finish.round, "adapter_digest": finish.adapter_digest}
        described = self._read()
        if finish.privacy is not None:
            described["privacy"] = {**described.get("privacy", {}), "spent": finish.privacy.as_values()}
        self._write(described | {"finish": result | {"seconds": finish.seconds}})

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(_without_nan(row), allow_nan=False, ensure_ascii=True) + "\n"
        path = self._path / METRICS
        with naming(path), path.open("ab") as file:
            file.write(line.encode())
            sync(file)

    def _write(self, description: dict[str, Any]) -> None:
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self._path / DESCRIPTION, f"{text}\n".encode())

    def _read(self) -> dict[str, Any]:
        path = self._path / DESCRIPTION
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            _log.warning("%s cannot be read and is written anew: %s", path, error)
            return {}
        return found if isinstance(found, dict) else {}

    def _read_starts(self) -> list[Any]:
        starts = self._read().get("starts")
        return starts if isinstance(starts, list) else []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a run directory's ``metrics.jsonl``, in order; a torn last line is left out."""
    return [json.loads(line) for line in _whole_lines(path / METRICS)]


def finished_rounds(path: Path) -> int | None:
    """Rounds of a run directory's run if it came to its end, from its ``run.json``; None if it did not, or yet."""
    try:
        finish = json.loads((path / DESCRIPTION).read_bytes()).get("finish")
    except (OSError, ValueError, AttributeError):
        return None
    rounds = finish.get("round") if isinstance(finish, dict) else None
    return rounds if isinstance(rounds, int) else None


def config_digest(config: RunConfig) -> str:
    """``sha256:`` and the hexadecimal digest of the configuration's canonical JSON, all defaults spelt out."""
    return f"sha256:{hashlib.sha256(msgspec.json.encode(config, order='deterministic')).hexdigest()}"


def _description(start: RunStart) -> dict[str, Any]:
    config = start.config
    return {
        "name": config.name,
        "title": config.title,
        "config_digest": config_digest(config),
        "spec_digest": start.spec_digest,
        "dimension": start.dimension,
        "seeds": {"run": config.seed, "adapter": config.adapter.seed, "samples": config.evaluation.sample_seed},
        "config": plain_values(config),
    }


def _started(start: RunStart) -> dict[str, Any]:
    """One start of the run; versions and machine may differ from start to start."""
    return {
        "time": _now(),
        "round": start.round,
        "resumed": start.resumed,
        "adapter_digest": start.adapter_digest,
        "versions": package_versions(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
        },
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _rows_until(path: Path, last: int) -> list[bytes]:
    return [line for line in _whole_lines(path) if _round_of(path, line) <= last]


def _round_of(path: Path, line: bytes) -> float:
    """The row's round; 0 for an attempt that is void, so that it stays; infinite for no row, so that it goes."""
    try:
        row = json.loads(line)
        return 0 if row["kind"] == _VOID else int(row["round"])
    except (ValueError, KeyError, TypeError):
        _log.warning("%s: a line that is no row of metrics is removed", path)
        return math.inf


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """The value with null for numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
