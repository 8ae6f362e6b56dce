"""Keys in other people's formats: X.509 for the federation's TLS and for pictures, OpenSSH for Flower's node keys.

They protect the way between a site and the coordinator, and say who drew a picture. What a site contributes is signed
and masked with the keys of :mod:`common.crypto.primitives` whoever holds these. All keys are ECDSA P-384, which
Flower's node authentication and C2PA accept. A server certificate may come from elsewhere:
:func:`check_server_certificate` says whether sites will accept it, and which rule it breaks if not.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.durable_files import write_new
from common.errors import ProvisioningError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 397
"""Longest life that common TLS clients accept of a server certificate."""
PICTURE_DAYS: Final = 3650
"""A signature without a time stamp is worth nothing once its certificate has run out."""
MAX_AUTHORITY_BYTES: Final = 8192
"""Most that a join file carries."""
_BACKDATED: Final = dt.timedelta(hours=1)
"""So that a site whose clock is a little behind accepts a fresh certificate."""
_OTHER_NAME: Final = "subjectAltName"
"""In the library's word on a certificate for other names."""


def create_authority(certificate: Path, key: Path, *, name: str, now: dt.datetime) -> None:
    """Make a federation's certificate authority; it signs server certificates and nothing else.

    Raises:
        ProvisioningError: There is a key file already.

    """
    private = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Darkroom {name}"[:64])])
    built = (
        _builder(subject, subject, private.public_key(), now=now, days=AUTHORITY_DAYS)
        # length 0: whoever gets the server key cannot issue further authorities
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA384())
    )
    _write_key(key, private)
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))


def issue_server_certificate(
    certificate: Path,
    key: Path,
    *,
    authority: Path,
    authority_key: Path,
    hosts: Sequence[str],
    now: dt.datetime,
) -> None:
    """Make a certificate for the coordinator's names and addresses; the key file is made if it is missing.

    Raises:
        ProvisioningError: No host, an authority that cannot be read, or a key that does not belong to it.

    """
    if not hosts:
        raise ProvisioningError("a server certificate needs a host name or address that sites connect to")
    issuer = read_certificate(authority.read_bytes(), source=str(authority))
    signer = _read_key(authority_key)
    if signer.public_key() != issuer.public_key():
        raise ProvisioningError(f"{authority_key} is not the key of {authority}")
    private = _read_key(key) if key.exists() else ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    built = (
        _builder(subject, issuer.subject, private.public_key(), now=now, days=SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    if not key.exists():
        _write_key(key, private)
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))


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
    private = _load_key(key)
    served = _certificates(chain, source="server certificate")[0]
    if private.public_key() != served.public_key():
        raise ProvisioningError(f"{key}: is not the key of the server certificate")


def create_picture_key(key: Path, *, institution: str, now: dt.datetime) -> tuple[bytes, bytes]:
    """Make the key with which an institution signs pictures; its certificate chain and the authority alone, in PEM.

    C2PA takes no certificate that signed itself, so an authority is made that issues this one certificate; its key is
    thrown away.

    Raises:
        ProvisioningError: There is a key file already, or a name that no certificate can hold.

    """
    signer, private = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    authority, subject = (_organisation(institution, what) for what in ("authority for pictures", "pictures"))
    issuer = (
        _builder(authority, authority, signer.public_key(), now=now, days=PICTURE_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    built = (
        _builder(subject, authority, private.public_key(), now=now, days=PICTURE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_key(key, private)
    chain = [one.public_bytes(serialization.Encoding.PEM) for one in (built, issuer)]
    return b"".join(chain), chain[1]


def create_node_key(path: Path) -> str:
    """Make Flower's key of a SuperNode, in OpenSSH form as ``ssh-keygen -t ecdsa -b 384``; the public line.

    Raises:
        ProvisioningError: There is a key file already.

    """
    private = ec.generate_private_key(ec.SECP384R1())
    _write_key(path, private, form=serialization.PrivateFormat.OpenSSH)
    return _public_line(private)


def read_node_key(path: Path) -> str:
    """The public line of a SuperNode's key file.

    Raises:
        ProvisioningError: No P-384 key in OpenSSH form.

    """
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ProvisioningError(f"{path}: wanted a SuperNode key in OpenSSH form, without passphrase") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ProvisioningError(f"{path}: wanted an ECDSA key")
    line = _public_line(private)
    check_node_key(line)
    return line


def check_node_key(line: str) -> None:
    """Refuse a public line that Flower would not take, or that a shell or file could read otherwise.

    Raises:
        ProvisioningError: Not exactly one ECDSA P-384 public key without comment.

    """
    wanted = "wanted one SuperNode public key, as: ecdsa-sha2-nistp384 AAAA…"
    try:
        public = serialization.load_ssh_public_key(line.encode("ascii"))
    except (ValueError, UnicodeEncodeError, UnsupportedAlgorithm) as error:
        raise ProvisioningError(wanted) from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
        raise ProvisioningError(wanted)
    encoded = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    if encoded.decode() != line:  # a comment or a second line would not be covered by what people compare
        raise ProvisioningError(f"{wanted}, and nothing after it")


def node_key_pem(line: str) -> bytes:
    """The same public key in the form in which Flower keeps it.

    Raises:
        ProvisioningError: Not a SuperNode's public line.

    """
    check_node_key(line)
    public = serialization.load_ssh_public_key(line.encode())
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_certificate(pem: bytes, *, source: str) -> x509.Certificate:
    """One certificate.

    Raises:
        ProvisioningError: Anything else.

    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ProvisioningError(f"{source}: wanted a certificate in PEM form") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, *, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _organisation(institution: str, what: str) -> x509.Name:
    if not 1 <= len(institution) <= 64 or not institution.isprintable():  # X.520's bound
        raise ProvisioningError(f"wanted an institution's name of 1 to 64 printable characters, got {institution!r}")
    name = {NameOID.ORGANIZATION_NAME: institution, NameOID.COMMON_NAME: f"Darkroom {what}"}
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in name.items()])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # no address, so a name
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ProvisioningError(f"{host!r} is neither an address nor a host name in ASCII") from error


def _public_line(private: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.OpenSSH
    return private.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()


def _load_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProvisioningError(f"{path}: wanted a private key in PEM form, without passphrase") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ProvisioningError(f"{path}: wanted an ECDSA key")
    return key


def _write_key(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    try:
        write_new(path, content)
    except FileExistsError as error:
        raise ProvisioningError(f"{path}: exists; a key is not overwritten") from error


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
