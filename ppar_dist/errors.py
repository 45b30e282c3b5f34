"""Mistakes that a retry cannot cure: each ends a command with exit code 78 and one line of text."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user must change. The message states the rule, the offending value and the remedy."""


class ConfigError(UserError):
    """A configuration that cannot work."""


class DataError(UserError):
    """Data, shards or an index that cannot be used."""


class InUse(UserError):
    """Another job uses the folder that this one needs."""
