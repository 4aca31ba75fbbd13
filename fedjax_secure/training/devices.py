"""How many CPU devices JAX offers: one for each usable core, so that clients train side by side."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import jax

VARIABLE = "FEDJAX_SECURE_CPU_DEVICES"
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Returns the number of cores this process may use: its affinity, capped by a CPU quota.

    A container may be given two cores' worth of time on a machine of ninety-six; more devices
    than that only get in each other's way.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return max(cores, 1)


def use_all_cores() -> int | None:
    """Asks JAX for one CPU device for each usable core; called when the package is imported.

    JAX offers one CPU device by default, and the engine deals clients to devices: with one, a
    round of small clients uses one core. The setting must come before JAX starts its backend.

    It leaves JAX alone if the backend has started, or if the user has chosen a number of devices:
    by ``XLA_FLAGS=--xla_force_host_platform_device_count=...``, by ``JAX_NUM_CPU_DEVICES`` or by
    ``jax.config``. ``FEDJAX_SECURE_CPU_DEVICES=n`` asks for n devices, and 0 for none of this.

    Returns:
        The number of devices asked for, or None where JAX was left alone. Never raises.

    Example:
        >>> from fedjax_secure.training import use_all_cores
        >>> _ = use_all_cores()    # before the first computation
    """
    log = logging.getLogger(__name__)
    try:
        asked = os.environ.get(VARIABLE, "").strip()
        if asked and not asked.isdecimal():
            log.warning("%s needs a whole number, got %r; ignored.", VARIABLE, asked)
            asked = ""
        count = int(asked) if asked else usable_cores()
        chosen = getattr(jax.config, "jax_num_cpu_devices", -1)
        flags = os.environ.get("XLA_FLAGS", "")
        if count == 0 or chosen != -1 or "xla_force_host_platform_device_count" in flags:
            return None
        jax.config.update("jax_num_cpu_devices", count)
        return count
    except Exception as error:  # the backend has started, or this jax has no such option
        log.debug("JAX keeps its CPU devices: %s", error)
        return None
