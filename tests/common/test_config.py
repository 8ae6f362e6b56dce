from __future__ import annotations

import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import PLAIN_WORDS, RunConfig, parse_config, read_toml
from common.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from pathlib import Path


def table(**changes: Any) -> dict[str, Any]:
    return {
        "name": "a-run",
        "rounds": 3,
        "privacy": "none",
        "acknowledge": PLAIN_WORDS,
        "base": {"path": "bundled"},
        **changes,
    }


def faults_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigErrors) as caught:
        parse_config(table(**changes), RunConfig, source="run.toml")
    assert "run.toml" in str(caught.value)
    return caught.value.faults


def test_a_small_table_gives_a_whole_configuration() -> None:
    config = parse_config(table(training={"batch_size": 4}), RunConfig, source="run.toml")
    assert (config.training.batch_size, config.server.optimizer) == (4, "adam")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": 0}, "rounds: "),
        ({"rounds": 100_001}, "rounds: "),
        ({"name": "Not A Name"}, "name: "),
        ({"base": {}}, "base.path: missing"),
        ({"base": {"path": "x", "digest": "sha256:12"}}, "base.digest: "),
        ({"privacy": "some"}, "privacy: "),
        ({"acknowledge": "fine"}, "acknowledge: "),
        ({"adapter": {"rank": 0}}, "adapter.rank: "),
        ({"adapter": {"targets": []}}, "adapter.targets: "),
        ({"training": {"local_steps": 5}}, "training.local_steps: "),
        ({"training": {"resolution": 50}}, "training.resolution: "),
        ({"training": {"loss": {"caption_dropout": 2}}}, "training.loss.caption_dropout: "),
        ({"server": {"institutions_per_round": 1, "minimum_institutions": 2}}, "server.institutions_per_round: "),
        ({"training": 3}, "training: "),
        ({"server": {"learning_rate": float("inf")}}, "server.learning_rate: wanted a finite number"),
        ({"adapter": {"alpha": float("nan")}}, "adapter.alpha: wanted a finite number"),
    ],
)
def test_values_out_of_range_are_named_by_their_key(changes: dict[str, Any], expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults_of(**changes))


PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "clip": 0.1, "population": 900, "sampling_rate": 0.2}


def private(**changes: Any) -> dict[str, Any]:
    """What turns the plain table into one of a private run."""
    return {"privacy": {**PRIVACY, **changes}, "acknowledge": "", "server": {"minimum_institutions": 3}}


def test_a_table_makes_a_run_private() -> None:
    config = parse_config(table(**private(unit="subject")), RunConfig, source="run.toml")
    assert config.privacy != "none"
    assert (config.privacy.unit, config.privacy.is_private) == ("subject", True)
    assert config.privacy.expected_batch == pytest.approx(180.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (private(epsilon=0), "privacy.epsilon: "),
        (private(delta=0.01), "privacy.delta: 0.01 is not below 1/population"),
        (private(sampling_rate=1.5), "privacy.sampling_rate: "),
        (private(largest_site=901), "privacy.largest_site: "),
        (private(noise=3), "privacy.noise: unknown key"),
        (private(unit="pixel"), "privacy.unit: "),
        (private(repeatable="yes"), "privacy.repeatable: "),
        ({**private(), "acknowledge": PLAIN_WORDS}, "acknowledge: "),
        ({**private(), "training": {"mode": "fedavg"}}, "training.mode: "),
        ({**private(), "server": {}}, "privacy.colluders: 1 of server.minimum_institutions = 1"),
        ({**private(), "server": {"minimum_institutions": 3, "institutions_per_round": 4}}, "server.institutions_per"),
        (
            {**private(), "server": {"minimum_institutions": 3, "optimizer": "sgd", "subtract_noise": True}},
            "server.subtract_noise: ",
        ),
        ({"server": {"subtract_noise": True}}, "server.subtract_noise: "),
        ({"privacy": {}}, "privacy.epsilon: missing"),
    ],
)
def test_privacy_settings_that_promise_nothing_are_named(changes: dict[str, Any], expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults_of(**changes))


def test_faults_of_a_privacy_table_come_with_all_others() -> None:
    faults = faults_of(**private(epsilon=-1, clip=0), rounds=0)
    assert [fault.split(":")[0] for fault in faults] == ["rounds", "privacy.epsilon", "privacy.clip"]


def test_unknown_keys_are_named_with_the_nearest_known_one() -> None:
    (fault,) = faults_of(training={"batchsize": 4})
    assert fault == "training.batchsize: unknown key; did you mean 'batch_size'?"


def test_every_fault_is_reported_at_once() -> None:
    faults = faults_of(rounds=-1, colour="red", training={"batch_size": 0, "mode": "sgd"})
    assert [fault.split(":")[0] for fault in faults] == ["colour", "rounds", "training.mode", "training.batch_size"]


def test_a_plain_run_needs_its_sentence_word_for_word() -> None:
    assert PLAIN_WORDS in faults_of(acknowledge=PLAIN_WORDS.upper())[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = [", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8 at byte 0; save it as UTF-8"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"a = " + b"9" * 5000, "not valid TOML"),
        (None, "cannot be read"),
    ],
    ids=["unfinished", "no text", "deep", "huge number", "missing"],
)
def test_files_that_are_no_toml(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_toml(path)


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(key=st.sampled_from(RunConfig.__struct_fields__), value=_VALUES)
def test_whatever_stands_at_a_key_either_parses_or_is_a_config_error(key: str, value: object) -> None:
    with suppress(ConfigErrors):
        parse_config(table(**{key: value}), RunConfig, source="run.toml")


def test_the_sentence_survives_toml() -> None:
    text = f'acknowledge = "{PLAIN_WORDS}"'
    assert tomllib.loads(text)["acknowledge"] == PLAIN_WORDS
