"""Messages with text, images and videos to model inputs: Hugging Face's keys and shapes, and the position IDs.

messages -> media (opened, measured, cut into patches; several at a time) -> parts (what the model reads, in order, each a
Segment) -> tokens, positions, pixels
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmrope.extras import needed_for
from mmrope.files import naming, to_json, write_texts
from mmrope.positions.build import position_ids
from mmrope.positions.families import Family
from mmrope.positions.segments import MEDIA, Segment
from mmrope.preprocess.batches import NOT_LEARNED, ModelInputs
from mmrope.preprocess.chat import conversation_pieces
from mmrope.preprocess.measure import Media, MediaProcessor
from mmrope.preprocess.messages import Messages, is_conversation, items_of, media_items
from mmrope.preprocess.parts import Part, PartWriter
from mmrope.preprocess.patches import normalize
from mmrope.preprocess.pretrained import CONFIG_NAME, SAVED, TEMPLATE_NAME, read_settings
from mmrope.preprocess.text import ByteTokenizer, FileTokenizer, Tokenizer, WordTokenizer

if TYPE_CHECKING:
    import pyarrow

_VISION = (MEDIA["image"], MEDIA["video"])


@dataclass(frozen=True, kw_only=True)
class Processor(MediaProcessor):
    """Turns messages into model inputs. Its fields are its settings; `dataclasses.replace` changes one. It can be pickled, and
    holds no open file: workers may have one each.

    Messages are Hugging Face's, OpenAI's or qwen-vl-utils': `{"role": "user", "content": [{"type": "text", "text": "Describe"},
    {"type": "image", "image": "photo.jpg"}, {"type": "video", "video": "clip.mp4", "fps": 1.0}]}`. The file may also be under
    "image_url", "video_url", "path", "url" or "base64": what `mmrope.preprocess.load_image` and `open_video` take. An item may
    have the keys of qwen-vl-utils, with their meaning there: "min_pixels", "max_pixels", "total_pixels", "resized_height" and
    "resized_width"; "fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"; of lists of frames "sample_fps"
    and "raw_fps". Or a video's item says "num_frames", evenly spread, or "times", seconds from its first frame. Instead of a
    file, "grid" states a size in tokens, (h, w) or (t, h, w) with "fps", for positions without pixels (`parts` only).
    docs/media.md has a table of all keys.

    Example:
        >>> import numpy as np
        >>> from mmrope import Processor
        >>> content = [{"type": "image", "image": np.zeros((56, 84, 3), np.uint8)}, {"type": "text", "text": "What is it?"}]
        >>> inputs = Processor(family="qwen2_vl")([{"role": "user", "content": content}])
        >>> inputs["image_grid_thw"].tolist(), tuple(inputs["pixel_values"].shape), tuple(inputs["position_ids"].shape)
        ([[1, 4, 6]], (24, 1176), (3, 1, 38))
    """

    padding_side: Literal["left", "right"] = "left"
    tokenizer: Tokenizer = ByteTokenizer()
    chat_template: str | None = None
    """How conversations are written: Jinja, as in a checkpoint's chat_template.jinja; None for the family's own way, where that
    is known (the Qwen models, without a system message of theirs)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}")
        if not isinstance(self.chat_template, str | None):
            raise ValueError(f"chat_template must be a text of Jinja, got {type(self.chat_template).__name__}")

    # --- messages to inputs -----------------------------------------------------------------------------------------------

    def __call__(
        self,
        messages: Messages | Sequence[Messages],
        *,
        add_generation_prompt: bool | None = None,
        labels: bool = False,
        max_length: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> ModelInputs:
        """Model inputs of one conversation, or of a batch of conversations.

        Args:
            messages: a list of messages, or a list of such lists.
            add_generation_prompt: end with the beginning of an assistant's turn; by default when the last message is not
                the assistant's.
            labels: also return `labels`, which are those of answers alone: what the template marks with {% generation %}, or
                what an assistant's message adds to its prompt.
            max_length: cut longer conversations at their end. Media are never cut, nor left out: that is refused.
            tools: descriptions of tools, as JSON schemas, for templates that write them.
            documents: for templates that write them.
            variables: others that the chat template asks for, such as enable_thinking.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` [B, S]; `position_ids` [A, B, S] and `next_position` [B],
            all int64. With images `pixel_values` [patches, patch_dim] float32 and `image_grid_thw` [images, 3]; with
            videos `pixel_values_videos`, `video_grid_thw`, `video_timestamps` (per video the presentation times of
            the sampled frames, in seconds from its first frame) and, for families that place by time, `second_per_grid_ts`
            (left out if a video was sampled at uneven "times": no single number says where its frames are). With
            pixels="uint8" the pixels are bytes, and those of images lack the copies that fill a temporal patch:
            [patches, patch_dim / temporal_patch_size]. `labels` [B, S] are -100 where a token is not to be learned.

        Raises:
            MediaError: a file that cannot be used.
            ValueError: messages of another form, or that the chat template does not write; media that max_length would cut;
                answers that cannot be told.
            ImportError: torch is not installed (`parts` works without).

        Example:
            >>> from mmrope import Processor
            >>> conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Good morning")]
            >>> inputs = Processor()(conversations)  # a batch, padded on the left
            >>> inputs["attention_mask"].sum(dim=1).tolist(), inputs["next_position"].tolist()
            ([21, 31], [21, 31])
        """
        with needed_for("a processor's output"):
            import torch

        conversations: list[Any] = [messages] if is_conversation(messages) else list(messages)
        if not conversations:
            raise ValueError("messages must hold at least one conversation")
        items = [media_items(conversation) for conversation in conversations]
        media = self.prepare_media(list(itertools.chain(*items)))
        options = {"labels": labels, "max_length": max_length}
        options["variables"] = {"tools": tools, "documents": documents, **variables}
        upcoming = iter(media)
        batch = [
            self._conversation(conversation, itertools.islice(upcoming, len(held)), add_generation_prompt, **options)
            for conversation, held in zip(conversations, items, strict=True)
        ]
        length = max(sum(part.segment.length for part in parts) for parts in batch)
        padded = [self._pad(parts, length) for parts in batch]
        tokens = np.array([[token for part in parts for token in part.tokens] for parts in padded], dtype=np.int64)
        types = np.array([[n for part in parts for n in self._types(part)] for parts in padded], dtype=np.int64)
        positions = position_ids([[part.segment for part in parts] for parts in padded], self._family)
        inputs = ModelInputs(input_ids=torch.from_numpy(tokens), mm_token_type_ids=torch.from_numpy(types))
        if labels:
            answered = np.array([[a for part in parts for a in _answered(part)] for parts in padded], dtype=bool)
            inputs["labels"] = torch.from_numpy(np.where(answered, tokens, NOT_LEARNED))
        inputs.update(positions.torch())
        for kind in _VISION:
            if mine := [item for item in media if item.kind == kind.name]:
                inputs[kind.pixels] = self.join_pixels(mine)
                inputs[kind.grids] = torch.tensor([item.patch_grid for item in mine])
        if videos := [item for item in media if item.kind == "video"]:
            inputs["video_timestamps"] = [torch.from_numpy(video.seconds) for video in videos]
            if self._family.uses_seconds and all(video.seconds_per_grid is not None for video in videos):
                inputs["second_per_grid_ts"] = torch.tensor([video.seconds_per_grid for video in videos])
        return inputs

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row of a data set to the model inputs of its conversation: `dataset.map(processor.row)` with `datasets`,
        webdataset and Ray Data, whose workers get a pickled copy.

        Args:
            row: its messages are under "messages". All other keys (ids, webdataset's "__key__") are handed on; what is made
                takes the place of one of the same name.

        Returns:
            What `__call__` returns for this conversation, as numpy arrays without the dimension of the batch. Every row has
            the same keys and types, as tables want it: without images, pixel_values is [0, width]. video_timestamps of all
            videos are one array, each filled up to whole temporal grids with its last.

        Raises:
            ValueError: no messages, and what `__call__` raises.

        Example:
            >>> from mmrope import Processor
            >>> inputs = Processor().row({"id": 7, "messages": [{"role": "user", "content": "Hello"}]})
            >>> inputs["id"], inputs["position_ids"].shape, inputs["pixel_values"].shape
            (7, (3, 24), (0, 1176))
        """
        if "messages" not in row:
            raise ValueError(f"a row has its conversation under 'messages'; this one has {', '.join(map(str, row))}")
        inputs, dim = self([row["messages"]]), self._patches.patch_dim
        made = {key: value.numpy() for key, value in inputs.items() if key != "video_timestamps"}
        made |= {key: made[key][0] for key in ("input_ids", "attention_mask", "mm_token_type_ids", "next_position")}
        made["position_ids"] = made["position_ids"][:, 0]  # [A, S]
        width = dim if self.pixels == "float32" else dim // self._patches.temporal_patch_size
        without: dict[str, np.ndarray] = {kind.grids: np.zeros((0, 3), np.int64) for kind in _VISION}
        without |= {kind.pixels: np.zeros((0, width if kind.name == "image" else dim), self.pixels) for kind in _VISION}
        if self._family.uses_seconds:
            without["second_per_grid_ts"] = np.zeros(0, np.float32)
        patch = self._patches.temporal_patch_size
        filled = [np.pad(times, (0, -len(times) % patch), mode="edge") for times in inputs.get("video_timestamps", [])]
        made["video_timestamps"] = np.concatenate([np.zeros(0), *filled])
        return {key: value for key, value in row.items() if key != "messages"} | without | made

    def table(self, table: pyarrow.Table) -> pyarrow.Table:
        """`row` of each row of a pyarrow table, as a table: what is written to Parquet. All tables that a processor makes have
        one schema, whatever their rows hold, so files of some rows each are read together.

        Args:
            table: its messages are in the column "messages". All other columns are handed on, as in `row`.

        Returns:
            Columns of lists, and of lists of lists where `row` has two dimensions: position_ids [A][S], grids [n][3], pixels
            [patches][width].

        Raises:
            ValueError: no table with such a column, and what `row` raises.

        Example:
            >>> import pyarrow as pa
            >>> from mmrope import Processor
            >>> rows = pa.table({"id": [7], "messages": [[{"role": "user", "content": "Hello"}]]})
            >>> made = Processor().table(rows)
            >>> made.column_names[:2], str(made.schema.field("pixel_values").type)
            (['id', 'input_ids'], 'list<item: list<item: float>>')
        """
        import pyarrow as pa

        if not isinstance(table, pa.Table) or "messages" not in table.column_names:
            has = ", ".join(table.column_names) if isinstance(table, pa.Table) else type(table).__name__
            raise ValueError(f"a pyarrow table has its conversations in the column 'messages'; this one has {has}")
        rows, types = [self.row({"messages": messages}) for messages in table["messages"].to_pylist()], self._column_types
        columns = {name: table[name] for name in table.column_names if name != "messages" and name not in types}
        for name, (dtype, ndim) in types.items():
            kind = pa.from_numpy_dtype(dtype)
            for _ in range(ndim):
                kind = pa.list_(kind)
            # a chunk for each row: one array holds 2^31 values at most
            chunks = [pa.array([list(row[name]) if ndim == 2 else row[name]], kind) for row in rows]
            columns[name] = pa.chunked_array(chunks, kind)
        return pa.table(columns)

    @property
    def _column_types(self) -> dict[str, tuple[str, int]]:
        """The type and the number of dimensions of what `row` makes."""
        ids = self._family.dtype
        types = {"input_ids": ("int64", 1), "attention_mask": ("int64", 1), "mm_token_type_ids": ("int64", 1)}
        types |= {"position_ids": (ids, 2), "next_position": (ids, 0), "video_timestamps": ("float64", 1)}
        types |= {kind.grids: ("int64", 2) for kind in _VISION} | {kind.pixels: (self.pixels, 2) for kind in _VISION}
        return types | ({"second_per_grid_ts": ("float32", 1)} if self._family.uses_seconds else {})

    def normalize(self, inputs: Mapping[str, Any]) -> ModelInputs:
        """Inputs with pixels as models read them, float32 [patches, patch_dim], from those that were made with pixels="uint8":
        on whatever device they are by now.

        Example:
            >>> import numpy as np
            >>> from mmrope import Processor
            >>> processor = Processor(pixels="uint8")
            >>> content = [{"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}]
            >>> inputs = processor([{"role": "user", "content": content}])
            >>> [(x["pixel_values"].dtype, tuple(x["pixel_values"].shape)) for x in (inputs, processor.normalize(inputs))]
            [(torch.uint8, (16, 588)), (torch.float32, (16, 1176))]
        """
        return ModelInputs(
            {
                key: normalize(value, self._patches) if key in [kind.pixels for kind in _VISION] else value
                for key, value in inputs.items()
            }
        )

    def decode(self, tokens: Any) -> str | list[str]:
        """The text of generated tokens: [n] gives a string, [B, n] a list of strings. Special tokens are left out.

        Example:
            >>> from mmrope import Processor
            >>> Processor().decode([72, 105, 258])  # token 258 is <|im_end|>
            'Hi'
        """
        rows = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        if rows and isinstance(rows[0], Sequence):
            return [self.tokenizer.decode(row) for row in rows]
        return self.tokenizer.decode(rows)

    # --- messages to parts ------------------------------------------------------------------------------------------------

    def conversation(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool | None = None,
        labels: bool = False,
        max_length: int | None = None,
        **variables: Any,
    ) -> list[Part]:
        """The parts of one conversation, as the chat template writes it. Files are opened and measured, and `__call__`, which
        has the same options, makes their pixels.

        Example:
            >>> from mmrope import Processor
            >>> parts = Processor().conversation([{"role": "user", "content": [{"type": "image", "grid": (2, 3)}]}])
            >>> [(part.segment.kind, part.segment.length) for part in parts]
            [('text', 7), ('image', 6), ('text', 14)]
        """
        media = [self.measure(item) for item in media_items(messages)]
        options = {"labels": labels, "max_length": max_length, "variables": variables}
        return self._conversation(messages, media, add_generation_prompt, **options)

    def parts(self, content: str | Iterable[Mapping[str, Any]]) -> list[Part]:
        """The parts of a message's content alone, without a chat template: text, and media between their markers.

        Example:
            >>> import mmrope
            >>> content = [{"type": "text", "text": "See"}, {"type": "video", "grid": (2, 1, 3), "fps": 2}]
            >>> row = [part.segment for part in mmrope.Processor().parts(content)]
            >>> print(mmrope.explain(mmrope.position_ids(row, "qwen2_5_vl")))
            qwen2_5_vl: 11 tokens, text continues at 8
            tokens  kind   grid                  t     h     w     next
            0..3    text   4                     0..3  0..3  0..3  4
            4..9    video  2 x 1 x 3, 1 s apart  4..6  4     4..6  7
            10      text   1                     7     7     7     8
        """
        writer = PartWriter(self._family, self.tokenizer)
        for item in items_of(content):
            if item["type"] == "text":
                writer.plain(item["text"])
            else:
                writer.marked(self.measure(item))
        return writer.done()

    def _conversation(
        self,
        messages: Messages,
        media: Iterable[Media],
        add_generation_prompt: bool | None,
        *,
        labels: bool,
        max_length: int | None,
        variables: Mapping[str, Any],
    ) -> list[Part]:
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise ValueError(f"max_length must be a whole number of tokens, at least 1, got {max_length!r}")
        writer = PartWriter(self._family, self.tokenizer)
        template = writer.text.chat_template if self.chat_template is None else self.chat_template
        if template is None:
            raise ValueError(
                f"how {self.family} writes conversations is not known without its chat template: read the checkpoint's folder "
                "with Processor.from_pretrained, or give chat_template=... (the Qwen models' is mmrope.preprocess.CHATML)"
            )
        prompted = messages[-1]["role"] != "assistant" if add_generation_prompt is None else add_generation_prompt
        pieces = conversation_pieces(
            template,
            messages,
            self.tokenizer,
            variables=variables,
            add_generation_prompt=prompted,
            answers=labels,
        )
        parts = writer.write(pieces, media)
        return parts if max_length is None else _cut(parts, max_length)

    def _types(self, part: Part) -> list[int]:
        """The token types of a part: 0 text, 1 image, 2 video."""
        kind = part.segment.kind
        if kind in ("text", "pad"):
            return [0] * part.segment.length
        pad, kind = part.tokens[len(part.tokens) // 2], "video" if kind in ("video", "frame") else "image"
        return [MEDIA[kind].token_type if token == pad else 0 for token in part.tokens]  # markers may belong to it

    def _pad(self, parts: list[Part], length: int) -> list[Part]:
        missing = length - sum(part.segment.length for part in parts)
        if not missing:
            return parts
        padding = Part(Segment.pad(missing), [self.tokenizer.pad] * missing)
        return [padding, *parts] if self.padding_side == "left" else [*parts, padding]

    # --- files ------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the settings to `processor_config.json` in a folder, and a tokenizer that is not the bytes.

        All files are moved into place when they are complete, the settings first: a folder whose saving was interrupted has the
        old processor, or is refused by `from_pretrained` until it is saved again. A model's manifest that is there describes
        them, too. Saved is what describes a checkpoint; limits, access, threads,
        video_backend, damaged and animation are the machine's.

        Raises:
            ValueError: a tokenizer or a family that cannot be saved, or a manifest that cannot be read; nothing was written.

        Example:
            >>> import tempfile
            >>> from mmrope import Processor
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Processor(fps=1.0).save_pretrained(folder)
            ...     print(Processor.from_pretrained(folder).fps)
            1.0
        """
        settings = {name: getattr(self, name) for name in sorted(SAVED)}
        settings["family"] = self._family.to_dict()
        settings["patches"] = self.patches and dataclasses.asdict(self.patches)
        if Family.from_dict(json.loads(to_json(settings["family"]))) != self._family:
            raise ValueError(f"{self.family} does not come back from JSON as it is, so the processor is not saved")
        kinds = {ByteTokenizer: "bytes", WordTokenizer: "words", FileTokenizer: "file"}
        settings["tokenizer"] = kinds.get(type(self.tokenizer))
        if isinstance(self.tokenizer, WordTokenizer):
            settings["words"] = self.tokenizer.words
        if settings["tokenizer"] is None:
            raise ValueError(f"a tokenizer of type {type(self.tokenizer).__name__} cannot be saved here; save it by itself")
        if isinstance(self.tokenizer, FileTokenizer):
            settings["tokenizer_sha256"] = self.tokenizer.digest
        contents = {CONFIG_NAME: to_json(settings)}  # the first to be moved: it tells its tokenizer from an older one
        Path(folder).mkdir(parents=True, exist_ok=True)
        if isinstance(self.tokenizer, FileTokenizer):
            contents |= self.tokenizer.files(folder)
        if self.chat_template is not None:  # for other readers of the folder, too
            contents[TEMPLATE_NAME] = self.chat_template
        write_texts(Path(folder), contents)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Processor:
        """The processor of a folder, with some settings changed: one that `save_pretrained` wrote, or a Hugging Face
        checkpoint, of which `preprocessor_config.json`, `video_preprocessor_config.json`, `processor_config.json`,
        `config.json` and `tokenizer.json` are read, as far as they are there. Without a tokenizer, text becomes bytes.

        Raises:
            ValueError: nothing of these, or settings that mmrope does not know.

        Example:
            >>> import tempfile
            >>> from mmrope import Processor
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Processor(family="qwen3_vl", max_frames=64).save_pretrained(folder)
            ...     processor = Processor.from_pretrained(folder, padding_side="right")
            >>> processor.max_frames, processor.padding_side
            (64, 'right')
        """
        settings = {**read_settings(folder), **changes}
        if "family" not in settings:
            raise ValueError(
                f"{folder} does not say which family it is of; say it: from_pretrained(folder, family='qwen2_5_vl')"
            )
        with naming(Path(folder)):
            return cls(**settings)


def _cut(parts: list[Part], length: int) -> list[Part]:
    """The first `length` tokens of parts, whose media must be whole."""
    kept: list[Part] = []
    for part in parts:
        room = length - sum(part.segment.length for part in kept)
        if part.segment.length > room and part.segment.kind != "text":
            total = sum(part.segment.length for part in parts)
            raise ValueError(
                f"a conversation of {total} tokens cannot be cut to max_length={length}: {part.label or part.segment.kind} "
                "would be cut or left out. Raise max_length, or make its media smaller (max_pixels, fps)"
            )
        if part.segment.length <= room:
            kept.append(part)
        elif room > 0:
            kept.append(replace(part, segment=Segment.text(room), tokens=part.tokens[:room], answered=part.answered[:room]))
    return kept


def _answered(part: Part) -> Sequence[bool]:
    return part.answered or [False] * part.segment.length
