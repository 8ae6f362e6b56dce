"""Making a release of a run: the adapter for everybody's programs, its model card, and the signed statement.

Only what is public already goes in: settings that the manifest holds, the adapter that was released round by round
under differential privacy, and how many attempts were sent. No loss, norm, count of pictures or time of a round does.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import msgspec

from common.adapter.kohya import kohya_bytes
from common.adapter.spec import vector_digest
from common.audit_log import HEADS, read_entries, verify_log
from common.durable_files import sync_tree
from common.manifest.manifest import open_manifest
from common.privacy.run_plan import private_plan
from common.release.check import Expected, check_release
from common.release.folder import (
    CARD_FILE,
    MANIFEST_FILE,
    RELEASE_FILE,
    ReleaseFolder,
    file_names,
    kohya_file,
)
from common.release.model_card import model_card
from common.release.statement import LogHead, Release, ReleaseError, file_bytes, sign_release, stated_privacy
from server.release.adapter_files import save_released
from server.release.card_facts import stated_facts
from server.rounds.secagg_session import check_log_belongs
from server.run.attempts import FILE, AttemptJournal
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import AUDIT_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.audit_log import Verified
    from common.crypto.primitives import Identity
    from common.manifest.manifest import Manifest
    from common.release.card_facts import CardFacts
    from common.release.statement import RosterKind, StatedPrivacy
    from server.run.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class RunLeft:
    """What a run left at the coordinator.

    Attributes:
        signed: the signed manifest's bytes.
        directory: checkpoints, journal of attempts, audit log.

    """

    signed: bytes = field(repr=False)
    identity: Identity = field(repr=False)
    directory: Path


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """What the coordinator decides about a release.

    Attributes:
        out: the folder to make; it must not exist.
        roster: whether the institutions' names and keys go out with it.
        rounds: ``done``: a run that has rounds left, too.

    """

    base: Path
    out: Path
    facts: CardFacts
    roster: RosterKind = "private"
    rounds: Literal["all", "done"] = "all"
    now: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))


def make_release(left: RunLeft, plan: ReleasePlan) -> Release:
    """Write the folder, whole or not at all, and check it as everybody else will.

    Guarantee: what is written passes :func:`common.release.check.check_release` with the base, the sites' signatures
    apart.

    Raises:
        ReleaseError: The folder exists; rounds are left; the run is not private; or what it sent is not known.
        CheckpointError: There is no usable checkpoint, or it or the log is another run's.
        ConfigErrors: The card's facts hold words that a card may not have, or name institutions that they may not.
        AuditLogError: The coordinator's log is damaged.
        ModelError: The base is not the run's.

    """
    if os.path.lexists(plan.out):
        raise ReleaseError(f"{plan.out}: exists; a release is not overwritten: give another folder, or move it away")
    manifest, digest = open_manifest(left.signed)
    checkpoint = load_checkpoint(left.directory / CHECKPOINTS)
    checkpoint.check_belongs(manifest.config, spec_digest=manifest.adapter_digest, manifest=digest.hex())
    _check_rounds(checkpoint, manifest, plan)
    plan = replace(plan, facts=stated_facts(plan.facts, manifest, plan.roster))
    known = _known(left, checkpoint, manifest)
    check_log_belongs(left.directory / AUDIT_FILE, digest.hex())
    staging = plan.out.with_name(f".{plan.out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of an attempt that was broken off
    try:
        spec = save_released(manifest, checkpoint, base=plan.base, out=staging)
        release = _statement(known, plan, manifest, digest, spec)
        (staging / kohya_file(release.name)).write_bytes(kohya_bytes(staging, spec, title=release.name))
        names = [member.name for member in manifest.roster] if plan.roster == "public" else []
        (staging / CARD_FILE).write_bytes(model_card(release, names).encode())
        if plan.roster == "public":
            (staging / MANIFEST_FILE).write_bytes(left.signed)
        release = _sign(ReleaseFolder(staging), release, spec, left.identity)
        expected = Expected(manifest=left.signed, signatures=0, base=plan.base)
        check_release(ReleaseFolder(staging), expected).require_sound()
        sync_tree(staging)  # before the folder gets its name
        staging.rename(plan.out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return release


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What checkpoint, journal and audit log hold of the run."""

    checkpoint: Checkpoint
    privacy: StatedPrivacy
    log: Verified
    heads: tuple[LogHead, ...]


def _check_rounds(checkpoint: Checkpoint, manifest: Manifest, plan: ReleasePlan) -> None:
    rounds = manifest.config.rounds
    if checkpoint.round == 0:
        raise ReleaseError("no round is finished yet, so there is nothing to release")
    if checkpoint.round < rounds and plan.rounds == "all":
        raise ReleaseError(
            f"{checkpoint.round} of {rounds} rounds are done; finish the run, or release it as it is with --unfinished"
        )


def _known(left: RunLeft, checkpoint: Checkpoint, manifest: Manifest) -> _Known:
    private = private_plan(manifest.config)
    if private is None:
        raise ReleaseError("this run has no differential privacy, and what is not private is not released")
    path = left.directory / AUDIT_FILE
    verified = verify_log(path, left.identity.public, unfinished="leave")
    heads, requested = _read_log(path)
    sent = AttemptJournal(left.directory / FILE, most=private.attempts).sent
    if sent < (least := max(checkpoint.round, requested)):
        raise ReleaseError(
            f"{left.directory / FILE}: says that {sent} attempts were sent, but there were at least {least}; restore "
            "it, for without it nobody knows what ε to state"
        )
    return _Known(
        checkpoint=checkpoint,
        privacy=stated_privacy(private.report(sent), private.report(private.attempts)),
        log=verified,
        heads=heads,
    )


def _read_log(path: Path) -> tuple[tuple[LogHead, ...], int]:
    """Every institution's last head in a log that was verified, and how many requests it holds."""
    heads: dict[int, str] = {}
    requested = 0
    for entry in read_entries(path):
        requested += entry.kind == "requested"
        told = entry.details.get(HEADS)
        for each in told.split(",") if isinstance(told, str) and told else ():
            place, _, head = each.partition(":")
            heads[int(place)] = head
    return tuple(LogHead(place=place, head=head) for place, head in sorted(heads.items())), requested


def _statement(known: _Known, plan: ReleasePlan, manifest: Manifest, digest: bytes, spec: AdapterSpec) -> Release:
    """All but the files and the signature."""
    return Release(
        name=manifest.config.name,
        manifest=digest.hex(),
        coordinator=manifest.coordinator,
        base=manifest.base_digest,
        family=spec.family.value,
        adapter_spec=spec.digest,
        adapter=vector_digest(known.checkpoint.released),
        dimension=manifest.dimension,
        rounds=known.checkpoint.round,
        rounds_planned=manifest.config.rounds,
        privacy=known.privacy,
        roster=plan.roster,
        institutions=len(manifest.roster),
        card=plan.facts,
        coordinator_log=known.log.head.hex(),
        coordinator_entries=known.log.entries,
        logs=known.heads,
        code_version=manifest.code_version,
        time=plan.now().astimezone(dt.UTC).isoformat(timespec="seconds"),
        files=(),
    )


def _sign(folder: ReleaseFolder, release: Release, spec: AdapterSpec, coordinator: Identity) -> Release:
    files = tuple(folder.describe(name) for name in file_names(release.name, spec, release.roster))
    signed = sign_release(msgspec.structs.replace(release, files=files), coordinator)
    (folder.root / RELEASE_FILE).write_bytes(file_bytes(signed))
    folder.signatures.mkdir()
    return signed
