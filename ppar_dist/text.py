"""Foreign text in messages: one printable line of bounded length, whatever the value was."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 403  # characters of one value
# What follows a scheme up to the last @ (a path has lost one slash, a key may hold one), and values of a
# query that sign it. Bounded: an attempt at every letter of a long value must not take quadratic time.
_USER = re.compile(r"(?<=:/)(/?)[^\s'\"]{1,256}@")
_SIGNING = "signature|credential|token|secret|password|api_?key"
_SIGNED = re.compile(rf"(?i)(?<![\w-])([\w-]{{0,64}}?(?:{_SIGNING})|sig)=[^\s&'\"]+")


def shown(value: Any) -> str:
    """``repr`` of a value that a user gave; its type where it has no bounded ``repr``."""
    try:
        return printable(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, or very deep nesting
        return f"a value of type {type(value).__name__}, too large to show"


def one_line(error: BaseException) -> str:
    """The text of an error, its line breaks as spaces; its type where it has no text."""
    return printable(" ".join(str(error).split()) or type(error).__name__)


def printable(text: str, longest: int = _LONGEST) -> str:
    """``text`` with control characters escaped, and without its middle when long."""
    text, half = visible(masked(text)), (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def visible_lines(text: str) -> str:
    """``visible`` for text of several lines, without the credentials of URLs."""
    return "\n".join(visible(line) for line in masked(text).split("\n"))


def masked(text: str) -> str:
    """``text`` without the user, password and signature of URLs in it."""
    return _SIGNED.sub(r"\1=***", _USER.sub(r"\1***@", text))


def visible(text: str) -> str:
    """``text`` with control characters escaped: line ends, terminal commands, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def duration(seconds: float) -> str:
    """Seconds in a unit that suits their size: ``7.5 s``, ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return in_seconds(seconds)
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def in_seconds(seconds: float) -> str:
    """Seconds, for comparison with a limit in seconds: a decimal below 10."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds; days before them where there are any: 0:01:05, 2 d 3:00:00."""
    if not 0 <= seconds < 1e9:
        return "?"
    days, rest = divmod(round(seconds), 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text


def guess(word: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` where a known word is close, or a key with this last part; "" where none is."""
    words, last = [each for each in known if not word.startswith(f"{each}.")], word.rpartition(".")[2]
    close = difflib.get_close_matches(word, words, 1, 0.75)
    close = close or [each for each in words if each.endswith(f".{last}")]
    close = close or difflib.get_close_matches(last, [each for each in words if "." not in each], 1, 0.75)
    return f"; did you mean {close[0]}?" if close else ""


def some(names: Sequence[str]) -> str:
    """Three of many names, as a message shows them."""
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)
