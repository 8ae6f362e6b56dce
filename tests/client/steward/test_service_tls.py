"""The second door: TLS with certificates on both sides, and the token still."""

from __future__ import annotations

import datetime as dt
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.site.settings import TcpConfig
from client.steward.service import StewardService, serve
from client.steward.socket import SocketPlace, held
from common.errors import StewardUnavailable
from common.wire.steward_link import ClientCertificate, StewardAddress, StewardLink
from tests.client.sockets import INTERNAL, NOT_ALLOWED, TOKEN, WRONG, Counting, Noted, raw_call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.crypto.primitives import Secret

NOW = dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and the folder that it writes to."""

    folder: Path
    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        made = cls(folder, named(name), ec.generate_private_key(ec.SECP256R1()))
        made.write(f"{name}.crt", made.certificate(made.name, made.key, is_authority=True))
        return made

    def issue(self, name: str, *, old: bool = False) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        self.write(f"{name}.crt", self.certificate(named(name), key, is_authority=False, old=old))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / f"{name}.key").write_bytes(private)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool, old: bool = False
    ) -> x509.Certificate:
        days = -1 if old else 2
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=3))
            .not_valid_after(NOW + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def write(self, name: str, certificate: x509.Certificate) -> None:
        (self.folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Door:
    port: int
    site: Authority
    steward: Counting

    def link(self, certificate: tuple[Path, Path], token: Secret = TOKEN, authority: str = "site") -> StewardLink:
        tls = ClientCertificate(
            authority=self.site.folder / f"{authority}.crt", certificate=certificate[0], key=certificate[1]
        )
        address = StewardAddress(target=f"127.0.0.1:{self.port}", token=token, tls=tls)
        return StewardLink(address=address, seconds=10.0)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    site, steward = Authority.make(tmp_path, "site"), Counting(lambda request: b"reply to " + request)
    certificate, key = site.issue("steward")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listener = TcpConfig(
        address=f"127.0.0.1:{port}", certificate=certificate, key=key, client_authority=tmp_path / "site.crt"
    )
    service = StewardService(steward=steward, token=TOKEN, turned_away=Noted().note)
    place = SocketPlace(path=tmp_path / "run" / "s.sock")
    with held(place):
        serving = serve(service, place, listener)
        yield Door(port, site, steward)
        serving.stop(grace=1.0)


def test_both_certificates_and_the_token_open_it(door: Door) -> None:
    supernode = door.site.issue("supernode")
    assert door.link(supernode).answer(b"x") == b"reply to x"
    assert door.link(supernode).health().serving
    assert door.link(supernode, WRONG).answer(b"x") == NOT_ALLOWED
    assert door.steward.asked == [b"x"]


def test_a_certificate_of_somebody_else_or_an_old_one_opens_nothing(door: Door, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority.make(tmp_path / "other", "site")  # calls itself the same
    for certificate in (stranger.issue("supernode"), door.site.issue("expired", old=True)):
        assert door.link(certificate).answer(b"x") == INTERNAL
    assert door.steward.asked == []


def test_a_caller_without_a_certificate_or_without_tls_opens_nothing(door: Door) -> None:

    target = f"127.0.0.1:{door.port}"
    only_authority = grpc.ssl_channel_credentials((door.site.folder / "site.crt").read_bytes())
    for channel in (grpc.insecure_channel(target), grpc.secure_channel(target, only_authority)):
        with channel:
            assert raw_call(channel, [b"x"])[0] == grpc.StatusCode.UNAVAILABLE
    assert door.steward.asked == []


def test_a_shim_does_not_speak_to_a_steward_that_it_does_not_know(door: Door) -> None:
    Authority.make(door.site.folder, "impostor")
    supernode = door.site.issue("supernode")
    assert door.link(supernode, authority="impostor").answer(b"secret") == INTERNAL
    with pytest.raises(StewardUnavailable):
        door.link(supernode, authority="impostor").health()
    assert door.steward.asked == []
