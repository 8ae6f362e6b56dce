"""``ingest.toml``: what an institution lets into its vault, and what is done to it first.

Every key has a default; ``darkroom-client ingest-rules`` prints the file with its comments. It names lists, which are
read here too; what is on a list of who opted out, only :mod:`client.intake.subjects` knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from common.config import Config, parse_config, read_toml
from common.crypto.primitives import Label, digest
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

Switch: TypeAlias = Literal["keep", "refuse"]
PathText = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*\Z", description="a file's path, or nothing")]

_MAX_LIST_BYTES: Final = 64 << 20
_LINE: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](\S|\S.*\S)")
RULES_TOML: Final = """\
# What may enter the vault, and what is done to it first. Every key may be left out; these are the defaults.

[files]
# Larger files and pictures are refused before they are decoded.
max_file_mib = 256
max_megapixels = 80
# Pixels of the shorter side.
min_side = 32
# The longer side is brought down to this many pixels; 0: never.
max_side = 2048
# GIF, WebP, TIFF or PNG with several frames: "refuse", or keep the "first".
animated = "refuse"
# Files that the metadata does not name: "refuse" or "keep".
unlisted = "refuse"
# Seconds after which the decoding of one file is given up.
seconds = 60

[subjects]
# Who is shown where the metadata does not say: "file" (each file its own subject), "folder" (the top folder's name),
# "refuse" (such files are refused), or "ask": as "file", but where others name theirs, nothing is taken until you say.
# A subject is what the privacy guarantee protects: name people whenever one of them has several pictures.
default = "ask"
# Share of subjects (not of pictures) held out from training, to audit one's own exposure with. None ever changes sides.
holdout = 0.15
# A file with one entry a line: subject ids (or PatientIDs), or SHA-256 of files; of a table, the columns that its first
# line names, or all. Letter case, blanks, hyphens and padding zeros make no difference. "" for none.
opt_out = ""
# "required": only rows with consent = true, or with a date that has not passed. Whatever this says, a row whose consent
# is anything else, or empty, is refused.
consent = "optional"

[pixels]
# Pictures in which text was found: "refuse" or "keep". The detector misses text: look at the contact sheet.
text = "refuse"
# A file with the SHA-256 and name of each file that a person has looked at and lets in although text was found, one a
# line as sha256sum prints; a dry run says the lines. "" for none.
looked_at = ""
# "blur" covers the faces that a detector finds (extra "faces"); "keep" leaves them.
faces = "keep"
# Nearly equal pictures: "drop" or "keep". Equal ones are always dropped.
near_duplicates = "drop"
# Two pictures are nearly equal if their perceptual hashes differ in at most so many of 64 bits, and their thumbnails,
# once brightness and contrast are matched, by at most this share; pictures of one subject, such as neighbouring slices
# of a scan, by at most the second; and their colours by at most the third.
near_distance = 6
near_difference = 0.01
same_subject_difference = 0.001
near_colour = 0.03

[captions]
max_characters = 1000
# A file with one name a line, to be taken out of captions. "" for none.
names = ""
# Microsoft Presidio on top of the built-in rules: "off", or the language of its model, e.g. "en" (extra "captions").
presidio = "off"

