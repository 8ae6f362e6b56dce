"""What the coordinator's listener shows before anybody logs in: its certificate, and what its clock says.

The way there is the SuperNode's: TLS that trusts the join file's authority alone, through the site's proxy if there is
one.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

from common.errors import ProvisioningError
from common.host.preflight import NotAsWanted, Unreachable
from common.provisioning import is_reachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.host.preflight import PreflightLimits

_SECONDS: Final = 15.0
_EXPIRED, _NOT_YET = 10, 9
_SELF_SIGNED: Final = frozenset({18, 19})
_UNKNOWN_ISSUER: Final = frozenset({2, 20, 21})
_OTHER_NAME: Final = frozenset({62, 64})
"""Codes of OpenSSL's X509_verify_cert_error_string."""
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""What OpenSSL makes of plain text; a connection that is cut in the middle has other reasons."""


class CertificateRefused(ProvisioningError):
    """A certificate that no waiting makes right."""


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """One request to the public listener."""

    expires: dt.datetime
    """End of the server certificate."""
    skew: float
    """Seconds that the coordinator's clock is ahead of this one; known to about a second."""


def shake_hands(address: str, authority: str) -> Handshake:
    """Connect as the SuperNode will.

    Args:
        address: ``host:port``.
        authority: PEM of whom to trust.

    Raises:
        Unreachable: No answer, which may pass.
        CertificateRefused: Another certificate than wanted.
        ProvisioningError: No TLS, no Darkroom listener, or an address, authority or
            proxy that cannot be used.

    """
    _check_address(address)
    try:
        with _client(authority) as client:
            before = time.time()
            with client.stream("GET", f"https://{address}/health") as response:
                after = time.time()
                certificate = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
                date = response.headers.get("date")
                status = response.status_code
    except httpx.TransportError as error:
        raise _explained(error, address) from error
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise Unreachable(f"{address}: answers, but its SuperLink does not yet (code {status})")
    if status != httpx.codes.OK or date is None:
        raise ProvisioningError(f"{address}: answered /health with code {status}; is darkroom-server up running there?")
    return Handshake(
        expires=dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), dt.UTC),
        # the header drops the fraction of its second: half a one on average
        skew=_seconds(date, address) + 0.5 - (before + after) / 2,
    )


def _check_address(address: str) -> None:
    """Refuse what no connection can be tried to."""
    if not is_reachable(address):
        raise ProvisioningError(
            f"{address!r}: no address that can be connected to; wanted host:port, such as federation.example.org:443; "
            "ask the coordinator for another join file"
        )


def _client(authority: str) -> httpx.Client:
    try:
        context = ssl.create_default_context(cadata=authority)
    except ssl.SSLError as error:
        raise ProvisioningError(
            "the join file's authority: wanted certificates in PEM form; ask the coordinator for another join file"
        ) from error
    try:
        return httpx.Client(verify=context, timeout=_SECONDS)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # not quoted: it may hold a password
        raise ProvisioningError(
            "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names a proxy that cannot be used; wanted http://host:port"
        ) from error


def _seconds(date: str, address: str) -> float:
    """Since 1970."""
    try:
        told = email.utils.parsedate_to_datetime(date)
        # "-0000" is UTC, too, and not this machine's zone
        return (told if told.tzinfo is not None else told.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise ProvisioningError(f"{address}: answered /health without a date; somebody else answers there") from error


def check_clock(shown: Handshake, limits: PreflightLimits) -> str:
    """How far the clocks are apart.

    Raises:
        NotAsWanted: Farther than the site allows.

    """
    got = f"the coordinator's is {abs(shown.skew):.0f} s {'ahead' if shown.skew > 0 else 'behind'}"
    if abs(shown.skew) > limits.clock_skew_seconds:
        raise NotAsWanted(got)
    return got


def _explained(error: httpx.TransportError, address: str) -> ProvisioningError:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateRefused(f"{address}: {_words(cause)}")
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return ProvisioningError(
                f"{address}: does not speak TLS as wanted ({cause.reason}); is this the right port?"
            )
    return Unreachable(f"{address}: cannot be reached ({str(error) or type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _words(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired by this machine's clock; check the clock, or have the coordinator renew it"
    if code == _NOT_YET:
        return "its certificate is not valid yet by this machine's clock; check the clock"
    if code in _SELF_SIGNED:
        return "shows a self-signed certificate; somebody else answers there, or a proxy opens the connection"
    if code in _UNKNOWN_ISSUER:
        return "its certificate comes from another authority than the join file's; a proxy that opens TLS does this"
    if code in _OTHER_NAME:
        return f"its certificate is for another name ({error.verify_message})"
    return f"its certificate is refused: {error.verify_message}"
