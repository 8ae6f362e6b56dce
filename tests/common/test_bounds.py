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

from common.config import PrivacyConfig, RunConfig
from common.errors import DarkroomError, MechanismError
from common.manifest import Manifest, PrivacyTerms
from common.privacy.clipping import ClippedSum
from common.privacy.mechanisms import NoisePlan, add_noise, plan_noise, quantise, rounded_gaussian
from common.randomness import REPEATABLE_WORDS, repeatable_randomness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.privacy.mechanisms import QuantizedSum

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


NUMBERS = list(numbers(Manifest))


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
    assert len(seen) > 40


@pytest.mark.parametrize(("where", "struct", "name", "kind"), NUMBERS, ids=[where for where, *_ in NUMBERS])
def test_both_ends_pass_and_what_is_beyond_them_does_not(where: str, struct: type, name: str, kind: Number) -> None:
    assert (kind.ge, kind.gt) != (None, None), where
    assert (kind.le, kind.lt) != (None, None), where
    low, high = ends(kind)
    whole = isinstance(kind, inspect.IntType)
    beyond = [low - 1, high + 1] if whole else [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    hint = next(field.type for field in msgspec.structs.fields(struct) if field.name == name)
    for value in (low, high):
        assert msgspec.convert(value, hint) == value
    for value in beyond if whole else [*beyond, math.inf, -math.inf, math.nan]:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, hint)


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


def noise_of(plan: NoisePlan) -> QuantizedSum:
    return quantise(
        ClippedSum(vector=np.zeros(plan.coordinates), sensitivity=plan.clip, relation="add_remove_one"), plan
    )


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
            relation="add_remove_one",
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
