"""FID and Inception score through torch-fidelity."""

import hashlib
import importlib
import pathlib
import pickle
from typing import Any

import numpy as np

__all__ = ["open_weights", "scores"]


def open_weights(weights_path: str | pathlib.Path) -> tuple[pathlib.Path, Any, Any]:
    """The weights' path and the modules torch and torch_fidelity; raises as :func:`scores`."""
    path = pathlib.Path(weights_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no Inception weights in {path}; download weights-inception-2015-12-05 "
            "from torch-fidelity's releases and give its path"
        )
    try:
        torch, fidelity = map(importlib.import_module, ("torch", "torch_fidelity"))
    except ImportError as error:
        raise RuntimeError(f"{error}; FID and IS need pip install 'sinkflow[eval]'") from error
    # torch-fidelity unpickles the file, which could run anything; this refuses all but tensors.
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} holds something else than a PyTorch state_dict") from error
    return path, torch, fidelity


def scores(
    pixels: np.ndarray, real: np.ndarray, weights_path: str | pathlib.Path, *, split: str = "test"
) -> dict[str, Any]:
    """FID and Inception score through torch-fidelity, with what they depend on.

    Args:
      pixels: generated images [n, h, w, c] uint8; grey ones are shown in three equal channels.
      real: real images of the same shape.
      weights_path: torch-fidelity's Inception weights, a file (weights-inception-2015-12-05).
      split: where ``real`` is from; recorded.

    Raises:
      ValueError: other types or shapes; a file that is no ``state_dict``.
      FileNotFoundError: no such file.
      RuntimeError: torch-fidelity is not installed.

    Source:
      Heusel et al. 2017, arXiv:1706.08500 (FID); Salimans et al. 2016, arXiv:1606.03498 (IS).
    """
    if not pixels.dtype == real.dtype == np.uint8 or pixels.shape != real.shape:
        raise ValueError(
            f"images are {pixels.dtype} {pixels.shape} and {real.dtype} {real.shape}; "
            "give uint8 of one shape, as many generated as real"
        )
    path, torch, fidelity = open_weights(weights_path)
    values = fidelity.calculate_metrics(
        input1=_torch_images(torch, pixels),
        input2=_torch_images(torch, real),
        isc=True,
        fid=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(path),
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,  # no worker processes: forked beside JAX's threads they may hang
        verbose=False,
    )
    return {
        "fid": values["frechet_inception_distance"],
        "inception_score": values["inception_score_mean"],
        "inception_score_std": values["inception_score_std"],
        "split": split,
        "count": len(pixels),
        "resize": "bilinear to 299x299 as in TensorFlow 1, by torch-fidelity",
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "torch_fidelity": fidelity.__version__,
    }


def _torch_images(torch: Any, pixels: np.ndarray) -> Any:
    """A torch data set of uint8 images [3, h, w]."""
    channels = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).transpose(0, 3, 1, 2)
    return torch.utils.data.Subset(torch.from_numpy(channels.copy()), range(len(pixels)))
