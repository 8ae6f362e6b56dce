from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.command_line import run_command_line
from common.errors import ConfigError
from simulations.cli import app
from simulations.scenario.scenario import load_scenario
from tests.simulations.worlds import write_world

ROOT = Path(__file__).parents[2]


def darkroom(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    write_world(root, rounds=1)
    done = darkroom("simulations.cli", "run", "world.toml", "--threads", "1", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "pytorch_lora_weights.safetensors" in done.stdout
    return root


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a user's mistake: exit code 2, one error, no stack trace."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    return done.stderr


def test_a_run_is_neither_overwritten_nor_mixed(world: Path) -> None:
    assert "--resume" in refused(darkroom("simulations.cli", "run", "world.toml", cwd=world))
    assert "nothing to resume" in refused(
        darkroom("simulations.cli", "run", "world.toml", "--resume", "--name", "other", cwd=world)
    )


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("run", "world.toml"), "runs/world"),
        (("run", "world.toml", "--again"), "runs/world"),
        (("run", "world.toml", "--resume"), "runs/world"),
        (("run", "world.toml", "--name", "fresh"), "runs/fresh"),
        (("compare", "world.toml"), "runs/world-compare"),
        (("sweep", "world.toml"), "runs/world-sweep"),
        (("wiretap", "world.toml"), "runs/world-wiretap"),
        (("pilot", "pilot", "--again"), "pilot"),
    ],
)
def test_two_commands_never_work_in_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path, rounds=1)
    begun = tmp_path / "runs" / "world" / "run.json"
    begun.parent.mkdir(parents=True)
    begun.write_text("{}")
    directory = Path(folder)
    with directory.with_name(f".{directory.name}.lock").open("ab") as held:  # as the command that came first holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        refusal = CliRunner().invoke(app, words).exception
    assert isinstance(refusal, ConfigError)
    assert "another darkroom-sim works in it" in str(refusal)
    assert begun.exists()


def test_the_directory_is_held_while_a_command_works_and_free_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path, rounds=1)
    refusals: list[BaseException | None] = []

    def second(*_: object) -> None:
        refusals.append(CliRunner().invoke(app, ["run", "world.toml", "--again"]).exception)

    monkeypatch.setattr("simulations.experiments.run.run_scenario", second)
    for _ in range(2):
        assert CliRunner().invoke(app, ["run", "world.toml"]).exit_code == 0
    assert all("another darkroom-sim works in it" in str(refusal) for refusal in refusals)
    assert len(refusals) == 2


def test_a_resume_without_anything_to_resume_says_so(world: Path) -> None:
    (world / "runs" / "empty").mkdir()
    (world / "runs" / "letters").mkdir()
    (world / "runs" / "letters" / "to-my-love.txt").write_text("dear")
    resumed = ("simulations.cli", "run", "world.toml", "--threads", "1", "--resume", "--name")
    assert "no run is there; start without --resume" in refused(darkroom(*resumed, "empty", cwd=world))
    assert "not a run's directory" in refused(darkroom(*resumed, "letters", cwd=world))
    before = (world / "runs" / "world" / "run.json").read_bytes()
    done = darkroom(*resumed, "world", cwd=world)
    assert done.returncode == 0, done.stderr
    assert "finished already, all 1 rounds; nothing to resume" in done.stdout
    assert (world / "runs" / "world" / "run.json").read_bytes() == before


def test_a_resume_before_the_first_checkpoint_says_that_it_starts_anew(world: Path) -> None:
    (world / "runs" / "broken-off" / "store").mkdir(parents=True)
    done = darkroom(
        "simulations.cli", "run", "world.toml", "--threads", "1", "--name", "broken-off", "--resume", cwd=world
    )
    assert done.returncode == 0, done.stderr
    assert "no round is kept yet" in done.stdout


def test_a_resume_after_a_change_names_what_differs(world: Path) -> None:
    changed = (world / "world.toml").read_text().replace("rounds = 1", "rounds = 2\nseed = 5")
    (world / "changed.toml").write_text(changed)
    done = darkroom("simulations.cli", "run", "changed.toml", "--threads", "1", "--resume", cwd=world)
    assert "seed: checkpoint 0, this run 5" in refused(done)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_with_what_is_kept_and_how_to_go_on(world: Path, number: int, code: int) -> None:
    name = f"stopped-{code}"
    words = ("run", "world.toml", "--name", name, "--rounds", "5000", "--threads", "1")
    started = subprocess.Popen(
        [sys.executable, "-m", "simulations.cli", *words],
        cwd=world,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (world / "runs" / name / "checkpoints").is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    started.send_signal(number)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == code, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert f"runs/{name} holds it as of round " in last
    assert last.endswith(f"go on with: darkroom-sim {' '.join(words)} --resume")


def test_a_run_without_prompts_says_why_there_is_no_picture(world: Path) -> None:
    scenario = (world / "world.toml").read_text().replace('prompts = ["red noise", "blue noise"]', "")
    (world / "silent.toml").write_text(scenario)
    done = darkroom("simulations.cli", "run", "silent.toml", "--threads", "1", "--name", "silent", cwd=world)
    assert "pictures  none: the scenario has no evaluation.prompts" in done.stdout


def test_the_scenario_of_the_readme_is_one_and_draws_pictures(world: Path) -> None:
    text = (ROOT / "README.md").read_text().partition("```toml\n")[2].partition("```")[0]
    (world / "studios.toml").write_text(text.replace("sha256:…", f"sha256:{'0' * 64}"))
    scenario = load_scenario(str(world / "studios.toml"))
    assert scenario.evaluation.prompts


def test_again_removes_only_runs(world: Path) -> None:
    precious = world / "runs" / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    said = refused(darkroom("simulations.cli", "run", "world.toml", "--again", "--name", "precious", cwd=world))
    assert "not a run's directory" in said
    assert (precious / "thesis.txt").exists()


def test_pictures_are_drawn_from_a_run(world: Path) -> None:
    arguments = ("--base", "base", "--adapter", "runs/world/adapter", "--prompt", "red noise", "--steps", "2")
    done = darkroom("client.cli", "generate", *arguments, cwd=world)
    assert done.returncode == 0, done.stderr
    assert (world / "pictures" / "00.png").exists()


def test_an_adapter_of_another_base_is_refused(world: Path) -> None:
    shutil.copytree(world / "base", world / "other")
    config = world / "other" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("1000", "900"))
    arguments = ("--base", "other", "--adapter", "runs/world/adapter", "--prompt", "red noise")
    assert "made for the base" in refused(darkroom("client.cli", "generate", *arguments, cwd=world))


