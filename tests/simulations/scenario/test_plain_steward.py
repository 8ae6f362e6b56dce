from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from common.adapter.model import Family
from common.adapter.vector import trained_parameters
from common.wire.messages import Contribute, Evaluate, Refusal, RefusalCode, Request, encode
from common.wire.replies import PlainContribution, PlainEvaluation, Reply, decode_reply
from simulations.scenario.plain_steward import Steward, gradient_sum, holdout_draws, holdout_loss, train_locally
from tests.client.sites import run_config
from tests.client.training.test_trainer import moved, some_draws

if TYPE_CHECKING:
    from client.training.trainer import Trainer
    from tests.client.sites import Site


def steward(site: Site, name: str = "museum", **changes: Any) -> Steward:
    config = run_config(**changes)
    return Steward(name=name, config=config, trainer=site.trainer(config), train=site.shard, holdout=site.shard)


def contribute(trainer: Trainer, **changes: Any) -> Contribute:
    fields = {
        "round": 1,
        "attempt": 0,
        "spec_digest": trainer.spec.digest,
        "adapter": trainer.adapter().astype("<f4").tobytes(),
        **changes,
    }
    return Contribute(**fields)


def ask(one: Steward, request: Request) -> Reply:
    return decode_reply(one.answer(encode(request)))


def contribution(one: Steward, request: Request) -> PlainContribution:
    reply = ask(one, request)
    assert isinstance(reply, PlainContribution)
    return reply


def test_the_same_request_gets_the_same_bytes(site: Site) -> None:
    one = steward(site)
    request = encode(contribute(one.trainer))
    assert one.answer(request) == one.answer(request)
    assert steward(site).answer(request) == one.answer(request)


def test_rounds_attempts_and_institutions_draw_differently(site: Site) -> None:
    one = steward(site)
    vectors = {
        contribution(one, contribute(one.trainer)).vector,
        contribution(one, contribute(one.trainer, round=2)).vector,
        contribution(one, contribute(one.trainer, attempt=1)).vector,
        contribution(steward(site, name="studio"), contribute(one.trainer)).vector,
        contribution(steward(site, seed=1), contribute(one.trainer)).vector,
    }
    assert len(vectors) == 5


def test_a_contribution_is_the_gradient_at_the_adapter_that_was_sent(site: Site) -> None:
    one = steward(site)
    start = one.trainer.adapter()
    elsewhere = (start + 0.1).astype(np.float32)
    there = contribution(one, contribute(one.trainer, adapter=elsewhere.tobytes()))
    here = contribution(one, contribute(one.trainer, adapter=start.tobytes()))
    assert there.vector != here.vector
    assert here.weight == 4.0


def test_batches_hold_distinct_pictures_and_small_sites_repeat_evenly(site: Site) -> None:
    one = steward(site)
    rng = np.random.default_rng(0)
    assert len(set(one._draws(rng, 6).rows.tolist())) == 6
    counts = np.bincount(one._draws(rng, 15).rows.numpy(), minlength=6)
    assert set(counts.tolist()) <= {2, 3}


def test_fedavg_sends_the_weighted_change(site: Site) -> None:
    training = {"mode": "fedavg", "local_steps": 2, "batch_size": 4, "local_learning_rate": 0.01}
    one = steward(site, training=training)
    start = one.trainer.adapter()
    reply = contribution(one, contribute(one.trainer))
    assert reply.weight == len(site.shard)
    change = np.frombuffer(reply.vector, "<f4") / reply.weight
    np.testing.assert_allclose(one.trainer.adapter(), start + change, atol=1e-6)
    assert 0 < np.abs(change).max() <= 0.0201  # two steps of Adam


