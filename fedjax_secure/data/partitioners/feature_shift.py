"""Feature shift: the same labels everywhere, seen through another noise, angle or scale."""

from __future__ import annotations

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset, frozen
from fedjax_secure.data.partitioners.dealing import positive, random_stream
from fedjax_secure.data.partitioners.even import iid


def feature_shift(
    data: FederatedDataset,
    num_clients: int | None = None,
    *,
    noise: float | None = None,
    rotation_degrees: float | None = None,
    scale: float | None = None,
    seed: int = 0,
) -> FederatedDataset:
    """Changes the features of each client a little more than those of the client before it.

    Client i of N, counted from 1, gets each of the changes that you ask for, in this order:

    - ``rotation_degrees``: its pictures turn by ``rotation_degrees * i / N`` about their centre,
      with linear interpolation; what turns in from outside is 0;
    - ``scale``: its features are multiplied by ``1 + scale * i / N``;
    - ``noise``: independent normal noise of mean 0 and *variance* ``noise * i / N`` is added to
      each feature. (Li et al. write Gau(sigma i / N) and call it the variance; their code uses
      the same number as the standard deviation.)

    Training and held-out records of a client change in the same way. Nothing is clipped.

    Args:
        data: the dataset. uint8 pixels become float32, value / 255, before they change.
        num_clients: first deal the records to so many clients by `iid`, as Li et al. do; None
            keeps the clients there are.
        noise: the variance of the last client's noise.
        rotation_degrees: the last client's angle; for records of shape (height, width, channels)
            or (height, width).
        scale: what is added to the last client's factor.
        seed: of the dealing and the noise; a public constant.

    Returns:
        A float32 dataset, which spends from the same privacy budget.

    Raises:
        DataError: no change asked for, text, a rotation of what is no picture, or a bad setting.

    Example:
        >>> from fedjax_secure.data import heart_disease
        >>> data = feature_shift(heart_disease(), 5, noise=0.1)
        >>> bool(data.x[data.rows(4)].var() > data.x[data.rows(0)].var())
        True

    Source:
        Li, Diao, Chen and He 2022, Federated Learning on Non-IID Data Silos: An Experimental Study,
        section 4 (noise-based feature imbalance).
    """
    asked = {"noise": noise, "rotation_degrees": rotation_degrees, "scale": scale}
    changes = {n: positive("feature_shift", n, v) for n, v in asked.items() if v is not None}
    if not changes:
        raise _refuse("noise=, rotation_degrees= or scale=", "none", "Write noise=0.1.")
    if data.x.dtype == np.int32:
        raise _refuse("features that are numbers", "tokens (int32)", "Use another partitioner.")
    if rotation_degrees is not None and len(data.shape) not in (2, 3):
        raise _refuse(
            "pictures of shape (height, width, channels) to turn",
            f"records of shape {data.shape}",
            "Leave rotation_degrees out, or give the dataset its shape.",
        )
    if num_clients is not None:
        data = iid(data, num_clients, seed=seed)
    parts = {}
    for stream, prefix in ((1, ""), (2, "test_")):
        x = getattr(data, f"{prefix}x")
        x = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.copy()
        random = random_stream(seed, stream)
        bounds = getattr(data, f"{prefix}offsets")
        for c in range(data.num_clients):
            part = x[bounds[c] : bounds[c + 1]]
            part[:] = _changed(part, data.shape, (c + 1) / data.num_clients, changes, random)
        parts[f"{prefix}x"] = frozen(x)
    said = ", ".join(f"{n}={v:g}" for n, v in changes.items())
    return data.derive(
        name=f"{data.name}, feature_shift",
        card=f"{data.card}\nFeatures changed by feature_shift({said}, seed={seed}).\n",
        **parts,
    )


def _changed(
    x: np.ndarray,
    shape: tuple[int, ...],
    strength: float,
    changes: dict[str, float],
    random: np.random.RandomState,
) -> np.ndarray:
    if "rotation_degrees" in changes and len(x):
        from scipy.ndimage import rotate

        pictures = x.reshape(len(x), *shape)
        angle = changes["rotation_degrees"] * strength
        turned = rotate(pictures, angle, axes=(2, 1), reshape=False, order=1, mode="constant")
        x = turned.reshape(x.shape)
    if "scale" in changes:
        x = x * np.float32(1 + changes["scale"] * strength)
    if "noise" in changes:
        deviation = np.sqrt(changes["noise"] * strength)
        x = x + (deviation * random.standard_normal(x.shape)).astype(np.float32)
    return x


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("feature_shift", need=need, found=found, fix=fix)
