"""What a node keeps of shards on object storage: byte ranges, shared by its ranks and loader workers.

One process fetches a unit, the others of the node wait for it and read its file. Nothing here is needed for a
result: where the folder cannot be used, everything is read from storage, and a warning says so.

* *Bound.* The files of units, whole and half-written, take at most ``size`` bytes, counted in whole blocks of
  4096. Not counted: the folder itself, the file ``held`` (20 bytes), and what is open when it is removed. Of
  caches of several sizes on one folder each keeps to its own when it stores.
* *What goes.* With ``expect`` what is needed last; what nobody expects goes first, the longest unread before
  the others. A unit needed later than all that is held is not kept. Without ``expect`` the longest unread
  goes. "Last" is among what a process found when it listed the folder, of a sample where that is large:
  the folder is listed again when an eighth of the sample has gone (``victims``).
* *Kills.* A unit is written under another name, locked by its writer; the lock of a dead process is free, so
  its file is continued by the next who needs the unit, or removed when the folder is listed. Nothing is
  synced: what a power cut has torn does not have its checksums, and is fetched again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from ppar_dist.errors import UserError
from ppar_dist.storage.cache_folder import counting, lock, make_own, units_in, unlock
from ppar_dist.storage.unit_file import (
    Unit,
    disk_bytes,
    file_bytes,
    part_name,
    read_unit,
    unit_name,
    write_unit,
)
from ppar_dist.storage.victims import Rank, Victims

FETCH_S = 30.0  # that others wait for one who fetches; then they fetch themselves
_COUNT_S = 10.0  # to wait for one who counts or removes files
_PAUSE_S = 30.0  # without storing, after the folder failed
_TOUCH_S = 10.0  # a file's time is that of its last read, to this precision
_NOT_KEPT = (
    0.03  # of the size: so many bytes are not kept before it is looked again whether they are worth it
)

NextUse = Callable[[Unit], float | None]
_Fetch = Callable[[], bytes]

log = logging.getLogger(__name__)


class NodeCache:
    """Units of shards in a folder of this node.

    Args:
        folder: on a disk of the node; made at the first use.
        size: bytes that its files may take.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._next_use: NextUse | None = None
        self._opened_by = 0  # the process that has counted the folder's files
        self._paused_until = -math.inf
        self._has_warned = False
        self._victims = Victims(self._rank)  # used by who counts
        # Of the last unit that was not worth its room: what is needed as late is not either. And for how many
        # bytes of units that holds, before the folder is looked at again.
        self._horizon: tuple[Rank, int] | None = None

    def prepare(self) -> None:
        """Make the folder, and make it no larger than it may be; clear what dead processes left.

        A folder that cannot be used for another reason than its owner is a warning.

        Raises:
            UserError: it is another user's, others may write into it, or it is not a folder.
        """
        try:
            make_own(self.folder)
            with counting(self.folder, _COUNT_S) as count:
                if count is not None:
                    count.write(self._make_room(None, None))
        except OSError as error:
            self._go_without(error)

    def expect(self, next_use: NextUse | None) -> None:
        """Say what is needed when.

        Args:
            next_use: the position at which a unit is needed next, after what is being read now; None where
                that is unknown, as of another run's. Asked for up to thousands of units when some must go.
        """
        self._next_use, self._horizon = next_use, None
        self._victims.forget()

    def read(
        self, unit: Unit, start: int, size: int, fetch: _Fetch, part_alone: _Fetch | None = None
    ) -> bytes:
        """Bytes [start, start + size) of a unit's content, counted from the unit's beginning.

        Args:
            unit: of at least one byte.
            start: at least 0.
            size: at most what is left of the unit.
            fetch: gets the unit's whole content from storage; called at most once, and not where the node has
                it. What it raises is raised. Content of another length is not kept.
            part_alone: gets only the bytes that are read; called instead where the unit would not be kept.

        Returns:
            The bytes; fewer where ``fetch`` gives less.
        """
        assert 0 <= start <= start + size <= unit.bytes, (unit, start, size)
        found = self._find(unit, start, size)
        if found is not None:
            return found
        part = self._begin(unit)
        if part is None:  # another has fetched it meanwhile, or it is not kept
            found = self._find(unit, start, size)
            if found is None:
                return fetch()[start : start + size] if part_alone is None else part_alone()
            return found
        is_kept = False
        try:
            content = fetch()
            is_kept = len(content) == unit.bytes and self._keep(unit, part, content)
        finally:
            if not is_kept:
                self._remove(unit, part_name(unit))
            unlock(part)
        return content[start : start + size]

    def has(self, unit: Unit) -> bool:
        """Whether the node has a unit's file, whole by its length."""
        try:
            return os.stat(self.folder / unit_name(unit)).st_size == file_bytes(unit)
        except OSError:
            return False

    def drop(self, unit: Unit) -> None:
        """Remove what is held of a unit, because it is wrong: the next read fetches it again."""
        self._remove(unit, unit_name(unit))

    def bytes_used(self) -> int:
        """What the files of all units take, those being written as if they were whole."""
        try:
            return sum(disk_bytes(each) for units in units_in(self.folder) for each in units)
        except OSError:
            return 0

    def _find(self, unit: Unit, start: int, size: int) -> bytes | None:
        try:
            file = os.open(self.folder / unit_name(unit), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._go_without(error)
            return None
        try:
            raw = read_unit(file, unit, start, size)
            if raw is not None:
                self._touch(file)
                return raw
        except OSError as error:
            self._go_without(error)
            return None
        finally:
            os.close(file)
        log.warning("%s is damaged in the cache %s; it is fetched again", unit_name(unit), self.folder)
        self.drop(unit)
        return None

    def _touch(self, file: int) -> None:
        now = time.time()
        if not 0 <= now - os.fstat(file).st_mtime < _TOUCH_S:
            with contextlib.suppress(OSError):  # a file system that is only read
                os.utime(file, (now, now))

    def _begin(self, unit: Unit) -> int | None:
        """The locked, open file to write a unit into, with room for it.

        None where it is not to be fetched for the node: it is there by now, another has it in hand for too
        long, or it is not worth its room.
        """
        if time.monotonic() < self._paused_until:
            return None
        part = None
        try:
            if self._opened_by != os.getpid():
                make_own(self.folder)
            part = lock(self.folder / part_name(unit), FETCH_S, lambda: self.has(unit))
            if part is not None and not self.has(unit) and self._claim(unit):
                return part
            if part is None and not self.has(unit):
                self._paused_until = time.monotonic() + _PAUSE_S
                log.warning("another process fetches %s for more than %g s", unit_name(unit), FETCH_S)
        except FileNotFoundError as error:
            if self._opened_by != os.getpid():  # it is not for want of trying
                self._go_without(error)
            self._opened_by = 0  # the folder was removed: the next read makes it again
        except (OSError, UserError) as error:
            self._go_without(error)
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.folder / part_name(unit))
            unlock(part)
        return None

    def _keep(self, unit: Unit, part: int, content: bytes) -> bool:
        """Write what was fetched, and put it under its name."""
        try:
            write_unit(part, unit, content)
            # While nobody lists the folder: a list taken meanwhile may have neither name.
            with counting(self.folder, _COUNT_S) as count:
                if count is not None:
                    os.rename(self.folder / part_name(unit), self.folder / unit_name(unit))
                return count is not None
        except FileNotFoundError:
            self._opened_by = 0
        except OSError as error:
            self._go_without(error)
        return False

    def _remove(self, unit: Unit, name: str) -> None:
        """Remove a unit's file, and count it no more."""
        try:
            with counting(self.folder, _COUNT_S) as count:
                # Before it is counted no more: a kill must not leave the count too low.
                os.unlink(self.folder / name)
                used = None if count is None else count.read()
                if count is not None and used is not None:
                    count.write(max(used - disk_bytes(unit), 0))
        except FileNotFoundError:
            pass  # removed by another, or with its folder
        except OSError as error:
            self._go_without(error)

    def _claim(self, unit: Unit) -> bool:
        """Take room for a unit, and make it by removing others; False where it is not worth that."""
        need = disk_bytes(unit)
        with counting(self.folder, _COUNT_S) as count:
            if count is None or need > self.size:
                return False
            # What a process before has counted may be from before a power cut.
            used = count.read() if self._opened_by == os.getpid() else None
            if used is None or (used + need > self.size and not self._is_beyond_horizon(unit)):
                used = self._make_room(unit, used)
                self._opened_by = os.getpid()
            fits = used + need <= self.size
            count.write(used + need if fits else used)
        return fits

    def _make_room(self, unit: Unit | None, used: int | None) -> int:
        """Remove what is needed later than a unit: nothing where that is too little.

        Args:
            unit: that needs room; None: only what is too much goes.
            used: bytes used without it; None: look at the folder.

        Returns:
            Bytes used afterwards, without the unit.
        """
        need = 0 if unit is None else disk_bytes(unit)
        limit = (1, -math.inf) if unit is None else self._limit(unit)
        while True:
            has_looked = used is None
            used = self._look(unit, need) if used is None else used
            # A folder that had more room before: all that is too much goes, whatever it is.
            used -= sum(map(self._evict, self._victims.choose(used - self.size).units))
            choice = self._victims.choose(used + need - self.size, limit)
            if choice.is_enough or choice.refused is not None or has_looked:
                break
            used = None  # the list is used up
        self._horizon = None if choice.refused is None else (choice.refused, int(_NOT_KEPT * self.size))
        return used - sum(map(self._evict, choice.units))

    def _look(self, unit: Unit | None, need: int) -> int:
        """List the folder, and who may go; returns bytes used, without those of ``unit``."""
        whole, parts = units_in(self.folder)
        used = sum(map(disk_bytes, whole)) + sum(disk_bytes(part) for part in parts if part != unit)
        self._victims.fill(whole, used + need - self.size)
        return used

    def _evict(self, unit: Unit) -> int:
        """Remove a unit that is held; returns the bytes that are free by it."""
        try:
            os.unlink(self.folder / unit_name(unit))
        except FileNotFoundError:
            return 0
        return disk_bytes(unit)

    def _is_beyond_horizon(self, unit: Unit) -> bool:
        """Whether a unit is needed no sooner than what was not worth its room a short while ago."""
        if self._horizon is None or self._next_use_of(unit) is None:
            return False
        rank, left = self._horizon
        left -= disk_bytes(unit)
        if left <= 0:
            self._horizon = None
            self._victims.forget()  # what was read since is needed later than before
            return False
        self._horizon = rank, left
        return self._limit(unit) >= rank

    def _next_use_of(self, unit: Unit) -> float | None:
        return None if self._next_use is None else self._next_use(unit)

    def _limit(self, unit: Unit) -> Rank:
        """The rank of a unit that is not held: what has a higher one makes room for it."""
        position = self._next_use_of(unit)
        return (1, -math.inf) if position is None else (0, position)

    def _rank(self, unit: Unit) -> Rank | None:
        """The rank of a unit; None where it is not held."""
        try:
            read = os.stat(self.folder / unit_name(unit)).st_mtime
        except OSError:
            return None
        position = self._next_use_of(unit)
        return (1, -read) if position is None else (0, position)

    def _go_without(self, error: OSError | UserError) -> None:
        self._paused_until = time.monotonic() + _PAUSE_S
        if not self._has_warned:
            self._has_warned = True
            reason = error if isinstance(error, UserError) else error.strerror
            log.warning(
                "the cache %s cannot be used (%s): shards are read from storage without it; free room there, "
                "or give another data.cache.folder",
                self.folder,
                reason,
            )
