"""What the small model learns: pictures and films of handwritten digits, sums, and questions about them with their answers.

digits (real handwriting) -> Grid, Film -> questions with answers -> a conversation, in the form that a Processor reads

The handwriting is scikit-learn's `load_digits`: 1,797 images of 8 x 8 pixels from UCI's "Optical Recognition of Handwritten
Digits" (E. Alpaydin, C. Kaynak, 1998; licence CC BY 4.0). Every fifth is held out: training never sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from PIL import Image

from mmrope.extras import needed_for
from mmrope.positions.segments import MEDIA

Split = Literal["train", "held_out"]
CELL = 28
"""Pixels along a cell of a grid: one token of the model."""
STEP = Fraction(1, 2)
"""Seconds between the frames that the model sees of a film."""
_BLANK = -1


@dataclass(frozen=True)
class Asked:
    """A question and its answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """A conversation with the answers in it, and what kind each question is."""

    messages: list[dict[str, Any]]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, media: Sequence[Mapping[str, Any]], asked: Sequence[Asked]) -> Sample:
        """The media come before the first question."""
        messages: list[dict[str, Any]] = []
        for n, one in enumerate(asked):
            text = {"type": "text", "text": one.question}
            messages.append({"role": "user", "content": [*media, text] if n == 0 else [text]})
            messages.append({"role": "assistant", "content": one.answer})
        return cls(messages, tuple(one.kind for one in asked))


IMAGE_KINDS, FILM_KINDS = ("at", "row", "all", "where", "many"), ("shown", "when", "after", "list")
QUESTION_KINDS = (*IMAGE_KINDS, *FILM_KINDS, "sum")


class Subject(Protocol):
    """What questions are about."""

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of questions that can be asked."""

    @property
    def tokens(self) -> int:
        """How many tokens its media take."""
        ...

    def media(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Its images or film, for a message."""
        ...

    def ask(self, rng: np.random.Generator, kind: str) -> Asked | None:
        """A random question of a kind; None if there is none."""
        ...


# --- handwriting ----------------------------------------------------------------------------------------------------------


@lru_cache
def digits(split: Split) -> tuple[np.ndarray, ...]:
    """For each digit 0..9 its images, uint8 [n, 8, 8], ink is 255.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: there is no such split.
    """
    with needed_for("the handwriting"):
        from sklearn.datasets import load_digits
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    data: Any = load_digits()
    chosen = (np.arange(len(data.target)) % 5 == 4) == (split == "held_out")
    ink = (data.images * (255 / 16)).astype(np.uint8)
    images = tuple(ink[chosen & (data.target == digit)] for digit in range(10))
    for of_digit in images:
        of_digit.setflags(write=False)  # they are handed out again
    return images


