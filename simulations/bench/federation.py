"""A real SuperLink with many SuperNodes whose stewards are stubs: what a round costs beside the training.

::

    python -m simulations.bench.federation --sites 3 --rounds 8 --dimension 800000 --output federation.json
    python -m simulations.bench.federation --sites 100 --light --rounds 3 --dimension 800000

With ``--light`` all SuperNodes are in one process (:mod:`simulations.bench.fleet`): for what the *server* needs.
TLS, the public listener, node keys, signed manifests, sessions and masks are the real ones; every vector is constant.
A round's time is split by when things were seen to happen: *dispatch* until Flower has started the shim's process,
*process start* until the steward hears of it, *steward* until its masked vector is ready, and *return* until the
coordinator has summed it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from common.audit_log import read_entries
from server.run.directory import read_metrics
from simulations.bench.process_watch import ProcessWatch
from simulations.bench.stub_federation import StubFederation, stub_config

if TYPE_CHECKING:
    from collections.abc import Sequence


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the rounds, in seconds; of the slowest site where sites differ."""

    round: float
    dispatch: float
    process_start: float
    steward: float
    give_back: float
    coordinator: float
    """Of the round: everything but waiting for institutions."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    machine: str
    cores: int
    sites: int
    rounds: int
    dimension: int
    upload_bytes: int
    seconds: tuple[float, ...]
    """Of each round."""
    split: Split
    peak_mib: dict[str, float]
    """Greatest resident set of one process, by program."""
    site_mib: float
    """Of one site: its SuperNode and that one's executor, pages that several processes use split among them, so that a
    site on a machine of its own takes more; 0 with ``--light``."""
    server_mib: float
    """SuperLink and server app at their peaks, together."""


def measure(root: Path, *, sites: int, rounds: int, dimension: int, light: bool = False) -> Report:
    """Run once and look at everything."""
    names = tuple(f"site-{number:04d}" for number in range(sites))
    stubs = StubFederation(root, stub_config(sites, rounds), names, dimension=dimension)
    stubs.make()
    with ProcessWatch() as watch:
        stubs.lead((rounds + 4) * (60.0 + 10.0 * sites), light=light)
    rows = [row for row in read_metrics(stubs.files.directory) if row["kind"] == "round"]
    # the coordinator has an executor, too
    idle = 0.0 if light else watch.share["supernode"] / sites + watch.share["superexec"] / (sites + 1)
    return Report(
        machine=platform.machine(),
        cores=os.cpu_count() or 0,
        sites=sites,
        rounds=rounds,
        dimension=dimension,
        upload_bytes=4 * dimension,
        seconds=tuple(round(row["seconds"], 3) for row in rows),
        split=_split(stubs, watch, rows),
        peak_mib={name: round(size / 2**20, 1) for name, size in sorted(watch.peak.items())},
        site_mib=round(idle / 2**20, 1),
        server_mib=round((watch.peak["superlink"] + watch.peak["serverapp"]) / 2**20, 1),
    )


def _split(stubs: StubFederation, watch: ProcessWatch, rows: list[dict[str, Any]]) -> Split:
    attempts = attempt_times(stubs.files.directory / "audit.log")
    starts = sorted(each.started for each in watch.seen.values() if each.program == "clientapp")
    parts: dict[str, list[float]] = {name: [] for name in ("dispatch", "process_start", "steward", "give_back")}
    for asked, done in attempts[1:]:  # a session is opened before the first
        if done is None:
            continue
        mine = [start for start in starts if asked <= start <= done]
        answers = [each for s in stubs.stewards.values() for each in s.answered if asked <= each.asked <= done]
        if not mine or not answers:
            continue
        parts["dispatch"].append(max(mine) - asked)
        parts["process_start"].append(max(each.asked for each in answers) - max(mine))
        parts["steward"].append(max(each.ready - each.asked for each in answers))
        parts["give_back"].append(done - max(each.ready for each in answers))
    own = [row["seconds"] - row["seconds_waiting"] for row in rows[1:]]
    whole = [row["seconds"] for row in rows[1:]]
    middle = {name: round(median(values), 3) if values else 0.0 for name, values in parts.items()}
    return Split(round=round(median(whole), 3), coordinator=round(median(own), 3), **middle)


def attempt_times(log: Path) -> list[tuple[float, float | None]]:
    """When each attempt was asked for and when it ended; one that a crash broke off has no end."""
    attempts: list[tuple[float, float | None]] = []
    for entry in read_entries(log):
        time = dt.datetime.fromisoformat(entry.time).timestamp()
        if entry.kind == "requested":
            attempts.append((time, None))
        elif entry.kind in {"summed", "aborted"} and attempts:
            attempts[-1] = (attempts[-1][0], attempts[-1][1] or time)
    return attempts


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--dimension", type=int, default=800_000)
    parser.add_argument("--light", action="store_true", help="all SuperNodes in one process")
    parser.add_argument("--directory", type=Path, help="new folder for everything; absent: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file; printed if absent")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.directory or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        report = measure(root, sites=chosen.sites, rounds=chosen.rounds, dimension=chosen.dimension, light=chosen.light)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if chosen.output is None:
        print(text.decode())  # noqa: T201 - the command's result
    else:
        chosen.output.write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
