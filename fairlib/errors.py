"""The errors a user can meet. Each message says what was found, where, and what to do."""

from __future__ import annotations

from pathlib import Path


class FairlibError(ValueError):
    """Base of every error raised on bad input."""


class CorruptScan(FairlibError):
    """A NIfTI file that cannot be trusted: broken, flipped bits, impossible header or labels."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")


class DataError(FairlibError):
    """A table, folder or cohort that does not hold what it must."""


class SettingsError(FairlibError):
    """A setting that is unknown, of the wrong type, or out of range."""


class WeightsError(FairlibError):
    """Weights whose shape, hash or values are not those of their manifest."""
