"""A linear solver for NetKet: stochastic reconfiguration with the system solved by a device.

NetKet calls a solver while it compiles, when S and f have shapes and dtypes, but no values. What they are is decided
then. Their values go to the device by a callback, once for each solve and in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jax.errors import JaxRuntimeError
from jax.experimental import io_callback
from jax.flatten_util import ravel_pytree
from netket.errors import NonHolomorphicQGTOnTheFlyDenseRepresentationError
from netket.optimizer.linear_operator import LinearOperator
from netket.optimizer.qgt.qgt_jacobian_dense import QGTJacobianDenseT
from netket.optimizer.qgt.qgt_jacobian_pytree import QGTJacobianPyTreeT
from numpy.typing import NDArray
from torch import Tensor

from host_client.blocking import Session
from spu_link.errors import InvalidProgram, OperatorGone, SpuError, either, mismatch
from spu_link.names import StartPolicy
from spu_link.operators import Dense, Kept, Operator, Rows
from spu_link.precision import PRECISIONS, Precision
from spu_link.program import Reading, non_negative

Jacobian = QGTJacobianDenseT | QGTJacobianPyTreeT
"""Types of S that hold its factor, the centred and scaled Jacobian."""


def spu_solver(
    session: Session,
    *,
    analog_time: float,
    noise: float = 0.0,
    window: float = 0.0,
    start: StartPolicy = "keep",
    precision: Precision | None = None,
    diag_shift: float = 0.0,
) -> SpuSolver:
    """Return a linear solver ``(S, f) -> (x, info)`` for NetKet that reads the solution from a device.

    Pass it as ``nk.optimizer.SR(solver=...)`` or ``nk.driver.VMC_SR(linear_solver=...)``. Of `QGTJacobianDense` and
    `QGTJacobianPyTree` the Jacobian travels, as `Rows`, and nothing of size N × N is formed. Other S, and the matrices
    of VMC_SR (also its kernel, with ``use_ntk=True``), travel in full, as `Dense`. Their diagonal shift is the damping
    of the program. A complex system travels as the equivalent real one of twice the size.

    Args:
        session: on the device; it has to stay open while the solver is used.
        analog_time: t, how long the device evolves before it is read, in τ. With a shift λ, t = 5/λ is a solution to
            1 %.
        noise: κ₀ ≥ 0.
        window: average over the last `window` ≤ `analog_time` τ.
        start: ``"keep"`` goes on from the cells' state, which is the last solution; ``"drive"`` starts from f.
        precision: how the values of S travel, as in `Session.program`.
        diag_shift: shift that a matrix S of VMC_SR already contains: it is subtracted there, and set as the damping
            instead. With 0 such a matrix travels as it is, which has the same solution.

    Raises:
        InvalidProgram: naming the argument that is not what it must be.
    """
    time = non_negative("analog_time", analog_time)
    if non_negative("window", window) > time:
        raise mismatch("window", repr(window), f"at most analog_time, {time:g}")
    if start not in ("keep", "drive"):
        raise mismatch("start", repr(start), "'keep' or 'drive'")
    if precision is not None and precision not in PRECISIONS:
        raise mismatch("precision", repr(precision), f"{either(map(repr, PRECISIONS))}, or None")
    terms = {
        "analog_time": time,
        "noise": non_negative("noise", noise),
        "window": float(window),
        "start": start,
        "precision": precision,
    }
    return SpuSolver(session, terms, non_negative("diag_shift", diag_shift))


class SpuSolver:
    """A linear solver for NetKet on a device. Made by `spu_solver`.

    Errors in S itself are raised as they are. Those of values and of the device, which occur inside compiled code, come
    out of NetKet as a `JaxRuntimeError` with their text; `device_errors` raises them as they were.
    """

    def __init__(self, session: Session, terms: dict[str, Any], diag_shift: float) -> None:
        self._session, self._terms, self._diag_shift = session, terms, diag_shift
        self._held: tuple[Operator, int] | None = None  # operator that was sent last, and a program under it
        self._failure: SpuError | None = None

    def __call__(self, S: Any, f: Any, *, x0: Any = None) -> tuple[Any, dict[str, Array]]:
        """Solve S x = f.

        Args:
            S: a quantum geometric tensor of NetKet with its diagonal shift, or a matrix.
            f: the right-hand side: a vector or a PyTree.
            x0: not used: the device starts as `start` of `spu_solver` says.

        Returns:
            x like f, and information about the reading: ``device_time`` in τ, ``sequence`` of the program, ``kept`` if
            the device held S already, and the ``uploaded_bytes``.

        Raises:
            InvalidProgram: when S is not what a device solves.
        """
        if isinstance(S, Jacobian) and _is_user_form(S, f):
            return S.solve(self, f)  # type: ignore[no-any-return]  # NetKet brings both into the form that is solved
        matrix, shift = self._system(S)
        flat, unravel = ravel_pytree(f)
        if matrix.shape[1] != flat.size:
            raise mismatch("f", f"of size {flat.size}", f"size {matrix.shape[1]}, as S has columns")
        halves = jnp.iscomplexobj(matrix) or jnp.iscomplexobj(flat)
        if halves and not jnp.iscomplexobj(flat):
            raise mismatch("f", "real", "complex values, as S has them")
        drive = jnp.concatenate([flat.real, flat.imag]) if halves else flat
        x, info = io_callback(
            self._solve_rows if isinstance(S, Jacobian) else self._solve_dense,
            (jax.ShapeDtypeStruct(drive.shape, drive.dtype), INFO),
            _real_form(matrix) if halves else matrix,
            drive,
            shift,
            ordered=True,
        )
        return unravel(x[: flat.size] + 1j * x[flat.size :] if halves else x), info

    @contextmanager
    def device_errors(self) -> Iterator[None]:
        """Raise an error of the device itself in place of the `JaxRuntimeError` that compiled code makes of it.

        Raises:
            SpuError: when that has ended a solve within.
        """
        self._failure = None
        try:
            yield
            jax.effects_barrier()
        except JaxRuntimeError:
            if self._failure is None:
                raise
            raise self._failure from None

    def _system(self, S: Any) -> tuple[Array, Any]:
        """Return the factor A or the matrix F, and the diagonal shift λ."""
        if isinstance(S, Array | np.ndarray):
            if S.ndim != 2 or S.shape[0] != S.shape[1]:
                raise mismatch("S", f"of shape {S.shape}", "a square matrix")
            return jnp.asarray(S), self._diag_shift
        if not isinstance(S, LinearOperator):
            raise mismatch("S", f"a {type(S).__name__}", "a geometric tensor of NetKet, or a matrix")
        if self._diag_shift:
            raise mismatch("diag_shift", self._diag_shift, "0, as this S brings its own along")
        if isinstance(S, Jacobian):
            return _rows_of(S), S.diag_shift
        return _matrix_of(S), S.diag_shift

    def _solve_rows(self, rows: Array, drive: Array, shift: Array) -> tuple[NDArray[Any], dict[str, Any]]:
        """Solve with F = AᵀA, called back with values."""
        return self._solve(Rows(_tensor(rows)), _tensor(drive), float(shift))

    def _solve_dense(self, matrix: Array, drive: Array, shift: Array) -> tuple[NDArray[Any], dict[str, Any]]:
        """Solve with F, called back with values."""
        f = _tensor(matrix)
        if self._diag_shift:
            f.diagonal().sub_(self._diag_shift)
        return self._solve(Dense(f), _tensor(drive), float(shift))

    def _solve(self, operator: Operator, drive: Tensor, shift: float) -> tuple[NDArray[Any], dict[str, Any]]:
        before = self._session.uploaded_bytes
        try:
            reading, kept = self._read(operator, drive, shift)
        except SpuError as error:
            self._failure = self._explained(error)
            raise self._failure from None
        return reading.value.numpy(), {
            "device_time": np.asarray(reading.time, INFO["device_time"].dtype),
            "sequence": np.asarray(reading.sequence, INFO["sequence"].dtype),
            "kept": np.asarray(kept),
            "uploaded_bytes": np.asarray(self._session.uploaded_bytes - before, INFO["uploaded_bytes"].dtype),
        }

    def _read(self, operator: Operator, drive: Tensor, shift: float) -> tuple[Reading, bool]:
        """Return the reading, and whether the device held the operator already."""
        held, self._held = self._held, None
        if held is not None and _same(held[0], operator):
            try:
                kept = Kept(held[1], operator.parameters)
                reading = self._session.solve(kept, drive, damping=shift, **self._terms)
            except OperatorGone:  # another program has run on the session
                pass
            else:
                self._held = held[0], reading.sequence
                return reading, True
        reading = self._session.solve(operator, drive, damping=shift, **self._terms)
        self._held = operator, reading.sequence
        return reading, False

    def _explained(self, error: SpuError) -> SpuError:
        if self._diag_shift and isinstance(error, InvalidProgram) and error.field == "dense.matrix":
            expected = f"that of the driver; when it is subtracted from S, {error.message}"
            return mismatch("diag_shift", self._diag_shift, expected)
        return error


INFO = {
    "device_time": jax.ShapeDtypeStruct((), jnp.result_type(float)),
    "sequence": jax.ShapeDtypeStruct((), jnp.result_type(int)),
    "kept": jax.ShapeDtypeStruct((), jnp.bool_),
    "uploaded_bytes": jax.ShapeDtypeStruct((), jnp.result_type(int)),
}
"""Shapes and dtypes of what is returned about a reading."""


def _is_user_form(S: Any, f: Any) -> bool:
    """Return whether S is scaled, or f not yet in the form of the Jacobian: real where that is, and with its leaves."""
    given: Any = jax.tree.structure(f)
    if S.scale is not None or given != jax.tree.structure(S.O):
        return True
    return S.mode in ("real", "complex") and any(map(jnp.iscomplexobj, jax.tree.leaves(f)))


def _rows_of(S: Any) -> Array:
    """Return the factor A of S = AᴴA + λI, shape (m, N).

    In the mode "complex" of NetKet the real and the imaginary part of each sample are rows of their own.
    """
    if S.mode not in ("real", "complex", "holomorphic"):
        raise mismatch("S.mode", repr(S.mode), "'real', 'complex' or 'holomorphic': others are not semi-definite")
    leading = 2 if S.mode == "complex" else 1
    leaves = jax.tree.leaves(S.O)
    return jnp.concatenate([leaf.reshape(math.prod(leaf.shape[:leading]), -1) for leaf in leaves], axis=1)


def _matrix_of(S: Any) -> Array:
    """Return S in full, without its shift."""
    try:
        matrix: Array = S.replace(diag_shift=0.0).to_dense()
    except NonHolomorphicQGTOnTheFlyDenseRepresentationError:
        raise mismatch(
            "S",
            "QGTOnTheFly of complex parameters that are not holomorphic",
            "nk.optimizer.qgt.QGTJacobianDense, or holomorphic=True where the model is that",
        ) from None
    return matrix


def _real_form(matrix: Array) -> Array:
    """Return the real matrix that does to (Re x, Im x) what a complex one does to x."""
    real, imaginary = jnp.real(matrix), jnp.imag(matrix)
    return jnp.block([[real, -imaginary], [imaginary, real]])


def _tensor(array: Array) -> Tensor:
    """Return a copy: the memory of what a callback is given ends with it."""
    return torch.tensor(np.asarray(array))


def _same(held: Operator, operator: Operator) -> bool:
    return type(held) is type(operator) and all(map(torch.equal, held.operands, operator.operands))
