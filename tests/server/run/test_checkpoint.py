from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.errors import CheckpointError
from server.rounds.optimizer import initial_state, step
from server.run.checkpoint import Checkpoint, checkpoint_files, load_checkpoint, plain_values, save_checkpoint
from tests.server.toy import DIMENSION, ToySpec, toy_config

if TYPE_CHECKING:
    from pathlib import Path


RUN = "ab" * 32


def checkpoint(round_number: int = 1, optimizer: str = "adam", **changes: Any) -> Checkpoint:
    config = toy_config(10, server={"optimizer": optimizer}, **changes)
    rng = np.random.default_rng(round_number)
    adapter, state = step(
        rng.normal(size=DIMENSION).astype(np.float32),
        rng.normal(size=DIMENSION),
        initial_state(config.server, DIMENSION),
        config=config.server,
        rate=0.1,
    )
    return Checkpoint(
        round=round_number,
        adapter=adapter,
        optimizer=state,
        config=plain_values(config),
        spec_digest=ToySpec().digest,
        manifest=RUN,
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    arrays, others = one.optimizer.to_arrays(), other.optimizer.to_arrays()
    return (
        (one.round, one.config, one.spec_digest, one.manifest, one.optimizer.steps)
        == (other.round, other.config, other.spec_digest, other.manifest, other.optimizer.steps)
        and one.adapter.tobytes() == other.adapter.tobytes()
        and {name: array.tobytes() for name, array in arrays.items()}
        == {name: array.tobytes() for name, array in others.items()}
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, optimizer: str) -> None:
    saved = checkpoint(optimizer=optimizer)
    save_checkpoint(tmp_path, saved)
    assert same(load_checkpoint(tmp_path), saved)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        save_checkpoint(tmp_path, checkpoint(number))
    assert [path.name for path in checkpoint_files(tmp_path)] == [
        "round-0000010.safetensors",
        "round-0000011.safetensors",
    ]
    assert sorted(tmp_path.iterdir()) == checkpoint_files(tmp_path)
    assert load_checkpoint(tmp_path).round == 11


def test_any_changed_byte_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    path = save_checkpoint(tmp_path, checkpoint(2))
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = load_checkpoint(tmp_path)
        if found.round == 1:
            assert "damaged" in caplog.text
        else:
            assert same(found, checkpoint(2)), f"a changed byte at {place} went unnoticed"


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_file_is_passed_over(tmp_path: Path, length: int) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    path = save_checkpoint(tmp_path, checkpoint(2))
    path.write_bytes(path.read_bytes()[:length])
    assert load_checkpoint(tmp_path).round == 1


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / ".round-0000002.safetensors.0.partial").write_bytes(b"half")
    assert load_checkpoint(tmp_path).round == 1
    save_checkpoint(tmp_path, checkpoint(2))
    assert len(list(tmp_path.iterdir())) == 2  # what crashes leave does not fill the disk


def test_all_damaged(tmp_path: Path) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint(number)).write_bytes(b"rubbish")
    with pytest.raises(
        CheckpointError, match=r"no usable checkpoint[\s\S]*round-0000002[\s\S]*round-0000001[\s\S]*backup"
    ):
        load_checkpoint(tmp_path)


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without --resume"):
        load_checkpoint(tmp_path / "nowhere")


def test_another_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.numpy import save_file  # noqa: PLC0415 - for this test alone

    save_file({"adapter": np.zeros(3)}, tmp_path / "round-0000001.safetensors")
    with pytest.raises(CheckpointError, match="another version"):
        load_checkpoint(tmp_path)


def test_its_own_run_may_go_on_and_get_longer() -> None:
    made = checkpoint(5)
    longer = toy_config(99, server={"optimizer": "adam", "round_timeout_s": 5.0, "attempts": 2}, title="another title")
    made.check_belongs(longer, spec_digest=ToySpec().digest, manifest=RUN)


def test_its_base_may_have_moved() -> None:
    moved = toy_config(5, server={"optimizer": "adam"}, base={"path": "/elsewhere/base"})
    checkpoint(5).check_belongs(moved, spec_digest=ToySpec().digest, manifest=RUN)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "seed: checkpoint 0, this run 3"),
        ({"server": {"optimizer": "sgd"}}, "server.optimizer: checkpoint 'adam', this run 'sgd'"),
        ({"server": {"optimizer": "adam", "learning_rate": 0.7}}, "server.learning_rate: checkpoint 0.5, this run 0.7"),
        ({"adapter": {"rank": 4}}, "adapter.rank: checkpoint 16, this run 4"),
    ],
)
def test_another_configuration_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    other = toy_config(10, **({"server": {"optimizer": "adam"}} | changes))
    with pytest.raises(CheckpointError) as caught:
        checkpoint().check_belongs(other, spec_digest=ToySpec().digest, manifest=RUN)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [f"  - {named}"]


def test_another_adapter_spec_is_refused() -> None:
    with pytest.raises(CheckpointError, match="adapter spec"):
        checkpoint().check_belongs(
            toy_config(10, server={"optimizer": "adam"}), spec_digest="sha256:" + "0" * 64, manifest=RUN
        )


def test_a_run_shorter_than_its_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="raise rounds"):
        checkpoint(8).check_belongs(
            toy_config(7, server={"optimizer": "adam"}), spec_digest=ToySpec().digest, manifest=RUN
        )


def test_the_average_is_saved_and_what_is_released(tmp_path: Path) -> None:
    average = np.full(DIMENSION, 0.5, dtype=np.float32)
    saved = replace(checkpoint(), average=average)
    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path)
    assert same(loaded, saved)
    assert loaded.released.tobytes() == average.tobytes()
    assert checkpoint().released.tobytes() == checkpoint().adapter.tobytes()


def test_a_checkpoint_from_before_an_option_was_there_goes_on_with_its_default() -> None:
    made = checkpoint()
    older = {**made.config, "server": {k: v for k, v in made.config["server"].items() if k != "average"}}
    replace(made, config=older).check_belongs(
        toy_config(10, server={"optimizer": "adam"}), spec_digest=ToySpec().digest, manifest=RUN
    )
    with pytest.raises(CheckpointError, match=r"server\.average: checkpoint 0\.0, this run 0\.9"):
        replace(made, config=older).check_belongs(
            toy_config(10, server={"optimizer": "adam", "average": 0.9}), spec_digest=ToySpec().digest, manifest=RUN
        )


def test_another_runs_of_the_same_configuration_is_refused() -> None:
    made = checkpoint()
    config = toy_config(10, server={"optimizer": "adam"})
    for other in ("cd" * 32, ""):
        with pytest.raises(CheckpointError, match="manifest: checkpoint abab"):
            made.check_belongs(config, spec_digest=ToySpec().digest, manifest=other)
    with pytest.raises(CheckpointError, match="manifest: checkpoint none"):
        replace(made, manifest="").check_belongs(config, spec_digest=ToySpec().digest, manifest=RUN)


def test_one_of_an_earlier_version_is_that_of_a_run_without_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def earlier(**values: object) -> dict[str, object]:
        return {name: value for name, value in values.items() if name != "manifest"}

    with monkeypatch.context() as patch:
        patch.setattr("server.run.checkpoint._Description", earlier)
        save_checkpoint(tmp_path, checkpoint())
    assert load_checkpoint(tmp_path).manifest == ""
