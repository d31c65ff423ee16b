"""NetKet solves its linear systems on a device, and trains through it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
import optax
import pytest
from jax.errors import JaxRuntimeError
from jax.flatten_util import ravel_pytree
from scipy import stats

from host_client import Session, connect
from host_client.integrations.netket import spu_solver
from spu_lab.studies.ising_chain import find_energy, make_hamiltonian
from spu_link.errors import InvalidProgram, SessionClosed
from spu_link.operators import Dense
from tests.daemon import Daemon

SHIFT = 0.05
QGT = nk.optimizer.qgt
cholesky = nk.optimizer.solver.cholesky


@pytest.fixture(scope="module", autouse=True)
def compile_fast() -> Iterator[None]:
    """Most of the time goes into compiling, and what is compiled here has little to do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def session() -> Iterator[Session]:
    with connect("inproc:", clock="stepped", seed=0) as spu, spu.session() as session:
        yield session


def make_state(dtype: type = float, spins: int = 4, samples: int = 64) -> Any:
    sampler = nk.sampler.MetropolisLocal(make_hamiltonian(spins, 1.0).hilbert, n_chains=16)
    model = nk.models.RBM(alpha=1, param_dtype=dtype, kernel_init=jax.nn.initializers.normal(0.3))
    return nk.vqs.MCState(sampler, model, n_samples=samples, seed=0, sampler_seed=0)


@cache
def sampled(dtype: type) -> tuple[Any, Any]:
    """A state with its samples, and the gradient of its energy; NetKet compiles for seconds to find them."""
    state = make_state(dtype)
    _, gradient = state.expect_and_grad(make_hamiltonian(4, 1.0))
    return state, gradient


def make_system(make_qgt: Any, dtype: type = float, **options: Any) -> tuple[Any, Any]:
    """S and f of a state."""
    state, gradient = sampled(dtype)
    return make_qgt(state, diag_shift=SHIFT, **options), gradient


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def distance(x: Any, expected: Any) -> float:
    return float(np.linalg.norm(flat(x) - flat(expected)) / np.linalg.norm(flat(expected)))


