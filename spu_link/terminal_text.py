"""Text for terminals that do not know all characters, such as ``tau`` for τ where the terminal is ASCII."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import unicodedata

WORDS = {
    **{"τ": "tau", "λ": "lambda", "κ": "kappa", "η": "eta", "β": "beta", "δ": "delta", "Δ": "Delta", "μ": "mu"},
    **{"θ": "theta", "∇": "grad ", "ℓ": "l", "ᵀ": "^T", "⁻": "^-", "∞": "inf", "≤": "<=", "≥": ">=", "≈": "~"},
    **{"×": "x", "·": "*", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "⇒": "=>"},
    **dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*"),  # Braille, in which what turns is drawn
    **{"“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "µ": "u"},
}
"""Replacements of characters."""


def write_plainly() -> None:
    """Let standard output and standard error write other words for characters that their encoding lacks.

    ``LC_ALL=C`` asks for ASCII, unless Python's own variables ask for something else.
    """
    codecs.register_error("plain", _replaced)
    ascii_asked = os.environ.get("LC_ALL") in ("C", "POSIX")
    ascii_asked &= not os.environ.keys() & {"PYTHONIOENCODING", "PYTHONUTF8"}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if ascii_asked else None, errors="plain")


def plain(text: str, encoding: str) -> str:
    """Return text in characters of an encoding; runs of spaces give up what words before them have gained in a line."""
    pieces, gained = [], 0
    for piece in re.split(r"(\n|  +)", text):
        if piece == "\n":
            gained = 0
        elif piece.startswith("  "):
            taken = min(gained, len(piece) - 1)
            gained -= taken
            piece = piece[taken:]
        else:
            words = "".join(_word(character, encoding) for character in piece)
            gained += len(words) - len(piece)
            piece = words
        pieces.append(piece)
    return "".join(pieces)


def _word(character: str, encoding: str) -> str:
    if character.isascii():
        return character
    if encoding == "charmap":  # of one of many alphabets
        encoding = "ascii"
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        if character in WORDS:
            return WORDS[character]
        if unicodedata.category(character)[0] in "LMC":  # of a file name, which must not become another one
            return character.encode("ascii", "backslashreplace").decode()
        return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
    return character


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace the rest of a line, whose spaces can be given up (the protocol of `codecs.register_error`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    end = error.object.find("\n", error.start)
    end = len(error.object) if end < 0 else end
    return plain(error.object[error.start : end], error.encoding), end
