"""True times and the right frames, whatever the file: each film's frames say which they are."""

from __future__ import annotations

import io
import itertools
import math
import re
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrope import MediaError, Processor
from mmrope.preprocess import Limits, load_image, probe, readers
from mmrope.preprocess.video import open_video
from tests.support.films import film, grey_of, numbers, sound, trimmed, with_matrix

EVEN = [40 * n for n in range(25)]
UNEVEN = [0, 264, 561, 825, 1790, 3390]


def test_brightness_tells_frames_apart():
    assert len({grey_of(n) for n in range(25)}) == 25


@pytest.mark.parametrize(
    ("name", "times", "options"),
    [
        ("even.mp4", EVEN, {}),
        ("even.mkv", EVEN, {}),
        ("even.webm", EVEN, {"codec": "libvpx-vp9"}),
        ("uneven.mp4", UNEVEN, {}),
        ("uneven.mkv", UNEVEN, {}),
        ("late start.mkv", [5000 + t for t in EVEN], {}),
        ("av1.mp4", EVEN, {"codec": "libsvtav1"}),
        ("one frame.mp4", [0], {}),
    ],
)
def test_times_are_the_files_and_frames_are_theirs(tmp_path, name, times, options):
    video = open_video(film(tmp_path / name, times, **options))
    np.testing.assert_allclose(video.seconds, (np.array(times) - times[0]) / 1000, rtol=0, atol=1e-3)
    assert float(video.start) == pytest.approx(times[0] / 1000, abs=1e-3)
    assert (video.width, video.height) == (96, 64)
    last = len(times) - 1
    wanted = sorted({0, last // 2, last})
    for asked in ("auto", "pyav", *(["decord"] if "av1" not in name else [])):
        decoded = video.decode([*wanted, last], backend=asked)  # a frame may be asked for twice
        assert decoded.backend == ("pyav" if asked == "auto" else asked)
        assert decoded.reason
        assert numbers(list(decoded.frames)) == [*wanted, last]
    timing = video.timing(wanted)
    assert timing.frame_indices == tuple(wanted)
    assert timing.timestamps == tuple(video.seconds[wanted])


def test_both_backends_give_the_same_pixels(samples):
    video = open_video(samples / "clip.mp4")
    every = range(0, 64, 5)
    for one, other in zip(
        video.decode(every, backend="decord").frames, video.decode(every, backend="pyav").frames, strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("keyframes", [1, 7, 20, 250])
@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mkv", "libx264", {"max_b_frames": 0}),
        ("mkv", "libx264", {"options": {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}}),
        ("mp4", "libx264", {"options": {"x264-params": "intra-refresh=1"}}),
        ("mkv", "libx264", {"options": {"x264-params": "intra-refresh=1"}}),
        ("mov", "libx265", {}),
        ("mkv", "libx265", {"options": {"x265-params": "log-level=0:open-gop=1:bframes=4"}}),
        ("webm", "libvpx-vp9", {}),
        ("webm", "libvpx", {}),
        ("mp4", "libsvtav1", {}),
        ("ts", "libx264", {}),
        ("ts", "mpeg2video", {"max_b_frames": 2, "tick": Fraction(1, 25)}),
        ("mp4", "mpeg4", {"max_b_frames": 2}),
        ("mkv", "mpeg4", {"max_b_frames": 2}),
        ("avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ],
)
def test_frames_from_keyframe_to_keyframe_are_the_frames_in_order(tmp_path, ending, codec, options, keyframes):
    """Jumps, and leaving out what nobody refers to, change no pixel: whatever the codec, the container and the keyframes, and
    where frames are refreshed step by step or groups of pictures are open."""
    options = {"keyframes": keyframes, **options}
    path = film(tmp_path / f"film.{ending}", [40 * n for n in range(100)], codec=codec, moving=True, **options)
    video = open_video(path)
    everything = [readers._image(video, frame) for frame in readers.by_time(video, np.arange(100), by_keyframes=False)]
    assert len(everything) == 100
    for wanted in ([0, 13, 14, 40, 41, 77, 99], [99], [50], [3, 3, 98], range(0, 100, 17), range(100)):
        for one, index in zip(video.decode(wanted).frames, wanted, strict=True):
            np.testing.assert_array_equal(one, everything[index])


def test_a_stream_of_no_known_type_is_left_alone(tmp_path):
    """PyAV before 17 ends its process when it is asked for the type of one."""
    path = film(tmp_path / "film.avi", range(0, 120, 40), codec="mpeg4", tick=Fraction(1, 25))
    path.write_bytes(path.read_bytes().replace(b"strf", b"xxxx"))  # the header that says what the stream is of
    with pytest.raises(MediaError, match=r"film.avi has no video stream \(only nothing that is known\)"):
        open_video(path)


@pytest.mark.parametrize(
    ("ending", "codec", "trusted"),
    [
        ("mp4", "libx264", True),
        ("mkv", "libx264", True),
        ("webm", "libvpx-vp9", True),
        ("mov", "libx265", False),
        # decord 0.6 returns other frames from these, or none, under the right times
        ("ts", "libx264", False),
        ("mp4", "mpeg4", False),
        ("mkv", "mpeg4", False),
        ("avi", "mjpeg", False),
    ],
)
def test_decord_is_believed_only_where_its_pixels_are_right(tmp_path, ending, codec, trusted):
    options = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {"max_b_frames": 2} if codec == "mpeg4" else {}
    path = film(tmp_path / f"film.{ending}", [40 * n for n in range(100)], codec=codec, keyframes=20, **options)
    video = open_video(path)
    wanted = [0, 13, 14, 40, 41, 77, 99]
    if not trusted:
        with pytest.raises(MediaError, match=r"decord cannot be trusted with it: (it is not known|some frames follow)"):
            video.decode(wanted, backend="decord")
        return
    for one, other in zip(video.decode(wanted, backend="decord").frames, video.decode(wanted).frames, strict=True):
        np.testing.assert_array_equal(one, other)


def test_torchcodec_is_used_where_it_works_and_says_why_where_it_does_not(samples):
    """Its wheel has no FFmpeg: it works where the system has one."""
    video = open_video(samples / "clip.mp4")
    try:
        decoded = video.decode([0, 30, 63], backend="torchcodec")
    except MediaError as error:
        assert re.search(r"torchcodec cannot be trusted with it: it does not work here: \S+", str(error))  # noqa: PT017
    else:
        for one, other in zip(decoded.frames, video.decode([0, 30, 63]).frames, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_sparse_frames_are_not_paid_for_with_all_the_others(tmp_path, monkeypatch, ending):
    """16 of 1,500 frames: what is decoded is the way from the keyframes to them, and not every frame of it."""
    path = film(tmp_path / f"long.{ending}", [40 * n for n in range(1500)], size=(96, 64), keyframes=50, moving=True)
    video, wanted = open_video(path), np.arange(0, 1500, 94)
    decoded = []
    real = readers._from_keyframe
    monkeypatch.setattr(readers, "_from_keyframe", lambda *given: (decoded.append(f) or f for f in real(*given)))
    assert len(list(video.decode(wanted).frames)) == 16
    on_the_way = sum(n % 50 for n in wanted) + 16
    assert len(decoded) < 0.8 * on_the_way, (len(decoded), on_the_way)


def test_a_film_that_starts_between_keyframes(tmp_path):
    """decord shifts every frame of it; PyAV says which one is missing."""
    whole, cut = film(tmp_path / "whole.mkv", EVEN), tmp_path / "cut.mkv"
    with av.open(str(whole)) as old, av.open(str(cut), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in list(old.demux(old.streams.video[0]))[3:]:
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    video = open_video(cut)
    last = [len(video.pts) - 1]
    assert video.seconds[0] == 0
    first = round(float(video.start) * 25)
    assert 0 < first <= 12  # the first that a player shows, at the next keyframe or before
    assert numbers(list(video.decode(range(25 - first)).frames)) == list(range(first, 25))
    with pytest.raises(
        MediaError, match=r"the film starts between keyframes, where it returns other frames; use backend='auto'"
    ):
        video.decode(last, backend="decord")
    assert numbers(list(video.decode(last).frames)) == [24]


def test_an_edit_list_hides_frames_and_decord_is_not_believed(tmp_path):
    """decord counts the hidden frames and repeats others; the packets know which are shown."""
    whole = film(tmp_path / "whole.mp4", EVEN)
    video = open_video(trimmed(whole, tmp_path / "trimmed.mp4", 0.32))
    assert len(video.pts) == 17
    assert float(video.duration) == pytest.approx(17 * 0.04)
    assert numbers(list(video.decode(range(17)).frames)) == list(range(8, 25))
    with pytest.raises(
        MediaError, match=r"decord cannot be trusted with it: it counts \d+ frames, the packets 17; use backend='auto'"
    ):
        video.decode([0], backend="decord")


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotated_films_stand_upright(tmp_path, rotation):
    video = open_video(film(tmp_path / "turned.mp4", EVEN, rotation=rotation))
    assert (video.width, video.height) == ((64, 96) if rotation in (90, -90) else (96, 64))
    corner = {0: (0, 0), 90: (-1, 0), 180: (-1, -1), -90: (0, -1)}[rotation]  # where the white corner goes
    for backend in ("decord", "pyav"):
        [frame] = video.decode([3], backend=backend).frames
        assert frame.shape == (video.height, video.width, 3)
        white = np.argwhere(frame.mean(axis=2) > 245)
        assert white.size
        assert all(
            (index < size / 2) == (side == 0)
            for index, size, side in zip(white.mean(axis=0), frame.shape[:2], corner, strict=True)
        )


DURATIONS = [40, 200, 90, 500]


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {})])
def test_animations_are_films_with_the_durations_of_their_frames(tmp_path, format, options):
    path = tmp_path / f"film.{format.lower()}"
    first, *rest = [Image.fromarray(np.full((8, 12, 3), grey_of(n), np.uint8)) for n in range(4)]
    first.save(path, format, save_all=True, append_images=rest, duration=DURATIONS, **options)
    for source in (path, path.read_bytes()):
        video = open_video(source)
        assert video.seconds.tolist() == pytest.approx([0, 0.04, 0.24, 0.33])
        assert float(video.duration) == pytest.approx(0.83)
        assert (video.clock.container, video.width, video.height) == (format.lower(), 12, 8)
        decoded = video.decode([0, 2, 2, 3])
        assert decoded.backend == "pillow"
        with pytest.raises(MediaError, match=r"decord cannot be trusted with it: it is an animation; use backend='auto'"):
            video.decode([0], backend="decord")
        assert numbers(list(decoded.frames)) == [0, 2, 2, 3]
        assert video.frames_at([0.0, 0.1, 0.3, 0.4, 0.8]).tolist() == [0, 1, 2, 3, 3]


def test_an_animation_without_durations_is_shown_as_browsers_do(tmp_path):
    path = tmp_path / "film.gif"
    first, *rest = [Image.fromarray(np.full((8, 8, 3), grey_of(n), np.uint8)) for n in range(3)]
    first.save(path, save_all=True, append_images=rest, duration=0)
    assert open_video(path).seconds.tolist() == pytest.approx([0, 0.1, 0.2])
    with pytest.raises(MediaError, match=r"has more than 2 frames; cut it or raise it with Limits\(max_video_frames"):
        open_video(path, limits=Limits(max_video_frames=2))


def test_lists_of_images_and_tensors():
    images = [np.full((8, 8, 3), grey_of(n), np.uint8) for n in range(3)]
    for source in (images, tuple(Image.fromarray(image) for image in images)):
        video = open_video(source, fps=2)
        assert video.seconds.tolist() == [0, 0.5, 1]
        assert numbers(list(video.decode([0, 2]).frames)) == [0, 2]
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    for frames in (tensor, tensor.float() / 255, tensor.bfloat16() / 255):
        assert numbers(list(open_video(frames, fps=2).decode([1]).frames)) == [1]
    for frames in (tensor.permute(0, 2, 3, 1), tensor.numpy(), tensor.float(), tensor.numpy().astype(np.int32)):
        assert numbers(list(open_video(frames, fps=2).decode([0, 1, 2]).frames)) == [0, 1, 2]
    with pytest.raises(
        MediaError, match=r"float64 pixels go from 0 \(black\) to 1 or 255 \(white\), but these from 256 to 256"
    ):
        open_video(np.full((2, 8, 8, 3), 256.0), fps=2)


def test_the_range_of_floats_is_that_of_all_frames():
    """A dark frame among others of 0..255 stays dark."""
    dark, light = np.full((8, 8, 3), 1.0), np.full((8, 8, 3), 200.0)
    for frames in (np.stack([dark, light]), [dark, light], [torch.from_numpy(dark).permute(2, 0, 1), light]):
        assert [int(frame[0, 0, 0]) for frame in open_video(frames, fps=2).decode([0, 1]).frames] == [1, 200]
    assert [int(frame[0, 0, 0]) for frame in open_video([dark, dark / 2], fps=2).decode([0, 1]).frames] == [255, 128]


def test_lists_of_images_of_unlike_sizes():
    images = [np.full((8, 8, 3), grey_of(n), np.uint8) for n in range(3)]
    with pytest.raises(MediaError, match=r"frame 1 of a list of images, has 4 x 9 pixels, the first has 8 x 8"):
        list(open_video([images[0], images[0][:9, :4].repeat(2, axis=0)[:9]], fps=2).decode([0, 1]).frames)


TURNS = {  # the display matrix, and where the white corner goes: top or bottom, left or right
    "mirrored": ((-1, 0, 0, 1), (0, -1)),
    "upside down": ((1, 0, 0, -1), (-1, 0)),
    "transposed": ((0, 1, 1, 0), (0, 0)),
    "transverse": ((0, -1, -1, 0), (-1, -1)),
    "clockwise": ((0, 1, -1, 0), (0, -1)),
    "half": ((-1, 0, 0, -1), (-1, -1)),
    "stretched": ((2, 0, 0, 1), (0, 0)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_mirrored_films_are_shown_as_they_are_meant(tmp_path, turn):
    matrix, corner = TURNS[turn]
    video = open_video(with_matrix(film(tmp_path / "film.mp4", EVEN), matrix))
    assert (video.width, video.height) == ((64, 96) if matrix[0] == 0 else (96, 64))
    [frame] = video.decode([3]).frames
    white = np.argwhere(frame.mean(axis=2) > 245).mean(axis=0)
    assert [(index < size / 2) == (side == 0) for index, size, side in zip(white, frame.shape, corner, strict=False)] == [
        True
    ] * 2
    with pytest.raises(MediaError, match=r"is rotated by -?45 degrees; only quarter turns are known: re-encode it upright"):
        open_video(with_matrix(film(tmp_path / "film.mp4", EVEN), (0.7, 0.7, -0.7, 0.7)))


def test_a_cut_between_keyframes_begins_where_players_begin(tmp_path):
    """Open groups of pictures: what follows the first keyframe but is shown before it needs frames that are gone."""
    options = {"codec": "libx265", "options": {"x265-params": "log-level=0:open-gop=1:bframes=4:b-adapt=0"}, "keyframes": 10}
    whole = film(tmp_path / "whole.mkv", [40 * n for n in range(60)], moving=True, **options)
    everything = list(open_video(whole).decode(range(60)).frames)
    with av.open(str(whole)) as old:
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.dts is not None]
        begin = [n for n, packet in enumerate(packets) if packet.is_keyframe][2]
        first = round(packets[begin].pts * packets[begin].time_base * 25)
        for name in ("cut.mkv", "cut.mp4"):
            with av.open(str(tmp_path / name), "w") as new:
                copy = new.add_stream_from_template(old.streams.video[0])
                for packet in packets[begin:]:
                    clone = av.Packet(bytes(packet))
                    for key in ("pts", "dts", "time_base", "is_keyframe", "duration"):
                        setattr(clone, key, getattr(packet, key))
                    clone.stream = copy
                    new.mux(clone)
            video = open_video(tmp_path / name)
            assert len(video.pts) == 60 - first
            for one, other in zip(video.decode(range(60 - first)).frames, everything[first:], strict=True):
                np.testing.assert_array_equal(one, other)


def test_what_may_be_left_out_is_only_left_out_where_that_is_exact(tmp_path, monkeypatch):
    """A decoder that takes frames away that others need: the second attempt decodes everything."""
    path = film(tmp_path / "film.mp4", [40 * n for n in range(100)], keyframes=20, moving=True)
    video = open_video(path)
    expected = list(video.decode([5, 50]).frames)
    real = readers._from_keyframe

    def greedy(container, stream, landing, needed):
        if needed is not None:
            raise readers._NoKeyframe
        return real(container, stream, landing, needed)

    monkeypatch.setattr(readers, "_from_keyframe", greedy)
    for one, other in zip(video.decode([5, 50]).frames, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bytes_files_and_arrays(tmp_path):
    path = film(tmp_path / "film.mp4", EVEN)
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            video = open_video(source)
            assert numbers(list(video.decode([0, 7, 24]).frames)) == [0, 7, 24]
    frames = np.stack([np.full((8, 8, 3), grey_of(n), np.uint8) for n in range(10)])
    video = open_video(frames, fps=5)
    assert video.seconds.tolist() == pytest.approx([n / 5 for n in range(10)])
    assert video.duration == 2
    assert numbers(list(video.decode([1, 9]).frames)) == [1, 9]


# --- what nobody mentions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "codec", "pix_fmt", "exact"),
    [
        ("mov", "png", "rgba", True),
        ("mov", "qtrle", "argb", True),
        ("mov", "prores_ks", "yuva444p10le", False),
        ("webm", "libvpx-vp9", "yuva420p", False),
    ],
)
def test_transparent_pixels_of_films_show_the_background(tmp_path, ending, codec, pix_fmt, exact):
    """The same as in a GIF or a PNG. FFmpeg's own decoder of VP9 would show the red that is hidden there."""
    path = tmp_path / f"film.{ending}"
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[:, :32], rgba[:, 32:64], rgba[:, 64:] = (255, 0, 0, 0), (255, 0, 0, 128), (255, 0, 0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"lossless": "1"} if codec == "libvpx-vp9" else {})
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        if codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
        for n in range(3):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for background in ((255, 255, 255), (0, 0, 90)):
        video = open_video(path, background=background)
        assert video.clock.transparent
        still = load_image(Image.fromarray(rgba), background=background)
        for frame in video.decode([0, 2]).frames:
            apart = np.abs(frame.astype(int) - still)[:, [8, 48, 88]].max()
            assert apart <= (0 if exact else 6)
    with pytest.raises(MediaError, match=r"torchcodec cannot be trusted with it|decord cannot be trusted with it"):
        video.decode([0], backend="decord")


def test_pixels_that_are_not_square(tmp_path):
    """As stored, which is what the models' own processors take; by name as wide as a screen shows them."""
    path = film(tmp_path / "wide.mp4", EVEN, size=(96, 64), pixel_aspect=Fraction(2))
    assert open_video(path).pixel_aspect == 2
    content = [{"type": "video", "video": path}]
    grids = {}
    for aspect in ("stored", "square"):
        [media] = [part.media for part in Processor(aspect=aspect, video_pixels=(1, 10**7)).parts(content) if part.media]
        grids[aspect] = media.patch_grid[1:]
    assert grids["stored"] == (4, 6)
    assert grids["square"] == (4, 14)
    turned = with_matrix(film(tmp_path / "turned.mp4", EVEN, size=(96, 64), pixel_aspect=Fraction(2)), (0, 1, -1, 0))
    assert open_video(turned).pixel_aspect == Fraction(1, 2)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_a_high_dynamic_range_as_a_display_shows_it(tmp_path, transfer):
    """Greys of known light, by the formulas of BT.2100 written down anew: reference white, black, and what is between."""
    path = tmp_path / "film.mp4"
    levels = {"pq": [0.0, 0.3, 0.5, 0.5807, 0.75], "hlg": [0.0, 0.3, 0.5, 0.75, 1.0]}[transfer]
    code = np.repeat(np.rint(64 + 876 * np.array(levels)), 16).astype(np.uint16)  # [80] luma of 10 bits, of limited range
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx265", rate=25, options={"x265-params": "log-level=none:lossless=1:colormatrix=bt2020nc"}
        )
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = {"pq": 16, "hlg": 18}[transfer], 9, 9
        for n in range(3):
            frame = av.VideoFrame(80, 64, "yuv420p10le")
            for plane, row in zip(frame.planes, (code, *[np.full(40, 512, np.uint16)] * 2), strict=True):
                line = row.tobytes().ljust(plane.line_size, b"\0")
                plane.update(line * plane.height)
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    [stored] = open_video(path).decode([1]).frames
    [shown] = open_video(path, color="srgb").decode([1]).frames
    assert (stored != shown).any()

    def light(level):
        if transfer == "pq":
            power = level ** (1 / 78.84375)
            return 10000 / 203 * (max(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        scene = level**2 / 3 if level <= 0.5 else (math.exp((level - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return 1000 / 203 * scene**1.2

    for n, level in enumerate(levels):
        bright = light(level)
        above = max(bright - 0.8, 0) / 0.2
        bright = 0.8 + 0.2 * above / (1 + above) if above else bright
        grey = 255 * (12.92 * bright if bright <= 0.0031308 else 1.055 * bright ** (1 / 2.4) - 0.055)
        assert np.abs(shown[:, 16 * n + 4 : 16 * n + 12].astype(int) - round(grey)).max() <= 2, (level, grey)
    with pytest.raises(MediaError, match=r"it knows neither transparency nor color='srgb'"):
        open_video(path, color="srgb").decode([0], backend="decord")


def test_the_decoder_sees_the_first_packet_before_a_jump_over_it(tmp_path, monkeypatch):
    """What it alone says (x264 which version wrote the film) must hold behind the jump, too."""
    done, opened, prime = [], readers.open_container, readers._prime

    class Watched:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            done.append(name)
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.container.close()

    monkeypatch.setattr(readers, "open_container", lambda *given: Watched(opened(*given)))
    monkeypatch.setattr(readers, "_prime", lambda *given: (done.append("prime"), prime(*given)))
    video = open_video(film(tmp_path / "film.mp4", [40 * n for n in range(100)], keyframes=20, moving=True))
    assert len(list(video.decode([45, 99]).frames)) == 2
    order = [name for name in done if name in ("prime", "seek")]
    assert order == ["prime", "seek", "seek"]


def test_metadata_that_is_no_text(tmp_path):
    """Bytes that nobody needs: a title in Latin-1."""
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "cafe du monde"
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"cafe du monde", b"caf\xe9 du monde"))
    assert len(open_video(path).pts) == 1


def test_no_frame_is_taken_twice_without_a_word(tmp_path):
    video = open_video(film(tmp_path / "film.mp4", EVEN))
    assert len(video.sample(num_frames=25)) == 25
    with pytest.raises(
        ValueError,
        match=r"film.mp4: num_frames=26 is more than the 25 frames that can be taken: some would be taken twice; ask for 25",
    ):
        video.sample(num_frames=26)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_frames_are_those_on_show(tmp_path):
    """Every half second of an uneven film: the frame that a viewer sees then."""
    video = open_video(film(tmp_path / "uneven.mp4", UNEVEN))
    times = video.sample(fps=2, min_frames=1, max_frames=100)
    assert [float(t) for t in times] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert video.frames_at(times).tolist() == [0, 1, 3, 3, 4, 4, 4]


def test_stamps_that_the_container_rounded(tmp_path):
    """At 30 frames a second, Matroska stamps frame 20 with 667 ms; at 2/3 s it is on show."""
    video = open_video(film(tmp_path / "thirds.mkv", [round(1000 * n / 30) for n in range(25)]))
    assert video.frames_at([Fraction(n, 30) for n in range(25)]).tolist() == list(range(25))


@given(st.integers(1, 400), st.sampled_from((8, 10, 24, 25, 30, 60)), st.sampled_from((0.5, 1, 2, 2.5, 3, 29.97)))
def test_even_films_are_sampled_at_whole_steps(count, rate, fps):
    """Of a film with frames at n / rate, the frame at time t is number floor(t * rate), to half a millisecond."""
    frames = np.zeros((count, 1, 1, 3), np.uint8)
    exact = open_video(frames, fps=rate)
    times = exact.sample(fps=fps, min_frames=1, max_frames=10**6)
    taken = min(Fraction(rate), Fraction(str(fps)))  # no frame is taken twice
    assert all(t == k / taken for k, t in enumerate(times)) or count == 1
    assert times[-1] < exact.duration <= times[-1] + 1 / taken or count == 1
    half_a_millisecond = Fraction(1, 2000)  # how late a stamp may be
    assert exact.frames_at(times).tolist() == [min(count - 1, math.floor((t + half_a_millisecond) * rate)) for t in times]


@given(st.integers(2, 50), st.integers(1, 10), st.integers(10, 20))
def test_counts_are_within_bounds_and_evenly_spread(count, least, most):
    video = open_video(np.zeros((count, 1, 1, 3), np.uint8), fps=4)
    times = video.sample(fps=2, min_frames=least, max_frames=most)
    assert min(least, count) <= len(times) <= min(most, count)
    assert len(set(video.frames_at(times))) == len(times)
    steps = {b - a for a, b in itertools.pairwise(times)}
    assert len(steps) <= 1
    assert times[0] == 0
    assert times[-1] < video.duration


# --- refusals ---------------------------------------------------------------------------------------------------------


def still(path):
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "missing.mp4", r"missing.mp4: no such file"),
        (lambda d: "https://localhost/film.mp4", r"https://localhost/film.mp4 is a URL, and URLs are off"),
        (lambda d: b"", r"0 bytes cannot be read as a video"),
        (lambda d: b"not a film" * 100, r"1000 bytes cannot be read as a video"),
        (lambda d: sound(d / "sound.mp4"), r"sound.mp4 has no video stream \(only audio\)"),
        (lambda d: film(d / "cut.mp4", EVEN).read_bytes()[:2000], r"2000 bytes cannot be read as a video"),
        (lambda d: np.zeros((2, 8, 8)), r"an array of frames must be \[T, H, W, 3\], .*, got float64 \[2, 8, 8\]"),
        (lambda d: np.zeros((2, 8, 8, 3), np.uint8), r"has no clock: say its frames a second, fps="),
        (lambda d: [], r"a list of images has no clock"),
        (lambda d: d, r"is a folder, not a file"),
        (lambda d: still(d / "still.png"), r"still.png is a still image \(PNG\), not a film: give it as an image"),
        (lambda d: still(d / "still.jpg"), r"still.jpg cannot be read as a video \(known formats: mp4, mov"),
    ],
)
def test_what_cannot_be_used_is_refused(make, message, tmp_path):
    with pytest.raises(MediaError, match=message):
        open_video(make(tmp_path))


def test_limits(samples):
    with pytest.raises(MediaError, match=r"clip.mp4 lasts 8 s, the limit is 5; .*Limits\(max_video_seconds"):
        open_video(samples / "clip.mp4", limits=Limits(max_video_seconds=5))
    with pytest.raises(MediaError, match=r"frames of 224 x 168 = 0.03763 million pixels, the limit is 0.001 million"):
        open_video(samples / "clip.mp4", limits=Limits(max_image_pixels=1000))


def test_options_are_checked(samples):
    video = open_video(samples / "clip.mp4")
    with pytest.raises(
        ValueError, match=r"fps=25 is for arrays of frames and streams without a container; .*clip.mp4 has its own clock"
    ):
        open_video(samples / "clip.mp4", fps=25)
    with pytest.raises(ValueError, match=r"backend must be one of auto, pyav, decord, torchcodec, got 'opencv'"):
        video.decode([0], backend="opencv")
    with pytest.raises(ValueError, match=r"fps must be positive and 1 <= min_frames <= max_frames, got fps=0"):
        video.sample(fps=0, min_frames=1, max_frames=4)
    with pytest.raises(ValueError, match=r"say fps or num_frames, one of them, got fps=1, num_frames=2"):
        video.sample(fps=1, num_frames=2)
    with pytest.raises(ValueError, match=r"num_frames must be a whole number, at least 1, got 0"):
        video.sample(num_frames=0)
    for indices in ([-1], [64], [3, 2], [[0]], [0.9, 1.7]):
        with pytest.raises(ValueError, match=r"indices must be of the 64 frames of .* and not decrease, got"):
            video.decode(indices)


def test_frames_of_even_times_are_those_of_the_grid():
    """However long the last of them is shown, which counts in the average rate."""
    frames, buffer = [Image.new("L", (28, 28), 20 * n) for n in range(12)], io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=[40] * 11 + [2000])
    video = open_video(buffer.getvalue())
    assert video.average_fps < 5
    assert video.frames_on_grid(range(12)).tolist() == list(range(12))


