from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from client.training import private_update
from client.training.private_update import PrivateUpdate, TrainingSide
from client.training.trainer import Draws, Trainer, training_draws
from common.adapter.vector import initial_vector
from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
from common.errors import AccountingError
from common.privacy.mechanisms import rounded_gaussian
from common.privacy.run_plan import private_plan
from common.wire.messages import Contribute, Evaluate, Refusal, RefusalCode, encode
from common.wire.replies import NoisedContribution, decode_reply
from simulations.scenario.plain_steward import Steward, gradient_sum
from tests.client.sites import run_config

if TYPE_CHECKING:
    from common.config import RunConfig
    from common.crypto.randomness import Randomness
    from common.privacy.mechanisms import NoisePlan
    from common.privacy.run_plan import PrivatePlan
    from tests.client.sites import Site

CLIP = 0.015


def private_config(**changes: Any) -> RunConfig:
    privacy = {
        "epsilon": 4.0,
        "delta": 1e-3,
        "clip": CLIP,
        "draws": 3,
        "population": 18,
        "largest_site": 8,
        "sampling_rate": 0.5,
        "repeatable": REPEATABLE_WORDS,
        **changes,
    }
    return run_config(privacy=privacy, acknowledge="", aggregation="clear", server={"minimum_institutions": 3})


def steward(site: Site, units: tuple[tuple[int, ...], ...] | None = None, **changes: Any) -> Steward:
    config = private_config(**changes)
    trainer = site.trainer(config)
    return Steward(name="ward", config=config, trainer=trainer, train=site.shard, holdout=site.shard, units=units)


def request_of(trainer: Trainer, **changes: Any) -> Contribute:
    fields = {"round": 1, "attempt": 0, "spec_digest": trainer.spec.digest, "adapter": elsewhere(trainer).tobytes()}
    return Contribute(**(fields | changes))


def elsewhere(trainer: Trainer) -> Any:
    """An adapter at which A and B both have gradients."""
    return (initial_vector(trainer.spec) + np.random.default_rng(5).normal(0, 0.05, trainer.spec.dimension)).astype(
        "<f4"
    )


def values_of(one: Steward, **changes: Any) -> bytes:
    reply = decode_reply(one.answer(encode(request_of(one.trainer, **changes))))
    assert isinstance(reply, NoisedContribution)
    return reply.values


def plan_of(one: Steward) -> PrivatePlan:
    plan = private_plan(one.config)
    assert plan is not None
    return plan


def stream(one: Steward, attempt: int = 0) -> Randomness:
    return repeatable_randomness(f"{one.name}/1/{attempt}", seed=one.config.seed, acknowledge=REPEATABLE_WORDS)


def signed(values: bytes, plan: NoisePlan) -> Any:
    return np.frombuffer(values, "<i4" if plan.bits == 32 else "<i8").astype(np.float64) / plan.scale