KINDS = {
    "dense Jacobian": (QGT.QGTJacobianDense, float, {}),
    "Jacobian by leaves": (QGT.QGTJacobianPyTree, float, {}),
    "products": (QGT.QGTOnTheFly, float, {}),
    "dense Jacobian, scaled": (QGT.QGTJacobianDense, float, {"diag_scale": 0.02}),
    "dense Jacobian, complex": (QGT.QGTJacobianDense, complex, {"holomorphic": False}),
    "Jacobian by leaves, complex, scaled": (QGT.QGTJacobianPyTree, complex, {"holomorphic": False, "diag_scale": 0.02}),
    "dense Jacobian, holomorphic": (QGT.QGTJacobianDense, complex, {"holomorphic": True}),
    "products, holomorphic": (QGT.QGTOnTheFly, complex, {"holomorphic": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_geometric_tensor_is_solved_as_by_cholesky(kind: str, session: Session) -> None:
    make_qgt, dtype, options = KINDS[kind]
    S, f = make_system(make_qgt, dtype, **options)
    expected, _ = S.solve(cholesky, f)
    solver = spu_solver(session, analog_time=20.0 / 0.02, start="drive")  # e⁻²⁰ is 2e-9
    through_netket, _ = S.solve(solver, f)
    called, _ = solver(S, f)
    assert distance(through_netket, expected) < 1e-7
    assert distance(called, expected) < 1e-7
    assert jax.tree.structure(called) == jax.tree.structure(f)


@pytest.mark.parametrize("analog_time", [1.0, 20.0, 200.0])
def test_a_reading_is_the_state_of_the_process_at_that_time(analog_time: float, session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    x, _ = S.solve(spu_solver(session, analog_time=analog_time, start="drive"), f)
    values, vectors = np.linalg.eigh(np.asarray(S.to_dense()))
    drive, solution = vectors.T @ flat(f), flat(S.solve(cholesky, f)[0])
    expected = solution + vectors @ (np.exp(-values * analog_time) * (drive - drive / values))
    assert distance(x, expected) < 1e-9
    assert distance(x, solution) <= math.exp(-SHIFT * analog_time) * distance(f, solution) + 1e-9


def test_the_next_solve_goes_on_from_the_last_solution(session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    expected, _ = S.solve(cholesky, f)
    solver = spu_solver(session, analog_time=20.0)
    errors = [distance(S.solve(solver, f)[0], expected) for _ in range(3)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_through_a_daemon_the_jacobian_travels_and_no_matrix(stepped: Daemon) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    with connect(stepped.address) as spu, spu.session() as session:
        solver = spu_solver(session, analog_time=400.0, start="drive")
        x, first = S.solve(solver, f)
        _, second = S.solve(solver, f)
        assert distance(x, S.solve(cholesky, f)[0]) < 1e-7
        assert second["device_time"] == first["device_time"] + 400.0
        assert second["sequence"] == first["sequence"] + 1
        assert first["uploaded_bytes"] == S.O.nbytes + flat(f).nbytes
        assert not first["kept"]


def test_a_device_that_holds_the_tensor_is_sent_the_drive_alone(session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    solver = spu_solver(session, analog_time=400.0)
    S.solve(solver, f)
    doubled, info = S.solve(solver, jax.tree.map(lambda leaf: 2.0 * leaf, f))
    assert info["kept"]
    assert info["uploaded_bytes"] == flat(f).nbytes
    assert distance(doubled, 2.0 * flat(S.solve(cholesky, f)[0])) < 1e-7

    session.program(Dense(np.eye(3)), np.ones(3))
    again, info = S.solve(solver, f)
    assert not info["kept"]
    assert distance(again, S.solve(cholesky, f)[0]) < 1e-7


def test_another_shift_is_another_damping_of_the_same_tensor(session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    solver = spu_solver(session, analog_time=400.0)
    S.solve(solver, f)
    shifted = S + SHIFT
    x, info = shifted.solve(solver, f)
    assert info["kept"]
    assert distance(x, shifted.solve(cholesky, f)[0]) < 1e-7


def test_noise_of_the_reading_has_the_covariance_of_the_process(session: Session) -> None:
    """(x − x*)ᵀ (F + λI) (x − x*) / κ₀ is χ² of N; outside of the interval by chance in one of 10⁶ runs."""
    noise = 1e-4
    S, f = make_system(QGT.QGTJacobianDense)
    x, _ = S.solve(spu_solver(session, analog_time=400.0, noise=noise, start="drive"), f)
    deviation = flat(x) - flat(S.solve(cholesky, f)[0])
    statistic = deviation @ np.asarray(S.to_dense()) @ deviation / noise
    low, high = stats.chi2(len(deviation)).interval(1.0 - 1e-6)
    assert low < statistic < high


def test_a_window_averages_noise_away(session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    expected, _ = S.solve(cholesky, f)
    make = partial(spu_solver, session, analog_time=10_400.0, noise=1e-4, start="drive")
    errors = [distance(S.solve(make(window=window), f)[0], expected) for window in (0.0, 10_000.0)]
    assert errors[1] < 0.3 * errors[0]  # 0.06 is expected, as the slowest time constant is 1/λ = 20 τ


@cache
def one_step(solver: Any, dtype: type, *, use_ntk: bool) -> tuple[np.ndarray, Any]:
    """Parameters after a step of VMC_SR, and what the solver says."""
    state = make_state(dtype)
    driver = nk.driver.VMC_SR(
        make_hamiltonian(4, 1.0),
        optax.sgd(0.1),
        diag_shift=SHIFT,
        linear_solver=solver,
        variational_state=state,
        use_ntk=use_ntk,
    )
    driver.run(1, show_progress=False)
    return flat(state.parameters), driver.info


@pytest.mark.parametrize(
    ("dtype", "use_ntk", "diag_shift"),
    [(float, False, SHIFT), (float, True, SHIFT), (complex, True, 0.0)],
)
def test_a_step_of_vmc_sr_is_that_with_cholesky(
    dtype: type, use_ntk: bool, diag_shift: float, session: Session
) -> None:
    expected, _ = one_step(cholesky, dtype, use_ntk=use_ntk)
    solver = spu_solver(session, analog_time=400.0, start="drive", diag_shift=diag_shift)
    parameters, info = one_step(solver, dtype, use_ntk=use_ntk)
    assert distance(parameters, expected) < 1e-7
    assert info["device_time"] == 400.0


def test_a_chain_of_10_spins_trains_to_a_relative_error_of_1e_3(session: Session) -> None:
    hamiltonian = make_hamiltonian(10, 1.0)
    state = make_state(spins=10, samples=512)
    solver = spu_solver(session, analog_time=500.0)
    preconditioner = nk.optimizer.SR(qgt=QGT.QGTJacobianDense, solver=solver, diag_shift=0.01)
    driver = nk.driver.VMC(hamiltonian, optax.sgd(0.05), variational_state=state, preconditioner=preconditioner)
    (ground,) = nk.exact.lanczos_ed(hamiltonian)
    before = (find_energy(state, 1.0) - ground) / abs(ground)
    driver.run(60, show_progress=False)
    after = (find_energy(state, 1.0) - ground) / abs(ground)
    assert before > 0.05
    assert 0.0 < after < 1e-3
    assert preconditioner.info["sequence"] == 60


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a time before now": ({"analog_time": -1.0}, "analog_time is -1.0; expected a finite number, at least 0"),
    "a negative noise": ({"noise": -1e-3}, "noise is -0.001"),
    "a window longer than the time": ({"window": 11.0}, "window is 11.0; expected at most analog_time, 10"),
    "a start that means nothing": ({"start": "x0"}, "start is 'x0'; expected 'keep' or 'drive'"),
    "a precision that means nothing": ({"precision": "int8"}, "precision is 'int8'; expected 'float32'"),
    "a negative shift": ({"diag_shift": -0.1}, "diag_shift is -0.1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_are_refused_at_once(case: str, session: Session) -> None:
    options, message = REFUSED[case]
    with pytest.raises(InvalidProgram, match=message):
        spu_solver(session, **{"analog_time": 10.0, **options})


def test_systems_that_no_device_solves_are_refused(session: Session) -> None:
    solver = spu_solver(session, analog_time=10.0)
    S, f = make_system(QGT.QGTJacobianDense, complex, holomorphic=False)
    with pytest.raises(InvalidProgram, match=r"S.mode is 'imag'; expected 'real', 'complex' or 'holomorphic'"):
        S.to_imag_part().solve(solver, f)
    S, f = make_system(partial(QGT.QGTOnTheFly, holomorphic=False), complex)
    with pytest.raises(InvalidProgram, match=r"not holomorphic; expected nk.optimizer.qgt.QGTJacobianDense"):
        S.solve(solver, f)
    for matrix in (jnp.ones((2, 3)), jnp.ones(3)):
        with pytest.raises(InvalidProgram, match=r"S is of shape .* expected a square matrix"):
            solver(matrix, jnp.ones(3))
    with pytest.raises(InvalidProgram, match="S is a str; expected"):
        solver("S", jnp.ones(3))
    with pytest.raises(InvalidProgram, match="f is of size 2; expected size 3"):
        solver(jnp.eye(3), jnp.ones(2))
    with pytest.raises(InvalidProgram, match="f is real; expected complex values"):
        solver(jnp.eye(3) * (1 + 0j), jnp.ones(3))


def test_a_shift_that_is_not_that_of_the_system_is_refused(session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    solver = spu_solver(session, analog_time=10.0, diag_shift=2 * SHIFT)
    with pytest.raises(InvalidProgram, match=r"diag_shift is 0.1; expected 0, as this S brings its own along"):
        S.solve(solver, f)
    with (
        pytest.raises(InvalidProgram, match=r"diag_shift is 0.1; expected .* indefinite, with eigenvalue -0.05"),
        solver.device_errors(),
    ):
        solver(S.to_dense(), flat(f))


def test_errors_of_values_and_of_the_device_come_out_of_compiled_code(session: Session) -> None:
    S, f = make_system(QGT.QGTJacobianDense)
    solver = spu_solver(session, analog_time=10.0)
    bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), f)
    with pytest.raises(JaxRuntimeError, match=r"InvalidProgram: drive\[0\] is nan"):
        jax.block_until_ready(S.solve(solver, bad))
    with pytest.raises(InvalidProgram, match=r"drive\[0\] is nan"), solver.device_errors():
        S.solve(solver, bad)
    session.close()
    with pytest.raises(SessionClosed), solver.device_errors():
        S.solve(solver, f)


def test_errors_of_others_pass(session: Session) -> None:
    def fail() -> None:
        raise RuntimeError("of the user")

    with pytest.raises(JaxRuntimeError, match="of the user"), spu_solver(session, analog_time=1.0).device_errors():
        jax.block_until_ready(jax.jit(lambda: jax.pure_callback(fail, jax.ShapeDtypeStruct((), float)))())
