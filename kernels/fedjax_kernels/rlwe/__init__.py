"""Public-key encryption from Ring-LWE whose ciphertexts add up, with exact integer plaintexts."""

from fedjax_kernels.rlwe.api import (
    Decrypted,
    add,
    decode,
    decrypt,
    encode,
    encrypt,
    encrypt_lanes,
    generate_key,
    key_words_needed,
    sum_ciphertexts,
    words_needed,
)
from fedjax_kernels.rlwe.noise import (
    failure_log2,
    noise_bits_needed,
    noise_variance,
    worst_case_noise,
)
from fedjax_kernels.rlwe.parameters import (
    PARAMETER_SETS,
    SECURITY_TABLES,
    Encoding,
    Parameters,
    PublicKey,
    SecretKey,
    parameters,
)

__all__ = [
    "PARAMETER_SETS",
    "SECURITY_TABLES",
    "Decrypted",
    "Encoding",
    "Parameters",
    "PublicKey",
    "SecretKey",
    "add",
    "decode",
    "decrypt",
    "encode",
    "encrypt",
    "encrypt_lanes",
    "failure_log2",
    "generate_key",
    "key_words_needed",
    "noise_bits_needed",
    "noise_variance",
    "parameters",
    "sum_ciphertexts",
    "words_needed",
    "worst_case_noise",
]
