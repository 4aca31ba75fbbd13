"""Who opens the sum: signed submissions go in, one sum comes out, once per round.

``submissions`` are what clients sign and send; ``protocols`` say what openers do; ``once`` makes
the checks that every opener makes; ``clear`` opens where nothing is encrypted; ``noise_at_opening``
adds what noise is added then, and keeps its keys; ``durable`` writes what has to outlive a crash.
"""

from .clear import CLEAR_KEY_ID, ClearOpener
from .durable import write_durably
from .noise_at_opening import AT_OPENING, Releases
from .once import OnceOpener
from .protocols import InvalidSum, Opener, Release
from .submissions import Opened, Setting, Signer, StoredPayload, Submission

__all__ = [
    "AT_OPENING", "CLEAR_KEY_ID", "ClearOpener", "InvalidSum", "OnceOpener", "Opened", "Opener",
    "Release", "Releases", "Setting", "Signer", "StoredPayload", "Submission", "write_durably",
]
