from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter.directory import content_files
from common.adapter.model import BaseModel, Family, content_digest, open_base
from common.errors import BadModelDirectory, DigestMismatch, WrongFamily

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNET = "unet/diffusion_pytorch_model.safetensors"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_digest_is_over_path_size_and_bytes_of_the_content_in_order(base: BaseModel) -> None:
    tokenizer = ["tokenizer.json", "tokenizer_config.json"]
    parts = {
        "scheduler": ["scheduler_config.json"],
        "text_encoder": ["config.json", "model.safetensors"],
        "text_encoder_2": ["config.json", "model.safetensors"],
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": ["config.json", "diffusion_pytorch_model.safetensors"],
        "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
    }
    if base.family is not Family.SDXL:
        del parts["text_encoder_2"], parts["tokenizer_2"]
    expected = hashlib.sha256(b"darkroom/base-content/1\0")
    for name in ["model_index.json", *(f"{part}/{file}" for part, files in parts.items() for file in files)]:
        data = (base.directory / name).read_bytes()
        expected.update(name.encode() + b"\0" + str(len(data)).encode() + b"\0" + data)
    assert base.digest == f"sha256:{expected.hexdigest()}" == content_digest(base.directory)


def test_what_is_not_loaded_does_not_count(copied: Callable[..., Path]) -> None:
    directory = copied()
    before = content_digest(directory)
    (directory / "README.md").write_text("a card")
    (directory / "sample.png").write_bytes(b"\x89PNG")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "x.json").write_text("{}")
    (directory / "unet" / ".hidden.json").write_text("{}")
    (directory / "unet" / "README.txt").write_text("more")
    (directory / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (directory / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"other")
    (directory / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    (directory / "safety_checker").mkdir()
    (directory / "safety_checker" / "config.json").write_text("{}")
    assert open_base(directory).digest == before


@settings(derandomize=True, max_examples=25, deadline=None)
@given(data=st.data())
def test_every_byte_of_the_content_counts(tiny_copy: Path, data: st.DataObject) -> None:
    before = content_digest(tiny_copy)
    path = tiny_copy / data.draw(st.sampled_from(content_files(tiny_copy)).filter(lambda name: "/" in name))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
    changed = content_digest(tiny_copy)
    path.write_bytes(original)
    assert changed != before == content_digest(tiny_copy)


@pytest.fixture(scope="module")
def tiny_copy(tiny_bases: dict[Family, BaseModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_bases[Family.SD1].directory, tmp_path_factory.mktemp("flip") / "copy")


def test_an_added_vocabulary_file_counts(copied: Callable[..., Path]) -> None:
    directory = copied()
    before = content_digest(directory)
    (directory / "tokenizer" / "added_tokens.json").write_text("{}")
    assert content_digest(directory) != before


def test_the_wanted_digest_and_family_are_accepted(base: BaseModel) -> None:
    assert open_base(str(base.directory), digest=base.digest, family=base.family.value) == base


def test_another_digest_is_refused_with_both(base: BaseModel) -> None:
    wanted = "sha256:" + "0" * 64
    with pytest.raises(DigestMismatch, match=f"wanted content {wanted}, got {base.digest}"):
        open_base(base.directory, digest=wanted)


def test_another_family_is_refused_with_both(base: BaseModel) -> None:
    wanted = Family.SD1 if base.family is Family.SDXL else Family.SDXL
    with pytest.raises(WrongFamily, match=f"wanted a pipeline of family {wanted}, got {base.family}"):
        open_base(base.directory, family=wanted)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelDirectory, match="no such directory"):
        open_base(tmp_path / "nothing")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelDirectory, match=r"model_index\.json: missing"):
        open_base(tmp_path)


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet",
        "vae",
        "scheduler",
        "tokenizer_2",
        "text_encoder_2",
        "unet/config.json",
        UNET,
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder/model.safetensors",
    ],
)
def test_a_missing_part_is_named(copied: Callable[..., Path], missing: str) -> None:
    directory = copied(Family.SDXL)
    path = directory / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BadModelDirectory, match=f"{missing}.*missing"):
        open_base(directory)