def test_the_holdout_loss_is_answered(site: Site) -> None:
    one = steward(site)
    request = contribute(one.trainer)
    reply = ask(one, Evaluate(round=3, spec_digest=request.spec_digest, adapter=request.adapter))
    expected = holdout_loss(one.trainer, site.shard, one.config.evaluation.draws)
    assert reply == PlainEvaluation(round=3, institution="museum", loss=expected, pictures=6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"spec_digest": "sha256:" + "1" * 64}, RefusalCode.WRONG_SPEC),
        ({"adapter": b"\0" * 8}, RefusalCode.WRONG_SIZE),
        ({"adapter": b""}, RefusalCode.WRONG_SIZE),
    ],
)
def test_requests_of_another_run_are_refused(site: Site, change: dict[str, Any], code: RefusalCode) -> None:
    one = steward(site)
    assert ask(one, contribute(one.trainer, **change)) == Refusal(code=code)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_adapters_that_are_not_finite_are_refused(site: Site, value: float) -> None:
    one = steward(site)
    adapter = one.trainer.adapter().copy()
    adapter[-1] = value
    assert ask(one, contribute(one.trainer, adapter=adapter.tobytes())) == Refusal(code=RefusalCode.NOT_FINITE)


def test_without_a_holdout_set_there_is_no_loss(site: Site) -> None:
    full = steward(site)
    one = Steward(name="a", config=full.config, trainer=full.trainer, train=site.shard)
    request = contribute(one.trainer)
    reply = ask(one, Evaluate(round=0, spec_digest=request.spec_digest, adapter=request.adapter))
    assert reply == Refusal(code=RefusalCode.NO_DATA)


@pytest.mark.parametrize("data", [b"", b"\x00", b"garbage", encode(Refusal(code=RefusalCode.INTERNAL))])
def test_garbage_is_refused_with_a_code_and_logged_here(
    site: Site, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert decode_reply(steward(site).answer(data)) == Refusal(code=RefusalCode.MALFORMED)
    assert "museum" in caplog.text


def test_a_stewards_repr_tells_nothing_of_its_data(site: Site) -> None:
    shown = repr(steward(site))
    assert "LatentShard" not in shown
    assert "Trainer" not in shown


def test_the_base_never_changes(site: Site) -> None:
    trainer = moved(site.trainer())
    adapted = set(trained_parameters(trainer.unet, trainer.spec))
    before = {name: value.clone() for name, value in trainer.unet.named_parameters() if value not in adapted}
    draws = some_draws(site, trainer)
    train_locally(trainer, site.shard, [draws], 0.1)
    assert all(torch.equal(dict(trainer.unet.named_parameters())[name], value) for name, value in before.items())


def test_local_training_is_adam_on_the_mean_gradient(site: Site) -> None:
    trainer = moved(site.trainer())
    draws = some_draws(site, trainer)
    start = trainer.adapter().copy()
    gradient = gradient_sum(trainer, site.shard, draws).vector / len(draws)
    train_locally(trainer, site.shard, [draws], 0.01)
    # Adam's first step has the learning rate's size and the gradient's sign
    expected = start - 0.01 * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(trainer.adapter(), expected, atol=1e-5)


def test_holdout_draws_are_fixed_and_cover_the_schedule(site: Site) -> None:
    first, second = (holdout_draws(site.shard, 4, 1000) for _ in range(2))
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(first.timesteps, second.timesteps)
    assert [int(step) * 4 // 1000 for step in first.timesteps] == [0, 1, 2, 3] * len(site.shard)


def test_the_holdout_loss_is_the_plain_mean_whatever_the_training_weights(site: Site) -> None:
    plain = moved(site.trainer())
    errors = plain.squared_errors(site.shard, holdout_draws(site.shard, 2, plain.schedule_steps))
    expected = float(errors.detach().mean())
    assert holdout_loss(plain, site.shard, 2) == pytest.approx(expected, rel=1e-5)
    if site.base.family is Family.SD2:
        weighted = moved(site.trainer(run_config(training={"loss": {"min_snr_gamma": 5.0}})))
        assert holdout_loss(weighted, site.shard, 2) == pytest.approx(expected, rel=1e-5)
