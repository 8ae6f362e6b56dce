"""Every error Darkroom raises on purpose.

::

    DarkroomError                  base; its message says what was wanted, what was got and what to do next
    ├── ConfigError                a run configuration that cannot be used
    │   └── ConfigErrors           several of them, reported at once
    ├── SourceUnavailable          a public data package that could not be fetched or read
    ├── DataError                  the institution's own images or captions
    │   ├── BadImage               unreadable, truncated, empty, animated or otherwise refused picture
    │   ├── BadCaption             a caption or metadata row that cannot be used
    │   └── EmptyFolder            no usable pictures
    ├── ModelError                 the base model
    │   ├── BadModelDirectory      missing, truncated or not a Stable Diffusion directory
    │   ├── DigestMismatch         its content is not the pinned content
    │   └── WrongFamily            a pipeline of another family than the run's
    ├── AdapterError               an adapter file or vector
    │   └── WrongAdapterSpec       made for another model, rank or target list
    ├── ProtocolError              a message that does not fit the run
    │   ├── RequestNotAllowed      a kind of request that this institution never answers
    │   ├── OutOfOrder             a message or call that the present state does not expect
    │   ├── MalformedMessage       bytes that are too many, too few, of another version or type
    │   ├── BadSignature           a signature that is not the named party's over this content
    │   ├── BadKey                 a public key that is weak, repeated or not the expected one
    │   ├── UnknownInstitution     a party that the manifest's roster or the session does not hold
    │   ├── StaleSession           a message of another run or session
    │   ├── ReplayedStep           a round and attempt that are not later than the last
    │   ├── CohortRefused          participants that are too few, repeated or without this institution
    │   ├── WrongShape             another dimension, word size or cohort than was agreed
    │   ├── DuplicateMessage       a second answer where one is due
    │   ├── MissingContributions   a sum asked for before every participant answered
    │   ├── MasksDidNotCancel      a sum whose check coordinates are wrong; nothing is released
    │   └── MaskReuse              a second vector asked for under the same masks
    ├── CryptoError                a key or sealed text that cannot be used
    ├── ProvisioningError          a request, join file or certificate that cannot be used
    ├── ManifestError              a run manifest that is not canonical, not signed or contradicts itself
    ├── ApprovalError              a site's word on a run that is damaged, missing or not to be had
    ├── PolicyRefusal              a manifest that the site's own policy forbids; lists every reason
    ├── NotApproved                a manifest that nobody at the institution has approved yet
    ├── FiguresPending             an approved manifest whose cost is still being worked out
    ├── LedgerError                the privacy ledger; LedgerRolledBack stands in client/governance/rollback.py
    │   ├── BudgetExceeded         the contribution would pass a budget of the site
    │   ├── AlreadyCharged         this round and attempt, or a later one, was charged before
    │   ├── LedgerCorrupt          missing, damaged or of another kind
    │   ├── LedgerUnavailable      full disk, locked or unwritable
    │   └── ClockWentBack          the clock is behind the last entry
    ├── AuditLogError              an audit log that is damaged, forked or signed by somebody else
    ├── NotEnoughMemory            a base model that does not fit on this machine
    ├── StewardUnavailable         a steward that cannot be reached or cannot start
    │   └── StewardRunning         another steward serves this site already
    ├── VaultError                 the encrypted store of pictures; its kinds stand in client/vault/errors.py
    ├── ReleaseError               a release that is incomplete, altered or not agreed to
    ├── RoundFailed                an attempt that cannot count
    │   ├── TooFewInstitutions     too few are there or take part; it was not begun
    │   └── SumTooLong             a mean that no honest institutions make
    ├── CheckpointError            a checkpoint that is missing, corrupted or of another run
    │   └── RunBusy                another process leads the run
    └── PrivacyError               something that would void or misstate a privacy guarantee
        ├── NotPrivate             repeatable noise or unclipped data where secret noise is due
        ├── ClippingError          a model or batch whose per-unit gradients cannot be had exactly
        ├── NotRepeatable          a device that computes the same twice with two results
        ├── MechanismError         noise, scale or ring settings that cannot carry the guarantee
        └── AccountingError        settings for which no (ε, δ) can be stated
            ├── UnknownEvent       something happened that the accountant does not know
            └── TooManyUnits       more units at an institution than a run's settings allow one
"""

