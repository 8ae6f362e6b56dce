"""Find pictures that are equal, or nearly, to one that was kept: what is seen several times is what a model memorises.

The perceptual hash (pHash: the signs of 64 low frequencies) alone takes different slices of one organ for one picture,
so it only picks what is then compared by thumbnails. All hashes are compared at once: ten thousand pictures against
each other take less than a second, and no tree is needed. The shape of a thumbnail alone takes six colours of one
drawing for one picture, so colours are compared as well.

One picture's reach over others is kept small. What a kept picture pushes out is near to it *and* to all else that it
pushed out: all of these are near-duplicates of each other, of which one would do. A picture made to lie between many
that are no near-duplicates of each other, and that would push out all of them, pushes out those of one kind. What is
left: up to :data:`MAX_PUSHED_OUT` copies that an institution means to keep may go for one file; a picture pushed out no
longer pushes out others; and of what earlier intakes pushed out nothing is known, so each may push out one kind more.
With ``near_duplicates = "keep"`` no picture has a reach but over its equals.

Two pictures of one subject must be closer than two of different ones to count as one. A subject is protected as a
whole, however many pictures it has, but not a picture that is there under two subjects. Of the slices of a head, 1 mm
apart, six in ten are within 0.01 of an earlier one and one in thirty within 0.001; of photographs saved as JPEG at
quality 60, nine in ten are within 0.001 of their original.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from PIL import Image

from client.intake.outcomes import Duplicate
from common.crypto.primitives import Label, digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from client.intake.rules import PixelRules
    from client.vault.records import RecordId
    from client.vault.vault import Vault

VERSION: Final = 3
THUMBNAIL: Final = 32
Owner: TypeAlias = int | str
"""Whose a picture is: a subject's number in the vault, or the id of one who is not there yet."""
_MAX_COMPARED: Final = 64
"""Thumbnails compared for one picture, nearest hashes first; bounds the work on folders of much alike pictures."""
MAX_PUSHED_OUT: Final = 64
"""Near-duplicates that one kept picture pushes out in one intake; the next one stays, and stands for those after it."""


class DuplicateSearch:
    """Pictures that were kept, those of the vault first."""

    def __init__(self, rules: PixelRules) -> None:
        self._rules: Final = rules
        self._by_exact: dict[bytes, int] = {}
        self._hashes = np.zeros(1024, np.uint64)
        self._kept: list[_Kept] = []
        self.alike_in_shape = 0
        """Pictures that nothing but their colours tells from an earlier one."""

    def __len__(self) -> int:
        return len(self._kept)

    def add(
        self,
        name: str,
        *,
        owner: Owner,
        exact: bytes,
        perceptual: int,
        thumbnail: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]],
    ) -> None:
        """Remember a picture of this subject; the thumbnail may be a function that makes it when it is first wanted."""
        if len(self) == self._hashes.size:
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[len(self)] = perceptual
        self._by_exact.setdefault(exact, len(self))
        self._kept.append(_Kept(name, owner, thumbnail))

    def find(self, *, owner: Owner, exact: bytes, perceptual: int, thumbnail: NDArray[np.uint8]) -> Duplicate | None:
        """The kept picture that this one repeats, if there is one: an equal one, else the nearest hash that agrees.

        A near-duplicate is remembered as one that the kept picture pushed out.
        """
        if exact in self._by_exact:
            return Duplicate(of=self._kept[self._by_exact[exact]].name, distance=0, is_exact=True)
        if self._rules.near_duplicates == "keep":
            return None
        distances = np.bitwise_count(self._hashes[: len(self)] ^ np.uint64(perceptual))
        near = np.flatnonzero(distances <= self._rules.near_distance)
        nearest = [int(index) for index in near[np.argsort(distances[near], kind="stable")]]
        own = [index for index in nearest if self._kept[index].owner == owner]
        others = [index for index in nearest if self._kept[index].owner != owner]
        is_alike = False
        for indices, limit in ((others, self._rules.near_difference), (own, self._rules.same_subject_difference)):
            for index in indices[:_MAX_COMPARED]:  # apart, so that a long series does not hide another subject's
                kept = self._kept[index]
                if len(kept.pushed_out) == MAX_PUSHED_OUT or difference(kept.seen(), thumbnail) > limit:
                    continue
                if colour_difference(kept.seen(), thumbnail) > self._rules.near_colour:
                    is_alike = True
                elif all(self._are_near(each, thumbnail) for each in kept.pushed_out):
                    kept.pushed_out.append(thumbnail)
                    return Duplicate(of=kept.name, distance=int(distances[index]), is_exact=False)
        self.alike_in_shape += is_alike
        return None

    def _are_near(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
        """As pictures of two subjects."""
        return (
            difference(one, other) <= self._rules.near_difference
            and colour_difference(one, other) <= self._rules.near_colour
        )


@dataclass(slots=True)
class _Kept:
    """A picture that was kept."""

    name: str
    owner: Owner
    thumbnail: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]
    pushed_out: list[NDArray[np.uint8]] = field(default_factory=list)
    """Thumbnails of its near-duplicates."""

    def seen(self) -> NDArray[np.uint8]:
        """The thumbnail, made when it is first wanted."""
        if callable(self.thumbnail):
            self.thumbnail = self.thumbnail()
        return self.thumbnail


def search_of_vault(vault: Vault | None, rules: PixelRules) -> DuplicateSearch:
    """A search that knows the vault's pictures; one of them is only opened when a hash comes near its own."""
    search = DuplicateSearch(rules)
    if vault is None:
        return search
    for hashes in vault.hashes():
        stored = partial(_stored_thumbnail, vault, hashes.record_id)
        search.add("", owner=hashes.subject, exact=hashes.exact, perceptual=hashes.perceptual, thumbnail=stored)
    return search


def _stored_thumbnail(vault: Vault, record_id: RecordId) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(vault.read(record_id).image), formats=("PNG",)) as image:
        return thumbnail(np.array(image.convert("RGB")))


def exact_hash(pixels: NDArray[np.uint8]) -> bytes:
    """32 bytes that stand for the pixels and their shape. Whoever has the picture can compute it: keep it sealed."""
    shape = b"".join(size.to_bytes(8, "big") for size in pixels.shape)
    return digest(Label.INTAKE_PICTURE, shape, np.ascontiguousarray(pixels).data.cast("B"))


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """64-bit pHash of RGB uint8 [height, width, 3]."""
    import imagehash  # noqa: PLC0415 - only an intake needs this extra

    return int(str(imagehash.phash(Image.fromarray(pixels))), 16)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness and two colours (YCbCr), uint8 [:data:`THUMBNAIL`, :data:`THUMBNAIL`, 3]."""
    image = Image.fromarray(pixels).convert("YCbCr")
    return np.array(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of shape: 1 minus the correlation; 0 for pictures that differ in brightness and contrast only, 1 for unrelated.

    Pictures of one shade have no correlation: by how much their brightness differs, as a share, if both are; else 1.
    """
    first, second = (each[..., 0].astype(np.float64) for each in (one, other))
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if scale == 0:
        return 1.0 if a.any() or b.any() else abs(float(first.mean() - second.mean())) / 255
    return 1.0 - float((a * b).sum()) / scale


def colour_difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Root mean square of both colours together, as a share: a JPEG copy is within 0.011, red from blue about 0.5."""
    gap = one[..., 1:].astype(np.float64) - other[..., 1:]
    return float(np.sqrt((gap * gap).sum(axis=-1).mean())) / 255
