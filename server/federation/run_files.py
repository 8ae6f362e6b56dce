"""A run's place in the federation's directory: its draft, the signed manifest, and what the run leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from common.adapter.spec import encode_spec
from common.durable_files import write_atomically
from common.errors import ConfigError, ManifestError
from common.manifest.manifest import canonical_bytes, manifest_digest, open_manifest, parse_manifest, sign_manifest
from common.manifest.terms import draft_manifest
from server.run.checkpoint import package_versions
from server.run.directory import LOG_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.config import RunConfig
    from common.manifest.manifest import Manifest
    from server.federation.directory import FederationDirectory

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """``runs/NAME/`` below the federation's directory."""

    federation: FederationDirectory
    name: str

    def __post_init__(self) -> None:
        """Refuse a name that would lead elsewhere.

        Raises:
            ConfigError: It is no run's name.

        """
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"wanted a run's name, small letters, digits and hyphens; got {self.name!r}")

    @property
    def root(self) -> Path:
        """Everything of this run."""
        return self.federation.root / "runs" / self.name

    @property
    def draft_file(self) -> Path:
        """The manifest's canonical bytes before they are signed: JSON, to be read before signing."""
        return self.root / "manifest.json"

    @property
    def manifest_file(self) -> Path:
        """The signed manifest, which sites approve."""
        return self.root / f"{self.name}.manifest"

    @property
    def spec_file(self) -> Path:
        """The adapter specification."""
        return self.root / "spec.json"

    @property
    def directory(self) -> Path:
        """Where the run itself writes: metrics, checkpoints, countersignatures, log."""
        return self.root / "run"

    @property
    def log_file(self) -> Path:
        """What the coordinator's loop said, over all starts."""
        return self.directory / LOG_FILE

    @property
    def flower_file(self) -> Path:
        """Number that Flower gave to the last start."""
        return self.root / "flower-run"

    def draft(self, config: RunConfig, spec: AdapterSpec) -> Manifest:
        """Write the adapter specification and the draft of a manifest with every approved site.

        Raises:
            ManifestError: There is a signed one already: sites may have approved it.
            ConfigErrors: The manifest contradicts itself, as with fewer sites than the run wants.
            PrivacyError: No noise gives the wanted ε.

        """
        if self.manifest_file.exists():
            raise ManifestError(f"{self.manifest_file}: is signed already; give the run another name")
        manifest = draft_manifest(
            msgspec.structs.replace(config, base=msgspec.structs.replace(config.base, digest=spec.base_digest)),
            base_digest=spec.base_digest,
            adapter_digest=spec.digest,
            dimension=spec.dimension,
            coordinator=self.federation.identity().public,
            roster=self.federation.roster().members(),
            code_version=package_versions()["darkroom"],
        )
        data = canonical_bytes(manifest)
        write_atomically(self.spec_file, encode_spec(spec))
        write_atomically(self.draft_file, data)
        return manifest

    def sign(self) -> Manifest:
        """Sign the draft with the coordinator's identity.

        Raises:
            ManifestError: There is no draft; it was changed into something else, or is another run's; or another one
                was signed before, which sites may have approved.

        """
        data = _read(self.draft_file, "darkroom-server manifest new")
        manifest = parse_manifest(data)
        if manifest.config.name != self.name:
            raise ManifestError(f"{self.draft_file}: is of a run {manifest.config.name!r}, not {self.name!r}")
        if self.manifest_file.exists():
            if self.signed()[1] != manifest_digest(data):
                raise ManifestError(
                    f"{self.manifest_file}: another manifest is signed already, and sites may have approved it; give "
                    "the run another name"
                )
            return manifest
        write_atomically(self.manifest_file, sign_manifest(manifest, self.federation.identity()))
        return manifest

    def signed(self) -> tuple[Manifest, bytes]:
        """The signed manifest and its digest.

        Raises:
            ManifestError: It is missing, or not signed.

        """
        if not self.federation.config_file.exists():
            raise ManifestError(
                f"{self.federation.root}: no federation is there; give its folder with --directory, or make one with "
                "darkroom-server init"
            )
        return open_manifest(_read(self.manifest_file, "darkroom-server manifest sign"))


def _read(path: Path, command: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); make it with {command}") from error
