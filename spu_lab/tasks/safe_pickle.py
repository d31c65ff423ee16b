"""Pickles that hold numpy arrays and nothing else."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

import numpy as np

# The three names that a pickled array of plain numbers needs, the last under the module paths of numpy 1 and 2.
_reconstruct = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The admitted object of that name.

        Raises:
            pickle.UnpicklingError: for every other name, before anything is imported.
        """
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"refused: the pickle asks for {module_name}.{global_name}; only numpy arrays are admitted"
            ) from None


def load_arrays(data: bytes) -> Any:
    """Containers of numpy arrays behind a pickle; nothing named in it is imported or called but the array's own making.

    Raises:
        pickle.UnpicklingError: when it names anything else, or is broken.
    """
    return _ArrayUnpickler(BytesIO(data), encoding="latin1").load()
