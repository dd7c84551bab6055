"""Images to patches against transformers' image processor, and frames out of videos against decord: in turns, results equal.

    python scripts/bench_media.py [--rounds 9]

One thread on one CPU, but for the batch. Photographs of scikit-image go in as decoded PIL images, as transformers takes them.
Videos are made anew: a photograph that wanders. The table is also written to scripts/results.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import torch
from PIL import Image
from reports import cpu, row, write_result
from skimage import data
from transformers import Glm4vImageProcessor, Qwen2VLImageProcessor

from mmrope import Processor
from mmrope.preprocess import load_image, open_video
from mmrope.preprocess.patches import FAMILY_PATCHES, image_patches, image_size, normalize
from mmrope.preprocess.readers import _image, by_time

try:  # its wheel has no FFmpeg: it works where the system has one
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
except (ImportError, RuntimeError, OSError):
    VideoDecoder = None

ROOT = Path(__file__).parents[1]
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
UPSTREAM = {
    "qwen2_vl": Qwen2VLImageProcessor(),
    "qwen3_vl": Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}, **HALF),
    "glm4v": Glm4vImageProcessor(),
}
PACKAGES = ("torch", "torchvision", "transformers", "pillow", "simplejpeg", "av", "decord")
Calls = dict[str, Callable[[], Any]]


def photographs() -> dict[str, Image.Image]:
    coffee = Image.fromarray(data.coffee())
    return {
        "astronaut, 512 x 512": Image.fromarray(data.astronaut()),
        "coffee, 600 x 400": coffee,
        "coffee, 1344 x 1008": coffee.resize((1344, 1008), Image.Resampling.BICUBIC),
        "coffee, 4032 x 3024": coffee.resize((4032, 3024), Image.Resampling.BICUBIC),
    }


def images(name: str, image: Image.Image) -> Calls:
    """From a PIL image to pixel_values."""
    upstream, config = UPSTREAM[name], FAMILY_PATCHES[name]

    def packed() -> torch.Tensor:
        pixels = load_image(image)
        return image_patches(pixels, image_size(pixels.shape[0], pixels.shape[1], config), config)

    theirs = upstream(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(packed(), config), theirs, rtol=0, atol=1e-6)
    return {
        "transformers": lambda: upstream(image, return_tensors="pt"),
        "mmrope": lambda: normalize(packed(), config),
        "mmrope, uint8": packed,
    }


def batch(threads: int) -> Calls:
    """16 JPEG files of 1344 x 1008, decoding included, by a pool of threads; torch itself has one."""
    file = io.BytesIO()
    photographs()["coffee, 1344 x 1008"].save(file, "JPEG", quality=90)
    item = {"type": "image", "image": file.getvalue()}
    messages = [{"role": "user", "content": [item] * 16}]
    calls: Calls = {
        f"mmrope, {n} thread{'s' * (n > 1)}": functools.partial(Processor(family="qwen2_vl", threads=n), messages)
        for n in range(1, threads + 1)
    }
    opened = lambda: [Image.open(io.BytesIO(file.getvalue())).convert("RGB") for _ in range(16)]  # noqa: E731
    return {"transformers": lambda: UPSTREAM["qwen2_vl"](opened(), return_tensors="pt"), **calls}


def jpeg(size: str) -> bytes:
    file = io.BytesIO()
    photographs()[size].save(file, "JPEG", quality=90)
    return file.getvalue()


def files(size: str) -> Calls:
    """From the bytes of a JPEG file to pixel_values, decoding included."""
    content, config, upstream = jpeg(size), FAMILY_PATCHES["qwen2_vl"], UPSTREAM["qwen2_vl"]

    def packed() -> torch.Tensor:
        pixels = load_image(content)
        return image_patches(pixels, image_size(pixels.shape[0], pixels.shape[1], config), config)

    return {
        "transformers": lambda: upstream(Image.open(io.BytesIO(content)).convert("RGB"), return_tensors="pt"),
        "mmrope": lambda: normalize(packed(), config),
        "mmrope, uint8": packed,
    }


class Rows(torch.utils.data.Dataset):
    """JPEG files, prepared one by one in a data loader's worker."""

    def __init__(self, size: str, prepare: Callable[[bytes], torch.Tensor]) -> None:
        self.content, self.prepare = jpeg(size), prepare

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.prepare(self.content)


def by_transformers(content: bytes) -> torch.Tensor:
    return UPSTREAM["qwen2_vl"](Image.open(io.BytesIO(content)).convert("RGB"), return_tensors="pt")["pixel_values"]


def by_mmrope(content: bytes, pixels: str = "float32") -> torch.Tensor:
    item = {"type": "image", "image": content}
    return Processor(family="qwen2_vl", pixels=pixels)([{"role": "user", "content": [item]}])["pixel_values"]  # pyright: ignore


