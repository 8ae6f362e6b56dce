"""Pixels: what the decoder makes of each kind of file, against values computed otherwise."""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from client.intake.burned_text import count_text_lines
from client.intake.deidentify import clean_file, quiet_decoders
from client.intake.duplicates import DuplicateSearch, difference, exact_hash, perceptual_hash, thumbnail
from client.intake.outcomes import Change, Reason, Refused
from client.intake.pictures import FORMATS, Decoded, decode_picture, encode_png, is_bare_png, scale_to_8_bit, shrink
from client.intake.rules import RULES_TOML, FileRules, IntakeRules, PixelRules, read_rules
from common.errors import ConfigError, ConfigErrors
from tests.client.bad_inputs import picture, pixels, translucent, wide, with_exif

if TYPE_CHECKING:
    from pathlib import Path

RULES = FileRules()


def decoded(data: bytes, rules: FileRules = RULES) -> Decoded:
    found = decode_picture(data, rules)
    assert isinstance(found, Decoded)
    return found


def test_lossless_pixels_are_kept_exactly() -> None:
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decoded(picture(1, kind=kind)).pixels, pixels(1))
    with Image.open(io.BytesIO(encode_png(pixels(1)))) as again:
        np.testing.assert_array_equal(np.asarray(again), pixels(1))


def test_orientation_is_applied_before_it_is_dropped() -> None:
    found = decoded(with_exif(1, 6))
    assert found.changes == {Change.TURNED, Change.METADATA}
    turned = np.rot90(pixels(1), -1).astype(int)
    assert np.abs(found.pixels - turned).mean() < 4


def test_half_transparent_pictures_lie_on_white() -> None:
    found = decoded(translucent(2, "RGBA"))
    assert found.changes == {Change.ALPHA}
    expected = pixels(2) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(found.pixels - expected).max() <= 1


def test_opaque_alpha_is_no_change() -> None:
    assert decoded(picture(3, mode="RGBA")).changes == frozenset()


def test_wide_values_are_spread_between_percentiles() -> None:
    found = decoded(wide(4, np.uint16, "PNG"))
    assert found.changes == {Change.WIDE_VALUES}
    grey = pixels(4)[:, :, 0].astype(float)
    low, high = np.percentile(grey, (0.5, 99.5))
    expected = np.clip((grey - low) / (high - low), 0, 1) * 255
    assert np.abs(found.pixels[:, :, 0] - expected).max() <= 1


def test_scaling_takes_anything() -> None:
    assert scale_to_8_bit(np.full((4, 4), np.nan)).max() == 0
    assert scale_to_8_bit(np.full((4, 4), 7.0)).max() == 0
    ramp = scale_to_8_bit(np.array([[0.0, 1.0, np.nan, np.inf, -np.inf]]))
    assert list(ramp[0]) == [0, 255, 0, 255, 0]