def test_a_frame_of_vp9_says_whether_it_is_shown():
    """VP9 bitstream specification, 6.2: the mark, the profile, a bit more of profile 3, "shows another", its type, "is shown"."""
    for profile in (0b1000 << 4, 0b1001 << 4, 0b1010 << 4):
        shown = [bits for bits in range(16) if probe._vp9_shows(profile | bits)]
        assert shown == [bits for bits in range(16) if bits & 0b1000 or bits & 0b0010]
    shown = [bits for bits in range(8) if probe._vp9_shows(0b1011 << 4 | bits)]
    assert shown == [bits for bits in range(8) if bits & 0b100 or bits & 0b001]


def test_of_two_times_that_is_believed_which_went_back_less_often():
    """As libavcodec's guess_correct_pts has it; the presentation time, if both did as often."""
    times = probe._Times(step=40, back=10**6, ahead=None)
    for pts, dts in ((0, 0), (80, 40), (40, 80), (200, 120), (240, 110), (280, 100)):
        times.add(pts, dts, 40)
    assert times.shown.tolist() == [0, 80, 81, 120, 240, 280]


def test_a_film_that_breaks_off_says_where(tmp_path):
    """Packets are there, but the decoder cannot make frames of the last of them."""
    path = film(tmp_path / "film.mkv", EVEN)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
    spoiled = [p for p in packets if p.pts >= 480]
    for packet in spoiled:
        data[packet.pos + 10 : packet.pos + packet.size] = bytes(packet.size - 10)
    video = open_video(bytes(data))
    assert numbers(list(video.decode([0, 5], backend="pyav").frames)) == [0, 5]
    with pytest.raises(MediaError, match=r"is damaged|cannot be decoded \(1 of 1 frames are missing\)"):
        list(video.decode([20], backend="pyav").frames)


def test_frames_with_data_that_pyav_does_not_know_are_refused(tmp_path):
    """EXIF data beside each JPEG, as FFmpeg 8 states it: PyAV up to 18.1 raises a bare ValueError at the turn of the first."""
    exif, picture = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(picture, "JPEG", exif=exif)
    path = tmp_path / "exif.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=24, height=16, pix_fmt="yuvj420p")
        for n in range(2):
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, n, n, Fraction(1, 10)
            container.mux(packet)
    with av.open(str(path)) as container:
        try:
            known = bool(next(container.decode(video=0)).side_data)
        except ValueError:
            known = False
    if known:
        assert (open_video(path).width, open_video(path).height) == (16, 24)
    else:
        with pytest.raises(MediaError, match=r"exif.avi has data beside its frames that PyAV \S+ does not know \(\d+ is not"):
            open_video(path)
