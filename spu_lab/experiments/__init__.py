"""Experiments, one module each, run by ``tngd reproduce NAME``.

A module's name with hyphens is the experiment's name, its docstring says what is shown, and its function
``run(out: Path, spu: str | None, console: Console) -> None`` does it. One with a miniature also takes ``quick: bool``.
One on a user's own data also takes ``data: Path``, and ``DATA`` says what they must be.
"""
