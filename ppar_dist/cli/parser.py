"""``ppar-dist``: one subcommand per task, one contract of exit codes.

Exit codes are those of ``exit_codes.py``. A user's mistake prints one line to stderr, never a traceback.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from ppar_dist import exit_codes
from ppar_dist.cli.commands import app
from ppar_dist.errors import UserError
from ppar_dist.launch.rank import note_exit
from ppar_dist.processes.rank_log import last_words
from ppar_dist.storage.failures import StorageUnavailable
from ppar_dist.text import one_line, visible_lines

_ROOM = "a file that is written needs room: free some, raise the limit, or choose another place"
_RIGHTS = "a file that is used needs the rights: give them, or choose another place"
_KIND = "there a file is expected and a folder is, or a folder and a file: rename it, or choose another place"
# What storage says that a retry cannot cure, and the remedy. Training has its own answers (rank_job).
_OF_STORAGE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), _KIND),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    code = _main(arguments)
    note_exit(code)
    return code


def _main(arguments: list[str]) -> int:
    _prepare_streams()
    os.umask(os.umask(0o002) | 0o002)  # whatever the umask: users outside the group may not change a run
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _quieten_libraries()
    try:
        if not arguments:
            raise CycloptsError("a command is required")
        code: int | None = app(arguments)
        return exit_codes.DONE if code is None else code
    except CycloptsError as error:
        if len(arguments) == 1 and not arguments[0].startswith("-") and error.command_chain:
            app([*error.command_chain, "--help"])
        command = " ".join(["ppar-dist", *(error.command_chain or ())])
        last_words(f"ppar-dist: {one_line(error).removesuffix('.')}{_hint(arguments)}; see {command} --help")
        return exit_codes.CONFIG
    except (UserError, StorageUnavailable) as error:
        last_words(f"ppar-dist: {visible_lines(str(error))}")
        return exit_codes.CONFIG if isinstance(error, UserError) else exit_codes.RESUME
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.DONE
    except OSError as error:
        if error.errno not in _OF_STORAGE:
            return _internal(error)
        place = "the output" if error.filename is None else error.filename
        last_words(f"ppar-dist: {visible_lines(f'{place}: {error.strerror}; {_OF_STORAGE[error.errno]}')}")
        return exit_codes.CONFIG
    except Exception as error:  # a bug: all that a user can cause is a UserError
        return _internal(error)


def _internal(error: Exception) -> int:
    logging.getLogger(__name__).exception("internal error", exc_info=error)
    last_words(f"ppar-dist: internal error: {type(error).__name__}: {visible_lines(str(error))}")
    return exit_codes.INTERNAL


def _hint(arguments: list[str]) -> str:
    """How a key of the configuration that was written as an option is written."""
    options = (each for each in arguments if re.fullmatch(r"--[a-z_]+(\.[a-z_]+)+(=.*)?", each))
    return next((f"; write {each[2:] if '=' in each else f'{each[2:]}=VALUE'}" for each in options), "")


class _LogLine(logging.Formatter):
    """Escapes control characters: a name from a shard may contain terminal commands."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible_lines(super().formatMessage(record))


def _prepare_streams() -> None:
    """Make the streams accept any text; one closed by `>&-` is None, but libraries write to it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that the locale cannot spell


def _quieten_libraries() -> None:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each of its retries would be told twice
    for name in ("httpx", "PIL", "timm", "torch.distributed", "botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
