"""fairlib: fairness methods for generative medical imaging, small enough to read.

`import fairlib` loads nothing heavier than torch and numpy; every room loads what it needs when it
is entered.
"""

from fairlib.errors import CorruptScan, DataError, FairlibError, SettingsError, WeightsError

__version__ = "0.1.0"
__all__ = [
    "CorruptScan",
    "DataError",
    "FairlibError",
    "SettingsError",
    "WeightsError",
    "__version__",
]
