"""The generated nginx configuration, parsed by nginx's own tooling's parser, decides as the embedded listener does."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import crossplane
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from server.federation.directory import FederationConfig, FederationDirectory
from server.flower.listener import is_allowed
from server.flower.nginx import nginx_configuration

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = FederationConfig(name="Test", address="darkroom.example:8443", maximum_body_mib=48)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> FederationDirectory:
    made = FederationDirectory(tmp_path_factory.mktemp("f") / "federation")
    made.create(CONFIG, now=dt.datetime.now(dt.UTC))
    return made


@pytest.fixture(scope="module")
def blocks(directory: FederationDirectory, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("nginx") / "nginx.conf"
    (path.parent / "darkroom.conf").write_text(nginx_configuration(directory, CONFIG))
    path.write_text("events {}\nhttp {\n    include darkroom.conf;\n}\n")
    # it knows every directive of nginx, but takes the lines inside of a map for directives, too
    unknown = crossplane.parse(str(path), combine=True, strict=True)["errors"]
    lines = (path.parent / "darkroom.conf").read_text().splitlines()
    assert {lines[each["line"] - 1].split()[0] for each in unknown} == {"default", '"~^POST', '"~^GET'}
    payload = crossplane.parse(str(path), combine=True)
    assert payload["errors"] == []
    (http,) = [each for each in payload["config"][0]["parsed"] if each["directive"] == "http"]
    found: list[dict[str, Any]] = http["block"]
    return found


def block(blocks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [each for each in blocks if each["directive"] == name]
    return found


def values(inside: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {each["directive"]: each["args"] for each in inside}


def passed_by(blocks: list[dict[str, Any]], method: str, request_uri: str) -> str:
    """What nginx's map gives: the first pattern that matches, in its order, or the default."""
    table = block(blocks, "map")
    assert table["args"] == ["$request_method $request_uri", "$darkroom_passed"]
    for row in table["block"]:
        if not row["directive"].startswith("~"):
            assert (row["directive"], row["args"]) == ("default", [""])
            continue
        pattern = row["directive"][1:].replace("(?<", "(?P<").replace("\\z", "\\Z")  # PCRE's spelling, and Python's
        if found := re.search(pattern, f"{method} {request_uri}"):
            return found[row["args"][0].removeprefix("$")]
    return ""


PATHS = [
    "/v1/fleet/pull-messages",
    "/v1/fleet/get-run?a=1",
    "/health",
    "/health?x",
    "/v1/fleet/",
    "/v1/fleet/a/b",
    "/v1/fleet/a-",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/control/../fleet/get-run",
    "/v1/control/list-runs",
    "/V1/fleet/get-run",
    "//v1/fleet/get-run",
    "/v1/fleet/get-run/",
    "/v1/fleet/get-run\n",
    "/v1/fleet/get-run;x",
    "/v1/fleet/get-run#x",
    "/v1/fleet/get%2drun",
    "/health/",
    "/openapi.json",
    "/",
    "",
    "?/v1/fleet/get-run",
    "/x POST /v1/fleet/get-run",
]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "post"])
@pytest.mark.parametrize("path", PATHS)
def test_it_passes_what_the_embedded_listener_passes(blocks: list[dict[str, Any]], method: str, path: str) -> None:
    bare = path.partition("?")[0]  # uvicorn hands the listener path and query apart
    expected = bare if is_allowed(method, bare.encode()) else ""
    assert passed_by(blocks, method, path) == expected


@given(path=st.text(alphabet="/v1fleta-h?%.2e\n ", max_size=30), method=st.sampled_from(["GET", "POST"]))
def test_it_passes_no_path_that_the_listener_does_not(blocks: list[dict[str, Any]], method: str, path: str) -> None:
    for tried in (path, f"/v1/fleet/{path}", f"/health{path}"):
        bare = tried.partition("?")[0]
        assert (passed_by(blocks, method, tried) != "") is is_allowed(method, bare.encode())


def test_all_else_is_not_found_and_what_passes_is_sent_without_its_query(blocks: list[dict[str, Any]]) -> None:
    server = block(blocks, "server")["block"]
    locations = [each for each in server if each["directive"] == "location"]
    assert [each["args"] for each in locations] == [["/"]]
    first, *rest = locations[0]["block"]
    assert (first["directive"], first["args"]) == ("if", ["$darkroom_passed", "=", ""])
    assert values(first["block"]) == {"return": ["404"]}
    assert values(rest)["proxy_pass"] == ["https://darkroom_superlink$darkroom_passed"]


def test_both_legs_are_tls_and_bodies_have_the_listeners_cap(
    blocks: list[dict[str, Any]], directory: FederationDirectory
) -> None:
    server = values(block(blocks, "server")["block"])
    assert server["listen"] == ["0.0.0.0:8443", "ssl"]
    assert server["server_name"] == ["darkroom.example"]
    assert server["client_max_body_size"] == ["48m"]
    assert server["ssl_protocols"] == ["TLSv1.2", "TLSv1.3"]
    assert server["ssl_certificate"] == [str(directory.file("server.crt"))]
    behind = next(each for each in block(blocks, "server")["block"] if each["directive"] == "location")
    settings = values(behind["block"])
    assert settings["proxy_ssl_verify"] == ["on"]
    assert settings["proxy_ssl_trusted_certificate"] == [str(directory.file("ca.crt"))]
    assert values(block(blocks, "upstream")["block"])["server"] == ["127.0.0.1:18000"]


def test_an_ipv6_address_is_written_in_brackets(directory: FederationDirectory) -> None:
    text = nginx_configuration(directory, msgspec.structs.replace(CONFIG, listen="::1"))
    assert "listen [::1]:8443 ssl;" in text


@pytest.mark.parametrize("name", ["a;b", "a b", "a$b", 'a"b', "a{b", "a#b"])
def test_a_path_that_nginx_reads_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    made = FederationDirectory(tmp_path / name)
    made.create(CONFIG, now=dt.datetime.now(dt.UTC))
    with pytest.raises(ConfigError, match="safely"):
        nginx_configuration(made, CONFIG)


def test_an_ipv6_address_is_named_as_clients_name_it(directory: FederationDirectory) -> None:
    config = msgspec.structs.replace(CONFIG, address="[::1]:8443")
    assert "    server_name [::1];\n" in nginx_configuration(directory, config)