def write_digit(rng: np.random.Generator, digit: int, split: Split) -> np.ndarray:
    """One of the digit's images in a cell, [CELL, CELL] from 0 to 1 (ink), 18 to 27 pixels large, anywhere in it.

    In training it is also turned, slanted, stretched, and its stroke made thinner or thicker: there are few to learn from.
    """
    images = digits(split)[digit]
    size = rng.uniform(18, 27)
    centre = CELL / 2 + rng.uniform(-1, 1, 2) * (CELL - size) / 2
    warp = np.eye(2)
    if split == "train":
        turn, slant = rng.uniform(-0.25, 0.25, 2)
        stretch = np.exp(rng.uniform(-0.18, 0.18, 2))
        warp = np.array([[np.cos(turn), slant - np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * stretch[:, None]
    warp = warp * 8 / size  # from pixels of the cell to pixels of the image
    (a, b), (d, e) = warp
    c, f = 4 - warp @ centre
    image = Image.fromarray(images[rng.integers(len(images))])
    ink = np.asarray(image.transform((CELL, CELL), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR))
    ink = ink.astype(np.float32) / 255  # [CELL, CELL]
    return ink ** np.exp(rng.uniform(-0.5, 0.5)) if split == "train" else ink


@dataclass(frozen=True)
class Paper:
    """How bright the paper and the ink are, and how much noise is on them, from 0 to 255."""

    paper: float
    ink: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Paper:
        return cls(rng.uniform(225, 255), rng.uniform(0, 90), rng.uniform(0, 14))

    def photograph(self, rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of ink [H, W] from 0 to 1."""
        grey = self.paper + ink * (self.ink - self.paper) + rng.standard_normal(ink.shape, np.float32) * self.noise
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)  # [H, W, 3]


# --- pictures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grid:
    """Digits in rows and columns; -1 is a blank cell."""

    cells: np.ndarray
    """[rows, columns]"""
    image: np.ndarray = field(repr=False)
    """uint8 [rows * CELL, columns * CELL, 3]"""

    @classmethod
    def draw(cls, rng: np.random.Generator, rows: int, columns: int, split: Split) -> Grid:
        cells = rng.integers(0, 10, (rows, columns))
        cells[rng.random((rows, columns)) < rng.uniform(0, 0.35)] = _BLANK
        ink = np.zeros((rows, CELL, columns, CELL), np.float32)
        for row, column in np.argwhere(cells != _BLANK):
            ink[row, :, column] = write_digit(rng, int(cells[row, column]), split)
        return cls(cells, Paper.draw(rng).photograph(rng, ink.reshape(rows * CELL, columns * CELL)))

    kinds: ClassVar[tuple[str, ...]] = IMAGE_KINDS

    @property
    def tokens(self) -> int:
        """A cell is one."""
        return self.cells.size

    def media(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The image."""
        return [{"type": "image", "image": self.image}]

    def ask(self, rng: np.random.Generator, kind: str, *, number: int | None = None) -> Asked | None:
        """A question about it; `number` it has among several images."""
        of, cells = "" if number is None else f" of image {number}", self.cells
        row, column = (int(rng.integers(n)) for n in cells.shape)
        if kind == "at":
            return Asked(kind, f"What is at row {row + 1}, column {column + 1}{of}?", _name(cells[row, column]))
        if kind == "row":
            return Asked(kind, f"Read row {row + 1}{of}.", _names(cells[row]))
        if kind == "all":
            return Asked(kind, f"Read all{of}.", "; ".join(map(_names, cells)))
        if kind == "where":
            once = [digit for digit in range(10) if (cells == digit).sum() == 1]
            if not once:
                return None
            digit = once[rng.integers(len(once))]
            [(row, column)] = np.argwhere(cells == digit)
            return Asked(kind, f"Where is the {digit}{of}?", f"row {row + 1}, column {column + 1}")
        assert kind == "many"
        there = cells[cells != _BLANK]
        digit = rng.choice(there) if len(there) and rng.random() < 0.7 else rng.integers(10)
        return Asked(kind, f"How many {digit}s are there{of}?", str((cells == digit).sum()))


@dataclass(frozen=True, eq=False)
class Album:
    """Several pictures, each question about one of them."""

    grids: tuple[Grid, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, split: Split, *, side: int = 3) -> Album:
        shapes = rng.integers(1, side + 1, (rng.integers(2, 4), 2)).tolist()
        return cls(tuple(Grid.draw(rng, rows, columns, split) for rows, columns in shapes))

    kinds: ClassVar[tuple[str, ...]] = IMAGE_KINDS

    @property
    def tokens(self) -> int:
        """Of all pictures."""
        return sum(grid.tokens for grid in self.grids)

    def media(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The images."""
        return [item for grid in self.grids for item in grid.media(rng)]

    def ask(self, rng: np.random.Generator, kind: str) -> Asked | None:
        """A question about one of them."""
        n = int(rng.integers(len(self.grids)))
        return self.grids[n].ask(rng, kind, number=n + 1)


# --- films ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Film:
    """Different digits, one after the other, each for a while, from `starts` to `ends`; in between, blank paper."""

    digits: tuple[int, ...]
    starts: tuple[float, ...]
    """Seconds; irregular, and each digit is seen by someone who looks every STEP."""
    ends: tuple[float, ...]
    duration: float
    ink: np.ndarray = field(repr=False)
    """[digits, CELL, CELL]"""
    paper: Paper

    @classmethod
    def draw(
        cls, rng: np.random.Generator, split: Split, *, most_digits: int = 5, least_steps: int = 4, most_steps: int = 16
    ) -> Film:
        steps = int(rng.integers(least_steps, most_steps + 1))
        count = int(rng.integers(1, min(most_digits, steps - 1) + 1))
        first = np.sort(rng.choice(steps, count, replace=False))  # the looks at which digits are seen first
        until = [*first[1:], steps]
        last = [
            stop if rng.random() < 0.5 else rng.integers(start + 1, stop + 1) for start, stop in zip(first, until, strict=True)
        ]
        late = rng.uniform(0.02, 0.48, steps + 1).tolist()  # a digit comes and goes between two looks
        seconds = [float(step * STEP) - late[step] if step else 0.0 for step in range(steps + 1)]
        shown = rng.choice(10, count, replace=False)
        return cls(
            tuple(map(int, shown)),
            tuple(seconds[step] for step in first),
            tuple(seconds[step] for step in last),
            seconds[steps],
            np.stack([write_digit(rng, digit, split) for digit in shown.tolist()]),
            Paper.draw(rng),
        )

    def shown(self, seconds: float) -> int:
        """Which digit, by its number in the film; -1 is none."""
        times = enumerate(zip(self.starts, self.ends, strict=True))
        return next((n for n, (start, end) in times if start <= seconds < end), _BLANK)

    @property
    def looks(self) -> list[float]:
        """When the model looks, in seconds."""
        return [float(k * STEP) for k in range(int(np.ceil(self.duration / float(STEP))))]

    def frame(self, rng: np.random.Generator, seconds: float) -> np.ndarray:
        """uint8 [CELL, CELL, 3]"""
        n = self.shown(seconds)
        return self.paper.photograph(rng, self.ink[n] if n != _BLANK else np.zeros((CELL, CELL), np.float32))

    kinds: ClassVar[tuple[str, ...]] = FILM_KINDS

    @property
    def tokens(self) -> int:
        """A look is one."""
        return len(self.looks)

    def media(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Without a file: the frames that the model would see of one."""
        frames = np.stack([self.frame(rng, t) for t in self.looks])  # [T, CELL, CELL, 3]
        return [{"type": "video", "video": frames, "fps": float(1 / STEP)}]

    def save(self, rng: np.random.Generator, path: str | Path, *, scale: int = 4) -> None:
        """As a video file of a variable frame rate: frames where something changes, and at random times between."""
        import av

        tick = Fraction(1, 1000)
        changes = {0.0, *self.starts, *self.ends} - {self.duration}
        times = {*changes, *rng.uniform(0, self.duration, int(4 * self.duration))}
        stamps = sorted({int(t / tick) for t in times})  # rounded down: what changes has changed by the next look
        lasts = dict(zip(stamps, np.diff([*stamps, int(self.duration / tick)]).tolist(), strict=True))
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream("libx264", options={"crf": "16", "bf": "0"})
            stream.width = stream.height = CELL * scale
            stream.pix_fmt, stream.time_base, stream.codec_context.time_base = "yuv420p", tick, tick

            def write(frame: Any) -> None:
                for packet in stream.encode(frame):
                    packet.duration = lasts[packet.pts]  # the encoder does not hand it on
                    file.mux(packet)

            for at in stamps:
                pixels = self.frame(rng, (at + 0.999) * float(tick)).repeat(scale, 0).repeat(scale, 1)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = at, tick
                write(frame)
            write(None)

    def ask(self, rng: np.random.Generator, kind: str) -> Asked:
        """A question about it."""
        n = int(rng.integers(len(self.digits)))
        if kind == "shown":
            look = self.looks[rng.integers(len(self.looks))]
            at = self.shown(look)
            return Asked(kind, f"What is shown at {look:.1f} s?", _name(self.digits[at] if at != _BLANK else _BLANK))
        if kind == "when":
            seen = next(look for look in self.looks if self.shown(look) == n)
            return Asked(kind, f"When does the {self.digits[n]} appear?", f"{seen:.1f} s")
        if kind == "after":
            then = str(self.digits[n + 1]) if n + 1 < len(self.digits) else "none"
            return Asked(kind, f"Which digit comes after the {self.digits[n]}?", then)
        assert kind == "list"
        return Asked(kind, "List the digits.", _names(self.digits))


class Sums:
    """Sums of two numbers from 0 to 99. None is held out: there are 10,000, and a training sees most of them."""

    kinds: ClassVar[tuple[str, ...]] = ("sum",)

    @property
    def tokens(self) -> int:
        """There are no media."""
        return 0

    def media(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """None."""
        return []

    def ask(self, rng: np.random.Generator, kind: str) -> Asked:
        """What is a + b?"""
        a, b = rng.integers(0, 100, 2)
        return Asked(kind, f"What is {a} + {b}?", str(a + b))


def _name(digit: int) -> str:
    return "blank" if digit == _BLANK else str(digit)


def _names(row: Sequence[int] | np.ndarray) -> str:
    return " ".join(map(_name, row))


# --- the words ------------------------------------------------------------------------------------------------------------

_TIMES = [f"{k / 2:.1f}" for k in range(32)]
WORDS = (
    *("user\n", "assistant\n", "What is", " at row", "Read row", "Read all", "Where is the", "How many", "s are there"),
    *(" shown at", "When does the", " appear", "Which digit comes after the", "List the digits", " of image", " +"),
    *("row", ", column", " blank", "blank", "none", " s"),
    *(f" {digit}" for digit in range(10)),
    *_TIMES,
    *(f" {time}" for time in _TIMES),
)
"""The words of the questions and answers, each a token of its own."""
QUESTIONS = MappingProxyType(
    {
        "What is at row 2, column 3?": r"What is at row [1-9], column [1-9]( of image [1-9])?\?",
        "Read row 2.": r"Read row [1-9]( of image [1-9])?\.",
        "Read all.": r"Read all( of image [1-9])?\.",
        "Where is the 7?": r"Where is the [0-9]( of image [1-9])?\?",
        "How many 7s are there?": r"How many [0-9]s are there( of image [1-9])?\?",
        "What is shown at 2.5 s?": r"What is shown at [0-7]\.[05] s\?",
        "When does the 7 appear?": r"When does the [0-9] appear\?",
        "Which digit comes after the 7?": r"Which digit comes after the [0-9]\?",
        "List the digits.": r"List the digits\.",
        "What is 27 + 48?": r"What is [0-9]{1,2} \+ [0-9]{1,2}\?",
    }
)
"""An example of each question that the model learns, and its form as a regular expression."""


def is_known(question: str) -> bool:
    """Whether it has one of the forms that the model learns: it knows no others."""
    return kind_of(question) is not None


def kind_of(question: str) -> str | None:
    """Which of QUESTION_KINDS a question is, by its form; None if it has none of the forms that the model learns."""
    forms = zip(QUESTION_KINDS, QUESTIONS.values(), strict=True)
    return next((kind for kind, form in forms if re.fullmatch(form, question)), None)


def is_like_handwriting(inputs: Mapping[str, Any]) -> bool:
    """Whether the media of a processor's output look like what the model learns: dark on light paper, without colour.

    It goes by averages (tried on the samples and on drawn questions), so it finds photographs, not other handwriting.

    Args:
        inputs: with pixels="uint8".
    """
    for key in (MEDIA["image"].pixels, MEDIA["video"].pixels):
        if key in inputs:
            channels = inputs[key].unflatten(1, (3, -1)).float()  # [P, 3, values]
            colour = (channels.amax(1) - channels.amin(1)).mean()
            if colour > 16 or channels.mean(1).median() < 192:
                return False
    return True
