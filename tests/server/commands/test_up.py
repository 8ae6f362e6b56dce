"""``up`` looks after the federation, or ends with an error: it never goes on without looking."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from server.commands import federation as commands

if TYPE_CHECKING:
    from collections.abc import Callable


class Listener:
    """Like uvicorn's: serves until told to end."""

    should_exit = False
    force_exit = False

    async def serve(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110 - as uvicorn does
            await asyncio.sleep(0.01)


class Processes:
    """A supervisor whose polls go as told."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.polls = 0

    def poll(self) -> None:
        self.polls += 1
        if self.faults:
            raise self.faults.pop(0)


async def lead(*looks: Callable[[], None], listener: Listener) -> None:
    keeping = [asyncio.create_task(commands._keep_looking(look)) for look in looks]
    try:
        await asyncio.wait_for(commands._listen(cast("Any", listener), keeping), 20)
    finally:
        await commands._end(keeping)


def nothing() -> None:
    pass


def broken() -> None:
    raise ZeroDivisionError("a bug")


def test_a_fault_in_looking_ends_up_with_it(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        asyncio.run(lead(nothing, broken, listener=listener))
    assert listener.force_exit  # nobody who is connected holds it up
    assert "a bug" in caplog.text


def test_being_told_to_end_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Told(Listener):
        async def serve(self) -> None:
            await asyncio.sleep(0.01)

    asyncio.run(lead(nothing, listener=Told()))
    assert caplog.messages == []


def test_a_full_disk_does_not_end_the_supervision(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(28, "No space left on device", "logs/superlink.log")
    processes = Processes(full, full, ZeroDivisionError("a bug"))
    wait = asyncio.sleep
    monkeypatch.setattr(commands.asyncio, "sleep", lambda _seconds: wait(0))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(commands._keep_processes(cast("Any", processes)))
    assert processes.polls == 3
    assert len([line for line in caplog.messages if "No space left" in line]) == 1
