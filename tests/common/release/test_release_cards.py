"""Cards that would have people read another ε than the one that holds, by the way in which they would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from client.operations.countersigning import countersign, examine
from common.errors import ConfigErrors
from common.manifest.manifest import open_manifest
from common.release.card_facts import CardFacts, DataCategory, word_fault
from common.release.check import verify_release
from common.release.model_card import OWN_WORDS, model_card
from common.release.statement import ReleaseError
from common.release.words import privacy_section
from server.release.card_facts import read_facts, stated_facts
from tests.simulations.released import FinishedRun, copied, finished_run, restated
from tests.simulations.vault_sites import NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from common.release.folder import ReleaseFolder

FALSE: Final = "Protected is one picture, with ε = 0.01 against everybody."
HIDING: Final = {
    # what is hidden is the true section, what is seen says 0.01
    "html comment": ("<!--\n", "\n-->\n" + FALSE),
    "hidden div": ("<div hidden>\n\n", "\n\n</div>\n\n" + FALSE),
    "style": ('<div style="display:none">\n\n', "\n\n</div>\n\n" + FALSE),
    "white on white": ('<span style="color:#fff;font-size:1px">\n\n', "\n\n</span>\n\n" + FALSE),
    "details": ("<details><summary>Legal notes</summary>\n\n", "\n\n</details>\n\n" + FALSE),
    "template": ("<template>\n\n", "\n\n</template>\n\n" + FALSE),
    "textarea": ("<textarea hidden>\n", "\n</textarea>\n\n" + FALSE),
    "unclosed comment after": ("", "\n\n" + FALSE + "\n\n<!--"),
    "script": ("", '\n\n<script>document.body.innerText = "ε = 0.01"</script>'),
    "svg onload": ("", "\n\n<svg onload=\"document.body.innerText='ε = 0.01'\">"),
    "processing instruction": ("<?\n", "\n?>\n" + FALSE),
    "code fence": (FALSE + "\n\n```\n", "\n```"),
    "code fence of a language": ("```mermaid\n", "\n```\n" + FALSE),
    "indented code": (FALSE + "\n\n    ", ""),
    "quotation": (FALSE + "\n\nSuperseded:\n\n> ", ""),
    "strike": ("~~", "~~\n\n" + FALSE),
    "footnote": ("ε = 0.01[^1]\n\n[^1]: ", ""),
    "link reference definition": ('[privacy]: <> "', '"\n\n' + FALSE),
    "picture's text": ("![", "](badge.svg)\n\n" + FALSE),
    "formula": ("$$\\phantom{", "}$$\n\n" + FALSE),
    "table's cell": ("| old | new |\n| --- | --- |\n| ", " | " + FALSE + " |"),
}
"""Before and after the true section on privacy."""
CHARACTERS: Final = {
    "escape sequence": ("| ε |", "| ε |\x1b[8m"),
    "cursor up": ("Smaller is better.", "Smaller is better.\x1b[3A\x1b[2K"),
    "backspaces": ("Smaller is better.", "Smaller is better.\b\b\b\b\b\b\b"),
    "carriage return": ("Smaller is better.", "Smaller is better.\rε = 0.01"),
    "right-to-left override": ("| ε |", "| \u202eε |"),
    "isolate": ("| ε |", "| \u2066ε\u2069 |"),
    "zero width": ("## Privacy", "## Priv\u200bacy"),
    "tag characters": ("## Privacy", "## Privacy\U000e0045\U000e0050"),
    "byte order mark": ("## Privacy", "\ufeff## Privacy"),
    "soft hyphen": ("## Privacy", "## Pri\u00advacy"),
    "look-alike": ("## Privacy", "## Рrivacy"),
    "no-break space": ("## Privacy", "##\u00a0Privacy"),
    "line separator": ("Smaller is better.", "Smaller is better.\u2028ε = 0.01"),
    "private use": ("Smaller is better.", "Smaller is better.\ue000"),
    "line ends": ("\n", "\r\n"),
    "no text": ("Smaller is better.", "Smaller is better.\udcff"),
}
PLACES: Final = {
    "in the front matter": lambda card, section: f"---\nprivacy: |\n{indented(section)}\n{without(card, section)[4:]}",
    "before the front matter": lambda card, _section: f"{FALSE}\n\n{card}",
    "a second front matter": lambda card, _section: card.replace("\n---\n", "\n---\n---\nepsilon: 0.01\n---\n", 1),
    "a field of the front matter": lambda card, _section: card.replace("tags:", 'description: "ε = 0.01"\ntags:', 1),
    "another heading": lambda card, section: card.replace(section, f"{FALSE}\n\n## More\n\n{section}"),
    "a second section": lambda card, section: card.replace(section, f"{section}\n\n## Privacy\n\n{FALSE}"),
    "the section twice": lambda card, section: card.replace(section, f"{section}\n\n## Privacy\n\n{section}"),
    "at the end": lambda card, _section: card + f"\n## Privacy\n\n{FALSE}\n",
    "after a thousand lines": lambda card, section: card.replace(section, FALSE) + "\n" * 1000 + section,
    "in the own words": lambda card, section: without(card, section).replace("kinds of data", section),
    "a setext heading": lambda card, section: card.replace(section, f"{FALSE}\n\nOld\n---\n\n{section}"),
    "another figure": lambda card, _section: card.replace("not been among", "been among"),
    "nothing": lambda _card, _section: "",
    "no last line end": lambda card, _section: card.rstrip("\n"),
}


def indented(section: str) -> str:
    return "\n".join(f"  {line}" for line in section.split("\n"))


def without(card: str, section: str) -> str:
    return card.replace(section, FALSE)


def crafted(kind: str, name: str, card: str, section: str) -> str:
    if kind == "hiding":
        before, after = HIDING[name]
        return card.replace(section, f"{before}{section}{after}")
    if kind == "characters":
        before, after = CHARACTERS[name]
        assert before in card
        return card.replace(before, after, 10**6 if name == "line ends" else 1)
    return str(PLACES[name](card, section))


VECTORS: Final = [
    *(("hiding", name) for name in HIDING),
    *(("characters", name) for name in CHARACTERS),
    *(("places", name) for name in PLACES),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("cards") / "run", rounds=1)


@pytest.fixture(scope="module")
def made(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> ReleaseFolder:
    return run.release(tmp_path_factory.mktemp("made") / "release")


def refusal(folder: ReleaseFolder, **given: Any) -> str:
    """What whoever verifies is told."""
    wanted = {"manifest": None, "coordinator": None, "signatures": 0, "base": None, **given}
    with pytest.raises(ReleaseError) as caught:
        list(verify_release(folder.root, **wanted))
    return str(caught.value)


def check_no_site_signs(run: FinishedRun, folder: ReleaseFolder) -> None:
    site = run.sites.open(NAMES[0])
    with pytest.raises(ReleaseError):
        countersign(folder, site, examine(folder, site))
    assert folder.signature_names() == []


@pytest.mark.parametrize(("kind", "name"), VECTORS, ids=[f"{kind}: {name}" for kind, name in VECTORS])
def test_a_card_that_is_not_the_statements_own_is_refused_by_everybody(
    run: FinishedRun, made: ReleaseFolder, tmp_path: Path, kind: str, name: str
) -> None:
    folder = copied(made, tmp_path / "release")
    card = made.root / "README.md"
    changed = crafted(kind, name, card.read_text(), privacy_section(made.release()))
    assert changed != card.read_text()
    (folder.root / "README.md").write_bytes(changed.encode(errors="surrogateescape"))
    restated(folder)  # the coordinator signs it: every digest and signature is right
    told = refusal(folder)
    assert "README.md: is not the card that release.json gives" in told
    assert told.replace("\n", "").isprintable()
    check_no_site_signs(run, folder)


def test_the_true_card_is_taken_by_everybody(run: FinishedRun, made: ReleaseFolder) -> None:
    assert list(verify_release(made.root, manifest=None, coordinator=None, signatures=0, base=None))
    assert examine(made, run.sites.open(NAMES[0])).faults == ()


# --- the coordinator's own words

WORDS: Final = {
    "tag": "Good <b>noise</b>",
    "script": "<script>alert(1)</script>",
    "entity": "trained at &epsilon; = 0.01",
    "link": "see [privacy](https://example.org)",
    "picture": "![ε = 0.01](https://example.org/x.png)",
    "code": "`rm -rf`",
    "table": "a | b",
    "formula": "$\\epsilon$",
    "backslash": "a \\ b",
    "strike": "~~not~~ private",
    "attribute": "text {hidden}",
    "escape sequence": "noise \x1b[2J",
    "new line": "noise\n\n## Privacy\n\nε = 0.01",
    "carriage return": "noise\rε",
    "next line": "noise\x85more",
    "line separator": "noise\u2028more",
    "right-to-left override": "noise \u202e10.0 = ε",
    "isolate": "noise \u2067more\u2069",
    "zero width space": "no\u200bise",
    "zero width joiner": "no\u200dise",
    "byte order mark": "\ufeffnoise",
    "soft hyphen": "noi\u00adse",
    "tag characters": "noise\U000e0041",
    "variation selector": "noise\ufe0e",
    "hangul filler": "noise\u3164\u3164",
    "braille blank": "noise\u2800",
    "no-break space": "noise\u00a0more",
    "ideographic space": "noise\u3000more",
    "private use": "noise\ue000",
    "unassigned": "noise\u0378",
    "object replacement": "noise\ufffc",
    "decomposed": "noise\u0308e\u0301",
    "piled accents": "n" + "\u0335\u0335\u0335\u0335\u0335" + "oise",
    "mixed alphabets": "nоise",
    "greek among latin": "nοise",
    "epsilon": "ε = 0.01",
    "lunate": "private with ϵ of 0.01",
    "mathematical": "with 𝜀 0.01",
    "accented": "έ = 0.01",
    "in words": "an Epsilon of 0.01",
    "wide": "ＥＰＳＩＬＯＮ 0.01",
    "short": "eps = 0.01",
    "short, with a word between": "an eps of 0.01",
    "short, as an abbreviation": "eps. 0.01",
    "in pieces": "e p s i l o n = 0.01",
    "hyphenated": "ep-silon 0.01",
    "no blank": "ε0.01",
    "open e": "ɛ = 0.01",
    "ukrainian ie": "є ≤ 0.01",
    "element of": "∈ 0.01",
}
SOUND: Final = (
    "Retina photographs, 512 × 512 pixels; C# and R+D, 30 % of them from Zürich (Hospital A).",
    "someone@example.org, https://example.org/a_b/c.html?x=1#y",
    "Слайды ткани. Це є зображення.",
    "眼底照片（来自三家医院）",
    "صور شبكية العين",
    "ภาพจอประสาทตา",
    "Φωτογραφίες, ελληνικά",
    "5 μm sections; EPS files; −1 … +1; “quoted”",
    "*emphasis* and _emphasis_, 1) one; - two; # three; + four; = five",
)


def in_field(text: str, field: str) -> CardFacts:
    if field == "data":
        return CardFacts(data=(DataCategory(category="noise", source=text),))
    return CardFacts(**{field: text if field in {"summary", "title", "contact"} else (text,)})


@pytest.mark.parametrize("name", WORDS)
def test_words_that_a_card_may_not_have_are_refused_by_everybody(
    run: FinishedRun, made: ReleaseFolder, tmp_path: Path, name: str
) -> None:
    text = WORDS[name]
    field = ("summary", "title", "contact", "intended", "not_intended", "limits", "data")[list(WORDS).index(name) % 7]
    facts = in_field(text, field)
    with pytest.raises(ConfigErrors, match=field):
        run.release(tmp_path / "refused", facts=facts)
    path = tmp_path / "facts.toml"
    path.write_text(f"summary = {msgspec.json.encode(text).decode()}\n", encoding="utf-8")
    with pytest.raises(ConfigErrors):
        read_facts(path)
    # a coordinator with a program of its own signs it, with the card that follows
    folder = copied(made, tmp_path / "release")
    release = msgspec.structs.replace(made.release(), card=facts)
    (folder.root / "README.md").write_bytes(model_card(release, NAMES).encode())
    restated(folder, card=facts)
    assert "release.json: " in refusal(folder)
    check_no_site_signs(run, folder)


@pytest.mark.parametrize("text", SOUND)
def test_plain_words_of_any_language_stand_in_a_card(text: str) -> None:
    assert word_fault(text) is None


def test_own_words_stand_last_and_the_site_is_shown_them(run: FinishedRun, tmp_path: Path) -> None:
    facts = CardFacts(summary=SOUND[0], intended=SOUND[1:4], limits=SOUND[4:], licence="cc0-1.0")
    folder = run.release(tmp_path / "release", facts=facts)
    checked, own = (folder.root / "README.md").read_text().split(f"\n{OWN_WORDS}\n")
    assert "Nobody has checked what stands from here to the end" in own
    assert all(text in own and text not in checked for text in SOUND)
    assert privacy_section(folder.release()) in checked
    found = examine(folder, run.sites.open(NAMES[0]))
    assert found.faults == ()
    shown = "\n".join(found.lines())
    assert all(text in shown for text in SOUND)


@pytest.mark.parametrize("roster", ["public", "private"])
def test_no_institution_is_named_that_may_not_be(run: FinishedRun, tmp_path: Path, roster: str) -> None:
    folder = run.release(tmp_path / "release", roster=roster)
    names = NAMES if roster == "public" else ()
    stranger = "famous-hospital" if roster == "public" else NAMES[0]
    facts = CardFacts(data=(DataCategory(category="noise", institution=stranger),))
    card = model_card(msgspec.structs.replace(folder.release(), card=facts), names)
    (folder.root / "README.md").write_bytes(card.encode())
    restated(folder, card=facts)
    given = tmp_path / "manifest"
    given.write_bytes(run.left.signed)
    assert f"card.data: names {stranger}" in refusal(folder, manifest=given)
    check_no_site_signs(run, folder)


def test_a_runs_title_that_no_card_may_have_is_told_and_another_can_be_given(run: FinishedRun) -> None:
    manifest, _ = open_manifest(run.left.signed)
    titled = msgspec.structs.replace(manifest, config=msgspec.structs.replace(manifest.config, title="a\n# ε = 0.01"))
    with pytest.raises(ConfigErrors, match="give another one as title"):
        stated_facts(CardFacts(), titled, "private")
    assert stated_facts(CardFacts(title="Noise"), titled, "private").title == "Noise"
    named = msgspec.structs.replace(manifest, config=msgspec.structs.replace(manifest.config, title="Slides"))
    assert stated_facts(CardFacts(), named, "private").title == "Slides"


# --- an independent reader: what is accepted is text for CommonMark, and nothing else

READER: Final = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
EMPHASIS: Final = {"text", "em_open", "em_close", "strong_open", "strong_close"}


def blocks(line: str) -> list[str]:
    return [token.type for token in READER.parse(f"* one\n* summary: {line}\n* limit: two\n")]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=0x7E), min_size=1, max_size=60) | st.text(min_size=1, max_size=40))
def test_what_is_accepted_is_read_as_text_in_its_own_item(text: str) -> None:
    if not text.isprintable() or word_fault(text) is not None:
        return
    assert blocks(text) == blocks("word")
    for token in READER.parse(f"* summary: {text}"):
        assert {child.type for child in token.children or ()} <= EMPHASIS