def naive(one: Steward, units: tuple[tuple[int, ...], ...], *, attempt: int = 0) -> tuple[Any, list[float]]:
    """One unit at a time: mean gradient over its draws, clipped, summed; then noise. And the unclipped norms."""
    trainer, plan, draws, randomness = one.trainer, plan_of(one), 3, stream(one, attempt)
    chosen = [i for i, coin in enumerate(randomness.coins(len(units), 0.5)) if coin]
    rows: list[int] = []
    for i in chosen:
        images = list(units[i])
        order = [j for _ in range(-(-draws // len(images))) for j in randomness.permutation(len(images))]
        rows += [images[j] for j in order[:draws]]
    rng = np.random.default_rng(int.from_bytes(randomness.take(32), "little"))
    padding = -len(rows) % (32 // draws * draws)
    filled = np.array(rows + [rows[0]] * padding)
    made = training_draws(one.train, filled, trainer.config, trainer.schedule_steps, rng)
    trainer.set_adapter(elsewhere(trainer))
    total = np.zeros(trainer.spec.dimension)
    norms: list[float] = []
    for place in range(len(chosen)):
        part = slice(place * draws, (place + 1) * draws)
        own = Draws(*(getattr(made, name)[part] for name in Draws.__dataclass_fields__))
        gradient = gradient_sum(trainer, one.train, own).vector.astype(np.float64) / draws
        norms.append(float(np.linalg.norm(gradient)))
        total += gradient * min(1.0, CLIP / norms[-1])
    noise = rounded_gaussian(
        trainer.spec.dimension, variance=plan.noise(trainer.spec.dimension).share_variance, randomness=randomness
    )
    return total + noise / plan.noise(trainer.spec.dimension).scale, norms


IMAGES = tuple((i,) for i in range(6))
SUBJECTS = ((0, 3), (1,), (2, 4, 5))


@pytest.mark.parametrize("units", [IMAGES, SUBJECTS], ids=["image", "subject"])
def test_a_contribution_is_the_clipped_sum_of_a_naive_loop_and_its_noise(
    site: Site, units: tuple[tuple[int, ...], ...]
) -> None:
    one = steward(site, None if units is IMAGES else units)
    attempt = next(k for k in range(20) if stream(one, k).coins(len(units), 0.5).sum() >= 2)
    expected, norms = naive(one, units, attempt=attempt)
    assert max(norms) > CLIP  # else clipping is not tested
    plan = plan_of(one).noise(one.trainer.spec.dimension)
    found = signed(values_of(one, attempt=attempt), plan)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 + 1 / plan.scale)


def test_clipping_each_draw_or_no_noise_would_be_noticed(site: Site) -> None:
    one = steward(site)
    attempt = next(k for k in range(20) if stream(one, k).coins(6, 0.5).sum() >= 2)
    found = signed(values_of(one, attempt=attempt), plan_of(one).noise(one.trainer.spec.dimension))
    deviation = np.sqrt(plan_of(one).noise(len(found)).share_variance) / plan_of(one).noise(len(found)).scale
    assert np.std(found) > 0.9 * deviation
    assert np.abs(found).max() > 1e-3  # far beyond the tolerance above


def test_an_empty_sample_sends_noise_alone(site: Site) -> None:
    one = steward(site)
    attempt = next(k for k in range(500) if not stream(one, k).coins(6, 0.5).any())
    plan = plan_of(one).noise(one.trainer.spec.dimension)
    randomness = stream(one, attempt)
    randomness.coins(6, 0.5)
    randomness.take(32)
    noise = rounded_gaussian(plan.coordinates, variance=plan.share_variance, randomness=randomness)
    found = np.frombuffer(values_of(one, attempt=attempt), "<i4" if plan.bits == 32 else "<i8")
    np.testing.assert_array_equal(found, noise)


def test_a_site_without_a_single_unit_sends_noise_all_the_same(site: Site) -> None:
    assert any(values_of(steward(site, ())))


def test_a_message_has_the_same_fields_and_length_whatever_the_data(site: Site) -> None:
    full, nothing = steward(site), steward(site, ())
    bodies = [one.answer(encode(request_of(one.trainer))) for one in (full, nothing)]
    assert len(bodies[0]) == len(bodies[1])
    for body in bodies:
        assert set(msgspec.msgpack.decode(body)) == {"type", "version", "round", "attempt", "values"}


def test_secret_noise_differs_at_the_same_request(site: Site) -> None:
    one = steward(site, repeatable="")
    assert values_of(one) != values_of(one)
    assert values_of(steward(site)) == values_of(steward(site))


def test_a_holdout_loss_is_refused(site: Site) -> None:
    one = steward(site)
    asked = request_of(one.trainer)
    body = one.answer(encode(Evaluate(round=0, spec_digest=asked.spec_digest, adapter=asked.adapter)))
    assert decode_reply(body) == Refusal(code=RefusalCode.NOT_ALLOWED)


def test_a_site_with_more_units_than_the_run_counts_on_takes_no_part(site: Site) -> None:
    one = steward(site, largest_site=5)
    assert decode_reply(one.answer(encode(request_of(one.trainer)))) == Refusal(code=RefusalCode.NOT_ALLOWED)
    with pytest.raises(AccountingError, match="largest_site"):
        update_of(one)


def update_of(one: Steward, units: tuple[tuple[int, ...], ...] = IMAGES, **changes: Any) -> PrivateUpdate:
    side = TrainingSide(name=one.name, trainer=one.trainer, shard=one.train, units=units, **changes)
    return PrivateUpdate(side=side, plan=plan_of(one))


def rows_of(*units: int) -> Any:
    return np.array(units, dtype=np.int64).repeat(3)


def test_every_micro_batch_has_one_size(site: Site) -> None:
    update = update_of(steward(site))
    batches = list(update._batches(rows_of(*range(6)), np.random.default_rng(0)))
    assert [len(batch.draws) for batch in batches] == [30]
    assert batches[0].weights.tolist() == [1.0] * 18 + [0.0] * 12
    assert list(update._batches(rows_of(), np.random.default_rng(0))) == []


def test_with_even_answer_times_the_work_is_the_same_whoever_is_sampled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = steward(site)
    one.trainer._microbatch = 6  # two units
    shapes: list[tuple[int, ...]] = []
    losses = Trainer.losses

    def watched(self: Trainer, shard: Any, draws: Draws) -> Any:
        shapes.append(tuple(draws.noise.shape))
        return losses(self, shard, draws)

    monkeypatch.setattr(Trainer, "losses", watched)
    one.trainer.set_adapter(elsewhere(one.trainer))
    even, plain = update_of(one, answer_times="even"), update_of(one)
    seen, sums = [], []
    for chosen in (rows_of(), rows_of(4), rows_of(*range(6))):
        shapes.clear()
        sums.append(even.clipped(chosen, np.random.default_rng(1)).vector)
        seen.append(list(shapes))
        np.testing.assert_array_equal(sums[-1], plain.clipped(chosen, np.random.default_rng(1)).vector)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == -(-plan_of(one).cap // 2)
    assert not sums[0].any()
    assert sums[1].any()


def test_draws_are_made_for_one_micro_batch_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made for the whole sample at once, they would need memory that tells its size."""
    one = steward(site)
    one.trainer._microbatch = 3
    happened: list[str] = []

    def watched_draws(shard: Any, rows: Any, *rest: Any) -> Draws:
        happened.append(f"draws of {len(rows)}")
        return training_draws(shard, rows, *rest)

    def watched_losses(self: Trainer, shard: Any, draws: Draws) -> Any:
        happened.append("losses")
        return losses(self, shard, draws)

    losses = Trainer.losses
    monkeypatch.setattr(private_update, "training_draws", watched_draws)
    monkeypatch.setattr(Trainer, "losses", watched_losses)
    update_of(one).clipped(rows_of(0, 3, 5), np.random.default_rng(1))
    assert happened == ["draws of 3", "losses"] * 3


def test_a_unit_that_cannot_be_computed_counts_as_zero_and_no_other_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To drop its micro-batch or the sample would let one unit's data move the sum by what all others add up to."""
    one = steward(site)
    one.trainer.set_adapter(elsewhere(one.trainer))
    losses = Trainer.losses

    def without(self: Trainer, shard: Any, draws: Draws) -> Any:
        return losses(self, shard, draws) * (draws.rows != 2)

    def failing(self: Trainer, shard: Any, draws: Draws) -> Any:
        if (draws.rows == 2).any():
            raise RuntimeError("0002.png of Jane Roe")
        return losses(self, shard, draws)

    sums = []
    for patched in (without, failing):
        monkeypatch.setattr(Trainer, "losses", patched)
        sums.append(update_of(one).clipped(rows_of(*range(6)), np.random.default_rng(1)).vector)
    assert np.linalg.norm(sums[0]) > CLIP
    np.testing.assert_allclose(sums[1], sums[0], rtol=0, atol=1e-6 * CLIP)


def test_a_unit_without_pictures_is_found_out_before_anybody_is_sampled(site: Site) -> None:
    with pytest.raises(AccountingError, match="without pictures"):
        update_of(steward(site), ((0,), ()))


def test_a_share_never_leaves_in_the_clear_where_sums_are_to_be_masked(site: Site) -> None:
    config = msgspec.structs.replace(private_config(), aggregation="secure")
    trainer = site.trainer(config)
    ward = Steward(name="ward", config=config, trainer=trainer, train=site.shard, holdout=site.shard)
    reply = decode_reply(ward.answer(encode(request_of(trainer))))
    assert isinstance(reply, Refusal)
    assert reply.code is RefusalCode.NOT_ALLOWED
