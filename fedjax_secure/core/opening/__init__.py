"""Who opens the sum: signed submissions go in, one sum comes out, once per round.

``submissions`` are what clients sign and send; ``protocols`` say what openers do; ``once`` makes
the checks that every opener makes; ``clear`` opens where nothing is encrypted; ``durable`` writes
results so that they outlive a crash.
"""

from .clear import CLEAR_KEY_ID, ClearOpener
from .durable import write_durably
from .once import OnceOpener
from .protocols import InvalidSum, Opener, Release
from .submissions import Opened, Setting, Signer, StoredPayload, Submission

__all__ = [
    "CLEAR_KEY_ID", "ClearOpener", "InvalidSum", "OnceOpener", "Opened", "Opener", "Release",
    "Setting", "Signer", "StoredPayload", "Submission", "write_durably",
]
