"""Decide for each file, in order, whether it is kept: consent, opt-out, subject, text, caption, duplicates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from client.intake.captions import CaptionScrubber, CaptionTooLong, ScrubbedCaption
from client.intake.duplicates import THUMBNAIL, DuplicateSearch
from client.intake.folder import Candidate, Rejected
from client.intake.outcomes import Accepted, Change, Converted, Example, Reason, Refused, Verdict
from client.vault.records import NewRecord, normal_subject_id
from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from numpy.typing import NDArray

    from client.intake.deidentify import Cleaned, CleanFile, CleanPicture
    from client.intake.duplicates import Owner
    from client.intake.folder import Listed
    from client.intake.outcomes import Outcome
    from client.intake.rules import IntakeRules, LookedAt
    from client.intake.subjects import IntakeKey, OptOut
    from client.vault.records import Split, Subject
    from client.vault.vault import Vault

MAX_LABEL: Final = 200
_NAME_SUBJECT: Final = (
    'say whom it shows: a subject_id in its row of the metadata, or a folder for each and subjects.default = "folder"'
)


@dataclass(slots=True)
class KnownSubjects:
    """Which subjects the vault holds, and on which side of the split each is."""

    vault: Vault | None
    _sides: dict[Subject, Split] = field(default_factory=dict)
    _owners: dict[str, Owner] = field(default_factory=dict)

    @classmethod
    def of(cls, vault: Vault | None) -> KnownSubjects:
        """Look it up once; subjects are looked up as they come."""
        infos = vault.infos() if vault is not None else ()
        return cls(vault, {info.subject: info.split for info in infos})

    def split(self, subject_id: str) -> Split | None:
        """The side, if the vault holds the subject."""
        number = self._number(subject_id)
        return None if number is None else self._sides.get(number)

    def owner(self, subject_id: str) -> Owner:
        """As what the search for duplicates knows the subject, the same throughout an intake that adds it."""
        if subject_id not in self._owners:
            number = self._number(subject_id)
            self._owners[subject_id] = subject_id if number is None else number
        return self._owners[subject_id]

    def _number(self, subject_id: str) -> Subject | None:
        return self.vault.find_subject(subject_id) if self.vault is not None and self._sides else None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The rules of one intake, applied to one file after the other."""

    rules: IntakeRules
    key: IntakeKey
    scrubber: CaptionScrubber
    opt_out: OptOut
    looked_at: LookedAt
    search: DuplicateSearch
    known: KnownSubjects
    today: date
    names_subjects: bool
    """Whether the metadata names subjects: then a file without one could be anybody's, unless the rules say whose."""
    refusing: frozenset[str] = field(default=frozenset(), repr=False)
    """Subjects, as :func:`same_person` has them, of whom some row says no: where another row of theirs says nothing, a
    person who refused would be taken in by what was left out."""
    _splits: dict[str, Split] = field(default_factory=dict, repr=False)

    def refuse_early(self, listed: Listed) -> Refused | None:
        """What can be said before the file is opened."""
        if isinstance(listed, Rejected):
            return listed.refused
        if listed.consent is False or (listed.consent is None and self.rules.subjects.consent == "required"):
            return Refused(Reason.NO_CONSENT)
        if listed.consent is None and listed.subject_id is not None and same_person(listed.subject_id) in self.refusing:
            return Refused(Reason.NO_CONSENT, "another row of this subject says no; say yes in this one if that holds")
        if listed.expires is not None and listed.expires <= self.today:
            return Refused(Reason.EXPIRED)
        if listed.subject_id is not None and self.opt_out.covers((listed.subject_id,), b""):
            return Refused(Reason.OPTED_OUT)
        return None

    def refusal(self, listed: Listed, refused: Refused) -> Verdict:
        """The verdict on a file that is not kept."""
        caption = listed.caption if isinstance(listed, Candidate) else ""
        return Verdict(example=Example(name=listed.name, outcome=refused, caption_before=caption[:2000]))

    def decide(self, candidate: Candidate, cleaned: Cleaned) -> Iterator[Verdict]:
        """One verdict for each picture of the file."""
        if isinstance(cleaned, Refused):
            yield self.refusal(candidate, cleaned)
            return
        subject = self._subject(candidate, cleaned)
        if isinstance(subject, Refused):
            yield self.refusal(candidate, subject)
            return
        try:
            caption = self.scrubber.scrub(candidate.caption or cleaned.caption)
            label = self.scrubber.scrub(candidate.label)
        except CaptionTooLong as error:
            yield self.refusal(candidate, Refused(Reason.BAD_CAPTION, str(error)))
            return
        text = self._text(candidate, cleaned)
        for number, picture in enumerate(cleaned.pictures):
            name = candidate.name if len(cleaned.pictures) == 1 else f"{candidate.name}#{number + 1}"
            yield self._picture(candidate, picture, name=name, subject=subject, texts=(caption, label), text=text)

    def _text(self, candidate: Candidate, cleaned: CleanFile) -> Refused | None:
        """What becomes of the file's pictures in which text was found; None: they are kept."""
        if self.rules.pixels.text == "keep" or self.looked_at.covers(candidate.name, cleaned.file_digest):
            return None
        return Refused(Reason.BURNED_IN_TEXT, self.looked_at.way_in(candidate.name, cleaned.file_digest))

    def _subject(self, candidate: Candidate, cleaned: CleanFile) -> str | Refused:
        """Whose the file is, or why that forbids it."""
        patient = cleaned.patient or ""
        pseudonym = self.key.pseudonym(patient) if patient else ""
        if candidate.subject_id is not None:
            subject = normal_subject_id(candidate.subject_id)
        elif cleaned.patient is not None:
            subject = pseudonym
        else:
            subject = candidate.name if self._is_own_subject else ""
        if self.opt_out.covers(tuple(filter(None, (subject, patient, pseudonym))), cleaned.file_digest):
            return Refused(Reason.OPTED_OUT)
        if subject:
            return subject
        whose = "no PatientID in its header" if cleaned.patient is not None else "other files name theirs"
        return Refused(Reason.NO_SUBJECT, f"{whose}; {_NAME_SUBJECT}")

    @property
    def _is_own_subject(self) -> bool:
        """Whether a file of which nobody says whom it shows counts as a subject of its own."""
        default = self.rules.subjects.default
        return default == "file" or (default == "ask" and not self.names_subjects)

    def _picture(
        self,
        candidate: Candidate,
        picture: CleanPicture,
        *,
        name: str,
        subject: str,
        texts: tuple[ScrubbedCaption, ScrubbedCaption],
        text: Refused | None,
    ) -> Verdict:
        caption, label = texts
        owner = self.known.owner(subject)
        outcome = text if picture.has_text and text is not None else self._outcome(picture, caption, owner)
        example = Example(
            name=name,
            outcome=outcome,
            caption_before=candidate.caption,
            caption_after=caption.text,
            before=picture.before,
            after=picture.after,
        )
        if not isinstance(outcome, Accepted | Converted):
            return Verdict(example=example)
        try:
            record = NewRecord(
                image=picture.png,
                caption=caption.text,
                subject_id=subject,
                label=label.text[:MAX_LABEL],
                source_name=name,
                exact_hash=picture.exact,
                perceptual_hash=picture.perceptual,
                split=self._split(subject),
                expires=candidate.expires,
            )
        except DataError as error:
            return self.refusal(candidate, Refused(Reason.BAD_ROW, str(error)))
        thumbnail = _thumbnail(picture)
        self.search.add(name, owner=owner, exact=picture.exact, perceptual=picture.perceptual, thumbnail=thumbnail)
        return Verdict(example=example, record=record, caption_rules=(*caption.counts, *label.counts))

    def _outcome(self, picture: CleanPicture, caption: ScrubbedCaption, owner: Owner) -> Outcome:
        found = self.search.find(
            owner=owner, exact=picture.exact, perceptual=picture.perceptual, thumbnail=_thumbnail(picture)
        )
        if found is not None:
            return found
        changes = set(picture.changes)
        changes |= {Change.CAPTION_SCRUBBED} if caption.counts else set()
        changes |= {Change.CAPTION_CUT} if caption.is_cut else set()
        return Converted(tuple(sorted(changes))) if changes else Accepted()

    def _split(self, subject: str) -> Split:
        """Once for each subject; what the vault says comes first."""
        if subject not in self._splits:
            drawn = self.key.split(subject, holdout=self.rules.subjects.holdout)
            self._splits[subject] = self.known.split(subject) or drawn
        return self._splits[subject]


def same_person(subject_id: str) -> str:
    """A subject's id for comparing what rows say of it, more loosely than subjects are told apart: letter case too."""
    return normal_subject_id(subject_id).casefold()


def _thumbnail(picture: CleanPicture) -> NDArray[np.uint8]:
    return np.frombuffer(picture.thumbnail, np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3)
