"""A scenario: one run's public configuration, and where its virtual institutions get their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from common import bounds  # noqa: TC001 - msgspec reads annotations at run time
from common.config import Config, RunConfig, parse_config, read_toml
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCENARIOS: Final = Path(__file__).parents[1] / "scenarios"
_BUNDLED_BASE: Final = Path(__file__).parents[1] / "base" / "model"


class InstitutionsConfig(Config, frozen=True, kw_only=True):
    """Who holds which pictures."""

    source: Literal["medical", "folder"]
    """``medical``: three sites with public medical pictures. ``folder``: an image folder of your own."""
    folder: str | None = None
    """With ``source = "folder"``: its path, relative to the scenario file."""
    scheme: Literal["site", "iid", "dirichlet"] = "site"
    """``site``: one institution per site, or per sub-folder; the others deal all pictures out to ``count``."""
    count: bounds.Population | None = None
    alpha: Annotated[float, Meta(gt=0)] = 0.5
    """Concentration of the Dirichlet scheme: small is uneven."""
    holdout_share: bounds.Share = 0.15
    """With ``source = "folder"``: share of the subjects kept out of training."""

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if (self.source == "folder") != (self.folder is not None):
            yield 'folder: wanted with source = "folder", and only there'
        if (self.scheme == "site") != (self.count is None):
            yield f"count: wanted with scheme iid or dirichlet, and only there; got {self.count} with {self.scheme}"


class Scenario(RunConfig, frozen=True, kw_only=True):
    """A run configuration and its virtual institutions."""

    institutions: InstitutionsConfig

    def run_config(self) -> RunConfig:
        """The part that coordinator and institutions agree on."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.__struct_fields__})

    def base_path(self) -> str:
        """Where the base model is: the bundled one's directory, or what the scenario says."""
        return str(_BUNDLED_BASE) if self.base.path == "bundled" else self.base.path


def load_scenario(name_or_path: str, *, rounds: int | None = None) -> Scenario:
    """Read a scenario by the name of a shipped one, or by its file's path.

    Raises:
        ConfigError: No such scenario, or anything in it that cannot be used; all of it is listed.

    """
    path = _find(name_or_path)
    table = read_toml(path)
    if rounds is not None:
        table["rounds"] = rounds
    scenario = parse_config(table, Scenario, source=str(path))
    return _with_folder_beside(scenario, path.parent)


def _find(name_or_path: str) -> Path:
    shipped = _SCENARIOS / f"{name_or_path}.toml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = ", ".join(sorted(found.stem for found in _SCENARIOS.glob("*.toml")))
    raise ConfigError(f"no scenario {name_or_path!r}: neither a file nor one of those shipped ({names})")


def _with_folder_beside(scenario: Scenario, parent: Path) -> Scenario:
    """The scenario with its image folder's and base's relative paths taken from the scenario file's directory."""
    institutions, base = scenario.institutions, scenario.base
    if institutions.folder is not None:
        institutions = msgspec.structs.replace(institutions, folder=str(parent / institutions.folder))
    if base.path != "bundled" and (parent / base.path).exists():
        base = msgspec.structs.replace(base, path=str(parent / base.path))
    return msgspec.structs.replace(scenario, institutions=institutions, base=base)
