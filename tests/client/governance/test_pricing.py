"""What a run costs is worked out in a process that ends in time, while the steward answers others."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from client.governance.ledger import PldAccountant
from client.governance.policy import PrivacyLimits, SitePolicy, check_manifest
from client.governance.pricing import PricedAside, PricedHere, PricingLimits, work_out
from common.errors import AccountingError, DarkroomError, FiguresPending, PolicyRefusal
from common.manifest.manifest import Member
from common.manifest.terms import draft_manifest
from common.privacy.accounting import Rounds, epsilon
from tests.client.rings import secure_config

if TYPE_CHECKING:
    from common.manifest.manifest import Manifest

ROSTER = tuple(Member(name=f"site-{number}", key=f"{number}" * 64) for number in range(1, 4))
BASE = "sha256:" + "0" * 64


def manifest(**privacy: float) -> Manifest:
    return draft_manifest(
        secure_config(**privacy),
        base_digest=BASE,
        adapter_digest=BASE,
        dimension=1000,
        coordinator=bytes.fromhex("c" * 64),
        roster=ROSTER,
        code_version="1",
    )


def policy(epsilon_per_run: float = 4.0) -> SitePolicy:
    return SitePolicy(
        coordinators=("c" * 64,),
        base_digests=(BASE,),
        adapter_kinds=("AB",),
        institutions=tuple(member.key for member in ROSTER),
        privacy=PrivacyLimits(
            epsilon_per_run=epsilon_per_run,
            delta_per_run=1e-3,
            epsilon_lifetime=4.0,
            delta_lifetime=1e-3,
            units=("image",),
        ),
    )


def test_the_figures_are_those_of_this_process() -> None:
    asked = manifest()
    here = PricedHere().plan(asked, policy(), PldAccountant(), patience=None)
    assert PricedAside().plan(asked, policy(), PldAccountant(), patience=None) == here


@pytest.mark.parametrize(
    ("work", "given", "seconds"),
    [(time.sleep, 3600, 1.0), (bytes, 2**33, 600.0), (os._exit, 3, 600.0)],
    ids=["time", "memory", "a crash"],
)
def test_what_takes_too_long_or_too_much_is_ended_and_said(work: Any, given: int, seconds: float) -> None:
    limits = PricingLimits(seconds=seconds, memory_mib=200)
    with pytest.raises(AccountingError, match=f"more than {seconds:g} s or 200 MiB: if this machine was busy"):
        work_out(work, given, limits=limits)


def test_an_error_comes_back_as_it_was_raised() -> None:
    stranger = msgspec.structs.replace(policy(), coordinators=())
    with pytest.raises(PolicyRefusal) as here:
        check_manifest(manifest(), stranger, accountant=PldAccountant())
    with pytest.raises(PolicyRefusal) as there:
        work_out(partial(check_manifest, accountant=PldAccountant()), manifest(), stranger)
    assert there.value.reasons == here.value.reasons
    assert str(there.value) == str(here.value)


def test_who_asks_meanwhile_is_told_to_ask_again_and_what_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Manifest] = []

    def slow(_function: object, asked: Manifest, *_: object, **__: object) -> str:
        started.append(asked)
        while not done:
            time.sleep(0.01)
        return f"plan of {asked.config.rounds}"

    done: list[bool] = []
    monkeypatch.setattr("client.governance.pricing.work_out", slow)
    first, second = manifest(), manifest()
    aside = PricedAside()
    for asked in (first, first, second):
        with pytest.raises(FiguresPending):
            aside.plan(asked, policy(), PldAccountant(), patience=0.0)
    assert started == [first]
    done.append(True)
    assert aside.plan(first, policy(), PldAccountant(), patience=None) == f"plan of {first.config.rounds}"
    aside.plan(second, policy(), PldAccountant(), patience=None)
    assert started == [first, second]


def test_a_refusal_is_worked_out_once() -> None:
    aside, asked = PricedAside(), manifest()
    errors: list[DarkroomError] = []
    for _ in range(2):
        with pytest.raises(PolicyRefusal) as caught:
            aside.plan(asked, policy(1.0), PldAccountant(), patience=None)
        errors.append(caught.value)
    assert errors[0] is errors[1]


def test_a_machine_that_had_no_room_for_a_process_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [OSError("cannot allocate memory"), "plan"]

    def troubled(*_: object, **__: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("client.governance.pricing.work_out", troubled)
    aside, asked = PricedAside(), manifest()
    with pytest.raises(OSError, match="cannot allocate"):
        aside.plan(asked, policy(), PldAccountant(), patience=None)
    assert aside.plan(asked, policy(), PldAccountant(), patience=None) == "plan"


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "rounds"),
    [(1e-3, 0.5, 1), (1e-3, 1.0, 100_000), (0.1, 1.0, 100_000), (0.01, 0.1, 100_000), (1e-300, 1e-300, 1)],
)
def test_what_would_need_gigabytes_is_refused_before_it_is_begun(
    noise_multiplier: float, sampling_rate: float, rounds: int
) -> None:
    event = Rounds(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, rounds=rounds)
    with pytest.raises(AccountingError, match="use more noise"):
        epsilon([event], delta=1e-5)
