"""The netlist: its elements are those of the equation, and what is no device's problem is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from spu_lab.spice.netlist import CAPACITANCE, RESISTANCE, TAU, Network, OpAmp, Transient, netlist
from spu_link.errors import InvalidProgram

ONCE = Transient(1.0, 0.01)


def network(cells: int = 3, seed: int = 0, **fields: object) -> Network:
    """A random network; its F has both signs and is of rank 2."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, cells))
    drive, start = rng.normal(size=(2, cells))
    return replace(Network(rows.T @ rows, 0.3, drive, start), **fields)  # type: ignore[arg-type]


def elements(text: str, subcircuit: str) -> dict[str, list[str]]:
    """The words of each element of a subcircuit, by its name."""
    body = re.search(rf"^\.subckt {subcircuit} .*?\n(.*?)^\.ends", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    lines = [line.split() for line in body[1].splitlines() if not line.startswith("*")]
    assert len({name for name, *_ in lines}) == len(lines)
    return {name: words for name, *words in lines}


def conductances(parts: dict[str, list[str]], cells: int) -> NDArray[np.float64]:
    """Signed conductances from each cell's output to each summing node, in units of 1/R."""
    matrix = np.zeros((cells, cells))
    for name, (source, node, *value) in parts.items():
        origin = re.fullmatch(r"(x|minus)(\d+)", source)
        if name.startswith("R") and origin and node.startswith("sum"):
            sign = 1.0 if origin[1] == "x" else -1.0
            matrix[int(node[3:]) - 1, int(origin[2]) - 1] += sign * RESISTANCE / float(value[0])
    return matrix


@pytest.mark.parametrize("cells", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_resistors_are_those_of_the_matrix_with_the_signs_of_their_sources(cells: int, seed: int) -> None:
    given = network(cells, seed)
    parts = elements(netlist(given, ONCE), "network")
    np.testing.assert_allclose(conductances(parts, cells), given.matrix, rtol=1e-9, atol=1e-9)
    assert all(float(words[2]) > 0.0 for name, words in parts.items() if name.startswith("R"))


def test_an_inverter_is_where_a_negative_element_needs_it_and_has_the_gain_minus_one() -> None:
    matrix = np.array([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    parts = elements(netlist(Network(matrix, 0.0, np.ones(3), np.zeros(3)), ONCE), "network")
    assert {name for name in parts if name.startswith("Xinverter")} == {"Xinverter1", "Xinverter2"}
    assert parts["Xinverter2"][:4] == ["0", "middle2", "minus2", "opamp"]
    assert parts["Rin2"] == ["x2", "middle2", "1000"]
    assert parts["Rback2"] == ["minus2", "middle2", "1000"]


def test_elements_of_zero_have_no_resistor() -> None:
    parts = elements(netlist(Network(np.diag([1.0, 2.0]), 0.0, np.ones(2), np.zeros(2)), ONCE), "network")
    assert {name for name in parts if name.startswith("R")} == {"Rf1_1", "Rf2_2", "Rdrive1", "Rdrive2"}


def test_cells_integrate_with_tau_and_are_driven_by_the_negative_of_b() -> None:
    given = network()
    parts = elements(netlist(given, ONCE), "network")
    for cell in range(3):
        *nodes, farad, start = parts[f"Ccell{cell + 1}"]
        assert nodes == [f"x{cell + 1}", f"sum{cell + 1}"]
        assert float(farad) * RESISTANCE == pytest.approx(TAU)
        assert float(start.removeprefix("ic=")) == pytest.approx(given.start[cell])
        assert float(parts[f"Vdrive{cell + 1}"][2]) == pytest.approx(-given.drive[cell])
        assert float(parts[f"Rdrive{cell + 1}"][2]) == RESISTANCE
    assert pytest.approx(CAPACITANCE) == 1e-9


def test_noise_has_the_variance_of_the_equation_over_one_step() -> None:
    text = netlist(network(noise=0.02, noise_step=0.1), ONCE)
    words = " ".join(elements(text, "network")["Vnoise2"])
    found = re.search(r"trrandom\(2 (\S+) 0 (\S+) 0\)", words)
    assert found is not None
    hold, spread = map(float, found.groups())
    assert hold == pytest.approx(0.1 * TAU)
    assert (spread * hold / TAU) ** 2 == pytest.approx(2.0 * 0.02 * 0.1)
    assert "noise" not in netlist(network(), ONCE).partition("\n")[2]


@pytest.mark.parametrize("bandwidth", [math.inf, 1e7])
def test_the_amplifier_has_its_gain_and_its_pole(bandwidth: float) -> None:
    parts = elements(netlist(network(amplifier=OpAmp(1e4, bandwidth)), ONCE), "opamp")
    if math.isinf(bandwidth):
        assert float(parts["Egain"][4]) == 1e4
        return
    siemens, ohm, farad = (float(parts[name][place]) for name, place in (("Gfirst", 4), ("Rpole", 2), ("Cpole", 2)))
    assert siemens * ohm == pytest.approx(1e4)
    assert siemens / farad == pytest.approx(2.0 * math.pi * bandwidth)


def test_copies_are_saved_one_after_the_other() -> None:
    text = netlist(network(2), Transient(1.0, 0.01, copies=2, seed=7))
    assert ".save v(x1_1) v(x2_1) v(x1_2) v(x2_2)\n" in text
    assert "seed=7" in text


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"curvature": np.array([[1.0, 0.5], [0.2, 1.0]])}, "curvature", "asymmetric by 0.3; expected a symmetric"),
        ({"curvature": np.array([[1.0, 2.0], [2.0, 1.0]])}, "curvature", "indefinite, with eigenvalue -1; expected"),
        (
            {"curvature": np.ones((2, 2)), "damping": 0.0},
            "curvature",
            "singular with damping 0; expected a positive def",
        ),
        ({"curvature": np.full((2, 2), np.nan)}, "curvature", r"curvature\[0, 0\] is nan"),
        ({"curvature": np.eye(3)}, "curvature", r"of shape \(3, 3\); expected shape \(2, 2\)"),
        ({"start": np.zeros(3)}, "start", r"of shape \(3,\); expected shape \(2,\)"),
        ({"offsets": np.zeros(2)}, "offsets", r"expected shape \(2, 2\)"),
        ({"damping": -0.1}, "damping", "damping is -0.1; expected a finite number, at least 0"),
        ({"noise": math.nan}, "noise", "noise is nan"),
        ({"noise_step": 0.0}, "noise_step", "expected a finite number above 0"),
    ],
)
def test_a_network_that_is_no_problem_of_a_device_is_refused(changes: dict[str, object], field: str, said: str) -> None:
    with pytest.raises(InvalidProgram, match=said) as refused:
        network(2, **changes)
    assert refused.value.field == field


@pytest.mark.parametrize("fields", [{"gain": 0.0}, {"gain": math.nan}, {"bandwidth": -1e6}])
def test_an_amplifier_without_gain_or_bandwidth_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidProgram, match=f"{next(iter(fields))} is .*; expected a number above 0, or inf"):
        OpAmp(**fields)


@pytest.mark.parametrize("fields", [{"duration": 0.0}, {"step": math.inf}, {"copies": 0}, {"seed": 0}])
def test_a_transient_without_length_or_copies_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidProgram, match=f"{next(iter(fields))} is "):
        replace(ONCE, **fields)  # type: ignore[arg-type]
