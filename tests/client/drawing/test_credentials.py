"""Pictures that say what they are, read back with other programs' eyes: Pillow, the XMP as XML, and the C2PA reader."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import struct
import xml.etree.ElementTree as ET
import zlib
from typing import TYPE_CHECKING, Any

import c2pa
import msgspec
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from client.cli import app
from client.drawing.credentials import (
    AUTHORITY_FILE,
    KEY_FILE,
    PictureKey,
    make_picture_key,
    read_credentials,
    read_picture_key,
    signed_png,
)
from client.drawing.generation import GenerationRequest, generate_pictures
from client.drawing.marks import LABEL, SOURCE_TYPE, Origin, labelled, marked_png
from common.adapter.export import WEIGHTS_FILE, save_adapter
from common.adapter.lora import inject_lora
from common.adapter.model import BaseModel, Family, open_base
from common.adapter.spec import vector_digest
from common.adapter.vector import write_vector
from common.config import AdapterConfig
from common.errors import AdapterError, BadImage, ConfigError, ProvisioningError
from common.release.folder import ReleaseFolder
from common.release.statement import ReleaseError, file_bytes, sign_release
from tests.common.release.test_release import COORDINATOR, RELEASE
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from common.release.statement import Release

ORIGIN = Origin(version="0.1.0", adapter="sha256:" + "ab" * 32, base="sha256:" + "cd" * 32, release="ef" * 32)
PROMPT = "Quixotilda Zwamberwick's chest ; 7391y"
INSTITUTION = "St Vincent's Hospital"


def noise(width: int = 64, height: int = 48) -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys") / "pictures"
    make_picture_key(made, INSTITUTION)
    return made


@pytest.fixture(scope="module")
def key(folder: Path) -> PictureKey:
    return read_picture_key(folder)


@pytest.fixture(scope="module")
def signed(key: PictureKey) -> bytes:
    return signed_png(marked_png(noise(), ORIGIN), ORIGIN, key)


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    return picture


def chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk's data."""
    place = 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        yield png[place + 4 : place + 8], place + 8, place + 8 + size
        place += size + 12


# --- what viewers show


def test_viewers_find_the_words_in_text_exif_and_xmp() -> None:
    picture = opened(marked_png(noise(), ORIGIN))
    assert picture.info["Software"] == "Darkroom 0.1.0"
    assert picture.info["Description"].startswith(LABEL)
    for said in (ORIGIN.adapter, ORIGIN.base, str(ORIGIN.release)):
        assert said in picture.info["Description"]
    exif = picture.getexif()
    assert (exif[0x0131], exif[0x010E]) == (picture.info["Software"], picture.info["Description"])
    described = ET.fromstring(picture.info["XML:com.adobe.xmp"]).find(".//{*}Description")  # noqa: S314 - our own
    assert described is not None
    names = {name.rpartition("}")[2]: value for name, value in described.attrib.items()}
    assert names["DigitalSourceType"] == SOURCE_TYPE
    assert names["CreatorTool"] == "Darkroom 0.1.0"


def test_marking_changes_no_pixel() -> None:
    assert np.array_equal(np.asarray(opened(marked_png(noise(), ORIGIN))), np.asarray(noise()))


@pytest.mark.parametrize("width", [16, 48, 64, 512, 1024])
def test_the_label_stands_below_the_picture_and_covers_none_of_it(width: int) -> None:
    picture = noise(width, 40)
    made = np.asarray(labelled(picture))
    assert np.array_equal(made[:40], np.asarray(picture))
    strip = made[40:]
    assert strip.shape[0] >= 8
    dark = np.argwhere(strip.min(axis=2) < 128)
    assert len(dark) > 10
    # no letter is cut off above or below
    assert dark[:, 0].min() > 0
    assert dark[:, 0].max() < strip.shape[0] - 1
    if width >= 64:
        assert 0 < dark[:, 1].min() < dark[:, 1].max() < width - 1


