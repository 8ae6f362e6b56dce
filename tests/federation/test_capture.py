"""Whoever records the public port, sees into its TLS, and owns the coordinator's disk finds no private thing there.

Three real sites with vaults of different sizes, over TLS, through recorders: bytes as the network has them, the same
decrypted, and between the public listener and the SuperLink. The run's noise is repeatable, so that every site's
clipped sum and noised share can be worked out here and searched for; that they are the true ones shows in the
coordinator's checkpoint, which is the step with their sum.

What "no N" means: no message has a field for a number of pictures (every one decodes into a closed schema), the words
for it occur nowhere, and what a site with many pictures sends is as long as what one with few sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch

from client.site.open_site import open_site
from client.site.settings import read_site
from client.site.vault_access import open_vault
from client.training.loaded_base import LoadedBase
from client.training.vault_latents import VaultRecords
from common.adapter.spec import Family
from common.audit_log import AuditLog
from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
from common.host.supervision import Supervisor
from common.privacy.mechanisms import dequantise
from common.privacy.run_plan import private_plan
from common.wire.messages import Accepted, MaskedAnswer, SecureReply, SessionKeyAdvert, SessionReady
from server.federation.run_status import run_status
from server.flower.site_nodes import SiteNodes
from server.flower.superlink import Launch
from server.rounds.optimizer import initial_state, learning_rate, step
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import read_metrics
from simulations.pilot.processes import free_ports
from tests.federation.laboratory import Laboratory, LaboratoryPlan, laboratory_config, noise_pixels, noise_record
from tests.federation.needle_search import NeedleSearch
from tests.federation.proxy import Proxy
from tests.simulations.test_canaries import Planted
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PICTURES = {"aspen": 5, "birch": 9, "cedar": 14}
"""Different, so that a length that depends on them shows; the names are of one length, because one message has it."""
ROUNDS = 2
POLICY = """
coordinators = ["{coordinator}"]
base_digests = ["{base}"]
adapter_kinds = ["core"]
minimum_cohort = 3
colluders = 1
institutions = {institutions}
repeatable = "WORDS"
[privacy]
epsilon_per_run = 100.0
delta_per_run = 1e-2
epsilon_lifetime = 100.0
delta_lifetime = 1e-1
units = ["image"]
""".replace("WORDS", REPEATABLE_WORDS)
COUNTS = (b"num_examples", b"num-examples", b"num_pictures", b"pictures", b"batch_size_realised", b"train_loss")


@dataclass
class Captured:
    lab: Laboratory
    folder: Path
    public: dict[str, Proxy]
    """Decrypted, by site."""
    raw: dict[str, Proxy]
    inside: Proxy


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    root = tmp_path_factory.mktemp("c")
    ports = free_ports(2 * len(PICTURES) + 1)
    raw_ports = dict(zip(PICTURES, ports, strict=False))
    seen_ports = dict(zip(PICTURES, ports[len(PICTURES) :], strict=False))
    config = laboratory_config(rounds=ROUNDS, sites=3, minimum=3, pictures=16)
    privacy = msgspec.structs.replace(config.privacy, repeatable=REPEATABLE_WORDS)  # type: ignore[type-var]
    plan = LaboratoryPlan(
        directory=root,
        base=write_tiny_base(root / "base", Family.SD1),
        config=msgspec.structs.replace(config, privacy=privacy),
        names=tuple(PICTURES),
        pictures=min(PICTURES.values()),
        addresses={name: f"127.0.0.1:{port}" for name, port in raw_ports.items()},
        policies=dict.fromkeys(PICTURES, POLICY),
    )
    lab = Laboratory(plan)
    lab.make()
    for name, count in PICTURES.items():
        with open_vault(read_site(lab.sites[name].root / "site.toml").vault, access="write") as vault:
            vault.add([noise_record(name, number) for number in range(plan.pictures, count)])
    lead(lab, raw_ports, seen_ports, ports[-1], made := {})
    return Captured(lab=lab, folder=root / "captured", **made)


def lead(
    lab: Laboratory, raw_ports: dict[str, int], seen_ports: dict[str, int], inside_port: int, made: dict[str, Any]
) -> None:
    """The whole run; ``up`` is taken apart, so that something can stand between its two halves."""
    federation, config = lab.federation, lab.federation.config()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(federation.file("server.crt"), federation.file("server.key"))
    client_tls = ssl.create_default_context(cafile=str(federation.file("ca.crt")))
    folder = lab.plan.directory / "captured"
    launch = Launch(federation, config)
    launch.write_connection()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(Supervisor([*launch.commands(), *[lab.sites[name].steward() for name in PICTURES]], stop_seconds=20))
        made["inside"] = enter(Proxy(inside_port, config.superlink_port, folder / "inside", server_tls, client_tls))
        enter(listening(Launch(federation, msgspec.structs.replace(config, superlink_port=inside_port))))
        made["public"] = {
            name: enter(Proxy(port, config.public_port, folder / f"public-{name}", server_tls, client_tls))
            for name, port in seen_ports.items()
        }
        made["raw"] = {
            name: enter(Proxy(port, seen_ports[name], folder / f"raw-{name}")) for name, port in raw_ports.items()
        }
        wait_until(lambda: launch.is_up() and all(site.serves() for site in lab.sites.values()), 180)
        SiteNodes(launch).align(federation.roster())
        enter(Supervisor([lab.join(name) for name in PICTURES], stop_seconds=20))
        lab.run.start()
        wait_until(lambda: run_status(lab.files).round == ROUNDS, 400)
        wait_until(lambda: not (lab.files.directory / "wanted").exists(), 60)


@contextlib.contextmanager
def listening(launch: Launch) -> Iterator[None]:
    server = launch.listener()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)


def wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)


@dataclass
class Truth:
    """What the sites computed, worked out again from the run's seed."""

    clipped: list[NDArray[Any]]
    shares: list[NDArray[Any]]
    adapters: list[NDArray[Any]]


