"""Our samplers and clipping, and `jax.random.poisson`'s Skellam: a worker of the DP benchmark."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from worker import serve

import fedjax_secure as fs
from fedjax_kernels import chacha, clip, discrete_gaussian, discrete_laplace, skellam

LAWS = {
    "discrete Gaussian": discrete_gaussian,
    "Skellam": skellam,
    "discrete Laplace": discrete_laplace,
}


class Sampler:
    """Draws of one law.

    Args:
        law: a key of `LAWS`.
        parameter: sigma, variance or scale.
        draws: of one call.
    """

    def __init__(self, law: str, parameter: float, draws: int):
        kernel, key = LAWS[law], chacha.key_from_bytes(bytes(range(32)))
        self.table = kernel.sampler(parameter)
        self.shape = (self.table.words_per_draw, draws)
        self.args = (self.table, jnp.asarray(key), jnp.zeros(3, jnp.uint32))
        self.from_key = jax.jit(lambda table, key, nonce: kernel.draw(table, key, nonce, draws))
        self.from_words = jax.jit(kernel.sample)
        self.words = chacha.keystream(key, np.zeros(3, np.uint32), self.shape[0] * draws)
        self.words = self.words.reshape(self.shape)
        self.draw(), self.search()
        self.facts = {"version": fs.__version__, "with": f"jax {jax.__version__}"}

    def draw(self) -> None:
        """Keystream and draws."""
        self.now = jax.block_until_ready(self.from_key(*self.args))

    def search(self) -> None:
        """Draws from words that lie ready."""
        jax.block_until_ready(self.from_words(self.table, self.words))

    def drawn(self) -> np.ndarray:
        """The last draws."""
        return np.asarray(self.now)


class PoissonSkellam:
    """The difference of two `jax.random.poisson`, which is no secure noise: to compare speed."""

    def __init__(self, law: str, parameter: float, draws: int):
        assert law == "Skellam"

        def two(key):
            one, other = jax.random.split(key)
            rate = parameter / 2
            return jax.random.poisson(one, rate, (draws,)) - jax.random.poisson(
                other, rate, (draws,)
            )

        self.two, self.count = jax.jit(two), 0
        self.draw()
        self.facts = {"version": jax.__version__, "with": "threefry"}

    def draw(self) -> None:
        """Draws, from a new seed each time."""
        self.count += 1
        self.now = jax.block_until_ready(self.two(jax.random.key(self.count)))

    def drawn(self) -> np.ndarray:
        """The last draws."""
        return np.asarray(self.now)


class Clip:
    """`clip.clip_and_sum`.

    Args:
        values: a file of rows.
        l2_bound: the bound.
    """

    def __init__(self, values: str, l2_bound: float):
        self.values = jnp.asarray(np.load(values))
        self.function = jax.jit(lambda values: clip.clip_and_sum(values, l2_bound).total)
        self.clip()
        self.facts = {"version": fs.__version__, "with": f"jax {jax.__version__}"}

    def clip(self) -> None:
        """Norms and sum."""
        self.now = jax.block_until_ready(self.function(self.values))

    def total(self) -> np.ndarray:
        """The last sum."""
        return np.asarray(self.now)


if __name__ == "__main__":
    serve({"sampler": Sampler, "poisson": PoissonSkellam, "clip": Clip})
