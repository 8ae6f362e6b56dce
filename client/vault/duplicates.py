"""Find pictures that are equal, or nearly, to one that was kept: what is seen several times is what a model memorises.

The perceptual hash (pHash: the signs of 64 low frequencies) alone takes different slices of one organ for one picture,
so it only picks what is then compared by thumbnails. All hashes are compared at once: ten thousand pictures against
each other take less than a second, and no tree is needed.

Two pictures of one subject must be closer than two of different ones to count as one. A subject is protected as a
whole, however many pictures it has, but not a picture that is there under two subjects. Of the slices of a head, 1 mm
apart, six in ten are within 0.01 of an earlier one and one in thirty within 0.001; of photographs saved as JPEG at
quality 60, nine in ten are within 0.001 of their original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from PIL import Image

from client.vault.outcomes import Duplicate
from common.crypto import Label, digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from client.vault.intake_rules import PixelRules

VERSION: Final = 2
THUMBNAIL: Final = 32
Owner: TypeAlias = int | str
"""Whose a picture is: a subject's number in the vault, or the id of one who is not there yet."""
_MAX_COMPARED: Final = 64
"""Thumbnails compared for one picture, nearest hashes first; bounds the work on folders of much alike pictures."""


def exact_hash(pixels: NDArray[np.uint8]) -> bytes:
    """32 bytes that stand for the pixels and their shape. Whoever has the picture can compute it: keep it sealed."""
    shape = b"".join(size.to_bytes(8, "big") for size in pixels.shape)
    return digest(Label.INTAKE_PICTURE, shape, np.ascontiguousarray(pixels).data.cast("B"))


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """64-bit pHash of RGB uint8 [height, width, 3]."""
    import imagehash  # noqa: PLC0415 - only an intake needs this extra

    return int(str(imagehash.phash(Image.fromarray(pixels))), 16)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey uint8 [:data:`THUMBNAIL`, :data:`THUMBNAIL`]."""
    grey = Image.fromarray(pixels).convert("L")
    return np.array(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """1 minus the correlation: 0 for pictures that differ in brightness and contrast only, 1 for unrelated ones.

    Pictures of one shade have no correlation: 0 if both are, else 1.
    """
    a, b = (each.astype(np.float64) - each.mean() for each in (one, other))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if scale == 0:
        return float(a.any() or b.any())
    return 1.0 - float((a * b).sum()) / scale


class DuplicateSearch:
    """Pictures that were kept, those of the vault first."""

    def __init__(self, rules: PixelRules) -> None:
        self._rules: Final = rules
        self._by_exact: dict[bytes, int] = {}
        self._hashes = np.zeros(1024, np.uint64)
        self._names: list[str] = []
        self._owners: list[Owner] = []
        self._thumbnails: list[NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]] = []

    def __len__(self) -> int:
        return len(self._names)

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
        self._names.append(name)
        self._owners.append(owner)
        self._thumbnails.append(thumbnail)

    def find(self, *, owner: Owner, exact: bytes, perceptual: int, thumbnail: NDArray[np.uint8]) -> Duplicate | None:
        """The kept picture that this one repeats, if there is one: an equal one, else the nearest hash that agrees."""
        if exact in self._by_exact:
            return Duplicate(of=self._names[self._by_exact[exact]], distance=0, is_exact=True)
        if self._rules.near_duplicates == "keep":
            return None
        distances = np.bitwise_count(self._hashes[: len(self)] ^ np.uint64(perceptual))
        near = np.flatnonzero(distances <= self._rules.near_distance)
        nearest = [int(index) for index in near[np.argsort(distances[near], kind="stable")]]
        own = [index for index in nearest if self._owners[index] == owner]
        others = [index for index in nearest if self._owners[index] != owner]
        for indices, limit in ((others, self._rules.near_difference), (own, self._rules.same_subject_difference)):
            for index in indices[:_MAX_COMPARED]:  # apart, so that a long series does not hide another subject's
                if difference(self._thumbnail(index), thumbnail) <= limit:
                    return Duplicate(of=self._names[index], distance=int(distances[index]), is_exact=False)
        return None

    def _thumbnail(self, index: int) -> NDArray[np.uint8]:
        kept = self._thumbnails[index]
        if callable(kept):
            kept = self._thumbnails[index] = kept()
        return kept
