"""What the toolkit says when it refuses: what is needed, what was found, and the fix.

Every error of the toolkit derives from :class:`SecureFederationError` and carries the three parts
of its message as attributes, so that a notebook can show them and a program can act on them.
No message contains a secret (a key, a noise draw, a record's value).
"""

from __future__ import annotations


class SecureFederationError(Exception):
    """Base of all errors of the toolkit.

    Args:
        where: what refuses, for example ``"stage `encrypt`"``.
        need: what is needed, as a noun phrase.
        found: what was given instead.
        fix: one full sentence that says what to change.

    Example:
        >>> str(SpecError("stage `encrypt`", need="integer values", found="float32",
        ...               fix="Put quantise(...) before it."))
        'stage `encrypt` needs integer values, got float32. Put quantise(...) before it.'
    """

    def __init__(self, where: str, *, need: str, found: str, fix: str):
        self.where, self.need, self.found, self.fix = where, need, found, fix
        super().__init__(f"{where} needs {need}, got {found}. {fix}")

    def __reduce__(self):
        return (_rebuild, (type(self), self.where, self.need, self.found, self.fix))


def _rebuild(kind, where, need, found, fix):
    return kind(where, need=need, found=found, fix=fix)


class SpecError(SecureFederationError, ValueError):
    """A chain or a federation that could not keep its promise; raised before tracing."""


class DataError(SecureFederationError, ValueError):
    """A dataset that cannot be used as it is."""


class ParameterError(SecureFederationError, ValueError):
    """A setting of a plan, a form or a notebook with a wrong name, type or range."""


class UpdateError(SecureFederationError, ValueError):
    """A client's value that is not finite, or a training run that diverged."""


class BudgetError(SecureFederationError, RuntimeError):
    """A privacy budget that would be overspent, is locked, or belongs to something else."""


class OpeningError(SecureFederationError, RuntimeError):
    """Whoever opens the sum refuses: a bad signature, too few clients, a round opened before."""


class PartyError(SecureFederationError, RuntimeError):
    """A party process that could not start, died, or did not answer in time."""


class LedgerError(SecureFederationError, RuntimeError):
    """The ledger refuses a transaction, or its history does not verify."""


class ResumeError(SecureFederationError, RuntimeError):
    """A run directory that cannot be continued as asked."""
