"""The ledger never forgets and never lets two spend the same budget."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from client.governance import ledger_store
from client.governance.ledger import Account, Budget, Event, Ledger, Spent
from client.vault.database import scalar, transaction
from common.errors import (
    AlreadyCharged,
    BudgetExceeded,
    ClockWentBack,
    ConfigError,
    LedgerCorrupt,
    LedgerError,
    LedgerUnavailable,
)
from common.secagg.messages import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[3]
RUN = "ab" * 32
EVENT = Event(relation="add_remove_one", noise_multiplier=10.0, sampling_rate=1.0)


class Zcdp:
    """Concentrated DP: exact composition of Gaussian mechanisms without sampling (Bun & Steinke 2016)."""

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        rho = sum(event.count / (2 * event.noise_multiplier**2) for event in events)
        left = delta - sum(event.count * event.lost for event in events)
        return rho + 2 * math.sqrt(rho * math.log(1 / left)) if left > 0 else math.inf


def account(lifetime: float = 100.0, per_run: float = 100.0, collection: str = "scans") -> Account:
    return Account(
        collection=collection,
        lifetime=Budget(epsilon=lifetime, delta=1e-5),
        per_run=Budget(epsilon=per_run, delta=1e-6),
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", Zcdp())


def rows(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as store:
        found = store.execute("SELECT run, round, attempt FROM contributions ORDER BY id").fetchall()
    store.close()
    return found


def charge(ledger: Ledger, step: tuple[int, int], **changes: Any) -> Any:
    fields = {"account": account(), "run": RUN, "event": EVENT, **changes}
    return ledger.charge(fields["account"], run=fields["run"], step=Step(*step), event=fields["event"])


def test_a_run_has_no_more_contributions_than_it_promised(ledger: Ledger) -> None:
    limited = replace(account(), attempts_per_run=3)
    for step in ((0, 0), (0, 1), (1, 0)):
        charge(ledger, step, account=limited)
    with pytest.raises(BudgetExceeded, match="sized for 3"):
        charge(ledger, (2, 0), account=limited)
    charge(ledger, (2, 0), account=limited, run="cd" * 32)  # of each run by itself
    assert len(rows(ledger.path)) == 4


class Quick(Zcdp):
    """Its bound is twice the truth; counts how often the truth was asked for."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor, self.exact = factor, 0

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        self.exact += 1
        return super().epsilon(events, delta=delta)

    def bound(self, events: Sequence[Event], *, delta: float) -> float:
        return self.factor * super().epsilon(events, delta=delta)


def test_a_quick_bound_spares_the_exact_answer_and_changes_no_decision(tmp_path: Path) -> None:
    limit = account(lifetime=4.0, per_run=4.0)
    quick = Ledger.create(tmp_path / "quick.sqlite", accountant := Quick())
    plain = Ledger.create(tmp_path / "plain.sqlite", Zcdp())
    assert charge(quick, (0, 0), account=limit).spent.run <= 4.0
    assert accountant.exact == 0
    for ledger in (quick, plain):
        count, error = until_refused(lambda n, at=ledger: charge(at, (1, n), account=limit))
        assert isinstance(error, BudgetExceeded)
        assert len(rows(ledger.path)) == count + (1 if ledger is quick else 0)
    assert len(rows(quick.path)) == len(rows(plain.path))
    assert accountant.exact > 0
    exact = quick.spent(limit, run=RUN)
    assert exact == plain.spent(limit, run=RUN)  # what is reported is never the bound


@pytest.mark.parametrize("factor", [math.nan, -1.0, math.inf])
def test_a_bound_that_makes_no_sense_is_not_believed(tmp_path: Path, factor: float) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", accountant := Quick(factor))
    charge(ledger, (0, 0))
    assert accountant.exact == 2
    with pytest.raises(BudgetExceeded):
        charge(ledger, (0, 1), event=Event(relation="none", noise_multiplier=0.0, sampling_rate=1.0))


def until_refused(act: Callable[[int], object]) -> tuple[int, LedgerError]:
    """How often it worked, and what ended it."""
    for count in range(2000):
        try:
            act(count)
        except LedgerError as error:
            return count, error
    pytest.fail("never refused")


# --- what is charged


def test_a_charge_is_on_disk_when_it_returns(ledger: Ledger) -> None:
    receipt = charge(ledger, (0, 0))
    assert rows(ledger.path) == [(RUN, 0, 0)]
    assert (receipt.row, receipt.run, receipt.step) == (1, RUN, Step(0, 0))
    assert charge(ledger, (0, 1)).row == 2


