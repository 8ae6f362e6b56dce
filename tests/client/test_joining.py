"""What a site adds to its environment, and the name under which Flower takes a bundle."""

from __future__ import annotations

import hashlib
import io
import zipfile

import pytest

from client.joining import bundle_file_name, proxy_exceptions
from common.errors import ProvisioningError


def test_a_site_s_own_exceptions_from_the_proxy_stay() -> None:
    found = proxy_exceptions({"NO_PROXY": "intra.example, 10.0.0.0/8", "no_proxy": "localhost"})
    assert found["NO_PROXY"] == "intra.example,10.0.0.0/8,localhost,127.0.0.1"
    assert found["no_proxy"] == found["NO_PROXY"]
    assert proxy_exceptions({})["NO_PROXY"] == "127.0.0.1,localhost"


def bundle(project: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pyproject.toml", project)
    return stream.getvalue()


def test_a_bundle_is_named_by_publisher_app_version_and_digest() -> None:
    content = bundle('[project]\nname="app"\nversion="1.2.0"\n[tool.flwr.app]\npublisher="us"')
    assert bundle_file_name(content) == f"us.app.1-2-0.{hashlib.sha256(content).hexdigest()[:8]}.fab"


def test_a_name_in_a_bundle_leads_to_no_other_folder() -> None:
    content = bundle('[project]\nname="app"\nversion="1"\n[tool.flwr.app]\npublisher="../../us"')
    assert "/" not in bundle_file_name(content)


@pytest.mark.parametrize("content", [b"", b"PK", bundle("= ="), bundle("[project]\nname='a'")])
def test_what_is_no_bundle_is_refused(content: bytes) -> None:
    with pytest.raises(ProvisioningError, match="not an app bundle"):
        bundle_file_name(content)
