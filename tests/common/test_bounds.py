"""Every number of a manifest has two ends; what is beyond one is refused before anything is worked out from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from scipy import stats

from common.config import PrivacyConfig, RunConfig
from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
from common.errors import DarkroomError, MechanismError
from common.manifest.manifest import Manifest, PrivacyTerms
from common.privacy import run_plan
from common.privacy.clipping import ClippedSum
from common.privacy.mechanisms import NoisePlan, add_noise, plan_noise, quantise, rounded_gaussian
from common.privacy.run_plan import private_plan
from common.privacy.statements import RunSettings, state
from common.secagg.messages import KeyAdvert, OpenSession, RoundRequest, SessionKeys
from common.wire.messages import Contribute, ContributeMasked, Evaluate, OpenSecureSession, Propose, ShareSessionKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.privacy.mechanisms import QuantisedSum

Number = inspect.IntType | inspect.FloatType


def parts(kind: Any) -> Iterator[Any]:
    yield kind
    for name in ("types", "item_types"):
        for part in getattr(kind, name, ()):
            yield from parts(part)
    if isinstance(getattr(kind, "item_type", None), inspect.Type):
        yield from parts(kind.item_type)


def numbers(struct: type, where: str = "manifest") -> Iterator[tuple[str, type, str, Number]]:
    for field in inspect.type_info(struct).fields:  # type: ignore[attr-defined]
        for kind in parts(field.type):
            if isinstance(kind, Number):
                yield f"{where}.{field.name}", struct, field.name, kind
            elif isinstance(kind, inspect.StructType):
                yield from numbers(kind.cls, f"{where}.{field.name}")


def messages() -> Iterator[tuple[str, type, str, Number]]:
    """What a coordinator may send to an institution, and an institution through it to another."""
    for kind in (Propose, OpenSecureSession, ShareSessionKeys, ContributeMasked, Contribute, Evaluate):
        yield from numbers(kind, kind.__name__)
    for inner in (OpenSession, KeyAdvert, SessionKeys, RoundRequest):
        yield from numbers(inner, inner.__name__)


NUMBERS = [*numbers(Manifest), *messages()]


def ends(kind: Number) -> tuple[Any, Any]:
    """The least and the largest value that are allowed."""
    whole = isinstance(kind, inspect.IntType)

    def inside(value: Any, towards: float) -> Any:
        return value + int(math.copysign(1, towards)) if whole else math.nextafter(value, towards)

    low = kind.ge if kind.ge is not None else inside(kind.gt, math.inf)
    high = kind.le if kind.le is not None else inside(kind.lt, -math.inf)
    return low, high


def test_the_walk_sees_the_whole_manifest() -> None:
    seen = {where for where, *_ in NUMBERS}
    assert {"manifest.config.privacy.clip", "manifest.privacy.noise_multiplier", "manifest.dimension"} <= seen
    assert {"RoundRequest.round", "RoundRequest.attempt", "RoundRequest.cohort", "SessionKeys.adverts.place"} <= seen
    assert len(seen) > 40


@pytest.mark.parametrize(("where", "struct", "name", "kind"), NUMBERS, ids=[where for where, *_ in NUMBERS])
def test_both_ends_pass_and_what_is_beyond_them_does_not(where: str, struct: type, name: str, kind: Number) -> None:
    assert (kind.ge, kind.gt) != (None, None), where
    assert (kind.le, kind.lt) != (None, None), where
    low, high = ends(kind)
    whole = isinstance(kind, inspect.IntType)
    beyond = [low - 1, high + 1] if whole else [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    hint = next(field.type for field in msgspec.structs.fields(struct) if field.name == name)
    shape = next(field.type for field in inspect.type_info(struct).fields if field.name == name)  # type: ignore[attr-defined]
    several = (lambda value: (value, value)) if isinstance(shape, inspect.VarTupleType) else (lambda value: value)
    for value in (low, high):
        assert msgspec.convert(several(value), hint) == several(value)
    for value in beyond if whole else [*beyond, math.inf, -math.inf, math.nan]:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(several(value), hint)


def test_a_run_that_samples_more_than_anybody_has_is_refused() -> None:
    config = msgspec.convert(
        {
            "name": "endless",
            "rounds": 100_000,
            "base": {"path": "bundled"},
            "privacy": {"epsilon": 8.0, "delta": 1e-12, "clip": 1.0, "population": 10**9, "sampling_rate": 1.0},
            "server": {"minimum_institutions": 3},
        },
        RunConfig,
    )
    assert any("rounds × sampling_rate × population" in fault for fault in config.faults())


any_float = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
# most floats are astronomically far out; half of the tries are within what may be accepted
often_possible = any_float | st.floats(1e-13, 1e13)


def noise_of(plan: NoisePlan) -> QuantisedSum:
    return quantise(ClippedSum(vector=np.zeros(plan.coordinates), sensitivity=plan.clip), plan)


@settings(max_examples=300, deadline=None)
@given(clip=often_possible, multiplier=often_possible)
def test_any_clip_and_multiplier_are_refused_or_their_noise_is_measured_right(clip: float, multiplier: float) -> None:
    """The oracle is the gradient's own scale: z·C spread over n - t shares, whatever the integers are."""
    institutions, colluders, d = 3, 1, 4096
    try:
        plan = plan_noise(
            coordinates=d,
            clip=clip,
            noise_multiplier=multiplier,
            institutions=institutions,
            colluders=colluders,
            cap=100,
        )
    except MechanismError:
        return
    randomness = repeatable_randomness("share", seed=1, acknowledge=REPEATABLE_WORDS)
    share = add_noise(noise_of(plan), randomness).values.astype(np.float64) / plan.scale
    wanted = multiplier * clip / math.sqrt(institutions - colluders)
    # the sample's deviation of 4096 values is within 6 % with 5 sigma
    assert float(np.sqrt(np.mean(share**2))) >= 0.94 * wanted
    assert 1e-12 <= clip <= 1e12


