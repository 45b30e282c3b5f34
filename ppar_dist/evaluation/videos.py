"""Videos, through PyAV: frames in, upright and with their times, and frames out, as H.264 in MP4.

Both stream: no more frames are held than the model sees at once and the codec needs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ppar_dist.errors import UserError
from ppar_dist.evaluation.photos import HELD, MAX_RATIO
from ppar_dist.text import one_line

"""Endings of video files, in lower case."""

log = logging.getLogger(__name__)

# Other readers of FFmpeg take text, pictures and lists of further files.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"
_HDR = (16, 18)  # transfer characteristics PQ and HLG (ITU-T H.273)
_QUALITY = {"crf": "18", "bf": "0"}  # without frames out of order, whose times MP4 rounds into its length
_BT709, _LIMITED = 1, 1  # ITU-T H.273, and the range of 16 to 235


@dataclass(frozen=True)
class Frame:
    """A frame of a video."""

    picture: Image.Image  # RGB, upright
    time: int  # in units of the video's time base
    duration: int  # 0: unknown


@dataclass(frozen=True)
class Written:
    """What became of a video."""

    frames: int
    has_sound: bool  # which is not copied
    fault: str | None  # why not all of it was done


def convert(
    source: Path,
    target: Path,
    work: Callable[[Sequence[Image.Image]], Sequence[Image.Image]],
    batch: int,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Written:
    """Write a video of a video's frames as ``work`` changes them, of the same size and times, without sound.

    The file has its name once it is whole. Of a damaged video it holds what comes before the damage.

    Args:
        source: the video.
        target: an ``.mp4`` file.
        work: makes the frames of up to ``batch`` frames.
        batch: frames at once.
        tell: called with (frames done, frames that the video announces, or 0).

    Raises:
        UserError: it is not a video, holds no whole frame, or the target cannot be written.
    """
    if source.exists() and not source.is_file():
        raise UserError("not a regular file; store the video in one")  # reading a pipe may never end
    try:
        file = source.open("rb")
    except OSError as error:
        raise UserError(f"cannot read the video: {error.strerror}; check the file") from None
    with file:
        reader = _Reader(file)
        with contextlib.closing(reader.container):
            return _convert(reader, target, work, batch, tell)


def _convert(
    reader: _Reader,
    target: Path,
    work: Callable[[Sequence[Image.Image]], Sequence[Image.Image]],
    batch: int,
    tell: Callable[[int, int], None],
) -> Written:
    frames = reader.frames()
    first = next(frames, None)
    if first is None:
        raise UserError(f"no frame of the video can be read: {reader.fault or 'it holds none'}; replace it")
    size, count = first.picture.size, 0
    batch = max(1, min(batch, HELD // (size[0] * size[1])))
    with _Writer(target, size, reader.time_base, reader.aspect) as writer:
        group = [first, *islice(frames, batch - 1)]
        while group:
            for frame, picture in zip(group, work([frame.picture for frame in group]), strict=True):
                writer.add(Frame(picture, frame.time, frame.duration))
            count += len(group)
            tell(count, max(count, reader.announced))
            group = list(islice(frames, batch))
    return Written(count, reader.has_sound, reader.fault)


class _Reader:
    """An opened video.

    Attributes:
        time_base: seconds of a unit of time.
        announced: frames that the file says it holds, or 0.
        has_sound: whether there is any.
        aspect: width of a pixel by its height, once a frame is read; None: not told.
        fault: once its frames are read, why they are not all; None where they are.
    """

    def __init__(self, file: BinaryIO) -> None:
        av = _library()
        start = file.read(4)
        file.seek(0)
        if start == b"GIF8":
            raise UserError("a GIF animation, no video; convert it to MP4")
        try:
            options = {"format_whitelist": _CONTAINERS}
            self.container: Any = av.open(file, "r", options=options, metadata_errors="replace")
        except (OSError, av.FFmpegError) as error:
            known = "MP4, MOV, Matroska, WebM, AVI or MPEG"
            raise UserError(f"not a readable {known} video ({error.strerror}); replace it") from None
        covers = av.stream.Disposition.attached_pic
        streams = [each for each in self.container.streams.video if not each.disposition & covers]
        if not streams:
            self.container.close()
            raise UserError("the file holds no video stream; give another")
        self.stream = streams[0]
        if len(streams) > 1:
            log.warning("a video of %d streams (cameras): the first is used", len(streams))
        if self.stream.codec_context.color_trc in _HDR:
            log.warning("a video of high dynamic range: its colours are taken for those of a usual one")
        self.stream.codec_context.options = {"err_detect": "explode"}  # no guesses where data are damaged
        self.time_base: Fraction = self.stream.time_base
        self.announced: int = self.stream.frames
        self.has_sound = bool(self.container.streams.audio)
        self.aspect: Fraction | None = None
        self.fault: str | None = None

    def frames(self) -> Iterator[Frame]:
        """The frames in order, up to the first that is damaged."""
        last, size, count = -math.inf, None, 0
        for found in self._decoded():
            time = found.dts if found.pts is None else found.pts
            if time is None or time <= last:
                self.fault = f"frame {count + 1} has no time after that of the one before; write it again"
                return
            picture = self._upright(found)
            if picture is None:
                return
            if size is not None and picture.size != size:
                self.fault = f"its frames change from {size} to {picture.size} pixels; cut it there"
                return
            last, size, count = time, picture.size, count + 1
            yield Frame(picture, time, found.duration or 0)

    def _upright(self, frame: Any) -> Image.Image | None:
        """The pixels as they are to be shown; None, and the fault, where they cannot be."""
        turn = frame.rotation  # degrees against the clock
        if turn % 90:
            self.fault = f"it is turned by {turn} degrees, and only multiples of 90 can be done"
            return None
        if max(frame.width, frame.height) > MAX_RATIO * min(frame.width, frame.height):
            self.fault = f"a side is at most {MAX_RATIO} times the other, got {frame.width}x{frame.height}"
            return None
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), turn // 90)
        stored: Fraction | None = self.stream.sample_aspect_ratio
        self.aspect = 1 / stored if stored and turn % 180 else stored
        return Image.fromarray(np.ascontiguousarray(pixels))

    def _decoded(self) -> Iterator[Any]:
        """Frames as the decoder gives them; sets the fault."""
        av = _library()
        first, end, gap, before, count = math.inf, -math.inf, 0.0, None, 0
        try:
            for packet in self.container.demux():
                if packet.is_corrupt:
                    self.fault = "cut off"
                    return
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None:
                    start = float(time * packet.time_base)
                    first = min(first, start)
                    end = max(end, start + float((packet.duration or 0) * packet.time_base))
                if packet.stream is not self.stream:
                    continue
                for frame in packet.decode():
                    if frame.is_corrupt:
                        self.fault = "corrupt"
                        return
                    if before is not None and frame.time is not None:
                        gap = max(gap, frame.time - before)
                    before, count = frame.time, count + 1
                    yield frame
        except (OSError, av.FFmpegError) as error:
            self.fault = f"cut off or corrupt: {error.strerror}"
            return
        # Edits may leave frames out, and lengths may round: a cut shows in both.
        whole = 0 < self.announced <= count
        announced = (self.container.duration or 0) / av.time_base
        # Sound, and the clock of AVI, end at other times than the frames.
        coarse = self.has_sound or self.container.format.name == "avi"
        if not whole and end - first < announced - (max(0.1, 2 * gap) if coarse else max(0.05, 1.5 * gap)):
            self.fault = f"cut off: {end - first:.2f} of {announced:.2f} seconds are there"


class _Writer:
    """An MP4 under a temporary name, which gets its own once it is whole."""

    def __init__(
        self, path: Path, size: tuple[int, int], time_base: Fraction, aspect: Fraction | None
    ) -> None:
        self._path, self._time_base = path, time_base
        self._temporary = path.with_name(f".{path.name[-40:]}.{os.getpid()}")
        # The usual form of colours needs sides of even length.
        self._format = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
        self._size, self._aspect = size, aspect

    def __enter__(self) -> _Writer:
        with self._told():
            self._file = self._temporary.open("w+b")
            self._container: Any = _library().open(self._file, "w", format="mp4")
            try:
                self._open()
            except BaseException:
                self._discard()
                raise
        return self

    def _open(self) -> None:
        stream = self._container.add_stream("libx264", options=_QUALITY)
        stream.width, stream.height = self._size
        stream.pix_fmt = self._format
        stream.time_base = self._time_base
        context = stream.codec_context
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if self._aspect:
            context.sample_aspect_ratio = self._aspect
        self._stream = stream

    def add(self, frame: Frame) -> None:
        """Write a frame, later than the one before."""
        picture = _library().VideoFrame.from_ndarray(np.asarray(frame.picture), format="rgb24")
        stored = picture.reformat(format=self._format, dst_colorspace="ITU709", dst_color_range="MPEG")
        stored.pts, stored.time_base, stored.duration = frame.time, self._time_base, frame.duration
        with self._told():
            self._container.mux(self._stream.encode(stored))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._told():
                if kind is None:
                    self._container.mux(self._stream.encode(None))
                    self._container.close()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._temporary.replace(self._path)
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close all, and remove what has not got its name."""
        with contextlib.suppress(Exception):  # the first failure is the one to report
            self._container.close()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, _library().FFmpegError) as error:
            said = getattr(error, "strerror", None) or one_line(error)
            raise UserError(f"cannot write its results: {said}; make room, or shorten its name") from None


def need_library() -> None:
    """Raise UserError where PyAV is not installed."""
    _library()


def _library() -> Any:
    try:
        import av  # late: an extra
    except ImportError:
        raise UserError("videos need PyAV, which is not installed: pip install 'ppar-dist[video]'") from None
    return av