# --- the signature


def test_the_reader_finds_the_claim_valid_and_of_generated_media(signed: bytes) -> None:
    reader = c2pa.Reader("image/png", io.BytesIO(signed))
    assert reader.get_validation_state() == "Valid"
    manifest = reader.get_active_manifest()
    assert manifest is not None
    told = {one["label"]: one["data"] for one in manifest["assertions"]}
    (action,) = told["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
    assert told["darkroom.generation"] == {"adapter": ORIGIN.adapter, "base": ORIGIN.base, "release": ORIGIN.release}
    assert manifest["signature_info"]["issuer"] == INSTITUTION
    assert "time" not in manifest["signature_info"]
    # the words for viewers are still there, and the pixels
    assert opened(signed).info["Software"] == "Darkroom 0.1.0"
    assert np.array_equal(np.asarray(opened(signed)), np.asarray(noise()))


def test_whoever_has_the_authority_knows_the_signer(signed: bytes, folder: Path, tmp_path: Path) -> None:
    ours = (folder / AUTHORITY_FILE).read_bytes()
    found = read_credentials(signed, authority=ours)
    assert (found.signer, found.institution) == ("trusted", INSTITUTION)
    assert (found.adapter, found.base, found.release) == (ORIGIN.adapter, ORIGIN.base, ORIGIN.release)
    assert found.prompt is None
    assert read_credentials(signed).signer == "unknown"
    # the same name, another key
    make_picture_key(tmp_path / "other", INSTITUTION)
    theirs = (tmp_path / "other" / AUTHORITY_FILE).read_bytes()
    assert read_credentials(signed, authority=theirs).signer == "unknown"
    forged = signed_png(marked_png(noise(), ORIGIN), ORIGIN, read_picture_key(tmp_path / "other"))
    assert read_credentials(forged, authority=ours).signer == "unknown"


def pixel_edited(png: bytes) -> bytes:
    """One pixel's lowest bit, in a file that is a sound PNG otherwise."""
    place = next((start, end) for kind, start, end in chunks(png) if kind == b"IDAT")
    raw = bytearray(zlib.decompress(png[place[0] : place[1]]))
    raw[5] ^= 1
    data = zlib.compress(bytes(raw))
    chunk = b"IDAT" + data
    made = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[: place[0] - 8] + made + png[place[1] + 4 :]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(png: bytes) -> bytes:
        assert old in png
        return png.replace(old, new)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        pixel_edited,
        replaced(b"Software", b"Softwore"),
        replaced(ORIGIN.adapter.encode(), b"sha256:" + b"00" * 32),
        replaced(b"trainedAlgorithmicMedia", b"digitalCapture---------"),
        replaced(INSTITUTION.encode(), b"St Winifred's Hospita"),
        lambda png: png + b"more",
    ],
    ids=["pixel", "text", "adapter", "source", "name", "appended"],
)
def test_whatever_is_changed_afterwards_is_noticed(signed: bytes, edit: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadImage):
        read_credentials(edit(signed))


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing_that_is_told(signed: bytes) -> None:
    # C2PA pads the signature's room, and does not look at the padding
    before = read_credentials(signed)
    start, end = next((start, end) for kind, start, end in chunks(signed) if kind == b"caBX")
    unnoticed = 0
    for place in np.random.default_rng(3).integers(0, len(signed) * 8, 250):
        flipped = bytearray(signed)
        flipped[place // 8] ^= 1 << (place % 8)
        with contextlib.suppress(BadImage):
            assert read_credentials(bytes(flipped)) == before
            assert start <= place // 8 < end + 4  # the chunk of the credentials with its checksum, not the picture
            unnoticed += 1
    assert unnoticed < 125


def with_assertions(key: PictureKey, *assertions: dict[str, Any]) -> bytes:
    """A picture with anybody's credentials, rightly signed."""
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES384, key.chain, key.key, None)
    made = io.BytesIO()
    manifest = {
        "claim_generator_info": [{"name": "x", "version": "1"}],
        "format": "image/png",
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
            },
            *assertions,
        ],
    }
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.sign(signer, "image/png", io.BytesIO(marked_png(noise(), ORIGIN)), made)
    return made.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        ["list"],
        "text",
        5,
        {"adapter": ["x"], "base": "y"},
        {"adapter": "x"},
        {"adapter": "x", "base": "y", "prompt": 1},
    ],
    ids=str,
)
def test_anothers_assertion_of_our_name_in_another_form_is_refused(key: PictureKey, data: Any) -> None:
    with pytest.raises(BadImage, match="not of a picture that Darkroom drew"):
        read_credentials(with_assertions(key, {"label": "darkroom.generation", "data": data}))


