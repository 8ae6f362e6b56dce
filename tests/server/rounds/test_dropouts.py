"""Institutions that are unwell or declined: when they are asked again, and what that may cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.errors import TooFewInstitutions
from common.wire.messages import ContributeMasked, Propose, Refusal, RefusalCode
from server.rounds.dropouts import ASK_AGAIN_SECONDS, LONGEST_SECONDS, Dropouts
from server.rounds.secagg_session import SecAggSession
from server.rounds.transport import Failure, FailureKind
from server.run.coordinator import Coordinator
from tests.server.rounds.test_secagg_session import SPEC, Ring, answered, make_ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TIMEOUT = Failure(FailureKind.TIMEOUT)
UNWELL = (
    TIMEOUT,
    Failure(FailureKind.UNREACHABLE),
    Failure(FailureKind.CLIENT_ERROR),
    Refusal(code=RefusalCode.INTERNAL),
    Refusal(code=RefusalCode.BUSY),
)


def test_one_is_absent_for_a_while_or_until_it_is_needed() -> None:
    time = [0.0]
    absent = Dropouts(now=lambda: time[0])
    absent.note(1, "timeout")
    absent.note(2, "refused_not_allowed")
    assert 1 in absent
    assert 3 not in absent
    assert absent.reasons() == (
        "node=1: did not answer in time; "
        "node=2: refused (not_allowed): its policy does not allow it, or its steward is not running; its logs say which"
    )
    time[0] = ASK_AGAIN_SECONDS
    assert 1 not in absent
    absent.note(2, "timeout")
    absent.let_all_be_asked()
    assert 2 not in absent
    for _ in range(20):
        absent.note(1, "timeout")
    time[0] += LONGEST_SECONDS - 0.1
    assert 1 in absent
    time[0] += 0.1
    assert 1 not in absent
    absent.back(1)
    absent.note(1, "timeout")
    time[0] += ASK_AGAIN_SECONDS
    assert 1 not in absent
    absent.back(1)
    absent.back(2)
    assert not absent.reasons()


@pytest.mark.parametrize("word", UNWELL, ids=str)
def test_one_that_is_unwell_is_not_asked_for_a_vector_before_it_has_answered_a_proposal(
    tmp_path: Path, word: Any
) -> None:
    """Three are needed and three are there: the attempt that failed is paid for, and no other is begun in vain."""
    ring = make_ring(tmp_path, count=3, rounds=1)
    site = ring.sites[1]
    site.lies = {ContributeMasked: lambda _request: ill(site, word)}
    with pytest.raises(TooFewInstitutions, match="2 institutions take part, 3 are needed"):
        ring.lead()
    assert ring.kinds().count("requested") == 1
    site.lies = {}
    ring.coordinator().run(resume=True)
    assert answered(ring)[-1] == (1, 1, 3)


def ill(site: Any, word: Any) -> Any:
    site.lies[Propose] = lambda _request: word
    return word


def test_others_take_its_place_without_waiting_for_it(tmp_path: Path) -> None:
    ring = make_ring(tmp_path, rounds=3)
    site = ring.sites[0]
    site.lies = {ContributeMasked: lambda _request: TIMEOUT}
    ring.lead()
    assert [done for _, _, done in answered(ring)] == [3, 3, 3]
    assert site.asked.count("ContributeMasked") == 1
    assert site.asked.count("Propose") == 1


@dataclass
class Waits:
    """Mends what is missing the second time it is told of it."""

    ring: Ring
    told: list[str] = field(default_factory=list)
    over_times: int = 0
    nodes_s = 1.0

    def wait(self, shortage: TooFewInstitutions) -> None:
        self.told.append(str(shortage))
        if len(self.told) == 2:
            self.ring.sites[2].lies.clear()

    def over(self) -> None:
        self.over_times += 1


def test_a_run_that_waits_goes_on_by_itself_when_they_are_back(tmp_path: Path) -> None:
    ring = make_ring(tmp_path, count=3)
    ring.sites[2].lies = {Propose: lambda _request: Refusal(code=RefusalCode.AWAITING_APPROVAL)}
    waits = Waits(ring)
    Coordinator(
        config=ring.manifest.config,
        spec=SPEC,
        initial=np.zeros(SPEC.dimension, dtype=np.float32),
        transport=ring.transport,
        observer=ring.recorder,
        directory=ring.directory,
        secure=ring.secure,
        waiting=waits,
    ).run(resume=False)
    assert answered(ring) == [(1, 0, 3), (2, 0, 3)]
    assert len(waits.told) == 2
    assert "node=986: refused (awaiting_approval): nobody there has approved the run yet" in waits.told[0]
    assert waits.over_times == 2
    assert ring.kinds().count("requested") == 2


def test_without_anybody_to_wait_the_run_ends_below_the_minimum(tmp_path: Path) -> None:
    """As in a simulation: whoever is missing there will not come back."""
    ring = make_ring(tmp_path, count=3)
    ring.sites[2].lies = {Propose: lambda _request: Refusal(code=RefusalCode.AWAITING_APPROVAL)}
    with pytest.raises(TooFewInstitutions, match="2 institutions take part, 3 are needed"):
        ring.lead()
    assert ring.kinds().count("requested") == 0


def test_one_that_approves_late_enters_and_a_proposal_to_it_has_a_short_deadline(tmp_path: Path) -> None:
    ring = make_ring(tmp_path)
    time, deadlines = [0.0], []

    @dataclass
    class Timed:
        inner: Any

        def exchange(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[Any]:
            deadlines.append(timeout_s)
            return self.inner.exchange(requests, timeout_s=timeout_s)

    ring.sites[3].lies = {Propose: lambda _request: Refusal(code=RefusalCode.AWAITING_APPROVAL)}
    session = SecAggSession(
        ring.secure,
        Timed(ring.transport),
        ring.directory,
        timeout_s=3600.0,
        now=lambda: time[0],  # type: ignore[arg-type]
    )
    nodes = tuple(ring.transport.by_node)
    session.ensure(nodes, minimum=3)
    assert len(session.members(nodes)) == 3
    ring.sites[3].lies.clear()
    session.ensure(nodes, minimum=3)
    assert len(session.members(nodes)) == 3  # not asked yet
    before = len(deadlines)
    time[0] = ASK_AGAIN_SECONDS
    session.ensure(nodes, minimum=3)
    assert len(session.members(nodes)) == 4
    assert deadlines[0] == 3600.0
    assert deadlines[before] == 30.0
