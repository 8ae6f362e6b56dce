"""Run one operation on a vault and die at its n-th step, for every n; started by test_vault_crash.

A step is a line of the vault's code about to run. Each death is ``os._exit`` in a forked child: nothing is flushed,
rolled back or cleaned up. The parent then opens the directory as the next process would, and checks it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.vault.errors import WrongMasterKey
from client.vault.vault import Vault
from tests.client.vaults import filled, key_file, record

if TYPE_CHECKING:
    from collections.abc import Callable

DIED = 99
CODE = f"{os.sep}client{os.sep}vault{os.sep}"


def operations(root: Path) -> dict[str, Callable[[Vault], object]]:
    new = key_file(root, "new")
    return {
        "add": lambda vault: vault.add([record(20, "patient 0"), record(21, "patient new"), record(22, "patient new")]),
        "put_derived": lambda vault: vault.put_derived(
            "latents", {info.record_id: b"newer " + info.record_id.encode() for info in vault.infos()[:3]}
        ),
        "erase_subject": lambda vault: vault.erase_subject("patient 0"),
        "erase_expired": lambda vault: vault.erase_expired(date(2099, 1, 1)),
        "rotate": lambda vault: vault.rotate(new),
        "note_run": lambda vault: vault.note_run("run two"),
        "tidy": lambda vault: vault._interior.tidy(),
    }


def contents(vault: Vault) -> list[tuple[Any, ...]]:
    """Everything that can be read, which opens every file."""
    return [
        (
            *(vault.read(info.record_id), vault.derived(info.record_id, "latents")),
            *(vault.derived(info.record_id, "caption"), vault.plan_erasure(vault.read(info.record_id).subject_id).runs),
        )
        for info in vault.infos()
    ]


def run_and_die(directory: Path, root: Path, operation: Callable[[Vault], object], step: int) -> bool:
    """Whether the child died at this step; it finished if there are fewer."""
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: Any, event: str, _: object) -> Any:
            nonlocal count
            if CODE not in frame.f_code.co_filename:
                return None
            if event == "line":
                count += 1
                if count == step:
                    os._exit(DIED)
            return trace

        try:
            vault = Vault.open(directory, key_file(root))
            vault._interior.access = "write"  # not opened so: opening tidies, which is an operation of its own
            sys.settrace(trace)
            operation(vault)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child must not go on as its parent
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in {0, DIED}:
        raise SystemExit(f"step {step}: the operation failed with {status}")
    return status == DIED


def reopened(directory: Path, root: Path) -> tuple[Vault, bool]:
    """As the next process would open it, and whether with the new key."""
    try:
        return Vault.open(directory, key_file(root), access="write"), False
    except WrongMasterKey:
        return Vault.open(directory, key_file(root, "new"), access="write"), True


def without_ids(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(row[0].image, row[0].caption, row[0].subject_id, *row[1:]) for row in found]


def check(directory: Path, root: Path, before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]) -> bool:
    """Whether the change happened, as a whole."""
    vault, is_rotated = reopened(directory, root)
    with vault:
        found = contents(vault)
        files = len(list((directory / "blobs").iterdir()))
        wanted = sum(1 + sum(item is not None for item in row[1:3]) for row in found)
        if files != wanted:
            raise SystemExit(f"{files} files are there, and {wanted} are referred to")
        if vault.find_subject("patient 0") is None and any(
            keys_of(root / "start")[0] in each.read_bytes() for each in directory.iterdir() if each.is_file()
        ):
            raise SystemExit("an erased key is still in a file")
        vault.add([record(40)])  # and it goes on
    if without_ids(found) == without_ids(before) and found[0][0] == before[0][0]:
        return is_rotated
    if without_ids(found) == without_ids(after):
        return True
    raise SystemExit(f"neither before nor after: {len(found)} records")


def keys_of(directory: Path) -> list[bytes]:
    with closing(sqlite3.connect(directory / "index.sqlite3")) as store:
        return [row[0] for row in store.execute("SELECT wrapped FROM subjects ORDER BY subject")]


def prepare(root: Path, name: str) -> None:
    filled(root, name="start").close()
    with Vault.open(root / "start", key_file(root), access="write") as vault:
        expires = date(2030, 1, 1)
        ids = vault.add([record(30, "patient 0", expires=expires), record(31, "brief", expires=expires)])
        for kind in ("latents", "caption"):
            vault.put_derived(kind, {ids[0]: b"x"})
        if name == "tidy":
            with vault._interior.index.transaction():
                vault._interior.index.mark_unscrubbed()
            (root / "start" / "blobs" / ("00" * 24)).write_bytes(b"orphan")


def main(root: Path, name: str, stride: int) -> None:
    operation = operations(root)[name]
    prepare(root, name)
    shutil.copytree(root / "start", root / "after")
    with Vault.open(root / "after", key_file(root), access="write") as vault:
        before = contents(vault)
        operation(vault)
        after = contents(vault)
    happened, step, died, work = [], 1, True, root / "work"
    while died:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(root / "start", work)
        died = run_and_die(work, root, operation, step)
        happened.append(check(work, root, before, after))
        step += stride
    if happened != sorted(happened) or (name != "tidy" and set(happened) != {False, True}):
        raise SystemExit(f"it came undone: {happened}")
    print(len(happened))  # noqa: T201 - read by the test


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
