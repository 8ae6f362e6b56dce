"""What a run's own settings say about its noise and its masks: worked out by both sides, and compared.

A manifest states noise multiplier, cap, slack and ring beside the configuration that they follow from. An institution
that believed the statement could be given another noise than the printed ε needs; so it works the terms out itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common.errors import ManifestError
from common.manifest.manifest import Manifest, Member, PrivacyTerms, SecureAggregationTerms, new_run
from common.privacy.mechanisms import rounding_slack
from common.privacy.run_plan import private_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import msgspec

    from common.config import RunConfig

_TOLERANCE = 1e-9
"""Share by which two platforms' floating point may differ."""


def privacy_terms(config: RunConfig, *, dimension: int) -> PrivacyTerms | None:
    """The differential privacy that follows from a configuration; None without.

    Raises:
        PrivacyError: No noise gives the wanted ε, or no scale carries it.

    """
    plan = private_plan(config)
    if plan is None:
        return None
    noise = plan.noise(dimension)
    return PrivacyTerms(
        unit=plan.config.unit,
        epsilon=plan.config.epsilon,
        delta=plan.config.delta,
        clip=plan.config.clip,
        sampling_rate=plan.config.sampling_rate,
        noise_multiplier=plan.noise_multiplier,
        maximum_units=noise.cap,
        slack=rounding_slack(noise, rounds=1),
        lost=plan.lost / plan.attempts,
    )


def aggregation_terms(config: RunConfig, *, dimension: int) -> SecureAggregationTerms | None:
    """How sums are masked; None where they are not.

    Raises:
        PrivacyError: As :func:`privacy_terms`.

    """
    plan = private_plan(config)
    if plan is None or not config.is_secure:
        return None
    return SecureAggregationTerms(
        bits=plan.noise(dimension).bits,
        minimum_cohort=plan.institutions,
        colluders=plan.config.colluders,
    )


def draft_manifest(  # noqa: PLR0913 - the parts of a manifest
    config: RunConfig,
    *,
    base_digest: str,
    adapter_digest: str,
    dimension: int,
    coordinator: bytes,
    roster: Sequence[Member],
    code_version: str,
) -> Manifest:
    """A manifest of a new run, to be signed.

    Raises:
        PrivacyError: As :func:`privacy_terms`.

    """
    return Manifest(
        run=new_run(),
        config=config,
        base_digest=base_digest,
        adapter_digest=adapter_digest,
        dimension=dimension,
        coordinator=coordinator.hex(),
        roster=tuple(sorted(roster, key=lambda member: member.name)),
        privacy=privacy_terms(config, dimension=dimension),
        secure_aggregation=aggregation_terms(config, dimension=dimension),
        code_version=code_version,
    )


def check_terms(manifest: Manifest) -> None:
    """Refuse terms that do not follow from the manifest's own configuration.

    Raises:
        ManifestError: Every difference.
        PrivacyError: The configuration cannot be met at all.

    """
    pairs = {
        "privacy": (privacy_terms(manifest.config, dimension=manifest.dimension), manifest.privacy),
        "secure_aggregation": (
            aggregation_terms(manifest.config, dimension=manifest.dimension),
            manifest.secure_aggregation,
        ),
    }
    faults = [fault for name, (wanted, got) in pairs.items() for fault in _differences(name, wanted, got)]
    if faults:
        raise ManifestError("terms that do not follow from the manifest's own settings: " + "; ".join(faults))


def _differences(name: str, wanted: msgspec.Struct | None, got: msgspec.Struct | None) -> Iterator[str]:
    if wanted is None or got is None:
        if wanted is not got:
            yield f"{name}: wanted {wanted}, got {got}"
        return
    for field in wanted.__struct_fields__:
        ours, theirs = getattr(wanted, field), getattr(got, field)
        if not _same(ours, theirs):
            yield f"{name}.{field}: wanted {ours}, got {theirs}"


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=_TOLERANCE)
    return ours == theirs
