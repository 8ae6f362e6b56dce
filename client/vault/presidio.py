"""Microsoft Presidio as a second finder of names and places in captions, if a site wants and installs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS: Final = ("PERSON", "LOCATION", "NRP", "MEDICAL_LICENSE")
"""What the built-in rules have no form for; ``DATE_TIME`` and the rest they find themselves."""
_THRESHOLD: Final = 0.4


@dataclass(frozen=True, slots=True)
class PresidioFinder:
    """Presidio's analyser with one language's model."""

    analyzer: Any
    language: str

    def find(self, text: str) -> Sequence[tuple[int, int, str]]:
        """Spans that do not overlap, the surer ones first."""
        found = self.analyzer.analyze(
            text=text, language=self.language, entities=list(KINDS), score_threshold=_THRESHOLD
        )
        kept: list[tuple[int, int, str]] = []
        for each in sorted(found, key=lambda result: (-result.score, result.start)):
            if all(each.end <= start or each.start >= end for start, end, _ in kept):
                kept.append((each.start, each.end, "name" if each.entity_type == "PERSON" else each.entity_type))
        return tuple(kept)


def load_presidio(language: str) -> PresidioFinder:
    """The analyser with its default model for the language.

    Raises:
        ConfigError: Presidio or the model is not installed. Nothing is fetched.

    """
    try:
        from presidio_analyzer import AnalyzerEngine  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            'captions.presidio needs Presidio: pip install "darkroom[captions]" and a spaCy model, or set it to "off"'
        ) from error
    return PresidioFinder(AnalyzerEngine(supported_languages=[language]), language)
