"""Exact integer kernels for lattice encryption and discrete noise, in JAX.

Each folder is one kernel and is imported by name, for example ``from fedjax_kernels import ntt``.
It has the same parts everywhere: ``api.py`` chooses an implementation, ``reference.py`` computes
the same thing from its definition with Python integers, ``xla.py`` is the fast version, and
``cases.py`` lists the shapes that tests and benchmarks share. All implementations of one kernel
agree bit for bit. The kernels know nothing of federated learning.
"""
