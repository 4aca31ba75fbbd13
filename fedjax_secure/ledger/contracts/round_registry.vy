# pragma version 0.4.3
# pragma evm-version london
"""
@title Registry of the rounds of one federation
@license Apache-2.0
@notice Records who takes part, what every client committed to in each round, and which
        model the coordinator confirmed. Only keys, commitments and digests are stored.
@dev    Rounds are numbered from 1 and confirmed in order. One round is open at any time:
        the last confirmed one plus one. A round has attempts, numbered from 1. Within an
        attempt a client submits once, and what it submitted cannot change. Where a round
        was interrupted, the coordinator reopens it: that starts a new attempt, which
        begins with no submissions, and both facts stay on record. So a resubmission is
        taken exactly once, and nobody can rerun a round in silence.
"""


# ---------------------------------------------------------------- events

event Registered:
    client: indexed(address)
    submission_key: bytes32


event UpdateSubmitted:
    round: indexed(uint256)
    attempt: indexed(uint256)
    client: indexed(address)
    commitment: bytes32


event RoundReopened:
    round: indexed(uint256)
    attempt: uint256
    discarded: uint256


event RoundConfirmed:
    round: indexed(uint256)
    attempt: uint256
    submissions: uint256
    model_digest: bytes32


# ---------------------------------------------------------------- immutables

# @notice The only account that may confirm or reopen a round.
COORDINATOR: public(immutable(address))

# @notice The fewest submissions with which a round may be confirmed.
MIN_CLIENTS: public(immutable(uint256))

# @notice The Ed25519 public key under which the coordinator signs checkpoints of the log.
CHECKPOINT_KEY: public(immutable(bytes32))


# ---------------------------------------------------------------- storage

# @notice How many clients are registered.
num_clients: public(uint256)

# @notice The last round that was confirmed; zero before the first.
confirmed_rounds: public(uint256)

# @notice The Ed25519 public key that a client signs its updates with; empty if unregistered.
submission_key: public(HashMap[address, bytes32])

# @notice The client that a submission key belongs to, so that one key is never two clients.
key_owner: public(HashMap[bytes32, address])

# @notice How often a round was reopened; its current attempt is this plus one.
reopened: public(HashMap[uint256, uint256])

# @notice The model that was confirmed for a round.
model_digest: public(HashMap[uint256, bytes32])

# round -> attempt -> how many clients submitted
_num_submissions: HashMap[uint256, HashMap[uint256, uint256]]

# round -> attempt -> client -> commitment
_commitment: HashMap[uint256, HashMap[uint256, HashMap[address, bytes32]]]


# ---------------------------------------------------------------- constructor

@deploy
def __init__(min_clients: uint256, checkpoint_key: bytes32):
    """
    @notice The account that deploys the registry is its coordinator.
    @param min_clients The fewest submissions with which a round may be confirmed.
    @param checkpoint_key The coordinator's Ed25519 public key for checkpoints.
    """
    assert min_clients > 0, "registry: zero min_clients"
    assert checkpoint_key != empty(bytes32), "registry: empty checkpoint key"
    COORDINATOR = msg.sender
    MIN_CLIENTS = min_clients
    CHECKPOINT_KEY = checkpoint_key


# ---------------------------------------------------------------- clients

@external
def register(submission_key: bytes32):
    """
    @notice Binds an Ed25519 public key to the sender's account, once and for all.
    @param submission_key The key that the client signs its encrypted updates with.
    """
    assert submission_key != empty(bytes32), "registry: empty key"
    assert self.submission_key[msg.sender] == empty(bytes32), "registry: already registered"
    assert self.key_owner[submission_key] == empty(address), "registry: key in use"
    self.submission_key[msg.sender] = submission_key
    self.key_owner[submission_key] = msg.sender
    self.num_clients += 1
    log Registered(client=msg.sender, submission_key=submission_key)


@external
def submitUpdate(round: uint256, commitment: bytes32):
    """
    @notice Commits the sender to its update of the open round, once an attempt.
    @param round The open round.
    @param commitment The salted commitment to the update's digest.
    """
    assert self.submission_key[msg.sender] != empty(bytes32), "registry: not registered"
    assert round == self.confirmed_rounds + 1, "registry: not the open round"
    assert commitment != empty(bytes32), "registry: empty commitment"
    attempt: uint256 = self.reopened[round] + 1
    assert self._commitment[round][attempt][msg.sender] == empty(bytes32), "registry: already submitted"
    self._commitment[round][attempt][msg.sender] = commitment
    self._num_submissions[round][attempt] += 1
    log UpdateSubmitted(round=round, attempt=attempt, client=msg.sender, commitment=commitment)


# ---------------------------------------------------------------- coordinator

@external
def reopenRound(round: uint256):
    """
    @notice Starts a new attempt at an interrupted round, with no submissions.
    @dev Refused where nothing was submitted, so that an attempt is never empty.
    @param round The open round.
    """
    assert msg.sender == COORDINATOR, "registry: not the coordinator"
    assert round == self.confirmed_rounds + 1, "registry: not the open round"
    attempt: uint256 = self.reopened[round] + 1
    discarded: uint256 = self._num_submissions[round][attempt]
    assert discarded > 0, "registry: nothing to reopen"
    self.reopened[round] = attempt
    log RoundReopened(round=round, attempt=attempt + 1, discarded=discarded)


@external
def confirmRound(round: uint256, model_digest: bytes32):
    """
    @notice Confirms the model of the open round and opens the next one.
    @param round The open round.
    @param model_digest The digest of the model after this round.
    """
    assert msg.sender == COORDINATOR, "registry: not the coordinator"
    assert round == self.confirmed_rounds + 1, "registry: not the open round"
    assert model_digest != empty(bytes32), "registry: empty model digest"
    attempt: uint256 = self.reopened[round] + 1
    submissions: uint256 = self._num_submissions[round][attempt]
    assert submissions >= MIN_CLIENTS, "registry: too few submissions"
    self.confirmed_rounds = round
    self.model_digest[round] = model_digest
    log RoundConfirmed(
        round=round, attempt=attempt, submissions=submissions, model_digest=model_digest
    )


# ---------------------------------------------------------------- views

@external
@view
def num_submissions(round: uint256) -> uint256:
    """
    @notice How many clients submitted in the current attempt at a round.
    @param round Any round.
    @return The number of submissions.
    """
    return self._num_submissions[round][self.reopened[round] + 1]


@external
@view
def commitment(round: uint256, client: address) -> bytes32:
    """
    @notice What a client committed to in the current attempt at a round.
    @param round Any round.
    @param client The client's account.
    @return The commitment; empty if there is none.
    """
    return self._commitment[round][self.reopened[round] + 1][client]
