"""Videos through ``predict``: frames, times and sizes kept, and what is damaged told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ppar_dist.errors import UserError
from ppar_dist.evaluation.palette_images import OverlayStyle
from ppar_dist.evaluation.predict import Outputs, predict
from ppar_dist.evaluation.videos import convert
from tests.unit.tiny_run import make_run

TICKS = Fraction(1, 90_000)
TIMES = (900, 4000, 9000, 9100, 50_000, 53_000)  # uneven
SIZE = (64, 48)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    make_run(root / "shards", root / "run")
    return root / "run"


def pictures(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Smooth pictures, which a codec keeps: a bright square that moves over a ramp."""
    width, height = size
    ramp = np.linspace(30, 150, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    found = []
    for number in range(count):
        picture = ramp.copy()
        picture[4:20, 3 * number : 3 * number + 16] = (220, 60, 40)
        found.append(picture.round().astype(np.uint8))
    return found


def make_video(
    path: Path, frames: Sequence[np.ndarray], times: Sequence[int] = TIMES, turn: int = 0, sound: bool = False
) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1", "bf": "0", "g": "2"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p" if not (stream.width % 2 or stream.height % 2) else "yuv444p"
        stream.codec_context.time_base = stream.time_base = TICKS
        if turn:
            stream.set_display_rotation(turn)
        audio: Any = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base, frame.duration = time, TICKS, 3000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path


def read(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        return [
            (frame.pts * stream.time_base, frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean()))


@pytest.mark.parametrize(("name", "size", "batch"), [("a.mp4", SIZE, 1), ("b.mkv", (65, 49), 4)])
def test_frames_times_and_size_are_kept(
    run: Path, tmp_path: Path, name: str, size: tuple[int, int], batch: int
) -> None:
    source = make_video(tmp_path / name, pictures(len(TIMES), size))
    before = read(source)
    out, outputs = tmp_path / "out", Outputs(OverlayStyle(opacity=0.3))
    done = predict(run, [source], out, outputs=outputs, batch=batch)
    assert not done.failed
    (item,) = done.videos
    assert (item.overlay, item.frames, item.had_sound) == (out / f"{source.stem}.mp4", len(TIMES), False)
    after = read(item.overlay)
    assert [time for time, _ in after] == [time for time, _ in before]
    assert {picture.shape[1::-1] for _, picture in after} == {size}
    assert {path.name for path in out.iterdir()} == {item.overlay.name, "legend.png"}
    # Each frame looks like the overlay of the same picture as an image.
    images = [tmp_path / f"{number}.png" for number in range(len(before))]
    for image, (_, picture) in zip(images, before, strict=True):
        Image.fromarray(picture).save(image)
    for number, image in enumerate(predict(run, images, tmp_path / "images", outputs=outputs).done):
        with Image.open(image.overlay) as expected:
            assert psnr(after[number][1], np.asarray(expected)) > 30


def test_real_frames_keep_their_colours(real_data: Path, run: Path, tmp_path: Path) -> None:
    images = sorted((real_data / "data" / "camvid" / "images").glob("*.jpg"))[:3]
    frames = []
    for image in images:
        with Image.open(image) as picture:
            frames.append(np.asarray(picture.convert("RGB").resize((480, 360))))
    source = make_video(tmp_path / "drive.mp4", frames, (0, 3000, 6000))
    (item,) = predict(run, [source], tmp_path / "out", outputs=Outputs(OverlayStyle(opacity=0))).videos
    for (_, seen), (_, frame) in zip(read(item.overlay), read(source), strict=True):
        assert psnr(seen, frame) > 35
        assert np.abs(seen.astype(float).mean((0, 1)) - frame.mean((0, 1))).max() < 1.5  # no cast


@pytest.mark.parametrize(("turn", "clockwise"), [(-90, 1), (90, 3), (180, 2)])
def test_a_turned_video_is_upright(tmp_path: Path, turn: int, clockwise: int) -> None:
    source = make_video(tmp_path / "a.mov", pictures(2), TIMES[:2], turn)
    convert(source, tmp_path / "b.mp4", lambda given: given, 2)
    for (_, stored), (_, seen) in zip(read(source), read(tmp_path / "b.mp4"), strict=True):
        assert psnr(seen, np.rot90(stored, -clockwise)) > 30
    matrix = (tmp_path / "b.mp4").read_bytes().partition(b"tkhd")[2][40:76]  # of its track header
    assert np.frombuffer(matrix, ">i4")[[0, 1, 3, 4]].tolist() == [1 << 16, 0, 0, 1 << 16]  # not turned again


def test_sound_is_left_out_and_told(run: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", pictures(6), sound=True)
    (item,) = predict(run, [source], tmp_path / "out").videos
    assert str(item).endswith("6 frames, without its sound")
    with av.open(item.overlay) as container:
        assert not container.streams.audio


def test_frames_are_read_as_they_are_needed(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", pictures(60, (32, 32)), range(0, 180_000, 3000))
    seen: list[int] = []

    def work(given: Sequence[Image.Image]) -> Sequence[Image.Image]:
        seen.append(len(given))
        if len(seen) == 3:
            raise UserError("enough")
        return given

    told: list[int] = []
    with pytest.raises(UserError, match="enough"):
        convert(source, tmp_path / "b.mp4", work, 4, lambda done, _: told.append(done))
    assert (seen, told) == ([4, 4, 4], [4, 8])
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4"}


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_cut_video_is_done_up_to_there(run: Path, tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    source = make_video(tmp_path / f"whole.{ending}", list(noise), range(0, 120_000, 3000))
    if ending == "mp4":  # its index first, as cameras that stream write it
        with (
            av.open(source) as given,
            av.open(tmp_path / "f.mp4", "w", options={"movflags": "faststart"}) as to,
        ):
            stream = to.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    to.mux(packet)
        source = tmp_path / "f.mp4"
    assert predict(run, [source], tmp_path / "all").videos[0].frames == 40
    whole = source.read_bytes()
    for share in (0.4, 0.7):
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(whole[: int(len(whole) * share)])
        done = predict(run, [cut], tmp_path / f"out{share}")
        (failure,) = done.failed
        assert not done.videos
        assert "the video is not done to its end: c" in failure.reason
        count = len(read(tmp_path / f"out{share}" / "cut.mp4"))
        assert f"cut.mp4 holds the {count} frames before" in failure.reason
        assert 40 * share - 6 < count < 40 * share + 3


def test_damage_within_is_told(run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    source = make_video(tmp_path / "a.mp4", list(noise), range(0, 60_000, 3000))
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    source.write_bytes(content)
    (failure,) = predict(run, [source], tmp_path / "out").failed
    assert "corrupt" in failure.reason
    assert 5 <= len(read(tmp_path / "out" / "a.mp4")) <= 12


def test_what_is_no_video_is_refused(run: Path, tmp_path: Path) -> None:
    still = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    still[0].save(tmp_path / "gif.mp4", "GIF", save_all=True, append_images=still[1:])
    (tmp_path / "text.mp4").write_text("a list of things\n" * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "empty.mp4").touch()
    names = ("gif", "text", "list", "empty")
    done = predict(run, [tmp_path / f"{name}.mp4" for name in names], tmp_path / "out")
    reasons = [item.reason for item in done.failed]
    assert reasons[0] == "a GIF animation, no video; convert it to MP4"
    assert all("not a readable MP4, MOV, Matroska" in reason for reason in reasons[1:])
    assert len(reasons) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"legend.png"}


def test_videos_of_one_name_and_pictures_beside_them(run: Path, tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    given = [make_video(tmp_path / name, pictures(2), TIMES[:2]) for name in ("a/x.mp4", "b/X.mkv")]
    Image.new("RGB", (30, 20)).save(tmp_path / "x.mp4.png")
    done = predict(run, [given[0], tmp_path / "x.mp4.png", given[1]], tmp_path / "out")
    assert [item.overlay.name for item in done.videos] == ["x.mp4", "X-2.mp4"]
    assert [item.image.name for item in done.done] == ["x.mp4.png"]
    assert str(done) == "3 of 3 done, 0 failed"


def test_a_video_never_replaces_itself(run: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", pictures(2), TIMES[:2])
    with pytest.raises(UserError, match="would replace"):
        predict(run, [source], tmp_path, overwrite=True)
    with pytest.raises(UserError, match=r"no video at .*gone\.mp4"):
        predict(run, [tmp_path / "gone.mp4"], tmp_path / "out")
    with pytest.raises(UserError, match="--confidence and --coding are of pictures"):
        predict(run, [source], tmp_path / "out", outputs=Outputs(confidence=True))
    assert not (tmp_path / "out").exists()


def test_a_missing_library_names_its_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video(tmp_path / "a.mp4", pictures(2), TIMES[:2])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'ppar-dist\[video\]'"):
        predict(run, [source], tmp_path / "out")
