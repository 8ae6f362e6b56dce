"""The commands that a page of documentation shows, to be executed as they stand but for names and places."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from common.host.flower_commands import program
from simulations.pilot.processes import environment

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^ {4,}((?:darkroom-|flwr |mv ).*)$", re.MULTILINE)
_INLINE = re.compile(r"`(darkroom-(?:client|server) [^`]*)`")
_COMMENT = re.compile(r"\s+# .*$")


def documented(page: Path) -> list[str]:
    """Every command of a page, in order, without comments."""
    text = page.read_text(encoding="utf-8")
    found = [(match.start(), match.group(1)) for kind in (_BLOCK, _INLINE) for match in kind.finditer(text)]
    return [_COMMENT.sub("", line).strip() for _, line in sorted(found)]


@dataclass
class Page:
    """A page's commands; each is looked up by how it begins, and those that nobody looked up are told."""

    path: Path
    directory: Path
    """Where commands are typed."""
    places: dict[str, str]
    """What stands for what in them."""
    said: Path
    used: set[str] = field(default_factory=set)

    def line(self, beginning: str, *, ending: str = "", **names: str) -> list[str]:
        """The command that begins and ends so, as arguments; ``names`` replace words of it for this once."""
        commands = dict.fromkeys(documented(self.path))
        found = [each for each in commands if each.startswith(beginning) and each.endswith(ending)]
        assert len(found) == 1, f"{self.path.name}: wanted one command {beginning!r}, found {found}"
        self.used.add(found[0])
        text = found[0] + " "  # so that a last word ends as others do
        for old, new in (*names.items(), *self.places.items()):
            text = text.replace(old, new)
        name, *arguments = shlex.split(text)
        return ["sh", "-c", text] if name == "mv" else [*_program(name), *arguments]

    def run(
        self, beginning: str, *more: str, ending: str = "", answer: str = "", refused: str = "", **names: str
    ) -> str:
        """Execute it to its end; what it said. ``refused``: it must fail, and say this."""
        line = [*self.line(beginning, ending=ending, **names), *more]
        done = subprocess.run(
            line,
            cwd=self.directory,
            env={**os.environ, **environment()},
            input=answer,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        with self.said.open("a") as file:
            file.write(f"$ {shlex.join(line)}\n{done.stdout}{done.stderr}")
        assert (done.returncode != 0) == bool(refused), f"{shlex.join(line)}: {done.stdout}{done.stderr}"
        assert refused in done.stderr
        return done.stdout

    def start(self, beginning: str, *more: str, answer: str = "", **names: str) -> subprocess.Popen[bytes]:
        """Execute it beside the test."""
        line = [*self.line(beginning, **names), *more]
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix="beside-", suffix=".said", delete=False) as output:
            process = subprocess.Popen(
                line,
                cwd=self.directory,
                env={**os.environ, **environment()},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(answer.encode())
        process.stdin.close()
        return process

    def left(self) -> list[str]:
        """Commands that nobody executed."""
        return [each for each in dict.fromkeys(documented(self.path)) if each not in self.used]


def _program(name: str) -> tuple[str, ...]:
    return (program("flwr"),) if name == "flwr" else (sys.executable, "-m", f"{name.removeprefix('darkroom-')}.cli")
