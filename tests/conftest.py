"""No test fails because the machine is slow: hypothesis measures neither an example nor how long making it took.

What each file costs is said at the end of a run.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import pytest

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_SECONDS_WORTH_A_LINE: Final = 10.0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds of each file, set-up and tear-down included, whichever process ran it."""
    costs: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                costs[report.nodeid.partition("::")[0]] += report.duration
    dear = [(name, seconds) for name, seconds in costs.most_common() if seconds >= _SECONDS_WORTH_A_LINE]
    if dear:
        terminalreporter.section(f"files of {_SECONDS_WORTH_A_LINE:.0f} s and more, of {sum(costs.values()):.0f} s")
        for name, seconds in dear:
            terminalreporter.write_line(f"{seconds:8.1f}s {name}")
