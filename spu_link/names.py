"""Names of choices, for those who need them before torch is loaded."""

from __future__ import annotations

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["float32", "float16", "bfloat16", "int16"]
"""Element type on the wire; ``"int16"`` is a code between -32767 and 32767 times a scale."""

StartPolicy: TypeAlias = Literal["keep", "drive"]
"""Start of the state: its present value, or the drive."""