[dicom]
# Objects with several frames: "keep" each frame as a picture of the subject, or "refuse".
frames = "keep"
max_frames = 64
# "coded": modality, body part, laterality and view make a caption where no other is given. "none": no caption.
caption = "coded"
"""


class FileRules(Config, frozen=True, kw_only=True):
    """Which files are read."""

    max_file_mib: Annotated[int, Meta(ge=1, le=4096)] = 256
    max_megapixels: Annotated[int, Meta(ge=1, le=400)] = 80
    min_side: Annotated[int, Meta(ge=1, le=4096)] = 32
    max_side: Annotated[int, Meta(ge=0, le=16384)] = 2048
    animated: Literal["refuse", "first"] = "refuse"
    unlisted: Switch = "refuse"
    seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0

    @property
    def max_pixels(self) -> int:
        """Of one picture or frame."""
        return self.max_megapixels * 1_000_000


class SubjectRules(Config, frozen=True, kw_only=True):
    """Who is shown, and who is left out."""

    default: Literal["ask", "file", "folder", "refuse"] = "ask"
    holdout: Annotated[float, Meta(ge=0, le=0.5)] = 0.15
    opt_out: PathText = ""
    consent: Literal["optional", "required"] = "optional"


class PixelRules(Config, frozen=True, kw_only=True):
    """What may be seen in a picture."""

    text: Switch = "refuse"
    looked_at: PathText = ""
    faces: Literal["keep", "blur"] = "keep"
    near_duplicates: Literal["drop", "keep"] = "drop"
    near_distance: Annotated[int, Meta(ge=0, le=16)] = 6
    near_difference: Annotated[float, Meta(ge=0, le=1)] = 0.01
    same_subject_difference: Annotated[float, Meta(ge=0, le=1)] = 0.001
    near_colour: Annotated[float, Meta(ge=0, le=1)] = 0.03


class CaptionRules(Config, frozen=True, kw_only=True):
    """What may be said in a caption."""

    max_characters: Annotated[int, Meta(ge=16, le=4000)] = 1000
    names: PathText = ""
    presidio: Annotated[
        str, Meta(pattern=r"^(off|[a-z]{2})\Z", description='"off", or two small letters for a language')
    ] = "off"


class DicomRules(Config, frozen=True, kw_only=True):
    """How DICOM objects become pictures."""

    frames: Switch = "keep"
    max_frames: Annotated[int, Meta(ge=1, le=1024)] = 64
    caption: Literal["coded", "none"] = "coded"


class IntakeRules(Config, frozen=True, kw_only=True):
    """The whole file."""

    files: FileRules = FileRules()
    subjects: SubjectRules = SubjectRules()
    pixels: PixelRules = PixelRules()
    captions: CaptionRules = CaptionRules()
    dicom: DicomRules = DicomRules()

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if 0 < self.files.max_side < self.files.min_side:
            yield f"files.max_side: wanted 0 or at least min_side = {self.files.min_side}; got {self.files.max_side}"

    def digest(self) -> bytes:
        """32 bytes that stand for these rules in a receipt; not for the lists that they name."""
        return digest(Label.INTAKE_RULES, msgspec.json.encode(self, order="sorted"))


def read_rules(path: Path) -> IntakeRules:
    """Read the file; the lists that it names are beside it.

    Raises:
        ConfigError: Missing or not TOML.
        ConfigErrors: Every fault in it.

    """
    rules = parse_config(read_toml(path), IntakeRules, source=str(path))
    folder, replace = path.absolute().parent, msgspec.structs.replace
    return replace(
        rules,
        subjects=replace(rules.subjects, opt_out=_beside(folder, rules.subjects.opt_out)),
        pixels=replace(rules.pixels, looked_at=_beside(folder, rules.pixels.looked_at)),
        captions=replace(rules.captions, names=_beside(folder, rules.captions.names)),
    )


def _beside(folder: Path, text: str) -> str:
    return str(folder / Path(text).expanduser()) if text else ""


def read_list(path: Path) -> tuple[str, ...]:
    """Entries of a text file, one a line; blank lines and those that begin with ``#`` do not count.

    Raises:
        ConfigError: Missing, larger than 64 MiB, or not UTF-8.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_LIST_BYTES + 1)
        if len(data) > _MAX_LIST_BYTES:
            raise ConfigError(f"{path}: wanted a list of at most {_MAX_LIST_BYTES >> 20} MiB")
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f'{path}: cannot be read ({error.strerror}); mend the path or set it to ""') from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))


@dataclass(frozen=True, slots=True)
class LookedAt:
    """Files in which text was found, and which a person has looked at and lets in.

    A line is one of ``sha256sum``: 64 hexadecimal digits, two blanks (or a blank and an asterisk), and the name below
    the folder. Name and content must both fit, so that a file which was changed, or another one under the same name, is
    asked for again.
    """

    files: frozenset[tuple[str, bytes]] = field(default=frozenset(), repr=False)

    @classmethod
    def read(cls, path: Path) -> LookedAt:
        """One file a line; blank lines and those that begin with ``#`` do not count.

        Raises:
            ConfigError: Missing, not UTF-8, or a line of another form.

        """
        found = []
        for entry in read_list(path):
            match = _LINE.fullmatch(entry)
            if match is None:
                raise ConfigError(
                    f"{path}: {entry[:100]!r}: wanted a file's SHA-256, two blanks and its name, as sha256sum prints; "
                    "a dry run says the line for each picture with text"
                )
            found.append((match[2].removeprefix("./"), bytes.fromhex(match[1])))
        return cls(frozenset(found))

    def covers(self, name: str, file_digest: bytes) -> bool:
        """Whether this very file was looked at."""
        return (name, file_digest) in self.files

    def way_in(self, name: str, file_digest: bytes) -> str:
        """What to do about a picture in which text was found."""
        line = f"{file_digest.hex()}  {name}"
        if not name.isprintable() or _LINE.fullmatch(line) is None:
            return "look at it; to let it in, give it a name that prints"
        asked = "it has changed since: look again" if any(each == name for each, _ in self.files) else "look at it"
        return f"{asked}; to let it in, add this line to the list that pixels.looked_at names: {line}"
