"""Content Credentials (C2PA) in drawn pictures: who drew it, with which adapter, and that it was not changed since.

The institution makes its own key; nothing is sent anywhere: no time stamp is asked for, and no certificate's state.
So a viewer that does not know the institution's authority shows the signature as valid and its signer as unknown.
"""

from __future__ import annotations

import datetime as dt
import io
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from client.drawing.marks import SOURCE_TYPE
from common.crypto.certificates import create_picture_key
from common.errors import BadImage, ConfigError, ProvisioningError

if TYPE_CHECKING:
    from pathlib import Path

    from client.drawing.marks import Origin

KEY_FILE: Final = "picture.key"
CHAIN_FILE: Final = "picture.crt"
AUTHORITY_FILE: Final = "picture-authority.crt"
ASSERTION: Final = "darkroom.generation"
ACTIONS: Final = "c2pa.actions.v2"
_FORMAT: Final = "image/png"
_OTHERS: Final = 0o077
_OFFLINE: Final = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
"""No request to anybody; and no second, small picture inside."""


@dataclass(frozen=True, kw_only=True)
class PictureKey:
    """An institution's key for pictures and its certificates, in PEM."""

    key: bytes = field(repr=False)
    chain: bytes


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What was read from a picture whose signature is right.

    Attributes:
        signer: ``trusted``: from the authority that was given; ``unknown``: from somebody.
        institution: as it calls itself.

    """

    signer: Literal["trusted", "unknown"]
    institution: str
    adapter: str
    base: str
    release: str | None
    prompt: str | None


def make_picture_key(folder: Path, institution: str) -> None:
    """Make key and certificates in the folder.

    Raises:
        ProvisioningError: One of the files is there already, or a name that no certificate can hold.

    """
    if there := [name for name in (KEY_FILE, CHAIN_FILE, AUTHORITY_FILE) if (folder / name).exists()]:
        raise ProvisioningError(f"{folder}: has {', '.join(there)} already; a key is not made anew over another")
    chain, authority = create_picture_key(folder / KEY_FILE, institution=institution, now=dt.datetime.now(dt.UTC))
    (folder / CHAIN_FILE).write_bytes(chain)
    (folder / AUTHORITY_FILE).write_bytes(authority)


def read_picture_key(folder: Path) -> PictureKey:
    """Key and certificates from the folder.

    Raises:
        ConfigError: One of them cannot be read, or other users can read the key.

    """
    path = folder / KEY_FILE
    try:
        with path.open("rb") as file:
            mode, key = os.fstat(file.fileno()).st_mode, file.read()
        chain = (folder / CHAIN_FILE).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be read ({error.strerror}); make it with: darkroom-client picture key {folder}"
        ) from error
    if mode & _OTHERS:
        raise ConfigError(f"{path}: other users can read this key, and sign in your name; run: chmod 600 {path}")
    return PictureKey(key=key, chain=chain)


def signed_png(png: bytes, origin: Origin, key: PictureKey) -> bytes:
    """The same picture with Content Credentials.

    Guarantee: :func:`read_credentials` gives back adapter, base, release and prompt; and refuses the picture once a
    pixel, a text in it, or a word of the credentials that it gives back was changed. Of the chunk that holds the
    credentials not every bit is covered: C2PA keeps room for a longer signature, and does not look at what fills it.

    Raises:
        ConfigError: The library is not installed, or does not take key and certificate.

    """
    c2pa = _library()
    signed = io.BytesIO()
    try:
        # "None": no authority that stamps the time
        info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES384, key.chain, key.key, None)
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(_manifest(origin), c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))) as builder,
        ):
            builder.sign(signer, _FORMAT, io.BytesIO(png), signed)
    except c2pa.C2paError as error:
        raise ConfigError(f"pictures cannot be signed with this key: {error}; make a new one") from error
    return signed.getvalue()


def read_credentials(png: bytes, *, authority: bytes | None = None) -> Credentials:
    """What a picture's credentials say.

    Args:
        png: The file's bytes.
        authority: Certificate, in PEM, of the institution that is expected to have signed; None: anybody.

    Raises:
        BadImage: No credentials, others than Darkroom's, or a picture that was changed after it was signed.
        ConfigError: The library is not installed.

    """
    c2pa = _library()
    trust = {} if authority is None else {"trust": {"user_anchors": authority.decode(errors="replace")}}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE | trust))
        with c2pa.Reader(_FORMAT, io.BytesIO(png), context=context) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest()
    except c2pa.C2paError as error:
        words = " ".join(str(error).splitlines())  # they may quote the file, which must not write a line of its own
        raise BadImage(f"no Content Credentials can be read: {words}") from error
    except KeyError as error:  # the library's own, where the store names an active manifest that it does not have
        raise BadImage("damaged: its Content Credentials name a manifest that they do not hold") from error
    if state not in {"Valid", "Trusted"}:
        raise BadImage("changed after it was signed, or not signed rightly: its Content Credentials do not hold")
    told = _told(manifest)
    return Credentials(
        signer="trusted" if state == "Trusted" else "unknown",
        institution=told.signature_info.issuer,
        **msgspec.structs.asdict(_facts(told)),
    )


class _Assertion(msgspec.Struct):
    label: str
    data: Any = None


class _Signature(msgspec.Struct):
    issuer: str = ""


class _Manifest(msgspec.Struct):
    """What is read of a manifest: anybody can have written and signed it."""

    assertions: tuple[_Assertion, ...] = ()
    signature_info: _Signature = msgspec.field(default_factory=_Signature)


class _Facts(msgspec.Struct):
    adapter: str
    base: str
    release: str | None = None
    prompt: str | None = None


def _told(manifest: object) -> _Manifest:
    try:
        return msgspec.convert(manifest, _Manifest)
    except msgspec.ValidationError as error:
        raise BadImage(f"its Content Credentials are in no form that Darkroom reads: {error}") from error


def _facts(manifest: _Manifest) -> _Facts:
    """Darkroom's own assertion."""
    own = [each.data for each in manifest.assertions if each.label == ASSERTION]
    if len(own) != 1:
        raise BadImage("its Content Credentials are not of a picture that Darkroom drew")
    try:
        return msgspec.convert(own[0], _Facts)
    except msgspec.ValidationError as error:
        raise BadImage(f"its Content Credentials are not of a picture that Darkroom drew: {error}") from error


def _manifest(origin: Origin) -> dict[str, Any]:
    software = {"name": "Darkroom", "version": origin.version}
    facts = {"adapter": origin.adapter, "base": origin.base, "release": origin.release, "prompt": origin.prompt}
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": software}
    return {
        "claim_generator_info": [software],
        "format": _FORMAT,
        "assertions": [
            {"label": ACTIONS, "data": {"actions": [created]}},
            {"label": ASSERTION, "data": {name: value for name, value in facts.items() if value is not None}},
        ],
    }


def _library() -> Any:  # noqa: ANN401 - the library has no types
    try:
        import c2pa  # noqa: PLC0415 - an extra, of 50 MB
    except ImportError as error:
        raise ConfigError('Content Credentials need c2pa-python; run: pip install "darkroom[provenance]"') from error
    return c2pa