def test_a_colour_profile_is_followed_and_dropped() -> None:
    """SRGB under another name, so that following it changes nothing."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"other")
    found = decoded(picture(5, icc_profile=profile))
    assert Change.METADATA in found.changes
    assert np.abs(found.pixels.astype(int) - pixels(5)).max() <= 2
    assert decoded(picture(5, icc_profile=b"damaged")).pixels.shape == (64, 64, 3)


def test_caps_hold_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(6)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    found = decode_picture(data, FileRules(min_side=65))
    assert isinstance(found, Refused)
    assert found.reason is Reason.TOO_SMALL
    monkeypatch.setattr("client.intake.pictures.check_size", lambda *_: Refused(Reason.TOO_LARGE))
    assert isinstance(decode_picture(data, RULES), Refused)


def test_more_pixels_than_the_rules_allow() -> None:
    """Far below the size at which the library itself would refuse."""
    buffer = io.BytesIO()
    Image.new("L", (1001, 1000)).save(buffer, "PNG")
    assert isinstance(decode_picture(buffer.getvalue(), FileRules(max_megapixels=2)), Decoded)
    found = decode_picture(buffer.getvalue(), FileRules(max_megapixels=1))
    assert isinstance(found, Refused)
    assert found.reason is Reason.TOO_LARGE


def test_a_large_jpeg_says_that_it_was_made_smaller() -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 256, 256)).save(buffer, "JPEG")
    found = decoded(buffer.getvalue(), FileRules(max_side=64))
    assert Change.RESIZED in found.changes
    assert found.pixels.shape == (64, 64, 3)


def test_shrinking_keeps_the_shape() -> None:
    assert shrink(pixels(7, 100, 50), 20).shape == (20, 10, 3)
    assert shrink(pixels(7, 3000, 1), 20).shape == (20, 1, 3)
    for side in (0, 64, 100):
        assert shrink(pixels(7), side).shape == (64, 64, 3)


def test_bare_pngs_are_told_from_others() -> None:
    bare = encode_png(pixels(8))
    assert is_bare_png(bare)
    for other in (bare + b"x", bare[:-1], b"x" + bare, bare[8:], b"", bare[:33] + bare[-12:], picture(8, dpi=(72, 72))):
        assert not is_bare_png(other)


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABegABAAAAAAAAAD8AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3"
    "aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBw"
    "aXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAEdtZGF0AAAAOygBrxOAecHFyL//+ClR/+61nh+DvFiKU//dhdR/Mjo//ISrad7V"
    "86LDAgpqmrOJbkdL+4tEIhSuyN3O"
)
"""64 by 64 pixels, red above and blue below."""


def test_pictures_as_phones_write_them_are_read() -> None:
    found = decoded(HEIC).pixels.astype(int)
    assert np.abs(found[8:24] - (200, 30, 30)).max() <= 4
    assert np.abs(found[40:56] - (20, 40, 180)).max() <= 4
    again = decoded(picture(1, kind="AVIF", quality=95)).pixels.astype(int)
    assert np.abs(again - pixels(1)).mean() < 4


def test_without_its_decoder_heic_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.intake.pictures.read_formats", lambda: FORMATS)
    found = decode_picture(HEIC, RULES)
    assert isinstance(found, Refused)
    assert found.reason is Reason.FORMAT
    assert "darkroom[heic]" in found.detail


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (picture(1, kind="JPEG2000"), "JPEG2000"),
        (picture(1, kind="PPM"), "PPM"),
        (picture(1, kind="TGA"), "TGA"),
        (picture(1, kind="PCX"), "PCX"),
        (picture(1, kind="ICO"), "ICO"),
        (b"8BPS\0\1" + bytes(100), "PSD"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_picture_of_another_format_is_called_one(data: bytes, name: str) -> None:
    found = decode_picture(data, RULES)
    assert isinstance(found, Refused)
    assert found.reason is Reason.FORMAT
    assert name in found.detail
    assert "PNG" in found.detail


def test_a_variant_that_is_not_read_is_not_called_damaged() -> None:
    """A BMP of 32 bits whose header names an order of colours that the decoder does not know."""
    data = bytearray(picture(1, kind="BMP"))
    data[28:34] = (32).to_bytes(2, "little") + (3).to_bytes(4, "little")
    found = decode_picture(bytes(data), RULES)
    assert isinstance(found, Refused)
    assert found.reason is Reason.FORMAT


def test_a_file_with_the_signature_of_a_format_is_damaged_and_no_stranger() -> None:
    for signature in (b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0"):
        found = decode_picture(signature, RULES)
        assert isinstance(found, Refused)
        assert found.reason is Reason.DAMAGED
    found = decode_picture(b"nothing of the kind", RULES)
    assert isinstance(found, Refused)
    assert found.reason is Reason.NOT_A_PICTURE


def test_lab_colours_are_converted() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(pixels(1)), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    buffer = io.BytesIO()
    assert lab is not None
    lab.save(buffer, "TIFF")
    found = decoded(buffer.getvalue())
    assert found.changes >= {Change.COLOURS}
    assert np.abs(found.pixels.astype(int) - pixels(1)).mean() < 3


def test_what_a_decoder_writes_past_pythons_streams_is_lost_and_nothing_else(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = picture(9, kind="TIFF", compression="tiff_lzw")
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3] + bytes(len(whole) // 3))
    os.write(2, b"before ")
    found = clean_file(tmp_path / "cut.tif", IntakeRules(), previews=False)
    with quiet_decoders():
        os.write(1, b"a decoder's words")
        os.write(2, b"a decoder's words")
    os.write(2, b"after")
    assert isinstance(found, Refused)
    assert capfd.readouterr() == ("", "before after")


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sampled_from(("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP")), st.data())
def test_damage_never_crashes(kind: str, data: st.DataObject) -> None:
    """Any byte changed, and any cut: a picture or a refusal."""
    good = bytearray(picture(9, kind=kind))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    with quiet_decoders():
        for version in (bytes(good), bytes(good[:cut])):
            assert isinstance(decode_picture(version, RULES), Decoded | Refused)


def test_text_is_found_and_pictures_without_it_are_not() -> None:
    plain = [np.array(Image.fromarray(pixels(seed, 512, 512))) for seed in range(20)]
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    assert [count_text_lines(each) for each in (*plain, noise, np.zeros_like(noise))] == [0] * 22
    found = 0
    for size in (12, 16, 24, 40):
        for seed in range(5):
            image = Image.fromarray(pixels(seed, 512, 512) // 2)
            ImageDraw.Draw(image).text((20, 30), "DOE JANE 4711", fill="white", font=ImageFont.load_default(size))
            found += count_text_lines(np.array(image)) > 0
    assert found >= 18


def coins() -> np.ndarray:
    """Discs in rows, lit from one side and struck with a relief: shape and place of letters, and not their evenness."""
    y, x = np.mgrid[:256, :384].astype(float)
    shades = np.full((256, 384), 40.0)
    generator = np.random.default_rng(1)
    for row in range(4):
        for column in range(6):
            across, down = (x - 34 - 62 * column) / 22, (y - 36 - 62 * row) / 22
            relief = np.sin(9 * across + generator.uniform(0, 6)) * np.cos(9 * down + generator.uniform(0, 6))
            inside = across**2 + down**2 < 1
            shades[inside] = (150 + 60 * (across + down) / 1.4 + 45 * relief)[inside]
    return np.repeat(np.clip(shades, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def fence() -> np.ndarray:
    """Pales that run uphill before snow."""
    y, x = np.mgrid[:256, :384].astype(float)
    slope = 150 - x * 0.25
    pale = (np.abs(y - slope) < 26) & (x % 24 < 9)
    return np.repeat(np.where(pale, 70, 235).astype(np.uint8)[:, :, None], 3, axis=2)


def portraits() -> list[np.ndarray]:
    """Photographs, and one of their quarters, as a fax or an old printer has them."""
    photographs = [Image.fromarray(each) for each in load_sample_images().images]
    dithered = [each.convert("L").resize((512, 427)).convert("1").convert("RGB") for each in photographs]
    quarter = photographs[0].crop((0, 0, 320, 213))
    return [np.asarray(each) for each in (*photographs, *dithered, quarter)]


def test_plain_photographs_hold_no_text() -> None:
    assert [count_text_lines(each) for each in (coins(), fence(), *portraits())] == [0] * 7


@pytest.mark.parametrize("size", [12, 16, 24, 40])
def test_text_is_found_on_photographs_and_after_compression(size: int) -> None:
    """As well as before pictures without text were told apart better."""
    found = 0
    for background in (*load_sample_images().images, np.zeros((427, 640, 3), np.uint8)):
        for place in ((10, 10), (300, 380)):
            image = Image.fromarray(background // 2)
            ImageDraw.Draw(image).text(place, "DOE JANE 4711", fill="white", font=ImageFont.load_default(size))
            found += count_text_lines(np.asarray(image)) > 0
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=70)
            with Image.open(buffer) as compressed:
                found += count_text_lines(np.asarray(compressed)) > 0
    assert found == 12


def test_lines_of_a_form_do_not_hide_its_text() -> None:
    image = Image.new("RGB", (400, 200), "white")
    draw = ImageDraw.Draw(image)
    for number in range(4):
        draw.rectangle((10, 10 + 40 * number, 380, 50 + 40 * number), outline="black", width=2)
        draw.text((20, 20 + 40 * number), "Jane Doe 1970", fill="black", font=ImageFont.load_default(20))
    assert count_text_lines(np.asarray(image)) >= 3


def test_small_and_strange_shapes_hold_no_text() -> None:
    for shape in ((1, 1, 3), (1, 900, 3), (900, 1, 3), (7, 5, 3), (2000, 3, 3)):
        assert count_text_lines(np.zeros(shape, np.uint8)) == 0


def search(**rules: object) -> DuplicateSearch:
    return DuplicateSearch(msgspec.convert(rules, PixelRules))


def hashes(image: np.ndarray, owner: str = "") -> dict[str, object]:
    exact = exact_hash(image)
    perceptual, small = perceptual_hash(image), thumbnail(image)
    return {"owner": owner or exact.hex(), "exact": exact, "perceptual": perceptual, "thumbnail": small}


def test_near_copies_are_found_and_others_are_not() -> None:
    kept, near = search(), 0
    for seed in range(60):
        assert kept.find(**hashes(pixels(seed, 256, 256))) is None  # type: ignore[arg-type]
        kept.add(f"{seed}", **hashes(pixels(seed, 256, 256)))  # type: ignore[arg-type]
    for seed in range(60):
        buffer = io.BytesIO()
        Image.fromarray(pixels(seed, 256, 256)).resize((200, 200)).save(buffer, "JPEG", quality=70)
        with Image.open(buffer) as copy:
            found = kept.find(**hashes(np.asarray(copy)))  # type: ignore[arg-type]
        near += found is not None and found.of == f"{seed}" and not found.is_exact
    assert near >= 57


def test_equal_pixels_are_found_even_when_near_ones_may_stay() -> None:
    kept = search(near_duplicates="keep")
    kept.add("first", **hashes(pixels(1)))  # type: ignore[arg-type]
    brighter = np.clip(pixels(1).astype(int) + 2, 0, 255).astype(np.uint8)
    assert kept.find(**hashes(brighter)) is None  # type: ignore[arg-type]
    found = kept.find(**hashes(pixels(1)))  # type: ignore[arg-type]
    assert found is not None
    assert (found.of, found.is_exact) == ("first", True)


def test_one_hash_is_not_one_picture() -> None:
    """Two pictures with one perceptual hash, as slices of a scan have, stay apart by their thumbnails."""
    kept = search()
    other = hashes(pixels(2)) | {"perceptual": perceptual_hash(pixels(1))}
    kept.add("first", **hashes(pixels(1)))  # type: ignore[arg-type]
    assert kept.find(**other) is None  # type: ignore[arg-type]


def test_pictures_of_one_subject_must_be_closer_to_count_as_one() -> None:
    """A slice beside another one stays with its own subject, but not a copy of it, nor another subject's."""
    first, second = (pixels(1, 256, 256).astype(float), pixels(2, 256, 256).astype(float))
    beside = np.clip(first + 0.1 * (second - second.mean()), 0, 255).astype(np.uint8)
    copy = np.clip(first * 0.98, 0, 255).astype(np.uint8)
    gap = difference(thumbnail(first.astype(np.uint8)), thumbnail(beside))
    assert 0.0015 < gap < 0.009
    kept = search()
    kept.add("first", **hashes(first.astype(np.uint8), "a"))  # type: ignore[arg-type]
    assert kept.find(**hashes(beside, "a")) is None  # type: ignore[arg-type]
    assert kept.find(**hashes(beside, "b")) is not None  # type: ignore[arg-type]
    assert kept.find(**hashes(copy, "a")) is not None  # type: ignore[arg-type]
    for number in range(100):  # a long series of the subject's own does not hide another subject's copy
        kept.add(f"{number}", **hashes(beside, "b") | {"exact": bytes([number]) * 32})  # type: ignore[arg-type]
    found = kept.find(**hashes(beside, "b") | {"exact": bytes(31) + b"\x01"})  # type: ignore[arg-type]
    assert found is not None
    assert found.of == "first"