def work_out(lab: Laboratory, planted: Planted) -> Truth:
    torch.set_num_threads(1)  # as the stewards do: sums of floats depend on it
    manifest, _ = lab.files.signed()
    config, plan = manifest.config, private_plan(manifest.config)
    assert plan is not None
    noise = plan.noise(manifest.dimension)
    sides = []
    for name in PICTURES:
        site = open_site(lab.sites[name].root / "site.toml")
        log = AuditLog(path=site.config.audit_log, identity=site.identity)
        vault = VaultRecords(config=site.config.vault, collection=site.config.collection, audit=log)
        room = LoadedBase(site=site.config, records=vault)
        sides.append(room.prepare(manifest))
        for part in (sides[-1].shard.mean, sides[-1].shard.std, sides[-1].shard.captions.embeddings):
            for row in part.numpy():
                planted.cut(row.astype("<f2").tobytes())
                planted.cut(row.astype("<f4").tobytes())
    truth = Truth(clipped=[], shares=[], adapters=[])
    adapter, state = np.zeros(manifest.dimension, dtype=np.float32), initial_state(config.server, manifest.dimension)
    for number in range(1, ROUNDS + 1):
        truth.adapters.append(adapter)
        total = np.zeros(manifest.dimension, dtype=np.uint32)
        for side in sides:
            side.trainer.set_adapter(adapter)
            update = side.private_update(plan)
            share = update.share(stream(side.name, number, config))
            total += share.ring().astype(np.uint32)
            truth.shares.append(np.asarray(share.values))
            truth.clipped.append(clipped_of(update, stream(side.name, number, config)))
        mean = dequantise(total, noise) / plan.config.expected_batch
        rate = learning_rate(config.server, round_number=number, rounds=ROUNDS)
        adapter, state = step(adapter, mean, state, config=config.server, rate=rate, noise_variance=0.0)
    truth.adapters.append(adapter)
    return truth


def stream(name: str, number: int, config: Any) -> Any:
    return repeatable_randomness(f"{name}/{number}/0", seed=config.seed, acknowledge=config.privacy.repeatable)


def clipped_of(update: Any, randomness: Any) -> NDArray[Any]:
    """The clipped sum inside a share: the same draws, taken out before the noise."""
    caught: list[NDArray[Any]] = []
    inner = type(update).clipped

    def watch(self: Any, *given: Any) -> Any:
        made = inner(self, *given)
        caught.append(np.asarray(made.vector))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(update), "clipped", watch)
        update.share(randomness)
    return caught[0]


