from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.federation.needle_search import NeedleSearch

if TYPE_CHECKING:
    from pathlib import Path

NEEDLES = st.lists(st.binary(min_size=8, max_size=20), min_size=1, max_size=5)


@given(needles=NEEDLES, before=st.binary(max_size=20), after=st.binary(max_size=20), which=st.integers(0, 4))
def test_every_needle_is_found_wherever_it_lies(needles: list[bytes], before: bytes, after: bytes, which: int) -> None:
    content = before + needles[which % len(needles)] + after
    expected = {needle for needle in needles if needle in content}
    assert set(NeedleSearch(needles).in_bytes(content)) == expected


@given(needles=NEEDLES, content=st.binary(max_size=60))
def test_nothing_else_is_found(needles: list[bytes], content: bytes) -> None:
    assert set(NeedleSearch(needles).in_bytes(content)) == {needle for needle in needles if needle in content}


def test_contents_and_names_of_files_are_searched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "CanaryName.txt").write_bytes(b"..CanaryWord..")
    found = NeedleSearch([b"CanaryName", b"CanaryWord", b"CanaryElse"]).in_folders(tmp_path)
    assert {needle for _, needle in found} == {b"CanaryName", b"CanaryWord"}