def test_exact_hash_knows_the_shape() -> None:
    flat = np.zeros((4, 9, 3), np.uint8)
    assert exact_hash(flat) != exact_hash(flat.reshape(9, 4, 3))


def test_difference_of_flat_pictures() -> None:
    flat, other = np.zeros((32, 32, 3), np.uint8), thumbnail(pixels(1))
    assert (difference(flat, flat), difference(flat, other)) == (0.0, 1.0)
    assert difference(flat, flat + np.uint8(51)) == pytest.approx(0.2)
    assert difference(other, other) == pytest.approx(0.0)


def test_the_search_grows() -> None:
    kept = search()
    small = np.zeros((32, 32, 3), np.uint8)
    for number in range(3000):
        kept.add(str(number), owner=number, exact=number.to_bytes(32, "big"), perceptual=number << 40, thumbnail=small)
    assert len(kept) == 3000
    found = kept.find(owner=0, exact=(2999).to_bytes(32, "big"), perceptual=0, thumbnail=small)
    assert found is not None
    assert found.of == "2999"


def test_printed_rules_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "ingest.toml"
    path.write_text(RULES_TOML)
    assert read_rules(path) == IntakeRules()
    assert read_rules(path).digest() == IntakeRules().digest()
    path.write_text('[subjects]\nopt_out = "list.txt"\n[captions]\nnames = "/abs"')
    assert read_rules(path).subjects.opt_out == str(tmp_path / "list.txt")
    assert read_rules(path).captions.names == "/abs"
    path.write_text("[files]\nmax_side = 16\nmegapixels = 3\n[pixels]\ntext = 'maybe'")
    with pytest.raises(ConfigErrors) as caught:
        read_rules(path)
    assert len(caught.value.faults) == 2
    path.write_text("[files]\nmax_side = 16")
    with pytest.raises(ConfigError, match="max_side"):
        read_rules(path)
