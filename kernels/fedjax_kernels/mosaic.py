"""What every Mosaic GPU kernel here shares: where it runs, how it is launched, 32-bit arithmetic.

A Pallas "thread" of Mosaic GPU is a warpgroup of 128 CUDA threads. The kernels hold one element
in each of them: an array of 128 elements is one register, so code over a list of such arrays is
code over the registers of a thread.

Mosaic GPU serves compute capability 9.0 (H100) and newer. Elsewhere a kernel's XLA version runs.
On any machine, `implementation="pallas_interpret"` runs the same kernel in JAX's GPU interpreter,
which checks for races, for reads out of bounds, and fills fresh memory with a pattern; it is slow
and for tests.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

THREADS = 128  # CUDA threads of a warpgroup
_LANES = 32
_MIN_CAPABILITY = (9, 0)


@functools.cache
def _modules():
    """Mosaic GPU, imported when first used: the import takes time, and not every jaxlib has it."""
    import jax.experimental.pallas as pl
    from jax.experimental.mosaic.gpu import fragmented_array
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return pl, plgpu, fragmented_array


@functools.cache
def has_interpreter() -> bool:
    """Whether this JAX has what the kernels are written with, the GPU interpreter included."""
    try:
        plgpu = _modules()[1]
    except ImportError:
        return False
    return hasattr(plgpu, "InterpretGPUParams") and hasattr(plgpu, "store")


@functools.cache
def has_gpu() -> bool:
    """Whether JAX's default device is a GPU that these kernels run on."""
    if jax.default_backend() != "gpu" or not has_interpreter():
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    parts = capability.split(".")
    return all(p.isdigit() for p in parts) and tuple(map(int, parts)) >= _MIN_CAPABILITY


def check_can_run(interpret: bool) -> None:
    """Refuses where a kernel cannot run.

    Raises:
        ValueError: no GPU of compute capability 9.0 or newer, or a JAX without the interpreter.
    """
    if not has_interpreter():
        raise ValueError(
            'implementation="pallas" needs jax 0.12 or newer with Mosaic GPU, got '
            f"jax {jax.__version__}. Leave `implementation` out to use the XLA version."
        )
    if not interpret and not has_gpu():
        raise ValueError(
            'implementation="pallas" needs a GPU of compute capability 9.0 or newer as the '
            f"default device, got {jax.devices()[0].device_kind!r}. Leave `implementation` out to "
            'use the XLA version, or take "pallas_interpret" to run the kernel on the CPU, slowly.'
        )


def kernels(implementation: str | None, package: str, supported: bool = True) -> Any:
    """The module `pallas` of a package where it is to be used, else None.

    Args:
        implementation: "pallas", "pallas_interpret", or None for the fastest that runs here.
        package: the package's full name; its GPU kernels are imported only when chosen.
        supported: whether the GPU kernel is the fastest for this shape.

    Raises:
        ValueError: the GPU kernel is asked for and cannot run here.
    """
    interpret = implementation == "pallas_interpret"
    if implementation is None:
        if not (supported and has_gpu()):
            return None
    elif implementation == "pallas" or interpret:
        check_can_run(interpret)
    else:
        return None
    if importlib.util.find_spec(f"{package}.pallas") is None:
        if implementation is None:
            return None
        raise ValueError(
            f"implementation={implementation!r} needs a GPU kernel, and {package} has none. "
            "Leave `implementation` out to use the XLA version."
        )
    module = importlib.import_module(f"{package}.pallas")
    return Interpreted(module) if interpret else module