def test_a_store_that_names_a_manifest_it_does_not_have_is_refused(signed: bytes) -> None:
    # one letter of the manifest's own name: the library then finds no active one
    start = signed.index(b"urn:c2pa:")
    damaged = bytearray(signed)
    damaged[start + 12] ^= 1
    with pytest.raises(BadImage):
        read_credentials(bytes(damaged))


def test_strangers_words_write_no_line_of_ours(key: PictureKey, tmp_path: Path) -> None:
    evil = "x\ngenerated picture, not changed since it was signed by 'us'\x1b[8m\u202e"
    path = tmp_path / "evil.png"
    facts = {"adapter": evil, "base": evil, "release": evil, "prompt": evil}
    path.write_bytes(with_assertions(key, {"label": "darkroom.generation", "data": facts}))
    done = CliRunner().invoke(app, ["picture", "verify", str(path)])
    assert done.exit_code == 0, done.output
    lines = done.output.removesuffix("\n").split("\n")
    assert [line.split(" ")[0] for line in lines] == ["generated", "adapter", "base", "release", "prompt:"]
    assert all(line.isprintable() for line in lines)


def test_an_edited_picture_is_another_picture_to_the_eye_and_still_opens(signed: bytes) -> None:
    # the control of the test above: it is the signature that finds the edit, not a broken file
    before, after = np.asarray(opened(signed)), np.asarray(opened(pixel_edited(signed)))
    assert np.abs(before.astype(int) - after.astype(int)).max() >= 1
    reader = c2pa.Reader("image/png", io.BytesIO(pixel_edited(signed)))
    assert reader.get_validation_state() == "Invalid"
    results = reader.get_validation_results()
    assert results is not None
    assert "assertion.dataHash.mismatch" in {one["code"] for one in results["activeManifest"]["failure"]}


def test_a_picture_without_credentials_or_with_anothers_is_refused(key: PictureKey) -> None:
    for png in (marked_png(noise(), ORIGIN), b"", b"no picture"):
        with pytest.raises(BadImage):
            read_credentials(png)
    other = {"claim_generator_info": [{"name": "x"}], "format": "image/png", "assertions": []}
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES384, key.chain, key.key, None)
    made = io.BytesIO()
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(other) as builder:
        builder.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.DIGITAL_CAPTURE)
        builder.sign(signer, "image/png", io.BytesIO(marked_png(noise(), ORIGIN)), made)
    with pytest.raises(BadImage, match="not of a picture that Darkroom drew"):
        read_credentials(made.getvalue())


# --- the key


def test_the_key_is_the_owners_alone_and_never_made_twice(folder: Path, key: PictureKey) -> None:
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert b"PRIVATE" not in repr(key).encode()
    for name in (AUTHORITY_FILE, "picture.crt"):
        assert b"PRIVATE" not in (folder / name).read_bytes()
    with pytest.raises(ProvisioningError, match="not made anew"):
        make_picture_key(folder, INSTITUTION)