def test_epsilon_is_composed_of_events_and_not_added_up(ledger: Ledger) -> None:
    for attempt in range(5):
        receipt = charge(ledger, (0, attempt))
    five = [Event(relation="add_remove_one", noise_multiplier=10.0, sampling_rate=1.0, count=5)]
    expected = Spent(lifetime=Zcdp().epsilon(five, delta=1e-5), run=Zcdp().epsilon(five, delta=1e-6))
    assert receipt.spent == expected == ledger.spent(account(), run=RUN)


def test_nothing_is_spent_at_first(ledger: Ledger) -> None:
    assert ledger.spent(account(), run=RUN) == Spent(lifetime=0.0, run=0.0)
    assert ledger.last_step(RUN) is None


def test_accountant_gets_equal_events_together_in_order(tmp_path: Path) -> None:
    class Recorder(Zcdp):
        seen: tuple[Event, ...] = ()

        def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
            self.seen = tuple(events)
            return super().epsilon(events, delta=delta)

    recorder = Recorder()
    ledger = Ledger.create(tmp_path / "l", recorder)
    other = Event(relation="add_remove_one", noise_multiplier=12.5, sampling_rate=0.25, slack=1e-11, lost=1e-12)
    for step, event in enumerate((EVENT, other, EVENT, other, other)):
        charge(ledger, (step, 0), event=event)
    assert [
        (event.noise_multiplier, event.sampling_rate, event.slack, event.lost, event.count) for event in recorder.seen
    ] == [
        (10.0, 1.0, 0.0, 0.0, 2),
        (12.5, 0.25, 1e-11, 1e-12, 3),
    ]


def test_lifetime_spans_runs_and_run_budget_does_not(ledger: Ledger) -> None:
    one = charge(ledger, (0, 0), run="aa" * 32)
    two = charge(ledger, (0, 0), run="bb" * 32)
    assert two.spent.run == one.spent.run
    assert two.spent.lifetime > one.spent.lifetime


def test_collections_have_budgets_of_their_own(ledger: Ledger) -> None:
    first = charge(ledger, (0, 0))
    second = charge(ledger, (0, 1), account=account(collection="slides"), run="bb" * 32)
    assert second.spent.lifetime == first.spent.lifetime


@pytest.mark.parametrize("which", ["lifetime", "per_run"])
def test_a_contribution_beyond_a_budget_is_refused_and_not_charged(ledger: Ledger, which: str) -> None:
    limited = account(**{which: 1.0})
    charged, refusal = until_refused(lambda step: charge(ledger, (step, 0), account=limited))
    assert isinstance(refusal, BudgetExceeded)
    assert "Nothing was charged" in str(refusal)
    assert ("lifetime" in str(refusal)) == (which == "lifetime")
    assert len(rows(ledger.path)) == charged > 0
    assert getattr(ledger.spent(limited, run=RUN), "lifetime" if which == "lifetime" else "run") <= 1.0
    with pytest.raises(BudgetExceeded):
        charge(ledger, (5000, 0), account=limited)


@pytest.mark.parametrize("which", ["lifetime", "per_run"])
def test_a_budget_may_be_spent_to_the_last_bit_and_no_further(ledger: Ledger, which: str) -> None:
    two = [Event(relation="add_remove_one", noise_multiplier=10.0, sampling_rate=1.0, count=2)]
    limit = Zcdp().epsilon(two, delta=1e-5 if which == "lifetime" else 1e-6)
    charge(ledger, (0, 0), account=account(**{which: limit}))
    with pytest.raises(BudgetExceeded):
        charge(ledger, (1, 0), account=account(**{which: math.nextafter(limit, 0)}))
    charge(ledger, (1, 0), account=account(**{which: limit}))


def test_what_may_be_lost_counts_against_delta(ledger: Ledger) -> None:
    eager = Event(relation="add_remove_one", noise_multiplier=10.0, sampling_rate=1.0, lost=6e-7)
    charge(ledger, (0, 0), event=eager)
    with pytest.raises(BudgetExceeded, match="inf"):
        charge(ledger, (1, 0), event=eager)