from __future__ import annotations


class DarkroomError(Exception):
    """Base of every error that Darkroom raises on purpose."""

    exit_code: int = 2
    """Of a command that ends with it: 2 for what its user got wrong; see :mod:`client.connection.endings` for
    others."""


class ConfigError(DarkroomError):
    """A configuration that cannot be used: names the key, what was wanted and what was got."""


class ConfigErrors(ConfigError):
    """Every fault of one configuration at once, so that it is mended in one go."""

    def __init__(self, source: str, faults: tuple[str, ...]) -> None:
        """Join the faults under the name of the file they come from."""
        self.source = source
        self.faults = faults
        listed = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(f"{source}: {len(faults)} problem{'s' if len(faults) > 1 else ''} to mend:\n{listed}")


class SourceUnavailable(DarkroomError):
    """A public data package could not be fetched or read."""


class DataError(DarkroomError):
    """Something about an institution's own images or captions."""


class BadImage(DataError):
    """A picture that is refused: names the file and the reason."""


class BadCaption(DataError):
    """A caption or metadata row that cannot be used: names the file and line."""


class EmptyFolder(DataError):
    """A folder without a single usable picture."""


class ModelError(DarkroomError):
    """Something about the base model."""


class BadModelDirectory(ModelError):
    """Missing, truncated or not a diffusers Stable Diffusion directory."""


class DigestMismatch(ModelError):
    """The base model's content is not what the run was pinned to."""


class WrongFamily(ModelError):
    """A pipeline of another family than the run asks for."""


class AdapterError(DarkroomError):
    """Something about an adapter file or vector."""


class WrongAdapterSpec(AdapterError):
    """An adapter made for another model, rank or target list."""


class ProtocolError(DarkroomError):
    """A message that does not fit the run."""


class RequestNotAllowed(ProtocolError):
    """A kind of request that this institution never answers."""


class OutOfOrder(ProtocolError):
    """A message or call that the present state does not expect."""

    def __init__(self, *, expected: str, got: str) -> None:
        """Name the step that is due and the one that came."""
        super().__init__(f"expected {expected}, got {got}")


class MalformedMessage(ProtocolError):
    """Bytes that are too many, too few, of another version or of another type."""


class BadSignature(ProtocolError):
    """A signature that is not the named party's over this content."""


class BadKey(ProtocolError):
    """A public key that is weak, repeated or not the expected one."""


class UnknownInstitution(ProtocolError):
    """A party that the manifest's roster or the session does not hold."""


class StaleSession(ProtocolError):
    """A message of another run or session."""


class ReplayedStep(ProtocolError):
    """A round and attempt that are not later than the last ones answered."""


class CohortRefused(ProtocolError):
    """Participants that are too few, repeated, out of order or without this institution."""


class WrongShape(ProtocolError):
    """Another dimension, word size or cohort than was agreed."""


class DuplicateMessage(ProtocolError):
    """A second answer where one is due."""


class MissingContributions(ProtocolError):
    """A sum was asked for before every participant had answered."""

    def __init__(self, missing: tuple[int, ...]) -> None:
        """Keep the roster places that did not answer."""
        self.missing = missing
        super().__init__(f"no answer from roster places {list(missing)}; abort this attempt and ask the others again")


class MasksDidNotCancel(ProtocolError):
    """The sum's check coordinates are wrong, so nothing of it is released."""


class MaskReuse(ProtocolError):
    """A second vector was asked for under masks that were already used or passed over."""


class CryptoError(DarkroomError):
    """A key or sealed text that cannot be used."""


