"""What can go wrong, in one line each: the numbers and the remedy, never a traceback for bad input."""


class AutoquantError(Exception):
    """Base of every error a person can cause or cure; the CLI prints its message on one line and exits 2."""


class BudgetError(AutoquantError):
    """The size budget cannot be met, or is larger than the full-precision model."""


class SpaceError(AutoquantError):
    """A search space or preset file is malformed."""


class DataError(AutoquantError):
    """Text or labels are missing, malformed or do not fit the task."""


class ModelError(AutoquantError):
    """A model directory cannot be used: missing, foreign architecture, or a head that does not fit the labels."""


class AssetError(AutoquantError):
    """The embedded default model or data could not be fetched or has the wrong hash."""


class RunError(AutoquantError):
    """A run directory is locked, unwritable, or belongs to other settings."""


class LockedError(RunError):
    """A run directory is in use by a process that lives: waiting helps."""


class CheckpointError(AutoquantError):
    """A checkpoint or packed file is corrupt, truncated or foreign."""


class TrainingError(AutoquantError):
    """Training diverged (a loss that is not finite)."""
