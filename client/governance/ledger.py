"""What this institution's records have been used for: one row per contribution, written before the contribution leaves.

The ledger belongs to the site and outlives runs, projects and restarts. It stores *events* (noise, sampling rate,
count) and not ε, because ε values of different rounds do not add up; a :class:`BudgetAccountant` composes the events
anew each time. An aborted attempt stays charged: its vector may have been read.

Guarantee: when :meth:`Ledger.charge` has returned, the row is on disk; the composition of all rows of its collection
is within the lifetime budget that was given, and that of all rows of its run within the run's. Assumes that the disk
keeps what it confirmed (SQLite in WAL mode with ``synchronous=FULL``), that the file is on a local file system, and
that nobody puts an older copy of it in its place (:mod:`client.governance.rollback` compares it with the audit log).

:class:`PldAccountant` composes what is charged by its privacy loss distributions. A composition takes some tenths of a
second on the fine grid and some hundredths on a coarser one, whose answer is as valid and hardly larger. Each distinct
one is computed once in a process.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from client.governance.ledger_store import (
    Row,
    append_row,
    chain_at,
    chain_of,
    check_store,
    connection,
    create_store,
    read_rows,
)
from client.vault.database import transaction
from common.errors import AlreadyCharged, BudgetExceeded, ClockWentBack, LedgerError, UnknownEvent
from common.privacy.accounting import Rounds, epsilon, epsilon_bound
from common.secagg.messages import Step

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


_KNOWN: Final = "add_remove_one"
"""The one relation that the accountant knows."""
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
BUSY_SECONDS: Final = 60.0
"""How long a charge waits for another."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Equal contributions of one institution, as its own worst case sees them."""

    relation: str
    noise_multiplier: Annotated[float, Meta(ge=0)]
    """Standard deviation over sensitivity of the noise that the adversary of this view does not know; 0: none."""
    sampling_rate: Annotated[float, Meta(gt=0, le=1)]
    slack: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Total variation per contribution between the noise that is added and the accountant's Gaussian."""
    lost: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Chance per contribution that it is not what this event says."""
    count: Annotated[int, Meta(ge=1)] = 1


class BudgetAccountant(Protocol):
    """Composes events."""

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        """The ε of all events together at this total δ, slack included; ``inf`` if there is none.

        Raises:
            DarkroomError: An event that this accountant does not know.

        """
        ...

    def bound(self, events: Sequence[Event], *, delta: float) -> float:
        """An ε that holds as :meth:`epsilon` does, may be larger, and is told more quickly; raises the same."""
        return self.epsilon(events, delta=delta)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on a composition; ``epsilon = inf`` where contributions without noise are allowed."""

    epsilon: Annotated[float, Meta(gt=0)]
    delta: Annotated[float, Meta(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Whose records are used, and what the site allows for them."""

    collection: str
    """The site's name for one set of privacy units, e.g. ``ct-archive/subject``."""
    lifetime: Budget
    per_run: Budget
    attempts_per_run: int | None = None
    """Most contributions to one run: the promised ε is for so many, whatever more a site would allow; None: any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """ε at the lifetime's and at the run's δ; in a receipt perhaps a quick bound on it."""

    lifetime: float
    run: float


class Head(NamedTuple):
    """The last row of a ledger, and with it all before."""

    row: int
    """Its number, from 1; 0: none yet."""
    chain: bytes
    """32 bytes that stand for this row and all before it; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """Proof that a contribution was charged."""

    row: int
    chain: bytes
    """32 bytes that stand for this row and all before it; for the audit log, which
    :mod:`client.governance.rollback` compares."""
    run: str
    step: Step
    spent: Spent


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """One site's ledger file; every call opens it anew, so threads and processes may share the path."""

    path: Path
    accountant: BudgetAccountant
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    busy_seconds: float = BUSY_SECONDS

    @classmethod
    def create(cls, path: Path, accountant: BudgetAccountant) -> Ledger:
        """Make an empty ledger, once, at enrolment.

        Raises:
            LedgerError: There is a file: a site that starts a second ledger forgets what it spent.
            LedgerUnavailable: It cannot be written.

        """
        create_store(path, busy_seconds=BUSY_SECONDS)
        return cls(path=path, accountant=accountant)

    @classmethod
    def open(cls, path: Path, accountant: BudgetAccountant) -> Ledger:
        """Open an existing ledger and check every page of it.

        Raises:
            LedgerCorrupt: Missing, damaged, or not a ledger of this version.
            LedgerUnavailable: Locked or unreadable.

        """
        check_store(path, busy_seconds=BUSY_SECONDS)
        return cls(path=path, accountant=accountant)

    def charge(self, account: Account, *, run: str, step: Step, event: Event, known: Head | None = None) -> Receipt:
        """Write a contribution down, or refuse it; send nothing unless this returned.

        Args:
            account: Population and limits.
            run: The manifest's digest, in hex.
            step: Round and attempt.
            event: One contribution, as :func:`client.governance.policy.contribution_event` makes it.
            known: What the ledger held when the caller saw it last: it must begin so now. An older copy, and another
                ledger of as many rows, would have room for what was spent.

        Raises:
            BudgetExceeded: It would pass the lifetime's or the run's budget, or the number that the run promised.
            AlreadyCharged: The run has this step, or a later one.
            ClockWentBack: The clock is behind the last row.
            LedgerCorrupt: Damaged or missing.
            LedgerUnavailable: Full disk, locked or read-only.
            LedgerError: Not one contribution, values out of range, the accountant's answer makes no sense, or the
                ledger is another than the one that is known; nothing is written to that one.

        """
        _check_event(event)
        with connection(self.path, busy_seconds=self.busy_seconds) as store, transaction(store):
            rows = read_rows(store)
            if known is not None:
                _check_known(store, known)
            now = self._check_clock(store, rows)
            _check_step(rows, run=run, step=step)
            _check_attempts(rows, account, run=run)
            spent = self._compose(rows, account, run=run, extra=event)
            _check_budgets(account, spent)
            row, chain = append_row(
                store, Row(account.collection, run, step.round, step.attempt, *_columns(event), charged_at=now)
            )
        return Receipt(row=row, chain=chain, run=run, step=step, spent=spent)

    def head(self) -> Head:
        """What the ledger holds now."""
        with connection(self.path, busy_seconds=self.busy_seconds) as store:
            rows = read_rows(store)
        return Head(len(rows), chain_of(rows))

    def spent(self, account: Account, *, run: str) -> Spent:
        """What has been charged so far."""
        with connection(self.path, busy_seconds=self.busy_seconds) as store:
            return self._compose(read_rows(store), account, run=run)

    def last_step(self, run: str) -> Step | None:
        """The last step charged in a run, for :func:`common.secagg.participant.enrol`."""
        with connection(self.path, busy_seconds=self.busy_seconds) as store:
            return _last_step(read_rows(store), run)

    def accept_clock(self) -> None:
        """An operator's word that the clock is right now and was wrong at the last row."""
        with connection(self.path, busy_seconds=self.busy_seconds) as store, transaction(store):
            store.execute("INSERT INTO clock VALUES (?, ?)", (self.now().timestamp(), len(read_rows(store))))

    def _compose(self, rows: list[Row], account: Account, *, run: str, extra: Event | None = None) -> Spent:
        lifetime = _events((row for row in rows if row.population == account.collection), extra)
        of_run = _events((row for row in rows if row.run == run), extra)
        price = self._charged if extra else self._epsilon
        return Spent(lifetime=price(lifetime, account.lifetime), run=price(of_run, account.per_run))

    def _charged(self, events: list[Event], budget: Budget) -> float:
        """The quick bound where that is within the budget, which is all that a charge has to know; else exactly."""
        if all(event.noise_multiplier > 0 for event in events):
            bound = self.accountant.bound(events, delta=budget.delta)
            if 0 <= bound <= budget.epsilon:
                return bound
        return self._epsilon(events, budget)

    def _epsilon(self, events: list[Event], budget: Budget) -> float:
        if not events:
            return 0.0
        if any(event.noise_multiplier == 0 for event in events):
            return math.inf
        epsilon = self.accountant.epsilon(events, delta=budget.delta)
        if math.isnan(epsilon) or epsilon < 0:
            raise LedgerError(f"the accountant answered ε = {epsilon}; nothing is charged on such an answer")
        return epsilon

    def _check_clock(self, store: sqlite3.Connection, rows: list[Row]) -> float:
        """Now, in seconds since 1970."""
        now = self.now()
        query = "SELECT accepted_at FROM clock WHERE after_id = ? ORDER BY rowid DESC LIMIT 1"
        accepted = store.execute(query, (len(rows),)).fetchone()
        last = accepted[0] if accepted else rows[-1].charged_at if rows else 0.0
        if now.timestamp() < last - CLOCK_TOLERANCE.total_seconds():
            raise ClockWentBack(
                f"the clock says {now.isoformat()}, the last entry {datetime.fromtimestamp(last, UTC).isoformat()}; "
                "set the clock, or if the last entry's time was wrong: darkroom-client accept-clock"
            )
        return now.timestamp()


def _check_event(event: Event) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(event), Event)
    except msgspec.ValidationError as error:
        raise LedgerError(f"event out of range: {error}") from error
    if event.count != 1 or not all(map(math.isfinite, _columns(event)[1:])):
        raise LedgerError(f"wanted one contribution with finite values, got {event}")


def _check_known(store: sqlite3.Connection, known: Head) -> None:
    if chain_at(store, known.row) != known.chain:
        raise LedgerError(
            f"the ledger does not hold the {known.row} contributions that it held before: it was exchanged for an "
            "older copy or for another; nothing was charged or sent. Put the right one back and start the steward anew"
        )


def _check_step(rows: list[Row], *, run: str, step: Step) -> None:
    last = _last_step(rows, run)
    if last is not None and step <= last:
        raise AlreadyCharged(f"run {run}: wanted a step after {last}, got {step}")


def _check_attempts(rows: list[Row], account: Account, *, run: str) -> None:
    most = account.attempts_per_run
    if most is not None and sum(row.run == run for row in rows) >= most:
        raise BudgetExceeded(
            f"run {run}: its noise is sized for {most} contributions, and all were charged; one more would pass the ε "
            "that it promised. Nothing was charged or sent"
        )


def _check_budgets(account: Account, spent: Spent) -> None:
    for name, got, allowed in (
        (f"lifetime budget of {account.collection!r}", spent.lifetime, account.lifetime),
        ("budget of this run", spent.run, account.per_run),
    ):
        if got > allowed.epsilon:
            raise BudgetExceeded(
                f"{name}: the contribution would bring ε to {got:.4g} at δ = {allowed.delta:.3g}; the site allows "
                f"{allowed.epsilon:.4g}. Nothing was charged or sent"
            )


def _columns(event: Event) -> tuple[str, float, float, float, float]:
    return event.relation, event.noise_multiplier, event.sampling_rate, event.slack, event.lost


def _events(rows: Iterable[Row], extra: Event | None) -> list[Event]:
    """Rows and the extra event, equal ones together, in order of first use."""
    counts = Counter(row[4:9] for row in rows)
    if extra is not None:
        counts[_columns(extra)] += 1
    return [
        Event(relation=relation, noise_multiplier=noise, sampling_rate=rate, slack=slack, lost=lost, count=count)
        for (relation, noise, rate, slack, lost), count in counts.items()
    ]


def _last_step(rows: list[Row], run: str) -> Step | None:
    return max((Step(row.round, row.attempt) for row in rows if row.run == run), default=None)


class PldAccountant(BudgetAccountant):
    """A :class:`BudgetAccountant` for Poisson-sampled Gaussian sums.

    Guarantee: what it answers is at least the ε of all events together at this δ, their slacks and losses included; it
    refuses whatever it does not know.
    """

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        """See :class:`BudgetAccountant`.

        Raises:
            UnknownEvent: A relation other than adding or removing one unit.
            AccountingError: Slack or losses use up δ, or there is no finite ε.

        """
        return _composed(tuple(events), delta, epsilon)

    def bound(self, events: Sequence[Event], *, delta: float) -> float:
        """See :class:`BudgetAccountant`; raises as :meth:`epsilon`."""
        return _composed(tuple(events), delta, epsilon_bound)


@lru_cache(maxsize=4096)
def _composed(events: tuple[Event, ...], delta: float, price: Callable[..., float]) -> float:
    for event in events:
        if event.relation != _KNOWN:
            raise UnknownEvent(f"wanted events for {_KNOWN}, got {event.relation!r}: nothing is stated about it")
    rounds = [
        Rounds(noise_multiplier=one.noise_multiplier, sampling_rate=one.sampling_rate, rounds=one.count)
        for one in events
    ]
    # each slack is Pinsker's bound on a divergence, and the divergences of independent rounds add up
    slack = math.sqrt(sum(one.count * one.slack**2 for one in events))
    return price(rounds, delta=delta, slack=slack, lost=sum(one.count * one.lost for one in events))
