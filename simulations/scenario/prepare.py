"""From a scenario to its institution store: build or read the image folders, encode them, deal out the rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.training.latents import EncodingPlan
from common.errors import DataError, EmptyFolder
from simulations.scenario.folder_latents import concatenate, encode_folder, overlong
from simulations.scenario.imagefolder import read_imagefolder
from simulations.scenario.medical import build_institutions
from simulations.scenario.partition import partition, split_holdout
from simulations.scenario.store import InstitutionStore, deal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from client.training.latents import LatentShard
    from common.adapter.model import BaseModel
    from simulations.scenario.imagefolder import Picture
    from simulations.scenario.scenario import Scenario


@dataclass(frozen=True)
class Pictures:
    """Some of an image folder's pictures."""

    folder: Path
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Site:
    """One source of pictures: what is trained on and what is held out."""

    name: str
    train: Pictures
    holdout: Pictures


def prepare_store(scenario: Scenario, base: BaseModel, cache: Path, warn: Callable[[str], None]) -> InstitutionStore:
    """Encode everything the scenario's institutions hold and deal it out.

    Args:
        scenario: The scenario.
        base: The opened base model.
        cache: Where built folders, source packages and encoded pictures are kept between runs.
        warn: Told about captions that are cut off.

    Raises:
        DataError: Pictures or captions that cannot be used; all of them are listed.

    """
    sites = sites_of(scenario, base, cache)
    plan = EncodingPlan(
        resolution=scenario.training.resolution or base.resolution,
        horizontal_flips=scenario.training.horizontal_flips,
    )
    for site in sites:
        _warn_of_long_captions(site, base, warn)
    held = [site.holdout for site in sites if site.holdout.pictures]
    shards = _encode_all(base, [*(site.train for site in sites), *held], plan, cache / "latents")
    train, holdout = concatenate(shards[: len(sites)]), concatenate(shards[len(sites) :])
    return _dealt(scenario, sites, train, holdout)


def _encode_all(base: BaseModel, parts: Sequence[Pictures], plan: EncodingPlan, cache: Path) -> list[LatentShard]:
    """A shard for each part; every part is looked at before one that cannot be used stops the run."""
    shards, faults = [], []
    for part in parts:
        try:
            shards.append(encode_folder(base, part.folder, part.pictures, plan, cache=cache))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return shards


def sites_of(scenario: Scenario, base: BaseModel, cache: Path) -> tuple[Site, ...]:
    """The scenario's sources of pictures; the demonstration's are built on first use."""
    return _medical_sites(scenario, base, cache) if scenario.institutions.source == "medical" else _own_sites(scenario)


def _medical_sites(scenario: Scenario, base: BaseModel, cache: Path) -> tuple[Site, ...]:
    """The three demonstration institutions, built on first use."""
    resolution = scenario.training.resolution or base.resolution
    folders = build_institutions(cache / f"institutions-{resolution}", cache / "sources", resolution=resolution)
    return tuple(
        Site(
            made.name,
            Pictures(made.train, read_imagefolder(made.train)),
            Pictures(made.holdout, read_imagefolder(made.holdout)),
        )
        for made in folders
    )


def _own_sites(scenario: Scenario) -> tuple[Site, ...]:
    """A user's image folder, held out by subject; one site per sub-folder under the scheme ``site``, else one."""
    folder = Path(scenario.institutions.folder or "")
    pictures = read_imagefolder(folder)
    _, held_out = split_holdout(pictures, share=scenario.institutions.holdout_share, seed=scenario.seed)
    kept = frozenset(held_out)
    names = sorted({_sub_folder(p) for p in pictures}) if scenario.institutions.scheme == "site" else [folder.name]
    sites = []
    for name in names:
        rows = [i for i, p in enumerate(pictures) if len(names) == 1 or _sub_folder(p) == name]
        train = tuple(pictures[i] for i in rows if i not in kept)
        if not train:
            raise EmptyFolder(f"{folder}: {name or 'the folder'} has no training pictures left; lower holdout_share")
        held = tuple(pictures[i] for i in rows if i in kept)
        sites.append(Site(name or folder.name, Pictures(folder, train), Pictures(folder, held)))
    if not any(site.holdout.pictures for site in sites):
        raise EmptyFolder(f"{folder}: nothing is held out; raise holdout_share or add pictures")
    return tuple(sites)


def _sub_folder(picture: Picture) -> str:
    """Where the picture lies, whatever it is labelled as; empty at the top of the folder."""
    top, slash, _ = picture.file_name.partition("/")
    return top if slash else ""


def _warn_of_long_captions(site: Site, base: BaseModel, warn: Callable[[str], None]) -> None:
    cut = overlong(base, site.train.pictures + site.holdout.pictures)
    if cut:
        shown = ", ".join([*cut[:3], *(["…"] if len(cut) > 3 else [])])
        warn(f"{site.name}: {len(cut)} captions are longer than the text encoder reads and are cut off ({shown})")


def _dealt(scenario: Scenario, sites: Sequence[Site], train: LatentShard, holdout: LatentShard) -> InstitutionStore:
    choice = scenario.institutions
    subjects = _subject_numbers(scenario, sites)
    if choice.scheme == "site" or choice.count is None:
        blocks = [_blocks([len(s.train.pictures) for s in sites]), _blocks([len(s.holdout.pictures) for s in sites])]
        return InstitutionStore(deal([s.name for s in sites], *blocks, subjects=subjects), train, holdout)
    alpha = choice.alpha if choice.scheme == "dirichlet" else None
    parts = partition(_named_apart(sites), choice.count, scenario.seed, alpha=alpha)
    held = np.array_split(np.random.default_rng(scenario.seed).permutation(len(holdout)), choice.count)
    names = [f"institution-{i + 1:04d}" for i in range(choice.count)]
    return InstitutionStore(deal(names, parts, [part.tolist() for part in held], subjects=subjects), train, holdout)


def _subject_numbers(scenario: Scenario, sites: Sequence[Site]) -> list[int] | None:
    """A number for the subject of every training picture, where subjects are the privacy units."""
    if scenario.privacy == "none" or scenario.privacy.unit != "subject":
        return None
    numbers: dict[str, int] = {}
    return [numbers.setdefault(picture.subject_id, len(numbers)) for picture in _named_apart(sites)]


def _blocks(lengths: Sequence[int]) -> list[range]:
    """Consecutive row ranges of the given lengths."""
    ends = np.cumsum([0, *lengths]).tolist()
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def _named_apart(sites: Sequence[Site]) -> tuple[Picture, ...]:
    """All training pictures, with subjects and labels told apart by site."""
    return tuple(
        replace(picture, subject_id=f"{site.name}/{picture.subject_id}", label=f"{site.name}/{picture.label}")
        for site in sites
        for picture in site.train.pictures
    )
