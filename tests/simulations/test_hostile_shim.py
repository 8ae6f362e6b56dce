"""A lying shim against a real site's steward: refusals alone, each written down once, then an honest round."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import numpy as np
import pytest

from client.operations.status import site_status
from client.site.open_site import link_to_steward
from common.adapter.vector import initial_vector
from common.audit_log import read_entries, verify_log
from common.crypto.primitives import Identity, Secret
from common.manifest.manifest import open_manifest, sign_manifest
from common.secagg import aggregator
from common.secagg.messages import Step
from common.wire.messages import (
    Accepted,
    Contribute,
    ContributeMasked,
    Evaluate,
    MaskedAnswer,
    OpenSecureSession,
    Propose,
    Refusal,
    RefusalCode,
    ShareSessionKeys,
    encode,
)
from common.wire.replies import decode_reply
from common.wire.steward_link import _refusal
from tests.client.sockets import at_once
from tests.simulations.vault_sites import COORDINATOR, NAMES, VaultSites, make_vault_sites

if TYPE_CHECKING:
    from common.wire.messages import Request
    from common.wire.replies import Reply

VICTIM = NAMES[0]
HEAD = bytes(32)


@pytest.fixture
def sites(tmp_path_factory: pytest.TempPathFactory) -> VaultSites:
    made = make_vault_sites(tmp_path_factory.mktemp("v"), rounds=3)
    # else most of this is told BUSY, as the test of the allowance has it
    set_service(made, "refusals_per_minute = 100000")
    return made


def set_service(sites: VaultSites, line: str) -> None:
    settings = sites.root / VICTIM / "site.toml"
    settings.write_text(settings.read_text().replace("[service]\n", f"[service]\n{line}\n"))


@dataclass
class Shim:
    """Counts what it is refused."""

    sites: VaultSites
    refused: Counter[str] = field(default_factory=Counter)

    def ask(self, request: Request | bytes, name: str = VICTIM) -> Reply:
        data = request if isinstance(request, bytes) else encode(request)
        return decode_reply(link_to_steward(self.sites.settings(name)).answer(data))

    def attack(self, request: Request | bytes) -> str:
        reply = self.ask(request)
        assert isinstance(reply, Refusal), reply
        self.refused[reply.code.value] += 1
        return reply.code.value

    def written(self) -> Counter[str]:
        entries = read_entries(self.sites.root / VICTIM / "audit.log")
        return Counter(str(entry.details["code"]) for entry in entries if entry.kind == "refused")

    def charged(self) -> int:
        return sum(entry.kind == "charged" for entry in read_entries(self.sites.root / VICTIM / "audit.log"))

    def open(self) -> aggregator.Open:
        """A session among all three, led by this shim with the coordinator's own key: the worst there can be."""
        for name in NAMES:
            assert isinstance(self.ask(Propose(manifest=self.sites.signed), name), Accepted)
        opening, request = aggregator.start(
            *open_manifest(self.sites.signed), COORDINATOR, epoch=-1
        ).create_open_session()
        for name in NAMES:
            advert: Any = self.ask(OpenSecureSession(message=request), name)
            opening = opening.handle_advert(advert.message)
        opened, keys = opening.create_session_keys()
        for name in NAMES:
            self.ask(ShareSessionKeys(message=keys), name)
        return opened


def adapter(sites: VaultSites, shift: float = 0.0) -> bytes:
    return (initial_vector(sites.trainer.spec) + np.float32(shift)).astype("<f4").tobytes()


def round_request(opened: aggregator.Open, data: bytes, step: Step) -> ContributeMasked:
    _, request = opened.create_round_request(step, adapter=data, cohort=(0, 1, 2), head=HEAD)
    return ContributeMasked(message=request)


def random_and_damaged(shim: Shim, honest: ContributeMasked) -> None:
    rng = random.Random("hostile-shim")  # noqa: S311 - a named seed for a test
    for _ in range(60):
        shim.attack(rng.randbytes(rng.randrange(400)))
    for _ in range(60):
        data = bytearray(encode(honest))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shim.attack(bytes(data))
    shim.attack(encode(honest)[:-1])
    shim.attack(encode(honest) + b"\0")


def retargeted(shim: Shim, sites: VaultSites) -> None:
    """A stranger's run, another run of the coordinator that nobody approved, and that run's session."""
    manifest, _ = open_manifest(sites.signed)
    stranger = Identity(Secret(b"s" * 32))
    foreign = sign_manifest(msgspec.structs.replace(manifest, coordinator=stranger.public.hex()), stranger)
    assert shim.attack(Propose(manifest=foreign)) == "not_allowed"
    other = sign_manifest(msgspec.structs.replace(manifest, run="cd" * 16), COORDINATOR)
    assert shim.attack(Propose(manifest=other)) == "awaiting_approval"
    _, request = aggregator.start(*open_manifest(other), COORDINATOR, epoch=-1).create_open_session()
    assert shim.attack(OpenSecureSession(message=request)) == "no_session"


