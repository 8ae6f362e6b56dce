"""What a site is told about a listener that is not as its join file says, each kind in its own words."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from client.connection.handshake import Handshake, check_clock, shake_hands
from common.errors import ProvisioningError
from common.host.preflight import NotAsWanted, PreflightLimits, Unreachable
from tests.client.listeners import DAY, Certificates, certificates, listening

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = PreflightLimits(clock_skew_seconds=30)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("ahead", [-3600.0, -100.0, 0.0, 100.0, 3600.0])
def test_the_clocks_difference_is_known_to_a_second_or_two(good: Certificates, ahead: float) -> None:
    with listening(good, ahead=ahead) as address:
        assert abs(shake_hands(address, good.authority).skew - ahead) < 2


def test_the_certificates_end_is_told(good: Certificates) -> None:
    with listening(good) as address:
        left = shake_hands(address, good.authority).expires - dt.datetime.now(dt.UTC)
    assert 395 <= left.days <= 396


@pytest.mark.parametrize(("skew", "word"), [(31.0, "ahead"), (-31.0, "behind")])
def test_a_clock_beyond_the_allowed_skew_is_refused(skew: float, word: str) -> None:
    shown = Handshake(expires=dt.datetime.now(dt.UTC), skew=skew)
    with pytest.raises(NotAsWanted, match=f"31 s {word}"):
        check_clock(shown, LIMITS)
    check_clock(Handshake(expires=shown.expires, skew=skew * 29 / 31), LIMITS)


@pytest.mark.parametrize(("issued", "words"), [(-400 * DAY, "has expired"), (5 * DAY, "not valid yet")])
def test_a_certificate_out_of_its_time(tmp_path: Path, issued: dt.timedelta, words: str) -> None:
    shown = certificates(tmp_path, issued=issued)
    with listening(shown) as address, pytest.raises(ProvisioningError, match=f"{words}.*check the clock"):
        shake_hands(address, shown.authority)


def test_a_certificate_of_another_authority(good: Certificates, tmp_path: Path) -> None:
    other = certificates(tmp_path)
    with listening(other) as address, pytest.raises(ProvisioningError, match="another authority"):
        shake_hands(address, good.authority)


def test_a_self_signed_certificate(good: Certificates, tmp_path: Path) -> None:
    own = certificates(tmp_path)
    for kind in ("crt", "key"):
        shutil.copy(tmp_path / f"ca.{kind}", tmp_path / f"server.{kind}")
    with listening(own) as address, pytest.raises(ProvisioningError, match="self-signed"):
        shake_hands(address, good.authority)


def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    shown = certificates(tmp_path, host="10.0.0.1")
    with listening(shown) as address, pytest.raises(ProvisioningError, match="for another name"):
        shake_hands(address, shown.authority)


def test_plain_text(good: Certificates) -> None:
    with listening(None) as address, pytest.raises(ProvisioningError, match="does not speak TLS") as told:
        shake_hands(address, good.authority)
    assert not isinstance(told.value, Unreachable)


def test_a_server_that_is_no_darkroom(good: Certificates) -> None:
    with listening(good, status=404) as address, pytest.raises(ProvisioningError, match="code 404"):
        shake_hands(address, good.authority)


def test_a_superlink_that_is_not_up_yet_is_waited_for(good: Certificates) -> None:
    with listening(good, status=502) as address, pytest.raises(Unreachable, match="502"):
        shake_hands(address, good.authority)


def test_a_connection_that_is_cut_during_the_handshake_is_tried_again(good: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(Unreachable):
            shake_hands(f"127.0.0.1:{listener.getsockname()[1]}", good.authority)
        thread.join()


def test_nobody_there_is_another_kind_of_trouble_because_it_may_pass(good: Certificates) -> None:
    with listening(good) as address:
        pass
    with pytest.raises(Unreachable, match="cannot be reached"):
        shake_hands(address, good.authority)


@pytest.mark.parametrize(
    "address",
    [
        *("a..b:443", ".:443", f"{'x' * 64}.example:443", "[::::]:443", "[1.2.3.4]:443", "[]:443", ":443"),
        *("host.example:0", "host.example:65536", "host.example:99999", "host.example", "host.example:443\n"),
    ],
)
def test_an_address_that_cannot_be(good: Certificates, address: str) -> None:
    with pytest.raises(ProvisioningError, match="no address that can be connected to") as told:
        shake_hands(address, good.authority)
    assert not isinstance(told.value, Unreachable)  # it would be tried for ever


@pytest.mark.parametrize(
    "proxy", ["socks5://me:words@proxy:1080", "ftp://me:words@proxy:21", "http://me:words@proxy:x"]
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_that_cannot_be_used(
    good: Certificates, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ProvisioningError, match="names a proxy that cannot be used") as told:
        shake_hands("host.example:443", good.authority)
    assert "words" not in str(told.value)


@pytest.mark.parametrize("more", ["AAAA", "%"])
def test_an_authority_with_something_else_behind_it(good: Certificates, more: str) -> None:
    broken = f"{good.authority}-----BEGIN CERTIFICATE-----\n{more}\n-----END CERTIFICATE-----\n"
    with listening(good) as address, pytest.raises(ProvisioningError, match="authority: wanted certificates"):
        shake_hands(address, broken)


@pytest.mark.parametrize("date", ["today", "Sat, 99 Foo 2030 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -9959"])
def test_a_date_that_is_none(good: Certificates, date: str) -> None:
    with listening(good, date=date) as address, pytest.raises(ProvisioningError, match="without a date"):
        shake_hands(address, good.authority)


def test_a_date_without_a_zone_is_utc(good: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        now = dt.datetime.now(dt.UTC)
        with listening(good, date=f"{now:%a, %d %b %Y %H:%M:%S} -0000") as address:
            assert abs(shake_hands(address, good.authority).skew) < 5
    finally:
        monkeypatch.undo()
        time.tzset()
