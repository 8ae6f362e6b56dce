"""Releases whose files say other things than what was signed for: frozen factors, words, and what lies around."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from client.cli import app as client_app
from client.operations.countersigning import countersign, examine
from common.adapter.export import WEIGHTS_FILE, in_order, read_adapter_spec
from common.adapter.kohya import kohya_bytes
from common.release.check import FROZEN, Expected, check_release
from common.release.model_card import model_card
from common.release.statement import ReleaseError
from server.cli import app as server_app
from tests.simulations.released import FinishedRun, copied, finished_run, restated
from tests.simulations.vault_sites import NAMES
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.release.folder import ReleaseFolder

Kind = Literal["B", "AB", "core"]


@dataclass(frozen=True)
class Made:
    run: FinishedRun
    folder: ReleaseFolder

    @property
    def base(self) -> Path:
        return self.run.sites.root / "base"


@pytest.fixture(scope="module", params=["B", "core"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Kinds of which only a part is in the digest."""
    return made(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory, "AB")


def made(factory: pytest.TempPathFactory, train: Kind) -> Made:
    root = factory.mktemp(f"made-{train}")
    run = finished_run(root / "run", rounds=1, train=train)
    return Made(run, run.release(root / "release"))


def faults(folder: ReleaseFolder, **expected: Any) -> str:
    return "\n".join(check_release(folder, Expected(**{"signatures": 0, **expected})).faults)


def swapped(folder: ReleaseFolder, change: Callable[[dict[str, Any]], object]) -> ReleaseFolder:
    """Other values in what everybody loads; every file, digest and signature of the coordinator's agrees with them."""
    path = folder.root / WEIGHTS_FILE
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    path.write_bytes(in_order(save(tensors, metadata=metadata)))
    name = folder.release().name
    theirs = kohya_bytes(folder.root, read_adapter_spec(folder.root), title=name)
    (folder.root / f"{name}.safetensors").write_bytes(theirs)
    return restated(folder)


def turn_frozen(tensors: dict[str, Any]) -> None:
    key = min(key for key in tensors if "lora_A" in key)
    tensors[key] = -tensors[key]


# --- frozen factors


def test_every_kind_is_in_order_and_what_was_not_compared_is_said(frozen: Made) -> None:
    with_base, without = (check_release(frozen.folder, Expected(signatures=0, base=b)) for b in (frozen.base, None))
    assert (with_base.faults, with_base.unchecked, without.faults) == ((), (), ())
    is_core = frozen.run.sites.config.adapter.train == "core"
    assert without.unchecked == ((FROZEN,) if is_core else ())
    for name in NAMES:
        assert examine(frozen.folder, frozen.run.sites.open(name)).faults == ()


def test_a_swapped_frozen_factor_is_found_and_no_site_signs(frozen: Made, tmp_path: Path) -> None:
    folder = swapped(copied(frozen.folder, tmp_path / "release"), turn_frozen)
    assert "somebody put in another" in faults(folder, base=frozen.base)
    # of "B" the public seed tells it as well; of "core" nothing but the base does
    assert bool(faults(folder)) == (frozen.run.sites.config.adapter.train == "B")
    site = frozen.run.sites.open(NAMES[1])
    found = examine(folder, site)
    assert any("somebody put in another" in fault for fault in found.faults)
    with pytest.raises(ReleaseError, match="not signed"):
        countersign(folder, site, found)
    assert folder.signature_names() == []


def test_a_product_that_is_not_the_cores_is_found(frozen: Made, tmp_path: Path) -> None:
    def scale(tensors: dict[str, Any]) -> None:
        tensors.update({key: value * 3 for key, value in tensors.items()})

    folder = swapped(copied(frozen.folder, tmp_path / "release"), scale)
    assert faults(folder, base=frozen.base)


def test_a_site_without_the_runs_base_signs_nothing(frozen: Made, tmp_path: Path) -> None:
    site = frozen.run.sites.open(NAMES[0])
    for place in (tmp_path / "nowhere", Path(write_tiny_base(tmp_path / "other", "sd2"))):
        site = replace(site, config=msgspec.structs.replace(site.config, base=place))
        found = examine(frozen.folder, site)
        assert len(found.faults) == 1
        with pytest.raises(ReleaseError, match="not signed"):
            countersign(frozen.folder, site, found)