def test_pickled_weights_are_named_and_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / UNET).rename(directory / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(BadModelDirectory, match=r"diffusion_pytorch_model\.bin is pickled and never loaded"):
        open_base(directory)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 500, -1])
def test_truncated_weights_are_named(copied: Callable[..., Path], kept: int) -> None:
    directory = copied()
    data = (directory / UNET).read_bytes()
    (directory / UNET).write_bytes(data[:kept])
    with pytest.raises(BadModelDirectory, match=UNET):
        open_base(directory)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{{",
        (8).to_bytes(8, "little") + b'{"a": 1}',
        (25).to_bytes(8, "little") + b'{"a":{"data_offsets":[]}}',
        b"not a model at all",
    ],
)
def test_garbage_for_weights_is_named(copied: Callable[..., Path], data: bytes) -> None:
    directory = copied()
    (directory / UNET).write_bytes(data)
    with pytest.raises(BadModelDirectory, match=UNET):
        open_base(directory)


def test_lengthened_weights_are_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    with (directory / UNET).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadModelDirectory, match="its header announces"):
        open_base(directory)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "[" * 100_000])
def test_json_that_is_no_object_is_named(copied: Callable[..., Path], name: str, text: str) -> None:
    directory = copied()
    (directory / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadModelDirectory, match=name):
        open_base(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "pipeline class 'FluxPipeline'"),
        ({"_class_name": None}, "pipeline class None"),
        ({"unet": None}, "unet is None"),
        ({"unet": [None, None]}, "unet is"),
        ({"vae": "AutoencoderKL"}, "vae is 'AutoencoderKL'"),
        ({"../../secret": ["diffusers", "AutoencoderKL"]}, "cannot be a component's name"),
        ({"/etc": ["diffusers", "AutoencoderKL"]}, "cannot be a component's name"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "text_encoder_2 is None"),
    ],
)
def test_an_index_of_something_else_is_refused(
    copied: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    directory = copied()
    rewrite(directory / "model_index.json", **changes)
    with pytest.raises(BadModelDirectory, match=message):
        open_base(directory)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "text-to-image"),
        ("unet/config.json", {"sample_size": None}, "sample_size"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "its UNet is one of sdxl"),
        ("vae/config.json", {"block_out_channels": []}, "block_out_channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction type 'sample'"),
    ],
)
def test_a_pipeline_that_is_not_text_to_image_is_refused(
    copied: Callable[..., Path], file: str, changes: dict[str, Any], message: str
) -> None:
    directory = copied()
    rewrite(directory / file, **changes)
    with pytest.raises(BadModelDirectory, match=message):
        open_base(directory)


def test_an_adapter_inside_the_base_is_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(BadModelDirectory, match="must not carry an adapter"):
        open_base(directory)


@pytest.mark.parametrize("linked", ["vae", "unet/config.json", UNET, "model_index.json"])
def test_a_link_that_leads_out_is_refused(copied: Callable[..., Path], tmp_path: Path, linked: str) -> None:
    directory = copied()
    outside = tmp_path / "outside"
    (directory / linked).rename(outside)
    (directory / linked).symlink_to(outside)
    with pytest.raises(BadModelDirectory, match="leads out of"):
        open_base(directory)


def test_links_inside_the_directory_are_followed(copied: Callable[..., Path]) -> None:
    directory = copied()
    before = content_digest(directory)
    (directory / UNET).rename(directory / "weights")
    (directory / UNET).symlink_to(directory / "weights")
    assert open_base(directory).digest == before


def test_a_hub_cache_with_its_links_is_opened(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    source = tiny_bases[Family.SD1]
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    blobs.mkdir()
    for number, name in enumerate(content_files(source.directory)):
        shutil.copy(source.directory / name, blobs / str(number))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blobs / str(number))
    opened = open_base(snapshot)
    assert opened.digest == source.digest
    opened.load_unet()


def test_a_shard_outside_its_directory_is_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / UNET).unlink()
    index = directory / f"{UNET}.index.json"
    tables: list[Any] = [{"a": "../../secret.safetensors"}, {"a": 3}, {"a": []}, {}, None]
    for table in tables:
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(BadModelDirectory, match="weight_map of file names"):
            open_base(directory)
