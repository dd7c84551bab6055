"""Makes the files in samples/: two photographs out of scikit-image, a video whose content is known, and handwriting.

    python scripts/make_samples.py [folder]

clip.mp4 lasts 8 seconds at 8 frames a second; during second n it shows the digit n on the n-th colour of COLOURS.
grid.png, strip.png and digits.mp4 are tasks of the small model, of handwriting that it was not trained on.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrope.vlm.tasks import Film, Grid

FPS, SECONDS, SIZE = 8, 8, (224, 168)
COLOURS = ("#b03030", "#30a030", "#3050c0", "#c0a020", "#a030a0", "#20a0a0", "#707070", "#e07020")


def photographs(folder: Path) -> None:
    """cat.jpg (Stefan van der Walt) and coffee.jpg (Rachel Michetti), both CC0, distributed with scikit-image."""
    from skimage import data

    for name, pixels in (("cat", data.chelsea()), ("coffee", data.coffee())):
        image = Image.fromarray(pixels)
        image.thumbnail((448, 448))
        image.save(folder / f"{name}.jpg", quality=88)


def draw(frame: int) -> Image.Image:
    """A frame: the digit of its second, and a bar that grows through the second."""
    second = frame // FPS
    image = Image.new("RGB", SIZE, COLOURS[second])
    pen = ImageDraw.Draw(image)
    pen.text((SIZE[0] / 2, SIZE[1] / 2), str(second), fill="white", anchor="mm", font=ImageFont.load_default(120))
    pen.rectangle((0, SIZE[1] - 10, SIZE[0] * (frame % FPS + 1) // FPS, SIZE[1]), fill="white")
    return image


def clip(path: Path) -> None:
    """The video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for n in range(FPS * SECONDS):
            frame = av.VideoFrame.from_ndarray(np.asarray(draw(n)), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def handwriting(folder: Path) -> None:
    """Two pictures and a film of held-out digits (UCI's "Optical Recognition of Handwritten Digits", CC BY 4.0)."""
    rng = np.random.default_rng(7)
    for name, shape in (("grid", (3, 4)), ("strip", (1, 3))):
        grid = Grid.draw(rng, *shape, "held_out")
        Image.fromarray(grid.image).save(folder / f"{name}.png")
        print(f"{name}.png\n{grid.cells}")
    rng = np.random.default_rng(5)
    films = (Film.draw(rng, "held_out") for _ in range(100))
    film = next(film for film in films if len(film.digits) == 4 and film.duration > 6)
    film.save(rng, folder / "digits.mp4")
    print(f"digits.mp4: {film.digits} from {film.starts} to {film.ends}")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    photographs(folder)
    clip(folder / "clip.mp4")
    handwriting(folder)
    for path in sorted(folder.glob("*.*")):
        if path.suffix in (".jpg", ".png", ".mp4"):
            print(f"{path.stat().st_size:8,} bytes  {path.name}")