def test_both_command_lines_take_the_base_and_say_what_was_not_compared(frozen: Made, tmp_path: Path) -> None:
    folder = swapped(copied(frozen.folder, tmp_path / "release"), turn_frozen)
    for app in (client_app, server_app):
        sound = ["release", "verify", str(frozen.folder.root), "--signatures", "0"]
        done = CliRunner().invoke(app, sound)
        assert done.exit_code == 0, done.output
        assert (FROZEN in done.output) == (frozen.run.sites.config.adapter.train == "core")
        done = CliRunner().invoke(app, [*sound, "--base", str(frozen.base)])
        assert done.exit_code == 0, done.output
        assert "not checked" not in done.output
        altered = ["release", "verify", str(folder.root), "--signatures", "0", "--base", str(frozen.base)]
        assert isinstance(CliRunner().invoke(app, altered).exception, ReleaseError)


def test_a_tensor_for_another_part_is_found(plain: Made, tmp_path: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["text_encoder.layer.lora_A.weight"] = next(iter(tensors.values()))

    assert "none of them" in faults(swapped(copied(plain.folder, tmp_path / "release"), add))


# --- words


def test_an_accountant_that_promises_more_is_found(plain: Made, tmp_path: Path) -> None:
    folder = copied(plain.folder, tmp_path / "release")
    privacy = msgspec.structs.replace(folder.release().privacy, accountant="**ε = 0.01 by a tighter one**")
    restated(folder, privacy=privacy)
    (folder.root / "README.md").write_text(model_card(folder.release(), NAMES))
    assert faults(restated(folder)).startswith("privacy.accountant: **ε = 0.01")


def other_header(path: Path, change: Callable[[bytes], bytes]) -> None:
    """The same tensors and metadata for every loader, in a file that has room for words."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + length])
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("adapter_spec.json", lambda data: data.replace(b'"shape"', b'"epsilon": 0.01, "shape"', 1)),
        ("adapter_spec.json", lambda data: data.replace(b'"config"', b'"family": "sdxl", "config"', 1)),
        ("adapter_spec.json", lambda data: data + b"\n" * 99),
        (WEIGHTS_FILE, lambda data: data + b" " * 800),
        (WEIGHTS_FILE, lambda data: data.replace(b'"format":"pt"', b'"format":"epsilon=0.01","format":"pt"', 1)),
    ],
    ids=["unknown-key", "key-twice", "blanks", "header-blanks", "metadata-twice"],
)
def test_words_that_no_loader_reads_are_found(
    plain: Made, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    folder = copied(plain.folder, tmp_path / "release")
    path = folder.root / name
    before = path.read_bytes()
    if name == WEIGHTS_FILE:
        other_header(path, change)
    else:
        path.write_bytes(change(before))
    assert path.read_bytes() != before
    assert f"{name}: " in faults(restated(folder))


# --- what lies around


@pytest.mark.parametrize("name", ["more.exe", "institution-0000.json", "institution-1025.json", "institution-1.json"])
def test_what_is_no_signature_is_found_without_the_manifest(plain: Made, tmp_path: Path, name: str) -> None:
    folder = plain.run.release(tmp_path / "private", roster="private")
    countersign(folder, plain.run.sites.open(NAMES[0]), examine(folder, plain.run.sites.open(NAMES[0])))
    assert faults(folder) == ""
    (folder.signatures / name).write_text("MZ")
    assert f"signatures/{name}: is not part of the release" in faults(folder)


def test_a_folder_link_or_large_file_is_no_signature(plain: Made, tmp_path: Path) -> None:
    folder = plain.run.release(tmp_path / "private", roster="private")
    (folder.signatures / "institution-0001.json").mkdir()
    (folder.signatures / "institution-0002.json").write_bytes(b" " * 5000)
    (folder.signatures / "institution-0003.json").symlink_to("/etc/hostname")
    found = faults(folder)
    for said in ("0001.json: cannot be read", "0002.json: more than", "0003.json: cannot be read"):
        assert said in found
    unchecked = check_release(folder, Expected(signatures=0)).unchecked
    assert any("the run's manifest is needed" in each for each in unchecked)


def test_a_strangers_names_write_no_line_and_move_no_cursor(plain: Made, tmp_path: Path) -> None:
    folder = copied(plain.folder, tmp_path / "release")
    (folder.root / "\x1b[2J\x1b[H\nin order: every file\u202e").write_text("")
    (folder.signatures / "\x1b[8m\nsigned by 3 institutions").write_text("")
    (folder.root / b"\xff".decode(errors="surrogateescape")).write_text("")
    for fault in check_release(folder, Expected()).faults:
        assert fault.isprintable()
    (folder.root / "release.json").write_text('{"\\n\\nin order: every file": 1}')
    with pytest.raises(ReleaseError) as caught:
        check_release(folder, Expected())
    assert len(str(caught.value).splitlines()) == 1
