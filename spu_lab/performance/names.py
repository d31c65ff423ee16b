"""Names for people of what the benchmarks time, in place of the names in their result files."""

from typing import Final

NETWORKS: Final = {
    "reference": "reference CNN",
    "mlp": "MLP",
    "resnet": "ResNet",
    "transformer": "transformer",
    "lora": "DistilBERT with LoRA",
}

CURVATURES: Final = {"exact": "exact curvature", "mc": "Monte-Carlo curvature", "empirical": "empirical curvature"}

OURS: Final = {
    "ours_exact": "exact factor",
    "ours_exact_and_backward": "exact factor and backward pass",
    "ours_mc": "Monte-Carlo factor",
    "ours_mc_and_backward": "Monte-Carlo factor and backward pass",
    "ours_exact_and_20_products": "exact factor, 20 products with F",
    "ours_solve": "program and reading, t = 50 τ",
    "ours_dynamics": "the emulator's mathematics alone",
    "ours_capture_and_solve": "capture, program and reading",
    "ours_capture_and_solve_1000_tau": "capture, program and reading, t = 1,000 τ",
    "pinn_ours_rows": "PDE residual: captured rows",
}
"""Labels of what this project does, by key."""

OTHERS: Final = {
    "plain_step": "forward and backward pass alone",
    "backpack_exact": "BackPACK, exact factor",
    "backpack_mc": "BackPACK, Monte-Carlo factor",
    "curvlinops_20_products": "curvlinops, 20 products with F",
    "func_jacrev": "vmap(jacrev), Jacobian alone",
    "func_factor_by_jacrev": "vmap(jacrev), whole factor",
    "func_jacrev_of_batch": "jacrev of the whole batch",
    "pinn_func_hessian": "PDE residual: vmap(grad), torch.func.hessian",
    "pinn_func_jacrev": "PDE residual: vmap(grad), jacrev of the gradient",
    "pinn_func_grad": "PDE residual: vmap(grad), grad of the gradient",
    "euler_model_calls": "Euler-Maruyama with model calls",
    "euler_kept_graph": "Euler-Maruyama on a kept graph",
    "cg_model_calls": "conjugate gradients with model calls",
    "cg_kept_graph": "conjugate gradients on a kept graph",
    "cg_on_factor": "conjugate gradients on our factor",
    "cg_at_1000_tau": "conjugate gradients, as exact as t = 1,000 τ",
    "woodbury_solve": "Woodbury solve",
}
"""Labels of what it is compared with, by key."""

CALLS: Final = {
    "full_exact": "solve, exact curvature uploaded",
    "full_mc": "solve, Monte-Carlo curvature uploaded",
    "kept_exact": "solve, exact curvature kept on the device",
    "kept_mc": "solve, Monte-Carlo curvature kept on the device",
    "save_exact": "save the state, exact curvature",
    "save_mc": "save the state, Monte-Carlo curvature",
    "restore_exact": "restore the state, exact curvature",
    "restore_mc": "restore the state, Monte-Carlo curvature",
    "upload": "upload of 400 MB",
    "longest_stall": "longest stall of the daemon's event loop",
    "info_median": "a second client's call, median",
    "info_p99": "a second client's call, 99th percentile",
    "info_longest": "a second client's call, longest",
}
"""Calls of one client, compared with each other."""


def name_of(timed: str) -> str:
    """Return the name for people.

    Raises:
        KeyError: for what no benchmark of this version times.
    """
    network, _, rest = timed.partition("_")
    if network in NETWORKS:
        return f"{NETWORKS[network]}: {name_of(rest)}"
    return {**OURS, **OTHERS, **CALLS}[timed]
