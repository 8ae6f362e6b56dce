"""Microsoft Presidio as a second finder of names and places in captions, if a site wants and installs it."""

from __future__ import annotations

import importlib.util
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
    """The analyser with spaCy's large model for the language.

    Raises:
        ConfigError: Presidio or the model is not installed. Presidio would fetch a missing model by itself; this does
            not.

    """
    model = "en_core_web_lg" if language == "en" else f"{language}_core_news_lg"
    try:
        from presidio_analyzer import AnalyzerEngine  # noqa: PLC0415 - an extra
        from presidio_analyzer.nlp_engine import NlpEngineProvider  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            'captions.presidio needs Presidio: pip install "darkroom[captions]", or set it to "off"'
        ) from error
    if importlib.util.find_spec(model) is None:
        raise ConfigError(f'captions.presidio = "{language}" needs the spaCy model {model}; install it, or set "off"')
    models = [{"lang_code": language, "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    analyzer = AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=[language])
    return PresidioFinder(analyzer, language)