def test_a_contribution_without_noise_needs_an_unlimited_account_and_spends_everything(ledger: Ledger) -> None:
    bare = Event(relation="none", noise_multiplier=0.0, sampling_rate=1.0)
    with pytest.raises(BudgetExceeded):
        charge(ledger, (0, 0), event=bare)
    receipt = charge(ledger, (0, 0), event=bare, account=account(math.inf, math.inf))
    assert receipt.spent == Spent(lifetime=math.inf, run=math.inf)
    with pytest.raises(BudgetExceeded, match="lifetime"):
        charge(ledger, (0, 0), run="bb" * 32)


# --- replays


@pytest.mark.parametrize("step", [(3, 1), (3, 0), (2, 7), (0, 0)])
def test_a_step_is_charged_once_and_in_order(ledger: Ledger, step: tuple[int, int]) -> None:
    charge(ledger, (3, 1))
    with pytest.raises(AlreadyCharged):
        charge(ledger, step)
    assert ledger.last_step(RUN) == Step(3, 1)
    charge(ledger, step, run="bb" * 32)
    charge(ledger, (3, 2))
    charge(ledger, (4, 0))
    assert Ledger.open(ledger.path, Zcdp()).last_step(RUN) == Step(4, 0)


@pytest.mark.parametrize(
    "event",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"sampling_rate": math.nan},
        {"lost": -1e-9},
        {"slack": -1e-9},
        {"slack": math.nan},
        {"lost": 1.0},
        {"count": 2},
        {"count": 0},
    ],
)
def test_events_out_of_range_are_refused(ledger: Ledger, event: dict[str, Any]) -> None:
    fields = {"relation": "add_remove_one", "noise_multiplier": 1.0, "sampling_rate": 0.5, **event}
    with pytest.raises(LedgerError):
        charge(ledger, (0, 0), event=Event(**fields))
    assert rows(ledger.path) == []


@pytest.mark.parametrize("answer", [math.nan, -1.0, "raise"])
def test_nothing_is_charged_on_an_accountant_that_fails(tmp_path: Path, answer: Any) -> None:
    class Broken:
        def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
            if answer == "raise":
                raise ConfigError(f"unknown event {events} {delta}")
            return float(answer)

    ledger = Ledger.create(tmp_path / "l", Broken())
    with pytest.raises((LedgerError, ConfigError)):
        charge(ledger, (0, 0))
    assert rows(ledger.path) == []


# --- the file


def test_settings_are_durable(ledger: Ledger) -> None:
    with ledger_store.connection(ledger.path, busy_seconds=1) as store:
        assert scalar(store, "PRAGMA journal_mode") == "wal"
        assert scalar(store, "PRAGMA synchronous") == 2
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_rows_neither_change_nor_go(ledger: Ledger) -> None:
    charge(ledger, (0, 0))
    with ledger_store.connection(ledger.path, busy_seconds=1) as store:
        for statement in ("DELETE FROM contributions", "UPDATE contributions SET noise_multiplier = 99"):
            with pytest.raises(sqlite3.IntegrityError, match="rows do not"):
                store.execute(statement)


def test_a_second_ledger_in_the_same_place_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="would forget"):
        Ledger.create(ledger.path, Zcdp())


def test_a_ledger_that_cannot_be_created_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be created"):
        Ledger.create(tmp_path / "missing" / "ledger", Zcdp())


def test_a_missing_ledger_is_not_an_empty_one(ledger: Ledger) -> None:
    ledger.path.unlink()
    for action in (
        lambda: charge(ledger, (0, 0)),
        lambda: Ledger.open(ledger.path, Zcdp()),
        lambda: ledger.last_step(RUN),
    ):
        with pytest.raises(LedgerCorrupt, match="missing"):
            action()
    assert not ledger.path.exists()


