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
    │   └── OutOfOrder             a message or call that the present state does not expect
    ├── RoundFailed                too few institutions answered
    ├── CheckpointError            a checkpoint that is missing, corrupted or of another run
    └── PrivacyError               something that would void or misstate a privacy guarantee
        ├── NotPrivate             repeatable noise or unclipped data where secret noise is due
        ├── ClippingError          a model or batch whose per-unit gradients cannot be had exactly
        ├── MechanismError         noise, scale or ring settings that cannot carry the guarantee
        └── AccountingError        settings for which no (ε, δ) can be stated
            └── UnknownEvent       something happened that the accountant does not know
"""

from __future__ import annotations


class DarkroomError(Exception):
    """Base of every error that Darkroom raises on purpose."""


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


class OutOfOrder(ProtocolError):
    """A message or call that the present state does not expect."""

    def __init__(self, *, expected: str, got: str) -> None:
        """Name the step that is due and the one that came."""
        super().__init__(f"expected {expected}, got {got}")


class RoundFailed(DarkroomError):
    """Too few institutions answered for a round to count."""


class CheckpointError(DarkroomError):
    """A checkpoint that is missing, corrupted or belongs to another run."""


class PrivacyError(DarkroomError):
    """Something that would void or misstate a privacy guarantee."""


class NotPrivate(PrivacyError):
    """Repeatable noise, or unclipped data, where secret noise is due."""


class ClippingError(PrivacyError):
    """A model or batch whose per-unit gradients cannot be had exactly."""


class MechanismError(PrivacyError):
    """Noise, scale or ring settings that cannot carry the guarantee."""


class AccountingError(PrivacyError):
    """Settings for which no (ε, δ) can be stated."""


class UnknownEvent(AccountingError):
    """Something happened that the accountant does not know, so it states nothing."""