def plant(lab: Laboratory) -> tuple[Planted, Truth]:
    planted = Planted()
    for name, count in PICTURES.items():
        for number in range(count):
            record = noise_record(name, number)
            planted.words |= {record.caption, record.subject_id, record.label, record.source_name}
            planted.cut(record.image[64:])
            pixels = noise_pixels(name, number)
            for row in pixels:
                planted.cut(row.tobytes())
            planted.cut((pixels.astype("<f4") / 127.5 - 1).tobytes())
    truth = work_out(lab, planted)
    for vector in truth.clipped:
        for kind in ("<f2", "<f4", "<f8"):
            planted.cut(vector.astype(kind).tobytes())
    for values in truth.shares:
        planted.cut(values.astype("<i8").astype("<u4").tobytes())
        for kind in ("<i8", "<f4", "<f8"):
            planted.cut(values.astype(kind).tobytes())
    return planted, truth


def test_nothing_private_crosses_or_stays_and_what_is_public_is_seen(captured: Captured) -> None:
    lab = captured.lab
    planted, truth = plant(lab)
    # the oracle is right: the step with its sum is what the coordinator has
    np.testing.assert_array_equal(load_checkpoint(lab.files.directory / CHECKPOINTS).adapter, truth.adapters[-1])
    assert all(vector.any() for vector in truth.clipped)

    # the recorders saw everything: the manifest, and the adapter that round 2 starts from, in each place
    everything = b"".join(captured.inside.content("down"))
    for recorder in captured.public.values():
        seen = b"".join(recorder.content("down"))
        for public in (lab.files.manifest_file.read_bytes(), truth.adapters[1].astype("<f4").tobytes()):
            assert public in seen
            assert public in everything
    assert truth.adapters[1].astype("<f4").tobytes() not in b"".join(captured.raw["aspen"].content("down"))  # TLS

    # captures, SuperLink's database with its journal, Flower's folders, every log of the coordinator and the shims
    places = [captured.folder, lab.federation.root, *[lab.sites[name].root / "supernode" for name in PICTURES]]
    places += [lab.sites[name].root / folder for name in PICTURES for folder in ("logs", "supernode/logs")]
    assert len(planted.pieces) > 400
    assert (lab.federation.root / "state" / "superlink.db").stat().st_size > 0
    assert NeedleSearch(planted.needles()).in_folders(*places) == []
    assert NeedleSearch([truth.adapters[1].astype("<f4").tobytes()]).in_folders(*places)  # it would be found


def test_no_message_tells_how_many_pictures_a_site_has(captured: Captured) -> None:
    lab = captured.lab
    kinds: dict[str, dict[str, list[int]]] = {}
    for name, recorder in captured.public.items():
        up = recorder.content("up")
        for words in COUNTS:
            assert not [1 for content in up if words in content], words
        lengths: dict[str, list[int]] = {}
        for reply in replies(up):
            lengths.setdefault(type(reply).__name__, []).append(len(msgspec.msgpack.encode(reply)))
        lengths.pop(SessionReady.__name__, None)  # the same bytes from everybody, which Flower takes from one alone
        kinds[name] = lengths
    wanted = {kind.__name__ for kind in (Accepted, SessionKeyAdvert, MaskedAnswer)}
    assert all(set(lengths) == wanted for lengths in kinds.values()), kinds
    assert all(len(lengths[MaskedAnswer.__name__]) == ROUNDS for lengths in kinds.values())
    assert kinds["aspen"] == kinds["birch"] == kinds["cedar"]
    rows = [row for row in read_metrics(lab.files.directory) if row["kind"] == "round"]
    assert all(row["train_loss"] is None for row in rows)


def replies(contents: list[bytes]) -> Iterator[SecureReply]:
    """Every reply of a steward, found by its first bytes and decoded into its closed schema, which refuses all else."""
    decoder = msgspec.msgpack.Decoder(SecureReply)
    for content in contents:
        for match in re.finditer(rb"\x82\xa4type|\x83\xa4type", content):
            with contextlib.suppress(msgspec.MsgspecError):
                yield decoder.decode(whole(content[match.start() :]))


def whole(content: bytes) -> bytes:
    """The first msgpack value at the beginning of the bytes."""
    for end in range(8, len(content) + 1):
        try:
            msgspec.msgpack.decode(content[:end])
        except msgspec.DecodeError:
            continue
        return content[:end]
    return content