def test_a_connection_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        ledger_store.connect(tmp_path / "new", busy_seconds=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["text", "other database", "later version", "empty", "cut", "flipped"])
def test_a_damaged_or_foreign_file_is_refused(ledger: Ledger, damage: str) -> None:
    with ledger_store.connection(ledger.path, busy_seconds=1) as store, transaction(store):
        for step in range(300):
            ledger_store.append_row(
                store, ledger_store.Row("scans", RUN, step, 0, "add_remove_one", 10.0, 1.0, 0.0, 0.0, 0.0)
            )
    assert ledger.last_step(RUN) == Step(299, 0)
    whole = ledger.path.read_bytes()
    if damage == "text":
        ledger.path.write_bytes(b"not a database at all" * 500)
    elif damage == "other database":
        ledger.path.unlink()
        sqlite3.connect(ledger.path).execute("CREATE TABLE t (x)").connection.close()
    elif damage == "later version":
        sqlite3.connect(ledger.path).execute("PRAGMA user_version = 2").connection.close()
    elif damage == "empty":
        ledger.path.write_bytes(b"")
    elif damage == "cut":
        ledger.path.write_bytes(whole[: len(whole) // 2])
    else:
        middle = len(whole) // 2
        ledger.path.write_bytes(
            whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 4096]) + whole[middle + 4096 :]
        )
    with pytest.raises(LedgerCorrupt):
        Ledger.open(ledger.path, Zcdp())
    if damage in {"text", "other database", "empty"}:
        with pytest.raises(LedgerCorrupt):
            charge(ledger, (1000, 0))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE contributions SET noise_multiplier = 1000 WHERE id = 2",
        "UPDATE contributions SET population = 'slides' WHERE id = 2",
        "UPDATE contributions SET round = 7 WHERE id = 3",
        "DELETE FROM contributions WHERE id = 1",
        "DELETE FROM contributions WHERE id = 3",
    ],
)
def test_a_changed_or_lost_row_is_found(ledger: Ledger, damage: str) -> None:
    """What a flipped bit, a repaired page or a helpful administrator does behind the triggers."""
    for step in range(3):
        charge(ledger, (step, 0))
    with ledger_store.connection(ledger.path, busy_seconds=1) as store:
        for trigger in ("no_update", "no_delete"):
            store.execute(f"DROP TRIGGER {trigger}")
        store.execute(damage)
    for action in (
        lambda: Ledger.open(ledger.path, Zcdp()),
        lambda: charge(ledger, (9, 0)),
        lambda: ledger.last_step(RUN),
    ):
        with pytest.raises(LedgerCorrupt, match="restore"):
            action()


