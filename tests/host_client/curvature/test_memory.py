import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_client.capacity import Capacity, Cell
from host_client.curvature import Capture, available, linearise, memory
from host_client.curvature.available import available_memory, available_on
from host_client.curvature.errors import CurvatureTooLarge
from host_client.curvature.estimate import Estimate
from host_client.curvature.memory import FRACTION, NOT_WORTH_ASKING, Size, check_memory, readable
from spu_link.operators import LayerRows, LinearRows, Rows
from tests.cases import Case
from tests.profiles import examples

GIB = 1 << 30


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which a curvature may take 9 GiB."""
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * GIB)


def test_the_estimate_counts_the_bytes_of_the_operator() -> None:
    b, columns = 5, 3
    inputs, cotangents = torch.randn(b, 7), torch.randn(columns, b, 4)
    operator = LayerRows([LinearRows(inputs, cotangents, bias=True), Rows(torch.randn(columns * b, 11))])
    sizes = [Size("a", b * 7, b * 4, 4, 32), Size("b", 0, b * 11, 4, 11)]
    estimate = check_memory(sizes, columns, samples=b, parameters=43, outputs=b * 6)
    m, n = operator.shape
    drive = torch.zeros(n)
    assert estimate == Estimate(
        host=operator.nbytes + torch.zeros(columns, b, 6).nbytes + 2 * drive.nbytes,
        accelerator=0,
        link=operator.nbytes + drive.nbytes,
        device=operator.nbytes + 3 * torch.zeros(m, m, dtype=torch.float64).nbytes + 10 * 8 * n,
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")
def test_what_is_counted_beforehand_is_what_the_capture_makes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Estimate] = []
    monkeypatch.setattr(linearise, "check_memory", lambda *a, **k: counted.append(check_memory(*a, **k)))
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.loss()
    drive = sum(parameter.numel() for parameter in problem.trained) * capture.operator.dtype.itemsize
    assert [one.link for one in counted] == [capture.operator.nbytes + drive]


def test_on_an_accelerator_operands_lie_there_twice_for_a_moment_and_the_host_holds_the_pinned_copy() -> None:
    sizes = [Size("a", 100, 10, 4, 50)]
    estimate = check_memory(sizes, 2, samples=5, parameters=50, outputs=30, place=torch.device("cuda"))
    assert estimate.accelerator == (120 + 120 + 50) * 4
    assert estimate.host == (120 + 2 * 50) * 4


BIG = [Size("head", 1 << 20, 1 << 26, 4, 10**6), Size("body", 1 << 20, 1 << 20, 4, 10**5)]
"""A quarter of a GiB a column in the head, 4 MiB in the body."""


def _refusal(**options: Any) -> CurvatureTooLarge:
    with pytest.raises(CurvatureTooLarge) as refused:
        check_memory(**options)
    return refused.value


def test_the_message_has_the_numbers_and_the_largest_layers() -> None:
    refused = _refusal(sizes=BIG, columns=100, samples=64, parameters=1_100_000)
    assert str(refused) == (
        "the curvature of 1,100,000 parameters from 64 samples with 100 columns each takes 25.4 GiB on the host, "
        "25.4 GiB on the link and 26.4 GiB on the device, but the host has 9 GiB to spare. Most is taken by 'head' 25 "
        "GiB, 'body' 404 MiB. What would fit: curvature=\"mc\" with samples=35 or fewer; or batches of 22 or fewer; or "
        "freezing 'head' (requires_grad_(False))."
    )
    assert isinstance(refused, ValueError)
    assert refused.estimate.link == sum(size.nbytes(100) for size in BIG) + 4_400_000


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ((GIB, 1 << 40), r"the device takes uploads of at most 1 GiB"),
        ((1 << 60, 10**6), r"the device has 1,000,000 cells for 1,100,000 parameters"),
        (
            (GIB, 10**6),
            r"the device takes uploads of at most 1 GiB, and the device has 1,000,000 cells for 1,100,000 parameters",
        ),
    ],
)
def test_each_limit_of_the_device(limits: tuple[int, int], reason: str) -> None:
    refused = _refusal(sizes=BIG, columns=8, samples=64, parameters=1_100_000, device=Capacity(*limits, here=False))
    assert re.search(f", but {reason}. Most", str(refused))


WAYS = {
    (10**6, "parameter", 1): 'embedding="sample"); or connect(…, embedding="block"); or freezing \'head\'',
    (999_999, "parameter", 1): "embedding=\"sample\"); or freezing 'head'",
    (63, "block parameter", 1): 'embedding="sample") and batches of 63 or fewer',
    (63, "parameter", 10): 'embedding="sample") and batches of 6 or fewer',
    (8, "parameter", 10): 'embedding="sample") and curvature="mc" with samples=1 and batches of 8 or fewer',
    (1_100_000, "row", 20_000): 'embedding="direct"); or connect(…, embedding="block"); or curvature="mc" with',
}
"""Sufficient settings by cells of the device, kind of cell, and columns."""


@pytest.mark.parametrize(("cells", "cell", "columns"), WAYS)
def test_too_many_cells_are_helped_by_another_embedding_or_by_one_of_less(cells: int, cell: Cell, columns: int) -> None:
    device = Capacity(1 << 60, cells, False, cell)
    sizes = [Size("head", 0, 1, 1, 10**6), Size("body", 0, 1, 1, 10**5)]
    refused = _refusal(sizes=sizes, columns=columns, samples=64, parameters=1_100_000, device=device)
    assert f". What would fit: connect(…, {WAYS[cells, cell, columns]}" in str(refused)


def test_too_few_cells_for_the_rows_are_helped_by_fewer_rows() -> None:
    device = Capacity(1 << 60, 63, False, "row")
    refused = _refusal(sizes=BIG, columns=10, samples=64, parameters=1_100_000, device=device)
    assert "the device has 63 cells for 640 rows of the factor" in str(refused)
    assert str(refused).endswith("What would fit: batches of 6 or fewer.")


def test_the_accelerators_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_on", lambda place: GIB)
    refused = _refusal(sizes=BIG, columns=8, samples=64, parameters=1_100_000, place=torch.device("cuda"))
    assert "4.08 GiB on the accelerator" in str(refused)
    assert "but the accelerator has 922 MiB to spare" in str(refused)


def test_a_device_on_the_same_machine_takes_from_the_same_memory() -> None:
    # A thousand bytes of operands, and 2 GiB for each m × m matrix.
    device, n = Capacity(1 << 60, 1 << 60, here=True), 1 << 20
    options: dict[str, Any] = {"sizes": [Size("a", 0, 1, 4, n)], "samples": 128, "parameters": n, "device": device}
    check_memory(columns=128, **options)
    assert "9 GiB to spare, for itself and for the device emulated here" in str(_refusal(columns=256, **options))


def test_with_more_rows_than_parameters_the_device_needs_matrices_of_the_parameters() -> None:
    n = 257
    sizes = [Size("a", 0, 256, 4, n)]
    few, many = (check_memory(sizes, 1, samples=m, parameters=n) for m in (n, 4 * n))
    assert few.device == many.device == 4 * 256 + 8 * (3 * n * n + 10 * n)


def test_both_together_where_neither_is_enough() -> None:
    # Even one column of all samples, or all columns of one sample, is too much.
    sizes = [Size("a", 0, 1 << 33, 4, 1)]
    refused = _refusal(sizes=sizes, columns=64, samples=64, parameters=1)
    ways = re.search(r'What would fit: curvature="mc" with samples=1 and batches of (\d+) or fewer\.', str(refused))
    assert ways is not None
    assert int(ways[1]) == 17  # 18 are 9 GiB, without the drive


def test_a_model_that_no_setting_helps() -> None:
    refused = _refusal(sizes=BIG, columns=1, samples=1, parameters=1_100_000, device=Capacity(10, 1000, False))
    assert str(refused).endswith("Nothing fits but a smaller model.")


_SIZES = st.lists(
    st.builds(
        Size,
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 1 << 30),
        st.integers(0, 1 << 28),
        st.sampled_from([4, 8]),
        st.integers(0, 10**8),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=examples(300))
@given(
    _SIZES,
    st.integers(1, 2000),
    st.integers(1, 200),
    st.none() | st.builds(Capacity, st.integers(1, 1 << 34), st.integers(1, 10**8), st.booleans()),
)
def test_what_it_says_would_fit_fits_and_no_more_does(
    sizes: list[Size], columns: int, samples: int, device: Capacity | None
) -> None:
    parameters = sum(size.parameters for size in sizes)

    def fits(sizes: list[Size], columns: int, samples: int, device: Capacity | None = device) -> bool:
        n = sum(size.parameters for size in sizes)
        try:
            check_memory(sizes, columns, samples=samples, parameters=n, device=device)
        except CurvatureTooLarge:
            return False
        return True

    def smaller(batch: int) -> list[Size]:
        return [
            Size(s.path, -(-s.fixed * batch // samples), -(-s.per_column * batch // samples), s.itemsize, s.parameters)
            for s in sizes
        ]

    def check(way: str, device: Capacity | None) -> None:
        """A way's number is enough, and the largest that is."""
        if found := re.fullmatch(r'curvature="mc" with samples=1 and batches of ([\d,]+) or fewer', way):
            batch = int(found[1].replace(",", ""))
            assert fits(smaller(batch), 1, batch, device)
            assert not fits(sizes, 1, samples, device)
        elif found := re.fullmatch(r'curvature="mc" with samples=(\d+)(?: or fewer)?', way):
            assert fits(sizes, int(found[1]), samples, device)
            assert int(found[1]) + 1 == columns or not fits(sizes, int(found[1]) + 1, samples, device)
        elif found := re.fullmatch(r"batches of ([\d,]+) or fewer", way):
            batch = int(found[1].replace(",", ""))
            assert fits(smaller(batch), columns, batch, device)
            assert batch + 1 == samples or not fits(smaller(batch + 1), columns, batch + 1, device)
        else:
            found = re.fullmatch(r"freezing (.*) \(requires_grad_\(False\)\)", way)
            assert found is not None, way
            left = [size for size in sizes if repr(size.path) not in found[1]]
            assert left
            assert fits(left, columns, samples, device)

    try:
        check_memory(sizes, columns, samples=samples, parameters=parameters, device=device)
    except CurvatureTooLarge as error:
        _, _, ways = str(error).rpartition("What would fit: ")
    else:
        return
    if "Nothing fits" in ways:
        return
    for way in ways.removesuffix(".").split("; or "):
        found = re.fullmatch(r'connect\(…, embedding="(\w+)"\)(?: and (.*))?', way)
        if found is None:
            check(way, device)
            continue
        assert device is not None
        cell: Cell = "row" if found[1] == "sample" else "block parameter"
        embedded = replace(device, cell=cell)
        if found[2]:
            check(found[2], embedded)
        else:
            assert fits(sizes, columns, samples, embedded)