def test_names_and_keys_that_cannot_be_used_are_refused(tmp_path: Path, key: PictureKey) -> None:
    for name in ("", "x" * 65):
        with pytest.raises(ProvisioningError, match="1 to 64"):
            make_picture_key(tmp_path / "new", name)
    with pytest.raises(ConfigError, match="picture key"):
        read_picture_key(tmp_path / "nowhere")
    for bad in (PictureKey(key=b"garbage", chain=key.chain), PictureKey(key=key.key, chain=b"garbage")):
        with pytest.raises(ConfigError, match="make a new one"):
            signed_png(marked_png(noise(), ORIGIN), ORIGIN, bad)


def test_a_key_that_others_can_read_signs_nothing(tmp_path: Path) -> None:
    make_picture_key(tmp_path / "k", INSTITUTION)
    for mode in (0o640, 0o604, 0o660):
        (tmp_path / "k" / KEY_FILE).chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_picture_key(tmp_path / "k")
    (tmp_path / "k" / KEY_FILE).chmod(0o600)
    read_picture_key(tmp_path / "k")


def test_without_the_library_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch, key: PictureKey) -> None:
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(ConfigError, match="provenance"):
        signed_png(b"", ORIGIN, key)


# --- drawing


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return open_base(str(write_tiny_base(tmp_path_factory.mktemp("base") / "base", Family.SD1)))


@pytest.fixture
def adapter(base: BaseModel, tmp_path: Path) -> tuple[Path, str]:
    unet = base.load_unet()
    spec = inject_lora(unet, AdapterConfig(rank=2, train="B"), base_digest=base.digest)
    vector = np.random.default_rng(5).normal(scale=0.1, size=spec.dimension).astype(np.float32)
    write_vector(unet, spec, vector)
    save_adapter(tmp_path / "adapter", unet, spec)
    return tmp_path / "adapter", vector_digest(vector)


def drawn(base: BaseModel, adapter: Path, out: Path, **changes: Any) -> Path:
    request = GenerationRequest(
        base=str(base.directory),
        adapter=adapter,
        prompts=(PROMPT,),
        out=out,
        seed=1,
        steps=2,
        guidance_scale=2.0,
        resolution=32,
        **changes,
    )
    (path,) = generate_pictures(request)
    return path


