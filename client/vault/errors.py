"""What can go wrong with a vault; all are :class:`common.errors.VaultError`."""

from __future__ import annotations

from common.errors import VaultError


class VaultMissing(VaultError):
    """There is no vault at this place."""


class VaultDamaged(VaultError):
    """A row or file is missing, altered, exchanged for another, or older than the rest."""


class VaultRolledBack(VaultError):
    """The whole vault is older than what was noted, or did not grow out of it."""


class ForeignVault(VaultError):
    """Another vault than the one that was noted."""


class WrongVaultVersion(VaultError):
    """A vault made by another version of Darkroom."""


class WrongMasterKey(VaultError):
    """A key that does not open this vault."""


class MasterKeyUnavailable(VaultError):
    """A master key that cannot be had, or that is not kept safely enough."""


class VaultBusy(VaultError):
    """Another process writes to the vault."""


class VaultUnavailable(VaultError):
    """A vault that cannot be read or written: full disk, rights, a failing device."""


class UnknownRecord(VaultError):
    """No such record, or no longer."""


class UnknownSubject(VaultError):
    """No such subject, or no longer."""