@settings(max_examples=400, deadline=None)
@given(
    field=st.sampled_from(["epsilon", "delta", "clip", "sampling_rate", "noise_multiplier", "slack", "lost"]),
    value=any_float,
)
def test_terms_take_no_float_that_noise_cannot_rest_on(field: str, value: float) -> None:
    sound = {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "sampling_rate": 0.1, "noise_multiplier": 1.5}
    table = {"unit": "image", "maximum_units": 100, **sound, field: value}
    try:
        terms = msgspec.convert(table, PrivacyTerms)
    except msgspec.ValidationError:
        return
    taken = getattr(terms, field)
    assert math.isfinite(taken)
    # slack and lost are added to delta; everything else is divided by, or multiplied with, what noise is made from
    assert 0 <= taken <= 0.5 if field in {"slack", "lost"} else taken >= 1e-30


@pytest.mark.parametrize("clip", [1e-306, 5e-324, 1e-13, 1e13, math.inf, math.nan, 0.0, -1.0])
def test_a_clip_that_would_switch_the_noise_off_is_refused_at_every_door(clip: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(
            {"epsilon": 8.0, "delta": 1e-5, "clip": clip, "population": 1000, "sampling_rate": 0.1}, PrivacyConfig
        )
    with pytest.raises(MechanismError):
        plan_noise(coordinates=10, clip=clip, noise_multiplier=1.0, institutions=3, cap=10)
    with pytest.raises(MechanismError):
        NoisePlan(
            coordinates=10,
            clip=clip,
            noise_multiplier=1.0,
            institutions=3,
            colluders=0,
            cap=10,
            bits=32,
            scale=1.0,
        )


@pytest.mark.parametrize("variance", [math.nan, math.inf, -1.0, 0.0, 1 / 12, 2.0**120])
def test_noise_of_no_sound_variance_is_not_drawn(variance: float) -> None:
    randomness = repeatable_randomness("noise", seed=1, acknowledge=REPEATABLE_WORDS)
    with pytest.raises(DarkroomError, match="variance"):
        rounded_gaussian(10, variance=variance, randomness=randomness)


@pytest.mark.parametrize("scale", [math.inf, math.nan, 0.0, -1.0])
def test_a_plan_of_no_sound_scale_cannot_be_made(scale: float) -> None:
    sound = plan_noise(coordinates=10, clip=1.0, noise_multiplier=1.0, institutions=3, cap=10)
    with pytest.raises(MechanismError, match="scale"):
        replace(sound, scale=scale)


@pytest.mark.parametrize("cap", [10, 10**4, 10**5, 10**6])
def test_what_float64_rounds_off_a_sum_of_so_many_units_is_part_of_its_sensitivity(cap: int) -> None:
    """Terms of norm C: each addition rounds by 2⁻⁵³ of what was added so far, with the unit and without it."""
    plan = plan_noise(coordinates=10, clip=1.0, noise_multiplier=5.0, institutions=3, cap=cap)
    rounded = 2 * sum(number * 2.0**-53 for number in range(cap))
    assert plan.sensitivity >= plan.scale * (1 + rounded) + math.sqrt(10)


def test_more_units_than_a_float64_sum_keeps_apart_are_refused() -> None:
    with pytest.raises(MechanismError, match="lower the cap"):
        plan_noise(coordinates=10, clip=1.0, noise_multiplier=1e4, institutions=3, cap=10**9)


possible = {
    "epsilon": st.floats(1e-3, 1e3),
    "delta": st.floats(1e-15, 0.5),
    "clip": st.floats(1e-12, 1e12),
    "sampling_rate": st.floats(1e-6, 1),
    "population": st.integers(1, 10**9),
    "largest_site": st.none() | st.integers(1, 10**9),
    "draws": st.integers(1, 16),
    "colluders": st.integers(0, 1023),
    "repeats": st.integers(0, 100_000),
}


@settings(max_examples=200, deadline=None)
@given(
    table=st.fixed_dictionaries(possible),
    rounds=st.integers(1, 100_000),
    institutions=st.integers(1, 1024),
    multiplier=st.floats(0.1, 1e4),
)
def test_any_privacy_settings_are_refused_or_give_the_noise_of_their_plan(
    table: dict[str, Any], rounds: int, institutions: int, multiplier: float
) -> None:
    """What z would be is the accountant's affair, and tested there; here any z that it may give is taken."""
    given_config = {
        "name": "any",
        "rounds": rounds,
        "base": {"path": "bundled"},
        "privacy": table,
        "server": {"minimum_institutions": institutions},
    }
    config = msgspec.convert(given_config, RunConfig)
    if list(config.faults()) or config.privacy == "none" or list(config.privacy.faults()):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.privacy.run_plan.calibrate", lambda *_, **__: multiplier)
        run_plan._plan.cache_clear()
        try:
            planned = private_plan(config)
            assert planned is not None
            plan = planned.noise(512)
        except DarkroomError:
            return
        finally:
            run_plan._plan.cache_clear()
    largest = table["largest_site"] or table["population"]
    assert stats.binom.sf(planned.cap - 1, largest, table["sampling_rate"]) <= 1e-3 * table["delta"]
    share = add_noise(noise_of(plan), repeatable_randomness("share", seed=1, acknowledge=REPEATABLE_WORDS))
    wanted = multiplier * table["clip"] / math.sqrt(institutions - table["colluders"])
    # the sample's deviation of 512 values is within 16 % with 5 sigma
    assert float(np.sqrt(np.mean((share.values / plan.scale) ** 2))) >= 0.84 * wanted


def test_every_figure_of_a_run_within_the_bounds_is_stated_or_refused_in_time() -> None:
    """The fallback's z is that of one of many shares, far below any that a manifest may have."""
    told = state(
        RunSettings(
            unit="image",
            delta=1e-5,
            institutions=1024,
            colluders=0,
            noise_multiplier=0.1,
            sampling_rate=1e-6,
            rounds=100_000,
        )
    )
    assert told.fallback.noise_multiplier < 0.004
    assert told.fallback.epsilon is None
