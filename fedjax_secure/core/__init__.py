"""The contracts that every room builds on: spec, stage, chain, cohort, round record, errors."""

from .cohort import Cohort, RoundState
from .errors import (
    BudgetError,
    DataError,
    LedgerError,
    OpeningError,
    ParameterError,
    PartyError,
    ResumeError,
    SecureFederationError,
    SpecError,
    UpdateError,
)
from .opening import (
    ClearOpener,
    InvalidSum,
    OnceOpener,
    Opened,
    Opener,
    Setting,
    Signer,
    StoredPayload,
    Submission,
)
from .randomness import SecureSource, SeededSource, Source, Stream, source
from .record import RoundRecord, model_digest
from .spec import Aggregator, Mechanism, Sampling, Spec
from .stage import Aggregation, Stage, Static, chain
from .threat_model import ThreatModel

__all__ = [
    "Aggregation", "Aggregator", "BudgetError", "ClearOpener", "Cohort", "DataError", "InvalidSum",
    "LedgerError", "Mechanism", "OnceOpener", "Opened", "Opener", "OpeningError", "ParameterError",
    "PartyError", "ResumeError", "RoundRecord", "RoundState", "Sampling", "SecureFederationError",
    "SecureSource", "SeededSource", "Setting", "Signer", "Source", "Spec", "SpecError", "Stage",
    "Static", "StoredPayload", "Stream", "Submission", "ThreatModel", "UpdateError", "chain",
    "model_digest", "source",
]
