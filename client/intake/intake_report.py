"""What one intake did, or would do: counts for anybody, and examples for the institution's own people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.intake.outcomes import Accepted, Converted, Duplicate, Refused, describe

if TYPE_CHECKING:
    from client.intake.outcomes import Outcome
    from client.vault.records import Split

SHEET_PICTURES: Final = 400
"""Previews on the contact sheet for each kind of outcome; the rest is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One file, for the contact sheet."""

    name: str = field(repr=False)
    outcome: Outcome
    caption_before: str = field(repr=False, default="")
    caption_after: str = field(repr=False, default="")
    before: bytes = field(repr=False, default=b"")
    after: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A picture that goes into the vault with the next batch."""

    outcome: Outcome
    split: Split
    subject: str = field(repr=False)
    caption_rules: tuple[tuple[str, int], ...]


@dataclass(kw_only=True)
class IntakeReport:
    """Counts grow as the intake goes on."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By outcome and reason, both from closed lists."""
    caption_rules: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, set[str]] = field(default_factory=dict, repr=False)
    """Of the pictures that are kept, by side."""
    opted_out_inside: int = 0
    """Subjects on the opt-out list whose pictures are in the vault from before."""
    notes: list[str] = field(default_factory=list, repr=False)
    """What a person should know: sentences for the terminal."""
    state_before: str = ""
    state_after: str = ""
    examples: list[Example] = field(default_factory=list, repr=False)
    _shown: Counter[type] = field(default_factory=Counter, repr=False)
    _held: list[Kept] = field(default_factory=list, repr=False)

    def note(self, example: Example) -> None:
        """Count a file, and keep it as an example while there is room."""
        self.outcomes[describe(example.outcome)] += 1
        kind = type(example.outcome)
        self._shown[kind] += 1
        if self._shown[kind] <= SHEET_PICTURES:
            self.examples.append(example)

    def hold(self, kept: Kept) -> None:
        """Count a picture's record, which is not in the vault yet."""
        self._held.append(kept)
        self.splits[kept.split] += 1
        self.subjects.setdefault(kept.split, set()).add(kept.subject)
        self.caption_rules.update(dict(kept.caption_rules))

    def added(self) -> None:
        """What was held is in the vault."""
        self._held.clear()

    def cut_off(self, number: int) -> None:
        """An intake ended early, with so many records in the vault: take back what never came to be there."""
        if number == self.splits.total():  # all that was held was added, and the word of it did not come back
            self._held.clear()
        for kept in self._held:
            self.outcomes[describe(kept.outcome)] -= 1
            self._shown[type(kept.outcome)] -= 1
            self.splits[kept.split] -= 1
            self.caption_rules.subtract(dict(kept.caption_rules))
        self._held.clear()
        for counts in (self.outcomes, self.splits, self.caption_rules):
            for key in [key for key, count in counts.items() if count == 0]:
                del counts[key]

    def number(self, kind: type[Outcome]) -> int:
        """Files with this kind of outcome."""
        return self._shown[kind]

    @property
    def kept(self) -> int:
        """Pictures that went into the vault, or would."""
        return self.number(Accepted) + self.number(Converted)

    @property
    def left_out(self) -> int:
        """Files that did not."""
        return self.number(Refused) + self.number(Duplicate)
