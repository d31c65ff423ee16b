import pickle
from pathlib import Path

import numpy as np
import pytest

from spu_lab.tasks.safe_pickle import load_arrays


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_in_containers_come_back(protocol: int) -> None:
    stored = ((np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 0])),)
    ((images, labels),) = load_arrays(pickle.dumps(stored, protocol))
    assert images.dtype == np.float32
    assert images.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert labels.tolist() == [1, 0]


class Touch:
    """Unpickled by an ordinary unpickler, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_calls_something_is_refused_before_it_does(tmp_path: Path) -> None:
    victim = tmp_path / "touched"
    with pytest.raises(pickle.UnpicklingError, match=r"refused: the pickle asks for \S+; only numpy arrays"):
        load_arrays(pickle.dumps([np.arange(3), Touch(victim)]))
    assert not victim.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    ],
)
def test_names_other_than_the_array_are_refused(payload: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        load_arrays(payload)