def test_a_charge_while_others_read_is_not_a_row_that_was_lost(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    charge(ledger, (0, 0))
    read = ledger_store.scalar

    def charged_meanwhile(store: sqlite3.Connection, query: str) -> object:
        monkeypatch.setattr(ledger_store, "scalar", read)
        charge(ledger, (1, 0))
        return read(store, query)

    monkeypatch.setattr(ledger_store, "scalar", charged_meanwhile)
    assert len(ledger_store.rows_in(ledger.path)) == 1
    assert len(ledger_store.rows_in(ledger.path)) == 2


def test_a_full_disk_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ledger_store.connect

    def full(path: Path, *, busy_seconds: float) -> sqlite3.Connection:
        store = real(path, busy_seconds=busy_seconds)
        pages = scalar(store, "PRAGMA page_count")
        store.execute(f"PRAGMA max_page_count = {pages}")
        return store

    monkeypatch.setattr(ledger_store, "connect", full)
    charged, refusal = until_refused(lambda step: charge(ledger, (step, 0), run="cd" * 200))
    assert isinstance(refusal, LedgerUnavailable)
    assert "disk is full" in str(refusal)
    monkeypatch.undo()
    assert len(rows(ledger.path)) == charged
    charge(Ledger.open(ledger.path, Zcdp()), (5000, 0))


def test_a_held_lock_is_refused_after_a_while(ledger: Ledger) -> None:
    holder = sqlite3.connect(ledger.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    impatient = Ledger(path=ledger.path, accountant=Zcdp(), busy_seconds=0.05)
    with pytest.raises(LedgerUnavailable, match="another process"):
        charge(impatient, (0, 0))
    holder.close()
    charge(impatient, (0, 0))


# --- the clock


def at(ledger: Ledger, moment: datetime) -> Ledger:
    return Ledger(path=ledger.path, accountant=Zcdp(), now=lambda: moment)


def test_a_clock_that_went_back_is_refused_until_an_operator_accepts_it(ledger: Ledger) -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    charge(at(ledger, noon), (0, 0))
    charge(at(ledger, noon - timedelta(minutes=4)), (1, 0))
    past = at(ledger, noon - timedelta(days=30))
    with pytest.raises(ClockWentBack, match="set the clock"):
        charge(past, (2, 0))
    past.accept_clock()
    charge(past, (2, 0))
    with pytest.raises(ClockWentBack):
        charge(at(ledger, noon - timedelta(days=31)), (3, 0))
    charge(at(ledger, noon + timedelta(days=365)), (3, 0))
    assert len(rows(ledger.path)) == 4


def test_accepting_twice_takes_the_later_word(ledger: Ledger) -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    charge(at(ledger, noon), (0, 0))
    at(ledger, noon - timedelta(days=1)).accept_clock()
    at(ledger, noon - timedelta(days=2)).accept_clock()
    charge(at(ledger, noon - timedelta(days=2)), (1, 0))


# --- processes

CHILD = """
    import math, os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from client.governance import ledger_store
    from client.governance.ledger import Account, Budget, Event, Ledger
    from common.errors import BudgetExceeded
    from common.secagg.messages import Step

    class Zcdp:
        def epsilon(self, events, *, delta):
            rho = sum(event.count / (2 * event.noise_multiplier**2) for event in events)
            return rho + 2 * math.sqrt(rho * math.log(1 / delta))

    budget = Budget(epsilon=float(sys.argv[2]), delta=1e-5)
    account = Account(collection="scans", lifetime=budget, per_run=budget)
    event = Event(relation="add_remove_one", noise_multiplier=10.0, sampling_rate=1.0)
    ledger = Ledger(path=Path(sys.argv[1]), accountant=Zcdp())
"""

KILLED = """
    left = int(sys.argv[3])
    real = ledger_store.connect

    def count(statement=None):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(path, *, busy_seconds):
        count()
        store = real(path, busy_seconds=busy_seconds)
        store.set_trace_callback(count)
        return store

    ledger_store.connect = connect
    ledger.charge(account, run="ab" * 32, step=Step(7, 0), event=event)
    count()
    with open(sys.argv[4], "w") as file:
        file.write("sent")
    count()
"""

SPENDER = """
    spent = 0
    try:
        for step in range(1000):
            ledger.charge(account, run=sys.argv[3] * 32, step=Step(step, 0), event=event)
            spent += 1
    except BudgetExceeded:
        print(spent)
"""


def child(body: str, *arguments: object) -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD).format(root=str(ROOT)) + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_kill_at_any_moment_never_leaves_a_sent_contribution_uncharged(tmp_path: Path) -> None:
    """SIGKILL before each statement that SQLite runs, before the contribution is sent, and after."""
    outcomes = []
    for moment in range(60):
        path, sent = tmp_path / f"{moment}.sqlite", tmp_path / f"{moment}.sent"
        ledger = Ledger.create(path, Zcdp())
        charge(ledger, (0, 0))
        process = child(KILLED, path, 100.0, moment, sent)
        process.communicate()
        found = rows(Ledger.open(path, Zcdp()).path)
        assert found[0] == (RUN, 0, 0)
        charged = (RUN, 7, 0) in found
        assert charged or not sent.exists()
        outcomes.append((process.returncode == -signal.SIGKILL, charged, sent.exists()))
        if not charged:
            charge(ledger, (7, 0))  # the ledger works on
        else:
            with pytest.raises(AlreadyCharged):
                charge(ledger, (7, 0))
        if process.returncode == 0:
            break
    assert outcomes[-1] == (False, True, True)
    assert (True, False, False) in outcomes
    assert (True, True, False) in outcomes, "no kill between charge and send was tried"
    assert (True, True, True) in outcomes
    assert len(outcomes) > 6


def test_two_processes_cannot_spend_one_budget_twice(ledger: Ledger) -> None:
    processes = [child(SPENDER, ledger.path, 2.0, name) for name in ("aa", "bb")]
    spent = [int(process.communicate()[0]) for process in processes]
    alone = 0
    while (
        Zcdp().epsilon([Event(relation="", noise_multiplier=10.0, sampling_rate=1.0, count=alone + 1)], delta=1e-5)
        <= 2.0
    ):
        alone += 1
    assert sum(spent) == len(rows(ledger.path)) == alone


def test_two_threads_cannot_spend_one_budget_twice(ledger: Ledger) -> None:
    limited = account(lifetime=1.5)
    barrier = threading.Barrier(4)

    def spend(name: str) -> None:
        barrier.wait()
        try:
            for step in range(1000):
                charge(ledger, (step, 0), account=limited, run=name * 32)
        except BudgetExceeded:
            pass

    threads = [threading.Thread(target=spend, args=(name,)) for name in ("aa", "bb", "cc", "dd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent(limited, run="aa" * 32).lifetime <= 1.5
    one_more = [Event(relation="", noise_multiplier=10.0, sampling_rate=1.0, count=len(rows(ledger.path)) + 1)]
    assert Zcdp().epsilon(one_more, delta=1e-5) > 1.5