def loader(size: str) -> Calls:
    """64 files through a data loader with one worker and its hand-over: batches of 8, joined."""

    def epoch(prepare: Callable[[bytes], torch.Tensor]) -> Callable[[], Any]:
        loader = torch.utils.data.DataLoader(
            Rows(size, prepare), batch_size=8, num_workers=1, collate_fn=torch.cat, persistent_workers=True
        )
        return lambda: sum(len(batch) for batch in loader)

    return {
        "transformers": epoch(by_transformers),
        "mmrope": epoch(by_mmrope),
        "mmrope, uint8": epoch(functools.partial(by_mmrope, pixels="uint8")),
    }


def film(path: Path, frames: int, keyframes: int) -> Path:
    """640 x 360, 25 frames a second, h264 with B-frames."""
    photo = np.tile(data.astronaut(), (2, 4, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 640, 360, "yuv420p", keyframes
        for n in range(frames):
            y, x = int(200 + 150 * np.sin(n / 40)), n * 3 % 1000
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(photo[y : y + 360, x : x + 640]), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def videos(path: Path, frames: int, wanted: int) -> Calls:
    """From a path to frames in memory: opening, probing and decoding."""
    indices = [n * frames // wanted for n in range(wanted)]

    def by_decord() -> np.ndarray:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1).get_batch(indices).asnumpy()

    def in_order() -> list[np.ndarray]:
        video = open_video(path)
        return [_image(video, frame) for frame in by_time(video, np.array(indices), by_keyframes=False)]

    def by_keyframes() -> list[np.ndarray]:
        return list(open_video(path).decode(indices).frames)

    for other in (in_order(), by_keyframes()):
        np.testing.assert_array_equal(np.stack(other), by_decord())

    def by_torchcodec() -> torch.Tensor:
        assert VideoDecoder is not None
        decoder = VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1)
        return decoder.get_frames_at(indices).data

    calls: Calls = {"decord": by_decord, "PyAV, every frame in order": lambda: every(path, indices), "mmrope": by_keyframes}
    if VideoDecoder is not None:  # another FFmpeg's pixels may differ by one
        assert np.abs(by_torchcodec().numpy().astype(int) - np.stack(by_keyframes())).max() <= 3
        calls["torchcodec"] = by_torchcodec
    return calls


def every(path: Path, indices: list[int]) -> list[np.ndarray]:
    """The usual loop: decode, keep what is wanted."""
    wanted, kept = set(indices), []
    with av.open(str(path)) as container:
        for n, frame in enumerate(container.decode(video=0)):
            if n in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
            if len(kept) == len(indices):
                break
    return kept


def measure(calls: Calls, rounds: int) -> dict[str, tuple[float, float]]:
    """(least, median) seconds of each, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - begun)
    return {name: (min(times), statistics.median(times)) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cpus = os.sched_getaffinity(0)
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    lines = [f"{cpu()}, one thread; Python {sys.version.split()[0]}, {packages}; {time.strftime('%Y-%m-%d')}", ""]
    lines += [f"Milliseconds, least / median of {rounds} turns; times as fast as the first of a case by the least.", ""]
    lines += [row("case", "what", "ms", "times as fast"), row(*["---"] * 4)]
    cases: list[tuple[str, Callable[[], Calls], set[int]]] = []
    one = {min(cpus)}
    for shown, image in photographs().items():
        names = UPSTREAM if "1344" in shown else ("qwen2_vl",)
        cases += [(f"{name}, {shown}", functools.partial(images, name, image), one) for name in names]
    for size in ("astronaut, 512 x 512", "coffee, 1344 x 1008", "coffee, 4032 x 3024"):
        cases.append((f"qwen2_vl, a JPEG file, {size}", functools.partial(files, size), one))
    for size in ("astronaut, 512 x 512", "coffee, 1344 x 1008"):
        cases.append((f"qwen2_vl, 64 JPEG files by a loader's worker, {size}", functools.partial(loader, size), cpus))
    cases.append((f"qwen2_vl, 16 JPEG files of 1344 x 1008, {len(cpus)} CPUs", lambda: batch(len(cpus)), cpus))
    with tempfile.TemporaryDirectory() as folder:
        for frames, keyframes, ending in ((250, 250, "mp4"), (1500, 50, "mp4"), (1500, 50, "mkv"), (1500, 250, "mp4")):
            path = film(Path(folder) / f"{frames}-{keyframes}.{ending}", frames, keyframes)
            for wanted in (32, 250) if frames == 250 else (16, 64):
                what = f"{wanted} of {frames:,} frames, a keyframe every {keyframes}, {ending}"
                cases.append((what, functools.partial(videos, path, frames, wanted), one))
        for case, make, where in cases:
            os.sched_setaffinity(0, where)
            found = measure(make(), rounds)
            base = next(iter(found.values()))[0]
            for what, (least, median) in found.items():
                lines.append(row(case, what, f"{least * 1e3:.1f} / {median * 1e3:.1f}", f"{base / least:.2f}"))
                print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    write_result(ROOT / "scripts" / "results" / "bench_media.md", text)


if __name__ == "__main__":
    main()
