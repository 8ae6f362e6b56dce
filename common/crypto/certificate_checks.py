"""Whether sites will accept a server certificate, and which rule it breaks if not."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification

from common.crypto.certificates import read_certificate
from common.errors import ProvisioningError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence
    from pathlib import Path

MAX_AUTHORITY_BYTES: Final = 8192
"""Most that a join file carries."""
_OTHER_NAME: Final = "subjectAltName"
"""In the library's word on a certificate for other names."""


def check_server_certificate(chain: bytes, *, authority: bytes, hosts: Sequence[str], now: dt.datetime) -> dt.datetime:
    """Refuse a server certificate that sites would refuse; when it, or the authority's, ends.

    Args:
        chain: PEM of the server certificate, then of whoever stands between it and the authority.
        authority: PEM of one root certificate.
        hosts: Names and addresses that sites connect to.
        now: The time.

    Raises:
        ProvisioningError: Unreadable, out of its time, for other names, or not signed by the authority.

    """
    served, *between = _certificates(chain, source="server certificate")
    issuer = read_certificate(authority, source="authority certificate")
    for name, checked in (("server", served), ("authority", issuer)):
        _check_dates(checked, name, now)
    store = verification.Store([issuer])
    for host in hosts:
        verifier = _verifier(verification.PolicyBuilder().store(store).time(now), host)
        try:
            verifier.verify(served, between)
        except verification.VerificationError as error:
            raise ProvisioningError(_refused(served, host, error)) from error
    return min(served.not_valid_after_utc, issuer.not_valid_after_utc)


def check_server_key(chain: bytes, key: Path) -> None:
    """Refuse a key that is not the server certificate's.

    Raises:
        ProvisioningError: Unreadable, locked with a passphrase, or another.

    """
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProvisioningError(f"{key}: wanted a private key in PEM form, without passphrase") from error
    served = _certificates(chain, source="server certificate")[0]
    if private.public_key() != served.public_key():
        raise ProvisioningError(f"{key}: is not the key of the server certificate")


def _certificates(pem: bytes, *, source: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ProvisioningError(f"{source}: wanted certificates in PEM form, the server's first") from error


def _check_dates(certificate: x509.Certificate, name: str, now: dt.datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise ProvisioningError(
            f"the {name} certificate is valid from {begins} to {ends}, and it is {now}; check the clock, or run: "
            "darkroom-server renew"
        )


def _refused(served: x509.Certificate, host: str, error: verification.VerificationError) -> str:
    if _OTHER_NAME in str(error):
        return (
            f"the server certificate is for {', '.join(sorted(_names(served))) or 'no name'}, and sites connect to "
            f"{host}; it needs that as a subject alternative name"
        )
    return f"the server certificate is not signed by the given authority as TLS wants it: {error}"


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return addresses | set(names.get_values_for_type(x509.DNSName))


def _verifier(policy: verification.PolicyBuilder, host: str) -> verification.ServerVerifier:
    try:
        return policy.build_server_verifier(_subject(host))
    except ValueError as error:
        raise ProvisioningError(f"{host!r}: no name or address that a server certificate can be for") from error


def _subject(host: str) -> verification.Subject:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
