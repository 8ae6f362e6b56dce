"""Whole runs of three institutions with real vaults, whose stewards sit behind real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.governance.ledger import Ledger, PldAccountant
from client.steward.membership import SiteRecords
from client.steward.steward import SecureSteward
from client.training.latents import EncodingPlan
from client.training.private_update import TrainingSide
from common.adapter.model import open_base
from common.adapter.vector import initial_vector
from common.audit_log import AuditLog, verify_log
from simulations.scenario.folder_latents import encode_folder
from simulations.scenario.imagefolder import Picture
from simulations.scenario.secure_sites import PolicyAlone
from tests.simulations.vault_sites import NAMES, VaultSites, audit_kinds, make_vault_sites, new_record

if TYPE_CHECKING:
    from pathlib import Path

    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit
    from common.wire.messages import StewardPort


def direct_steward(sites: VaultSites, place: int, folder: Path) -> SecureSteward:
    """One that trains on the same pictures from a plain folder, called in this process."""
    name, site = NAMES[place], sites.open(NAMES[place])
    pictures, base = folder / "pictures", open_base(sites.root / "base")
    pictures.mkdir(parents=True)
    records = [new_record(name, number) for number in range(6)]
    rows = []
    for each in records:
        (pictures / each.source_name).with_suffix(".png").write_bytes(each.image)
        file_name = each.source_name.replace(".dcm", ".png")
        rows.append(Picture(file_name=file_name, caption=each.caption, label="", subject_id=each.subject_id))
    shard = encode_folder(base, pictures, rows, EncodingPlan(resolution=base.resolution, horizontal_flips=False))

    class Provider:
        def count_units(self, unit: Unit) -> int:
            del unit
            return len(shard)

        def prepare(self, manifest: Manifest) -> TrainingSide:
            del manifest
            units = tuple((row,) for row in range(len(shard)))
            return TrainingSide(name=name, trainer=sites.trainer, shard=shard, units=units)

    kept = SiteRecords(
        identity=site.identity,
        policy=site.policy,
        ledger=Ledger.create(folder / "ledger.sqlite", PldAccountant()),
        audit=AuditLog(path=folder / "audit.log", identity=site.identity),
        approvals=PolicyAlone(),
        collection="ward",
    )
    return SecureSteward(name, kept, Provider())


def test_the_same_adapter_from_vaults_through_the_service_as_from_folders_in_process(
    tmp_path_factory: Any,
) -> None:
    root = tmp_path_factory.mktemp("v")
    sites = make_vault_sites(root, rounds=3, repeatable=True)
    stewards = [direct_steward(sites, place, root / f"direct-{place}") for place in range(3)]

    def connect(context: Any) -> StewardPort:
        return stewards[int(context.node_config["partition-id"])]

    direct = sites.lead(root / "direct", connect=connect)
    with sites.serving():
        served = sites.lead()
    assert (direct == served).all()
    assert (direct != initial_vector(sites.trainer.spec)).any()
    for name in NAMES:
        site = sites.open(name)
        verify_log(root / name / "audit.log", site.identity.public)
        joining = ["started", "prepared", "joined", "session"]
        assert audit_kinds(root / name) == [*joining, *["charged", "contributed"] * 3, "stopped"]
