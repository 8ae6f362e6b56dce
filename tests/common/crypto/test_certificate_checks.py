"""Certificates that sites would refuse are refused before sites see them; made here by hand, not by our own issuer."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.crypto.certificates import check_server_certificate, check_server_key
from common.errors import ProvisioningError

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2030, 6, 1, tzinfo=dt.UTC)
HOST = "coordinator.example"


class Issuer:
    """An authority of a hospital's own, with any kind of key."""

    def __init__(self, name: str, parent: Issuer | None = None) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = parent or self
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # noqa: FBT003 - its names
        self.certificate = (
            _builder(self.name, signer.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
            .sign(signer.key, hashes.SHA256())
        )

    def serve(self, *names: x509.GeneralName, **dates: dt.datetime) -> tuple[bytes, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
        certificate = (
            _builder(subject, self.name, key.public_key(), **dates)
            .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName(HOST)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return pem(certificate), key


def _builder(subject: x509.Name, issuer: x509.Name, public: Any, **dates: dt.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates.get("begins", NOW - dt.timedelta(days=30)))
        .not_valid_after(dates.get("ends", NOW + dt.timedelta(days=30)))
    )


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


ROOT = Issuer("root")
BETWEEN = Issuer("between", ROOT)


def check(chain: bytes, authority: Issuer = ROOT, host: str = HOST) -> dt.datetime:
    return check_server_certificate(chain, authority=pem(authority.certificate), hosts=[host], now=NOW)


def test_a_chain_over_an_authority_in_between_passes_and_its_end_is_told() -> None:
    served, _ = BETWEEN.serve(ends=NOW + dt.timedelta(days=5))
    assert check(served + pem(BETWEEN.certificate)) == NOW + dt.timedelta(days=5)


def test_the_authoritys_end_counts_too() -> None:
    assert check(ROOT.serve(ends=NOW + dt.timedelta(days=90))[0]) == NOW + dt.timedelta(days=30)


def test_a_chain_with_a_gap_is_refused() -> None:
    with pytest.raises(ProvisioningError, match="not signed by"):
        check(BETWEEN.serve()[0])


def test_another_authority_of_the_same_name_is_refused() -> None:
    with pytest.raises(ProvisioningError, match="not signed by"):
        check(ROOT.serve()[0], Issuer("root"))


@pytest.mark.parametrize("host", ["other.example", "10.0.0.1"])
def test_a_certificate_for_another_host_is_refused_and_its_names_are_told(host: str) -> None:
    with pytest.raises(ProvisioningError, match=rf"is for {HOST}, and sites connect to {host}"):
        check(ROOT.serve()[0], host=host)


def test_addresses_and_wildcards_are_names_as_tls_reads_them() -> None:
    check(ROOT.serve(x509.IPAddress(ipaddress.ip_address("10.0.0.1")))[0], host="10.0.0.1")
    check(ROOT.serve(x509.DNSName("*.example"))[0])


@pytest.mark.parametrize("dates", [{"begins": NOW + dt.timedelta(days=1)}, {"ends": NOW - dt.timedelta(days=1)}])
def test_a_certificate_out_of_its_time_is_refused(dates: dict[str, dt.datetime]) -> None:
    with pytest.raises(ProvisioningError, match="check the clock"):
        check(ROOT.serve(**dates)[0])


@pytest.mark.parametrize("chain", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(chain: bytes) -> None:
    with pytest.raises(ProvisioningError, match="PEM"):
        check(chain)


def test_the_key_is_the_certificates_or_refused(tmp_path: Path) -> None:
    served, key = ROOT.serve()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (tmp_path / "key").write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    (tmp_path / "locked").write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    check_server_key(served, tmp_path / "key")
    with pytest.raises(ProvisioningError, match="not the key"):
        check_server_key(ROOT.serve()[0], tmp_path / "key")
    for name in ("locked", "missing"):
        with pytest.raises(ProvisioningError, match="without passphrase"):
            check_server_key(served, tmp_path / name)


@pytest.mark.parametrize("host", ["a..b", "-", f"{'x' * 64}.example", "a b", "::::", ""])
def test_what_is_no_host_is_told_and_not_thrown(host: str) -> None:
    with pytest.raises(ProvisioningError, match="no name or address"):
        check_server_certificate(ROOT.serve()[0], authority=pem(ROOT.certificate), hosts=[host], now=NOW)
