"""One file's reach over others: whom it can push out of the vault."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from client.intake.duplicates import (
    MAX_PUSHED_OUT,
    DuplicateSearch,
    colour_difference,
    difference,
    exact_hash,
    perceptual_hash,
    thumbnail,
)
from client.intake.rules import PixelRules
from common.errors import DataError
from tests.client.bad_inputs import picture, pixels
from tests.client.intakes import Site, outcomes

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 256


def waves() -> list[np.ndarray]:
    """Sixteen patterns at right angles to each other, beyond the 8 by 8 frequencies that a perceptual hash looks at."""
    place = np.pi * (2 * np.arange(32) + 1) / 64
    small = [np.outer(np.cos(place * a), np.cos(place * b)) for a in range(10, 14) for b in range(10, 14)]
    return [np.kron(each, np.ones((SIDE // 32, SIDE // 32))) for each in small]


def around_one() -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture that is near to each of the others, which are not near to each other."""
    centre = 40 + 0.7 * pixels(1, SIDE, SIDE).astype(float).mean(axis=2)
    spread = np.sqrt(0.016) * centre.std() / 0.5  # correlations 1 / sqrt(1.016) with it, 1 / 1.016 with each other
    return as_picture(centre), [as_picture(centre + spread * wave) for wave in waves()]


def as_picture(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def offered(pictures: list[np.ndarray], **rules: Any) -> tuple[list[bool], DuplicateSearch]:
    """Which of them are kept, each of a subject of its own."""
    search, kept = DuplicateSearch(msgspec.convert(rules, PixelRules)), []
    for number, image in enumerate(pictures):
        said = {
            "owner": number,
            "exact": exact_hash(image),
            "perceptual": perceptual_hash(image),
            "thumbnail": thumbnail(image),
        }
        kept.append(search.find(**said) is None)  # type: ignore[arg-type]
        if kept[-1]:
            search.add(str(number), **said)  # type: ignore[arg-type]
    return kept, search


def test_a_picture_between_many_pushes_out_one_of_them() -> None:
    centre, others = around_one()
    assert all(difference(thumbnail(centre), thumbnail(each)) <= 0.01 for each in others)
    apart = [difference(thumbnail(a), thumbnail(b)) for a in others for b in others if a is not b]
    assert min(apart) > 0.01
    assert all(offered(others)[0])
    kept, _ = offered([centre, *others])
    assert kept.count(False) == 1


def test_copies_of_one_picture_are_one_up_to_a_bound() -> None:
    image = pixels(3, SIDE, SIDE)
    copies = [image, *(np.clip(image.astype(int) + k % 5, 0, 255).astype(np.uint8) + np.uint8(0) for k in range(1, 5))]
    assert offered(copies)[0] == [True, False, False, False, False]
    search = DuplicateSearch(PixelRules())
    small, hashed = thumbnail(image), perceptual_hash(image)
    search.add("first", owner=-1, exact=b"first", perceptual=hashed, thumbnail=small)
    found = [
        search.find(owner=number, exact=bytes([number]), perceptual=hashed, thumbnail=small)
        for number in range(MAX_PUSHED_OUT + 1)
    ]
    assert [each is None for each in found] == [False] * MAX_PUSHED_OUT + [True]


def drawing(colour: tuple[int, int, int], ground: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    image = np.empty((96, 96, 3), np.uint8)
    image[:] = ground
    image[20:60, 30:80] = colour
    image[60:90, 10:40] = colour
    return image


COLOURS = [(200, 30, 30), (30, 140, 30), (60, 60, 255), (180, 40, 180), (30, 130, 130), (170, 110, 20)]


def test_colours_of_one_drawing_are_different_pictures_and_said_to_be() -> None:
    drawings = [drawing(colour) for colour in COLOURS]
    kept, search = offered(drawings)
    assert all(kept)
    assert search.alike_in_shape == 5
    flat = [np.full((96, 96, 3), colour, np.uint8) for colour in [*COLOURS, (0, 0, 0), (255, 255, 255), (90, 90, 90)]]
    assert all(offered(flat)[0])


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_copy_saved_as_jpeg_has_the_same_colours(tmp_path: Path, quality: int) -> None:
    for number in range(8):
        image = pixels(number, SIDE, SIDE)
        Image.fromarray(image).save(tmp_path / "a.jpg", quality=quality)
        with Image.open(tmp_path / "a.jpg") as copy:
            gap = colour_difference(thumbnail(image), thumbnail(np.asarray(copy)))
        assert gap < PixelRules().near_colour / 2


def test_a_row_that_names_a_subject_refuses_no_other(tmp_path: Path) -> None:
    """Nothing is taken until somebody says what it means; then each file's own row and the rules decide."""
    site, folder = Site.make(tmp_path), tmp_path / "in"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(picture(number))
    rows: list[dict[str, Any]] = [{"file_name": f"{number}.png"} for number in range(8)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert site.take(folder, commit=False).kept == 8
    rows.append({"file_name": "8.png", "subject_id": "p"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"8 pictures have no subject_id(.|\n)*subjects\.default"):
        site.take(folder)
    assert site.vault.infos() == ()
    alone = {
        default: outcomes(site.take(folder, commit=False, rules={"subjects": {"default": default}}))
        for default in ("file", "refuse")
    }
    assert set(alone["file"].values()) == {"accepted"}
    assert [alone["refuse"][f"{number}.png"] for number in (0, 7, 8)] == [
        "refused: NO_SUBJECT", "refused: NO_SUBJECT", "accepted",
    ]  # fmt: skip


def test_a_bad_row_costs_its_own_file_alone(tmp_path: Path) -> None:
    site, folder = Site.make(tmp_path), tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number))
    rows = ['{"file_name": "0.png", "Consent": true}', '{"file_name": "1.png"}', '{"file_name": "2.png"}']
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    found = outcomes(site.take(folder))
    assert (found["1.png"], found["2.png"]) == ("accepted", "accepted")