def test_small_curvatures_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> int:
        raise AssertionError("asked")

    monkeypatch.setattr(memory, "available_memory", asked)
    check_memory([Size("a", 0, NOT_WORTH_ASKING // 4, 4, 0)], 1, samples=1, parameters=0)
    with pytest.raises(AssertionError, match="asked"):
        check_memory([Size("a", 1, NOT_WORTH_ASKING // 4, 4, 0)], 1, samples=1, parameters=0)


def test_a_part_of_the_memory_is_left_to_others() -> None:
    limit = int(FRACTION * 10 * GIB)
    check_memory([Size("a", limit, 0, 1)], 1, samples=1, parameters=0)
    _refusal(sizes=[Size("a", limit + 1, 0, 1)], columns=1, samples=1, parameters=0)


def test_available_memory_is_the_machines() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
    assert available_on(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_container_has_what_its_limit_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(available, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 400000\n")
    assert available_memory() == 900_000
    (tmp_path / "memory.current").write_text("9500000\n")
    assert available_memory() == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 1 << 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_available_on_an_accelerator_counts_what_the_cache_holds() -> None:
    place = torch.device("cuda", 0)
    before = available_on(place)
    kept = torch.empty(1 << 26, dtype=torch.uint8, device=place)
    assert available_on(place) <= before - kept.nbytes
    del kept
    assert available_on(place) > before - (1 << 25)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1536, "1.5 KiB"),
        (25 * GIB, "25 GiB"),
        (1 << 60, "1.02e+03 PiB"),
    ],
)
def test_readable(nbytes: int, text: str) -> None:
    assert readable(nbytes) == text
