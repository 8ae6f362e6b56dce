"""The promise of a release in plain words: made alike by coordinator and sites, so that no card says more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.privacy.statements import EXCLUDED, Adversary, figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.release.statement import Release, StatedEpsilon, StatedPrivacy

_UNIT: Final = {
    "image": "one picture; someone with several pictures is protected less, by as many times as they have pictures",
    "subject": "all pictures of one subject together: a patient, a person, a work, as the institutions numbered them",
}

_NOUN: Final = {"image": "picture", "subject": "subject"}


def privacy_section(release: Release) -> str:
    """The model card's section on privacy, Markdown without its heading."""
    return "\n".join(_lines(release))


def _lines(release: Release) -> Iterator[str]:
    privacy, unit = release.privacy, _NOUN[release.privacy.unit]
    yield f"Protected is {_UNIT[privacy.unit]}."
    yield ""
    yield (
        f"ε bounds what anybody can find out about one {unit}: whatever they conclude from what they see, they "
        f"would have concluded with at most e^ε times the probability, give or take δ = {privacy.delta:g}, had that "
        f"{unit} not been among the training data ({privacy.relation}). Smaller is better."
    )
    yield ""
    yield "| who looks | ε |"
    yield "| --- | ---: |"
    yield from _rows(privacy.sent)
    yield ""
    yield f"The figures are for the {privacy.sent.attempts} attempts at rounds that were sent. {_early(release)}"
    yield ""
    yield _aggregation(privacy)
    yield ""
    yield f"Accountant: {privacy.accountant}. Not included:"
    yield ""
    yield from (f"- {line}" for line in EXCLUDED)


def _rows(stated: StatedEpsilon) -> Iterator[str]:
    yield f"| {Adversary.PUBLIC} | {figure(stated.public)} |"
    yield f"| {Adversary.INSTITUTIONS} | {figure(stated.institutions)} |"
    yield f"| {Adversary.SERVER} | {figure(stated.server)} |"
    yield f"| {Adversary.FALLBACK} | {figure(stated.fallback)} |"


def _early(release: Release) -> str:
    planned = release.privacy.planned
    if planned.attempts == release.privacy.sent.attempts:
        return "The noise is sized for so many."
    if release.is_finished:
        return f"The noise is sized for {planned.attempts}; the rest was kept for repeats."
    return (
        f"The run ended after {release.rounds} of {release.rounds_planned} rounds; the noise is sized for "
        f"{planned.attempts} attempts. A run that was ended early because of what its adapter "
        f"showed has the figures of all {planned.attempts}: in the order above {figure(planned.public)}, "
        f"{figure(planned.institutions)}, {figure(planned.server)}, {figure(planned.fallback)}."
    )


def _aggregation(privacy: StatedPrivacy) -> str:
    if privacy.secure_aggregation:
        return (
            "Every institution masked what it sent with keys that it shares with the other institutions alone; the "
            "coordinator saw sums. That holds as long as the institutions are real: had the coordinator invented all "
            "others, the last row would hold for the one left, against everybody."
        )
    return "Nothing was masked: the coordinator saw each institution's noised share, so against it the last row holds."