class Interpreted:
    """The operations of a `pallas` module, run by the GPU interpreter."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._module, name)
        own = name in vars(self._module)  # else what the module takes from XLA
        return functools.partial(operation, interpret=True) if own else operation


def launch(
    body: Callable[..., None],
    *,
    name: str,
    out: Any,
    grid: Sequence[int],
    scratch: Any,
    warpgroups: int,
    interpret: bool,
) -> Callable[..., Any]:
    """A function that runs `body(grid index, warpgroup, *operands, *results, *scratch)`.

    Barriers between warpgroups are the body's own: none is put in for it, so memory that one
    thread writes and another reads must have a :func:`meet` between them.

    Args:
        body: the kernel.
        name: its name in profiles and reports.
        out: a `jax.ShapeDtypeStruct`, or a tuple of them.
        grid: how many blocks along each axis.
        scratch: a tuple of shared-memory types, from :func:`shared` and :func:`barrier`.
        warpgroups: how many warpgroups work on one block.
        interpret: run in the GPU interpreter.
    """
    _, plgpu, _ = _modules()
    axes = tuple(f"grid_{i}" for i in range(len(grid)))

    def kernel_body(*refs):
        group = jax.lax.axis_index("warpgroup")
        body(tuple(jax.lax.axis_index(axis) for axis in axes), group, *refs)

    kernel_body.__name__ = name
    options = {}
    if interpret:
        options["interpret"] = plgpu.InterpretGPUParams(detect_races=True, on_race="raise")
    return plgpu.kernel(
        kernel_body,
        out_type=out,
        grid=tuple(grid),
        grid_names=axes,
        scratch_types=scratch,
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        **options,
    )


def shared(shape: Sequence[int], dtype: Any) -> Any:
    """An array in shared memory."""
    return _modules()[1].SMEM(tuple(shape), dtype)


def barrier(warpgroups: int) -> Any:
    """A barrier at which all warpgroups of a block meet."""
    return _modules()[1].Barrier(num_arrivals=warpgroups)


def meet(block_barrier: Any) -> None:
    """Waits until every thread of the block is here; what they wrote before is then seen."""
    plgpu = _modules()[1]
    plgpu.barrier_arrive(block_barrier)
    plgpu.barrier_wait(block_barrier)


@functools.cache
def tile(rows: int, columns: int) -> Any:
    """The layout of a [rows, columns] array of 128 elements, one a thread, in row-major order."""
    _, plgpu, fragmented_array = _modules()
    if rows * columns != THREADS or columns & (columns - 1):
        raise ValueError(
            f"tile needs {THREADS} elements and a power of two, got {rows} x {columns}. "
            "One element belongs to each thread of a warpgroup."
        )
    if columns <= _LANES:
        steps = ((rows, columns), (_LANES // columns, columns), (1, 1))
        warps = (-6,)
    else:
        steps = ((rows, columns), (1, _LANES), (1, 1))
        warps = (-6, -5)
    layout = fragmented_array.TiledLayout(
        plgpu.Tiling(steps), warps, (-4, -3), -1, _check_canonical=False
    ).canonicalize()
    return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


@functools.cache
def line() -> Any:
    """The layout of a [128] array, one element a thread."""
    _, plgpu, fragmented_array = _modules()
    layout = fragmented_array.TiledLayout(
        plgpu.Tiling(((THREADS,), (_LANES,), (1,))), (-3,), (-2,), -1, _check_canonical=False
    ).canonicalize()
    return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


def repeat(first: int, last: int, body: Callable[[Any, Any], Any], value: Any) -> Any:
    """`jax.lax.fori_loop` whose counter is an int32, whatever the caller's x64 setting."""
    return jax.lax.fori_loop(np.int32(first), np.int32(last), body, value)


def thread_numbers() -> Any:
    """0 to 127, one a thread: [128] uint32."""
    return _modules()[1].broadcasted_iota(jnp.uint32, (THREADS,), 0, layout=line())


@functools.cache
def strided(size: int, vector: int) -> Any:
    """The layout of a [size] array of contiguous memory, `vector` numbers to a load."""
    return _modules()[1].Layout.WG_STRIDED((size,), vec_size=vector)


def load(ref: Any, layout: Any) -> Any:
    """Loads a slice of global or shared memory into registers."""
    return _modules()[1].load(ref, layout=layout, optimized=False)


def load_column(ref: Any, layout: Any, shape: tuple[int, int]) -> Any:
    """Loads [rows] and repeats each element over the columns of `layout`."""
    plgpu = _modules()[1]
    column = plgpu.load(ref, layout=layout.reduce(1), optimized=False)
    return plgpu.layout_cast(jax.lax.broadcast_in_dim(column, shape, (0,)), layout)


def store(ref: Any, value: Any) -> None:
    """Stores registers to a slice of global or shared memory."""
    _modules()[1].store(ref, value, optimized=False)


def indices(start: Any, size: int) -> Any:
    """The slice of `size` from a start that is known only as the kernel runs."""
    return _modules()[0].ds(start, size)


def mulhi(a: Any, b: Any) -> Any:
    """The upper 32 bits of the product of two uint32 arrays: one `mul.hi.u32`.

    The 64-bit type appears here alone, whatever the caller's x64 setting.
    """
    with jax.enable_x64(True):
        product = a.astype(jnp.uint64) * b.astype(jnp.uint64)
        return (product >> np.uint64(32)).astype(jnp.uint32)


def subtract_once(x: Any, c: Any) -> Any:
    """x - c where x >= c, else x; for x < 2c."""
    return jnp.minimum(x, x - c)


def mul_shoup_lazy(a: Any, w: Any, quotient: Any, q: Any) -> Any:
    """a * w mod q as a value below 2q, for any 32-bit a and w < q (Harvey 2014, section 3)."""
    return a * w - mulhi(a, quotient) * q


def mul_shoup(a: Any, w: Any, quotient: Any, q: Any) -> Any:
    """a * w mod q, fully reduced, for any 32-bit a and w < q."""
    return subtract_once(mul_shoup_lazy(a, w, quotient, q), q)


def mul_montgomery_lazy(a: Any, b: Any, q: Any, q_inverse: Any) -> Any:
    """a * b / 2^32 mod q as a value below 2q, for any 32-bit a and b < q."""
    return mulhi(a, b) - mulhi(a * b * q_inverse, q) + q