def other_adapters(shim: Shim, sites: VaultSites, opened: aggregator.Open) -> None:
    dimension = sites.trainer.spec.dimension
    assert shim.attack(round_request(opened, adapter(sites, 1e-3), Step(0, 0))) == "replayed"
    wild = np.full(dimension, np.nan, dtype="<f4").tobytes()
    for attempt, data in enumerate((adapter(sites)[:-4], adapter(sites) + bytes(4), wild, b""), start=1):
        assert shim.attack(round_request(opened, data, Step(0, attempt))) == "malformed"


def clear_requests(shim: Shim, sites: VaultSites) -> None:
    """What no masked run gives: a loss, a plain update."""
    spec = sites.trainer.spec.digest
    assert shim.attack(Evaluate(round=1, spec_digest=spec, adapter=adapter(sites))) == "not_allowed"
    plain = Contribute(round=1, attempt=0, spec_digest=spec, adapter=adapter(sites))
    assert shim.attack(plain) == "not_allowed"


def test_a_hostile_shim_gets_refusals_and_an_honest_round_follows(sites: VaultSites) -> None:
    shim = Shim(sites)
    with sites.serving():
        for early in (OpenSecureSession(message=b"x"), ShareSessionKeys(message=b""), ContributeMasked(message=b"")):
            assert shim.attack(early) == "no_session"
        opened = shim.open()
        honest = round_request(opened, adapter(sites), Step(0, 0))
        assert isinstance(shim.ask(honest), MaskedAnswer)
        random_and_damaged(shim, honest)
        for _ in range(5):
            assert shim.attack(honest) == "replayed"
        other_adapters(shim, sites, opened)
        retargeted(shim, sites)
        clear_requests(shim, sites)
        assert shim.written() == shim.refused
        assert shim.charged() == 1

        # the honest coordinator goes on: all three answer, the masks cancel
        state, request = opened.create_round_request(Step(1, 0), adapter=adapter(sites), cohort=(0, 1, 2), head=HEAD)
        for name in NAMES:
            answer: Any = shim.ask(ContributeMasked(message=request), name)
            state = state.handle_contribution(answer.message)
        assert state.create_sum()[1].words.shape == (sites.trainer.spec.dimension,)
    verify_log(sites.root / VICTIM / "audit.log", sites.open(VICTIM).identity.public)
    assert shim.written() == shim.refused
    assert sum(shim.refused.values()) > 135
    assert shim.charged() == 2
    assert not site_status(sites.open(VICTIM)).turned_away


def test_a_flood_is_refused_or_told_busy_and_an_honest_round_follows(sites: VaultSites) -> None:
    shim = Shim(sites)
    with sites.serving():
        opened = shim.open()
        honest = encode(round_request(opened, adapter(sites), Step(0, 0)))
        link = link_to_steward(sites.settings(VICTIM))
        replies = [decode_reply(each) for each in at_once([lambda: link.answer(honest)] * 150)]
        codes = Counter(each.code.value if isinstance(each, Refusal) else type(each).__name__ for each in replies)
        assert codes["MaskedAnswer"] == 1  # one round and attempt is answered once
        assert set(codes) <= {"MaskedAnswer", "replayed", "busy"}
        assert shim.charged() == 1
        assert isinstance(shim.ask(round_request(opened, adapter(sites), Step(1, 0))), MaskedAnswer)
    assert shim.written()["replayed"] == codes["replayed"]
    assert sum(site_status(sites.open(VICTIM)).turned_away.values()) == codes["busy"]


def test_what_is_too_large_for_the_door_is_not_asked_for_ever(sites: VaultSites) -> None:
    """BUSY would have the coordinator send the same bytes again and again."""
    set_service(sites, "message_mib = 1")
    shim = Shim(sites)
    with sites.serving(VICTIM):
        assert shim.attack(b"x" * (2**20 + 1)) == "wrong_size"
        assert shim.attack(b"x" * 2**20) == "malformed"
    assert site_status(sites.open(VICTIM)).turned_away == {"no_body": 1}


def test_too_many_calls_at_once_are_busy_still() -> None:
    """GRPC gives both the same code; only its words differ."""

    class Full(grpc.RpcError):
        def details(self) -> str:
            return "Concurrent RPC limit exceeded!"

    assert _refusal(Full(), grpc.StatusCode.RESOURCE_EXHAUSTED) is RefusalCode.BUSY
