"""Looking before starting: a check says what it wants, what it got, and what to do about the difference.

Nothing here changes anything. Both sides' command lines show the same table and give the same exit codes.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from common.config import Config
from common.errors import DarkroomError, ProvisioningError
from common.host.flower_commands import FLOWER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rich.table import Table

PASSED: Final = 0
"""Exit code: everything is as it should be."""
FAILED: Final = 1
"""Exit code: at least one check failed. What cannot be looked at at all, such as a missing settings file, is 2."""
_PYTHON: Final = (3, 11)
_MIB: Final = 2**20


class NotAsWanted(ProvisioningError):
    """What a check found in place of what it wanted."""


class NotLookedAt(NotAsWanted):
    """A check that needs what another one did not find."""


class Unreachable(ProvisioningError):
    """The coordinator does not answer at all, which may pass; what it answers wrongly does not."""


class PreflightLimits(Config, frozen=True, kw_only=True):
    """Table ``preflight`` of ``site.toml`` and ``federation.toml``."""

    clock_skew_seconds: Annotated[float, Meta(ge=2, le=300)] = 30.0
    """Most that this clock may differ from the coordinator's, which is told in whole seconds; Flower's own logins fail
    beyond 305 s."""
    free_disk_mib: Annotated[int, Meta(ge=0)] = 2048
    certificate_days: Annotated[int, Meta(ge=0, le=365)] = 14
    """Fewest days that a certificate has to be valid for."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look at.

    Args:
        name: What is looked at.
        wanted: How it should be.
        remedy: What to do if it is not.
        look: Says how it is; raises ``NotAsWanted`` or another :class:`DarkroomError` if that will not do.

    """

    name: str
    wanted: str
    remedy: str
    look: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found."""

    name: str
    wanted: str
    got: str
    remedy: str
    passed: bool


def look_at(checks: Iterable[Check]) -> tuple[Finding, ...]:
    """Every check's finding: one that fails keeps no other from being looked at."""
    return tuple(_look(check) for check in checks)


def _look(check: Check) -> Finding:
    try:
        got, passed = check.look(), True
    except NotLookedAt as error:
        return Finding(name=check.name, wanted=check.wanted, got=str(error), remedy="mend that first", passed=False)
    except DarkroomError as error:
        got, passed = str(error), False
    except OSError as error:
        got, passed = f"{error.filename or check.name}: {error.strerror or error}", False
    remedy = "" if passed else check.remedy
    return Finding(name=check.name, wanted=check.wanted, got=got, remedy=remedy, passed=passed)


def exit_code(findings: Iterable[Finding]) -> int:
    """:data:`PASSED` or :data:`FAILED`."""
    return PASSED if all(finding.passed for finding in findings) else FAILED


def findings_table(findings: Iterable[Finding]) -> Table:
    """For a terminal; what was read from files is shown as it is, never as markup."""
    from rich.table import Table  # noqa: PLC0415 - slow to load, and only who shows a table needs it
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table("", "check", "found", show_lines=True)
    for column in table.columns:
        column.overflow = "fold"  # a path or digest that is cut cannot be copied
    for each in findings:
        mark = Text("ok", style="green") if each.passed else Text("FAILED", style="bold red")
        found = each.got if each.passed else f"{each.got}\nwanted: {each.wanted}\nwhat to do: {each.remedy}"
        table.add_row(mark, Text(each.name), Text(found))
    return table


def version_checks(*, darkroom: str | None = None, flower: str | None = None) -> Iterator[Check]:
    """Python and packages; with the join file's versions, exactly those."""
    wanted = ".".join(map(str, _PYTHON))
    yield Check(
        name="Python", wanted=f"{wanted} or later", remedy=f"install Python {wanted} and Darkroom in it", look=_python
    )
    yield Check(
        name="Flower",
        wanted=flower or f"{FLOWER}.x",
        remedy=f"pip install flwr=={flower or FLOWER + '.*'}",
        look=lambda: _exactly("flwr", flower, prefix=f"{FLOWER}."),
    )
    yield Check(
        name="Darkroom",
        wanted=darkroom or "installed",
        remedy="install the version that the coordinator runs, or ask for a join file of this one",
        look=lambda: _exactly("darkroom", darkroom),
    )


def private_file_check(path: Path, what: str, *, group: bool = False) -> Check:
    """A file that this user alone, or with ``group`` also its group, can read."""
    mode = "640" if group else "600"
    return Check(
        name=what,
        wanted=f"mode {mode}, of this user",
        remedy=f"chmod {mode} {path}; chown it to the user that runs this",
        look=lambda: _private(path, group=group),
    )


def disk_check(folder: Path, limits: PreflightLimits) -> Check:
    """Free space where something grows."""
    return Check(
        name="disk",
        wanted=f"{limits.free_disk_mib} MiB free",
        remedy=f"free some space at {folder}, or lower preflight.free_disk_mib",
        look=lambda: _free(folder, limits.free_disk_mib),
    )


def port_check(name: str, host: str, port: int, setting: str, *, own: Callable[[], str | None] = lambda: None) -> Check:
    """A port that nobody listens on but whoever ``own`` names: what runs already is no reason to fail."""
    return Check(
        name=name,
        wanted=f"{host}:{port} free",
        remedy=f"stop what listens there (ss -ltnp), or give another port with {setting}",
        look=lambda: own() or unused_port(host, port),
    )


def _python() -> str:
    got = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON:
        raise NotAsWanted(got)
    return got


def _exactly(package: str, wanted: str | None, *, prefix: str = "") -> str:
    try:
        got = version(package)
    except PackageNotFoundError as error:
        raise NotAsWanted("not installed") from error
    if (wanted is not None and got != wanted) or not got.startswith(prefix):
        raise NotAsWanted(got)
    return got


def _private(path: Path, *, group: bool) -> str:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    got = f"mode {mode:o}" if found.st_uid == os.geteuid() else f"mode {mode:o}, of user {found.st_uid}"
    others = stat.S_IRWXO | stat.S_IWGRP | (0 if group else stat.S_IRWXG)
    if mode & others or found.st_uid != os.geteuid():
        raise NotAsWanted(got)
    return got


def _free(folder: Path, wanted: int) -> str:
    free = shutil.disk_usage(folder).free // _MIB
    if free < wanted:
        raise NotAsWanted(f"{free} MiB")
    return f"{free} MiB"


def unused_port(host: str, port: int) -> str:
    """The word that nobody listens there.

    Raises:
        NotAsWanted: Somebody does, or nobody can.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has just ended is no listener
        try:
            tried.bind((host, port))
        except OSError as error:
            raise NotAsWanted(f"{host}:{port}: {error.strerror}") from error
    return "free"