class ProvisioningError(DarkroomError):
    """A request, join file, roster or certificate that cannot be used."""


class ManifestError(DarkroomError):
    """A run manifest that is not canonical, not signed by its coordinator, or contradicts itself."""


class ApprovalError(DarkroomError):
    """A site's word on a run that is damaged, missing or not to be had."""


class PolicyRefusal(DarkroomError):
    """A manifest that the site's own policy forbids: every reason at once."""

    def __init__(self, run: str, reasons: tuple[str, ...]) -> None:
        """Join the reasons under the run's name."""
        self.reasons = reasons
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        super().__init__(f"run {run!r} is refused by this site's policy:\n{listed}")


class NotApproved(DarkroomError):
    """A manifest that nobody at the institution has approved yet."""


class FiguresPending(DarkroomError):
    """An approved manifest whose cost is still being worked out; ask again."""


class LedgerError(DarkroomError):
    """Something about the site's privacy ledger."""


class BudgetExceeded(LedgerError):
    """The contribution would pass one of the site's budgets; nothing was charged."""


class AlreadyCharged(LedgerError):
    """This round and attempt of the run, or a later one, was charged before."""


class LedgerCorrupt(LedgerError):
    """A ledger that is missing, damaged or not a ledger."""


class LedgerUnavailable(LedgerError):
    """A ledger that cannot be written: full disk, locked or read-only."""


class ClockWentBack(LedgerError):
    """The clock is behind the last entry of the ledger."""


class AuditLogError(DarkroomError):
    """An audit log that is damaged, forked or signed by somebody else."""


class NotEnoughMemory(DarkroomError):
    """A base model that does not fit on this machine, or on what the site allows."""


class StewardUnavailable(DarkroomError):
    """A steward that cannot be reached, or that cannot start with what its site gives it."""


class StewardRunning(StewardUnavailable):
    """Another steward serves this site already; one ledger and one audit log have one writer."""


class VaultError(DarkroomError):
    """Something about the encrypted store of pictures."""


class RoundFailed(DarkroomError):
    """Too few institutions answered for a round to count, or their sum is none that can be used."""


class TooFewInstitutions(RoundFailed):
    """Fewer institutions are there, or take part, than a round needs; it was not begun, so it cost nothing."""


class SumTooLong(RoundFailed):
    """A decoded mean longer than noise and cap allow: some institution sent what no honest steward sends.

    It ends the run's start, because a further attempt would cost every institution's budget and most likely meet the
    same institution again; it can be resumed, with the round's next attempt.
    """

    def __init__(self, message: str, *, decoded: float, noise_expected: float | None, limit: float | None) -> None:
        """Keep the Euclidean lengths for the run's books: of the mean, of its noise on average, and the longest."""
        super().__init__(message)
        self.decoded = decoded
        self.noise_expected = noise_expected
        self.limit = limit


class CheckpointError(DarkroomError):
    """A checkpoint that is missing, corrupted or belongs to another run."""


class RunBusy(CheckpointError):
    """Another process leads the run in this directory."""


class PrivacyError(DarkroomError):
    """Something that would void or misstate a privacy guarantee."""


class NotPrivate(PrivacyError):
    """Repeatable noise, or unclipped data, where secret noise is due."""


class ClippingError(PrivacyError):
    """A model or batch whose per-unit gradients cannot be had exactly."""


class NotRepeatable(PrivacyError):
    """A device that computes the same twice with two results, so that no result is its inputs' alone."""


class MechanismError(PrivacyError):
    """Noise, scale or ring settings that cannot carry the guarantee."""


class AccountingError(PrivacyError):
    """Settings for which no (ε, δ) can be stated."""


class UnknownEvent(AccountingError):
    """Something happened that the accountant does not know, so it states nothing."""


class TooManyUnits(AccountingError):
    """More privacy units at this institution than a run's settings allow one: answered as if nobody had approved it."""
