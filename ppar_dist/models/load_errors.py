"""What libraries raise about weights that they cannot read or that do not fit."""

from __future__ import annotations

import pickle

from safetensors import SafetensorError

UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    TypeError,
    OSError,
    EOFError,
    StopIteration,
    pickle.UnpicklingError,
    SafetensorError,
)
