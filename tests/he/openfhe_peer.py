"""Another program that uses OpenFHE: its ordinary calls only, and nothing of the toolkit's schemes.

Started by test_interop.py on OpenFHE's interpreter; the pipe of ``core.party`` is how the test
talks to it.
"""

from __future__ import annotations

import math

import numpy as np
import openfhe

from fedjax_secure.core.party import serve


class Peer:
    """One context, a key pair of its own, and perhaps a public key of the other side."""

    def make(self, scheme, depth, first, scaling, plaintext_modulus=0, technique="FIXEDMANUAL",
             batch=0, secrets="UNIFORM_TERNARY", stddev=0.0):
        parameters = getattr(openfhe, f"CCParams{scheme}")()
        if scheme == "BGVRNS":
            parameters.SetPlaintextModulus(plaintext_modulus)
        parameters.SetScalingTechnique(getattr(openfhe, technique))
        parameters.SetKeySwitchTechnique(openfhe.BV)
        parameters.SetSecurityLevel(openfhe.HEStd_128_classic)
        parameters.SetFirstModSize(first)
        parameters.SetScalingModSize(scaling)
        parameters.SetMultiplicativeDepth(depth)
        parameters.SetSecretKeyDist(getattr(openfhe, secrets))
        if stddev:
            parameters.SetStandardDeviation(stddev)
        if batch:
            parameters.SetBatchSize(batch)
        self.ckks = scheme == "CKKSRNS"
        self.context = openfhe.GenCryptoContext(parameters)
        self.context.Enable(openfhe.PKE)
        self.context.Enable(openfhe.LEVELEDSHE)
        self.keys = self.context.KeyGen()
        return openfhe.Serialize(self.keys.publicKey, openfhe.BINARY)

    def encrypt(self, values, public_key=None):
        key = self.keys.publicKey
        if public_key is not None:
            key = openfhe.DeserializePublicKeyString(public_key, openfhe.BINARY)
        pack = (self.context.MakeCKKSPackedPlaintext if self.ckks
                else self.context.MakeCoefPackedPlaintext)
        return [openfhe.Serialize(self.context.Encrypt(key, pack(row.tolist())), openfhe.BINARY)
                for row in values]

    def add(self, one, other):
        return [openfhe.Serialize(self.context.EvalAdd(*(
            openfhe.DeserializeCiphertextString(content, openfhe.BINARY) for content in pair)),
            openfhe.BINARY) for pair in zip(one, other)]  # noqa: B905 (Python 3.10)

    def multiply(self, contents):
        return [openfhe.Serialize(self.context.EvalMult(
            openfhe.DeserializeCiphertextString(content, openfhe.BINARY), 2.0), openfhe.BINARY)
            for content in contents]

    def decrypt(self, contents, length):
        rows = []
        for content in contents:
            opened = self.context.Decrypt(
                self.keys.secretKey, openfhe.DeserializeCiphertextString(content, openfhe.BINARY))
            opened.SetLength(length)
            rows.append(opened.GetRealPackedValue() if self.ckks else opened.GetCoefPackedValue())
        return np.array(rows)

    def ring_dimension(self, depth, first, scaling):
        """What OpenFHE demands at 128 bits with uniform ternary secrets, and log2 of its Q."""
        parameters = openfhe.CCParamsCKKSRNS()
        parameters.SetSecurityLevel(openfhe.HEStd_128_classic)
        parameters.SetSecretKeyDist(openfhe.UNIFORM_TERNARY)
        parameters.SetKeySwitchTechnique(openfhe.BV)  # no further primes but Q's
        parameters.SetScalingTechnique(openfhe.FIXEDMANUAL)
        parameters.SetFirstModSize(first)
        parameters.SetScalingModSize(scaling)
        parameters.SetMultiplicativeDepth(depth)
        context = openfhe.GenCryptoContext(parameters)
        return [context.GetRingDimension(), math.log2(float(context.GetModulus()))]


def main():
    peer = Peer()
    calls = (peer.make, peer.encrypt, peer.add, peer.multiply, peer.decrypt, peer.ring_dimension)
    serve({call.__name__: call for call in calls}, about={"openfhe": openfhe.__version__})


if __name__ == "__main__":
    main()