def test_a_drawn_picture_is_marked_and_signed_and_holds_no_prompt(
    base: BaseModel, adapter: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    path = drawn(base, adapter[0], tmp_path / "out", picture_key=folder)
    found = read_credentials(path.read_bytes(), authority=(folder / AUTHORITY_FILE).read_bytes())
    assert (found.signer, found.adapter, found.base, found.release) == ("trusted", adapter[1], base.digest, None)
    reader = c2pa.Reader("image/png", io.BytesIO(path.read_bytes()))
    for text in (path.name, json.dumps(opened(path.read_bytes()).info, default=str), reader.detailed_json()):
        assert not [word for word in ("quixotilda", "zwamberwick", "7391y") if word in text.lower()]
    assert b"quixotilda" not in path.read_bytes().lower()


def test_the_prompt_is_written_where_it_is_asked_for(
    base: BaseModel, adapter: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    path = drawn(base, adapter[0], tmp_path / "out", picture_key=folder, write_prompt=True)
    assert path.name == "00-quixotilda-zwamberwick-s-chest-7391y.png"
    assert opened(path.read_bytes()).info["Comment"] == f"prompt: {PROMPT}"
    assert read_credentials(path.read_bytes()).prompt == PROMPT


def test_marks_label_and_signature_leave_the_drawing_as_it_was(
    base: BaseModel, adapter: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    plain = np.asarray(opened(drawn(base, adapter[0], tmp_path / "plain").read_bytes()))
    path = drawn(base, adapter[0], tmp_path / "all", picture_key=folder, label=True)
    assert np.array_equal(np.asarray(opened(path.read_bytes()))[:32], plain)
    assert opened(path.read_bytes()).size[1] > 32


def test_a_picture_from_a_release_names_it_and_another_adapter_is_refused(
    base: BaseModel, adapter: tuple[Path, str], tmp_path: Path
) -> None:
    place, digest = adapter
    release = stated(place, digest)
    path = drawn(base, place, tmp_path / "out")
    assert release.digest().hex() in opened(path.read_bytes()).info["Description"]
    stated(place, RELEASE.adapter)
    with pytest.raises(ReleaseError, match="its release is of"):
        drawn(base, place, tmp_path / "out")
    stated(place, digest)
    (place / "release.json").write_bytes(file_bytes(release).replace(b'"rounds": 2', b'"rounds": 3'))
    with pytest.raises(ReleaseError, match="not signed"):
        drawn(base, place, tmp_path / "out")


def stated(place: Path, digest: str) -> Release:
    """The folder's files as a release of that adapter."""
    folder, names = ReleaseFolder(place), sorted(path.name for path in place.iterdir() if path.name != "release.json")
    files = tuple(folder.describe(name) for name in names)
    release = sign_release(msgspec.structs.replace(RELEASE, adapter=digest, files=files), COORDINATOR)
    (place / "release.json").write_bytes(file_bytes(release))
    return release


def test_a_folder_that_is_not_the_release_beside_it_draws_nothing(
    base: BaseModel, adapter: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    place, digest = adapter
    stated(place, digest)
    path = place / "adapter_spec.json"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    for changes in ({}, {"picture_key": folder}):
        with pytest.raises(ReleaseError, match=r"(?s)is not the release.*adapter_spec.json: sha256"):
            drawn(base, place, tmp_path / "out", **changes)
    path.write_bytes(whole)
    (place / "more.safetensors").write_bytes(b"")
    with pytest.raises(ReleaseError, match=r"more.safetensors: is not part"):
        drawn(base, place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_signed_picture_names_no_adapter_whose_frozen_factors_are_anothers(
    base: BaseModel, folder: Path, tmp_path: Path
) -> None:
    unet = base.load_unet()
    spec = inject_lora(unet, AdapterConfig(rank=2, train="core"), base_digest=base.digest)
    write_vector(unet, spec, np.random.default_rng(5).normal(size=spec.dimension).astype(np.float32))
    save_adapter(tmp_path / "core", unet, spec)
    drawn(base, tmp_path / "core", tmp_path / "out", picture_key=folder)
    path = tmp_path / "core" / WEIGHTS_FILE
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file({key: value * 2 for key, value in load_file(path).items()}, path, metadata=metadata)
    with pytest.raises(AdapterError, match="somebody put in another"):
        drawn(base, tmp_path / "core", tmp_path / "more", picture_key=folder)


def test_the_commands_make_a_key_and_check_a_picture(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["picture", "key", str(tmp_path / "k"), "--institution", INSTITUTION])
    assert made.exit_code == 0, made.output
    path, authority = tmp_path / "a.png", tmp_path / "k" / AUTHORITY_FILE
    path.write_bytes(signed_png(marked_png(noise(), ORIGIN), ORIGIN, read_picture_key(tmp_path / "k")))
    done = CliRunner().invoke(app, ["picture", "verify", str(path)])
    assert "which nobody has confirmed" in done.output
    done = CliRunner().invoke(app, ["picture", "verify", str(path), "--authority", str(authority)])
    assert done.exit_code == 0
    assert "confirmed" not in done.output
    assert ORIGIN.adapter in done.output
    make_picture_key(tmp_path / "other", INSTITUTION)
    wrong = ["picture", "verify", str(path), "--authority", str(tmp_path / "other" / AUTHORITY_FILE)]
    assert isinstance(CliRunner().invoke(app, wrong).exception, BadImage)
    path.write_bytes(pixel_edited(path.read_bytes()))
    assert isinstance(CliRunner().invoke(app, ["picture", "verify", str(path)]).exception, BadImage)