def test_drawing_mistakes_get_one_clear_message(world: Path) -> None:
    drawn = ("generate", "--base", "base", "--adapter", "runs/world/adapter", "--prompt", "red")
    wrong = ("--steps", "1001", "--seed", str(2**63), "--resolution", "20", "--guidance", "nan")
    said = refused(darkroom("client.cli", *drawn, *wrong, cwd=world))
    assert all(word in said for word in ("4 problems", "steps: ", "seed: ", "resolution: ", "guidance scale: "))
    said = refused(darkroom("client.cli", *drawn, "--out", "world.toml", cwd=world))
    assert "world.toml: no pictures can be written here (File exists); give a folder of your own" in said


def test_adapter_weights_are_never_unpickled(world: Path) -> None:
    shutil.copytree(world / "runs" / "world" / "adapter", world / "pickled")
    (world / "pickled" / "pytorch_lora_weights.safetensors").rename(world / "pickled" / "pytorch_lora_weights.bin")
    arguments = ("--base", "base", "--adapter", "pickled", "--prompt", "red noise")
    assert "pytorch_lora_weights.safetensors" in refused(darkroom("client.cli", "generate", *arguments, cwd=world))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--runs", ".", "--name", "world.toml"), "a file where the run's directory would be"),
        (("--cache", "world.toml", "--name", "mistake"), "world.toml"),
    ],
)
def test_a_file_where_a_directory_is_wanted_is_named(world: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(darkroom("simulations.cli", "run", "world.toml", *arguments, cwd=world))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nowhere"), "no scenario"),
        (("run", "broken.toml"), "not valid TOML"),
        (("run", "faulty.toml"), "rounds"),
        (("run", "baseless.toml"), "no such directory"),
        (("run", "pinned.toml"), "wanted content"),
        (("run", "hub.toml"), "download = true under [base]"),
        (("run", "wrong-family.toml"), "family"),
    ],
)
def test_scenario_mistakes_get_one_clear_message(world: Path, arguments: tuple[str, ...], said: str) -> None:
    good = (world / "world.toml").read_text()
    (world / "broken.toml").write_text("name = [")
    (world / "faulty.toml").write_text(good.replace("rounds = 1", "rounds = 0"))
    (world / "baseless.toml").write_text(good.replace('path = "base"', 'path = "missing"'))
    (world / "hub.toml").write_text(good.replace('path = "base"', 'path = "someone/some-model"'))
    (world / "pinned.toml").write_text(good.replace('path = "base"', f'path = "base"\ndigest = "sha256:{"0" * 64}"'))
    (world / "wrong-family.toml").write_text(good.replace('path = "base"', 'path = "base"\nfamily = "sdxl"'))
    assert said in refused(darkroom("simulations.cli", *arguments, "--name", "mistake", cwd=world))


def test_truncated_weights_are_named(world: Path) -> None:
    shutil.copytree(world / "base", world / "cut", dirs_exist_ok=True)
    weights = world / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (world / "cut.toml").write_text((world / "world.toml").read_text().replace('path = "base"', 'path = "cut"'))
    said = refused(darkroom("simulations.cli", "run", "cut.toml", "--name", "mistake", cwd=world))
    assert "diffusion_pytorch_model.safetensors" in said


def test_a_folder_is_checked_without_changing_it(world: Path) -> None:
    done = darkroom("simulations.cli", "check", "pictures", cwd=world)
    assert "24 pictures" in done.stdout
    assert "cannot be used" in refused(_check_with_a_bad_picture(world))


def test_an_interrupted_check_says_that_nothing_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    for name in ("quiet_libraries", "print_in_any_terminal", "end_by_sigterm"):  # of a whole process
        monkeypatch.setattr(f"common.command_line.{name}", lambda: None)
    monkeypatch.setattr("simulations.scenario.imagefolder.look_at", interrupted)
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: app(["check", str(tmp_path)]))
    assert ended.value.code == 130
    assert "nothing was changed" in capsys.readouterr().err.splitlines()[-1]


def _check_with_a_bad_picture(world: Path) -> subprocess.CompletedProcess[str]:
    shutil.copytree(world / "pictures", world / "damaged", dirs_exist_ok=True)
    (world / "damaged" / "red" / "0.png").write_bytes(b"")
    return darkroom("simulations.cli", "check", "damaged", cwd=world)


def test_a_run_configuration_is_checked_without_starting(world: Path) -> None:
    text = (world / "world.toml").read_text()
    start, end = text.index("[institutions]"), text.index("[base]")
    (world / "run.toml").write_text(text[:start] + text[end:])
    done = darkroom("server.cli", "check", "run.toml", cwd=world)
    assert done.returncode == 0, done.stderr
    assert "1 rounds of fedsgd" in done.stdout
