"""What a run costs, worked out where that stops nobody: in a process of its own, which ends when time or memory does.

The accountant's time and memory depend on the run's settings, which a coordinator chooses. The bounds on every number
(:mod:`common.bounds`) keep them to a minute or two and a GiB; this is the second fence, and keeps a steward answering
meanwhile. The process is started afresh (*spawn*) and gets public settings alone: it holds no key and no picture.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from client.governance.policy import check_manifest
from common.errors import AccountingError, DarkroomError, FiguresPending, ManifestError
from common.manifest.manifest import canonical_bytes, manifest_digest
from common.manifest.terms import check_terms
from common.privacy.run_plan import private_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from client.governance.ledger import BudgetAccountant
    from client.governance.policy import SitePolicy
    from common.manifest.manifest import Manifest
    from common.privacy.run_plan import PrivatePlan

T = TypeVar("T")
MIB: Final = 2**20
_STATM: Final = Path("/proc/self/statm")


@dataclass(frozen=True, kw_only=True)
class PricingLimits:
    """What working out one run's figures may take."""

    seconds: float = 300.0
    memory_mib: int = 2048
    """Beyond what the process needs to start."""


class Pricing(Protocol):
    """Whoever works out what an approved run costs."""

    def plan(
        self, manifest: Manifest, policy: SitePolicy, accountant: BudgetAccountant, *, patience: float | None
    ) -> PrivatePlan:
        """The run's privacy, if policy and manifest agree with what this site works out itself.

        Args:
            manifest: The run.
            policy: The site's.
            accountant: Prices the run.
            patience: Seconds to wait; None: until it is worked out, or the limits are reached.

        Raises:
            PolicyRefusal: Every rule of the policy that the manifest breaks.
            ManifestError: Terms that do not follow from its own settings.
            PrivacyError: No noise gives the wanted ε, or it cannot be worked out within the limits.
            FiguresPending: It is being worked out; ask again.

        """
        ...


class PricedHere:
    """In this process and while the caller waits: for simulations, whose settings are their own."""

    def plan(
        self, manifest: Manifest, policy: SitePolicy, accountant: BudgetAccountant, *, patience: float | None
    ) -> PrivatePlan:
        """See :class:`Pricing`."""
        del patience
        return plan_of(manifest, policy, accountant)


@dataclass(kw_only=True)
class PricedAside:
    """In a process of its own, one run at a time; used from inside a steward's lock, so by one caller at a time.

    Args:
        limits: Of that process.

    """

    limits: PricingLimits = PricingLimits()
    _found: dict[bytes, Future[PrivatePlan]] = field(init=False, default_factory=dict, repr=False)

    def plan(
        self, manifest: Manifest, policy: SitePolicy, accountant: BudgetAccountant, *, patience: float | None
    ) -> PrivatePlan:
        """See :class:`Pricing`; what was found, or is wrong with the run, is kept for the next caller."""
        digest = manifest_digest(canonical_bytes(manifest))
        if (known := self._found.get(digest)) is not None and _is_no_answer(known):
            del self._found[digest]
        if digest not in self._found:
            if not all(future.done() for future in self._found.values()):
                raise FiguresPending(f"run {manifest.config.name!r}: another run's figures are being worked out")
            while len(self._found) >= _KEPT:
                del self._found[next(iter(self._found))]
            self._found[digest] = _aside(lambda: work_out(plan_of, manifest, policy, accountant, limits=self.limits))
        try:
            return self._found[digest].result(timeout=patience)
        except TimeoutError as error:
            raise FiguresPending(f"run {manifest.config.name!r}: its figures are being worked out") from error


_KEPT: Final = 16


def _is_no_answer(future: Future[PrivatePlan]) -> bool:
    """Whether it ended in this machine's own trouble, such as no room for a process, which may be over by now."""
    error = future.exception() if future.done() else None
    return error is not None and not isinstance(error, DarkroomError)


def plan_of(manifest: Manifest, policy: SitePolicy, accountant: BudgetAccountant) -> PrivatePlan:
    """See :meth:`Pricing.plan`; takes as long as it takes."""
    check_manifest(manifest, policy, accountant=accountant)
    check_terms(manifest)
    plan = private_plan(manifest.config)
    if plan is None:
        raise ManifestError("wanted a run with differential privacy")
    return plan


def work_out(function: Callable[..., T], *arguments: object, limits: PricingLimits = PricingLimits()) -> T:
    """The function's result from a process of its own; function, arguments and result are pickled.

    Raises:
        AccountingError: It took more time or memory than the limits allow.
        DarkroomError: What the function raised.

    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, limits, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        answer: Any = ours.recv() if ours.poll(limits.seconds) else None
    except EOFError:  # the system ended it
        answer = None
    finally:
        process.kill()
        process.join()
        ours.close()
    if answer is None:
        raise AccountingError(
            f"this run's figures need more than {limits.seconds:g} s or {limits.memory_mib} MiB: if this machine was "
            "busy, try again once it is not, a steward by restarting it; else have the coordinator choose fewer "
            "rounds, or a noise multiplier and a sampling rate that are not so small"
        )
    result, error = answer
    if error is not None:
        raise _error(*error)
    return result  # type: ignore[no-any-return]


def _aside(work: Callable[[], T]) -> Future[T]:
    """The work's result, from a thread that does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _serve(pipe: Connection, limits: PricingLimits, function: Callable[..., object], arguments: Any) -> None:  # noqa: ANN401 - the function's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the parent's to handle
    _limit(resource.RLIMIT_AS, limits.memory_mib * MIB + _address_space())
    _limit(resource.RLIMIT_CPU, int(limits.seconds) + 1)  # should the parent be gone
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(MemoryError):  # the parent sees that no answer came
        try:
            pipe.send((function(*arguments), None))
        except DarkroomError as error:
            pipe.send((None, (type(error), error.args, vars(error))))


def _error(kind: type[DarkroomError], arguments: tuple[object, ...], values: dict[str, object]) -> DarkroomError:
    """The error that was raised there; several kinds have a constructor of their own, which pickle cannot call."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(values)
    return error


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _address_space() -> int:
    """Bytes that this process has mapped, libraries above all; 4 GiB where that cannot be read."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 4 << 30
