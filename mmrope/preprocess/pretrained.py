"""A processor's settings, from its folder: those that Processor.save_pretrained wrote, or a Hugging Face checkpoint's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from mmrope.checkpoints.configs import family_from_config
from mmrope.files import SETTINGS, TABLES, Size, naming, read_object, read_text
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family
from mmrope.preprocess.patches import FAMILY_PATCHES, Fewest, Most, PatchConfig
from mmrope.preprocess.text import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, ByteTokenizer, FileTokenizer, WordTokenizer
from mmrope.records import Count, Keys, Must, Positive, hints_of, shown

CONFIG_NAME = "processor_config.json"
TEMPLATE_NAME, OLD_TEMPLATE_NAME, OTHER_TEMPLATES = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
IMAGE_NAME, VIDEO_NAME = "preprocessor_config.json", "video_preprocessor_config.json"

# whose patches: the class of image processor, without "Fast" and "Pil"
_IMAGE_FRAMES = {"Qwen2VLImageProcessor": 1, "Qwen3VLImageProcessor": 1, "Glm4vImageProcessor": 2, "Glm46VImageProcessor": 2}
_GLM = ("Glm4vVideoProcessor", "Glm46VVideoProcessor")
_VIDEOS = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor", *_GLM)
_VIDEOS_OF = {1: _VIDEOS[0], 2: _GLM[0]}
"""Which of them it is where a folder does not say, by the frames that an image counts as."""
# keys that say nothing about the outcome here, and keys with the values that mmrope has
_WITHOUT_EFFECT = {
    "image_processor_type", "video_processor_type", "feature_extractor_type", "processor_class", "auto_map", "data_format",
    "device", "disable_grouping", "do_sample_frames", "return_metadata", "default_to_square", "input_data_format",
    "return_tensors", "video_metadata", "max_image_size",
}  # fmt: skip
_FIXED = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True,),
    "resample": (3,),
    "rescale_factor": (1 / 255,),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
    "crop_size": (None,),
    "pad_size": (None,),
    "size_divisor": (None,),
    "max_duration": (None, 300),
}
_OF_BOTH = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "merge_size",
    "image_mean": "mean",
    "image_std": "std",
}
"""What images and videos must share, and its name in a PatchConfig."""
_CUT = {"patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "size", "min_pixels", "max_pixels"}
_SAMPLING = {"fps", "num_frames", "min_frames", "max_frames", "cap_pixels_per_frame", "max_video_tokens"}


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The fields of a Processor, from a folder.

    Read are `processor_config.json` as mmrope or transformers 5 writes it, or `preprocessor_config.json` and
    `video_preprocessor_config.json`; besides them `config.json`, for the family and its facts, and `tokenizer.json`.

    Raises:
        ValueError: no such file, or a key or value that mmrope does not know: it would prepare other pixels than the model
            was trained with.
    """
    folder = Path(folder)
    own = _read(folder / CONFIG_NAME)
    if own is not None and "family" in own:
        with naming(folder / CONFIG_NAME):
            return _own_settings(own, folder)
    if own is not None and "image_processor" in own:
        with naming(folder / CONFIG_NAME):
            image, video = Keys(own)("image_processor", dict), Keys(own)("video_processor", dict, None)
        image = {"processor_class": own.get("processor_class"), **image}
        of_image, of_video = [(folder / CONFIG_NAME, part) for part in ("image_processor", "video_processor")]
    else:
        image, video = _read(folder / IMAGE_NAME), _read(folder / VIDEO_NAME)
        of_image, of_video = (folder / IMAGE_NAME, ""), (folder / VIDEO_NAME, "")
    if image is None:
        raise ValueError(f"no {CONFIG_NAME} and no {IMAGE_NAME} in {folder}: a processor is saved with save_pretrained")
    if video is None:  # as transformers does, the image processor's settings are those of videos if there are no others
        video, of_video = image, of_image
    with naming(of_image[0]):
        patches = _image_patches(Keys(image, of_image[1]))
    with naming(of_video[0]):
        sampling = _video_patches(Keys(video, of_video[1]), patches)
    config = {} if not (folder / "config.json").is_file() else {"family": family_from_config(folder / "config.json")}
    # "Qwen2_5_VLProcessor" is of qwen2_5_vl
    named = str(image.get("processor_class")).removesuffix("Processor").replace("_", "").lower()
    if not config and named in (names := {name.replace("_", ""): name for name in FAMILY_PATCHES}):
        config = {"family": find_family(names[named])}
    return config | {"patches": PatchConfig(**patches)} | sampling | _tokenizer(folder) | _chat(folder)


def _read(path: Path, most: Size = SETTINGS) -> dict[str, Any] | None:
    return read_object(path, most) if path.is_file() else None


def _tokenizer(folder: Path) -> dict[str, Any]:
    if (folder / TOKENIZER_NAME).is_file():
        return {"tokenizer": FileTokenizer.from_folder(folder)}
    if (folder / "vocab.json").is_file() or (folder / TOKENIZER_CONFIG_NAME).is_file():
        raise ValueError(f"{folder} has a tokenizer, but no {TOKENIZER_NAME}; save it with the fast tokenizer of transformers")
    return {}


def _chat(folder: Path) -> dict[str, Any]:
    """The chat template, and the side that its prompts are padded on, from where transformers looks for them."""
    tokenizer = _read(folder / TOKENIZER_CONFIG_NAME, TABLES) or {}
    with naming(folder / TOKENIZER_CONFIG_NAME):
        said = Keys(tokenizer)("padding_side", Literal["left", "right"], None)
    side = {} if said is None else {"padding_side": said}
    stated = (_read(folder / OLD_TEMPLATE_NAME) or {}).get("chat_template")
    for path in (folder / TEMPLATE_NAME, folder / OTHER_TEMPLATES / "default.jinja"):
        if stated is None and path.is_file():
            stated = read_text(path)
    if stated is None:
        stated = (_read(folder / CONFIG_NAME) or {}).get("chat_template", tokenizer.get("chat_template"))
    if isinstance(stated, list) and all(isinstance(named, dict) for named in stated):  # several, by name
        stated = {str(named.get("name")): named.get("template") for named in stated}
    if isinstance(stated, dict):
        if "default" not in stated:
            raise ValueError(f"{folder}: chat_template has {shown(list(stated))}, and none is called 'default'")
        stated = stated["default"]
    if stated is None:
        return side
    if not isinstance(stated, str):
        raise ValueError(f"{folder}: chat_template must be a text, or several by name, got {shown(stated)}")
    return side | {"chat_template": stated}


_Byte = Annotated[int, Must("a whole number from 0 to 255", lambda n: 0 <= n <= 255)]
SAVED: Mapping[str, Any] = MappingProxyType({
    "family": Family,
    "patches": PatchConfig | None,
    "image_pixels": tuple[Fewest, Most] | None,
    "video_pixels": tuple[Fewest, Most] | None,
    "fps": Positive,
    "num_frames": Count | None,  # pyright: ignore[reportOperatorIssue]
    "min_frames": Count,
    "max_frames": Count,
    "sampling": str | None,
    "background": tuple[_Byte, _Byte, _Byte],
    "color": str,
    "pixels": str,
    "aspect": str,
    "padding_side": str,
    "chat_template": str | None,
})  # fmt: skip
"""The settings that describe a checkpoint, and what each must be: no others are saved, nor read. Who may open what, by which
library, in how many threads, and whether damaged and animated files are taken, is said where the processor runs."""
_NOT_SAVED = {"video_backend": "auto", "damaged": "refuse", "animation": "refuse"}
"""What folders had that were saved before, at its default."""


def _own_settings(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    keys = Keys({key: value for key, value in settings.items() if _NOT_SAVED.get(key) != value or key not in _NOT_SAVED})
    if unknown := sorted(set(keys.values) - set(SAVED) - {"tokenizer", "tokenizer_sha256", "words"}):
        raise ValueError(f"{unknown[0]} describes no checkpoint, and is not read from a folder: give it to from_pretrained")
    found: dict[str, Any] = {"family": Family.from_dict(keys("family", dict))}
    found |= {key: keys(key, hint) for key, hint in SAVED.items() if key in keys.values and key != "family"}
    found.setdefault("sampling", "time")  # as processors sampled that were saved before they had the field
    kind = keys("tokenizer", str, "")  # a tokenizer.json beside the settings may be another's
    if kind == "words":
        return {**found, "tokenizer": WordTokenizer(keys("words", tuple[str, ...]))}
    if kind not in ("bytes", "file"):
        raise ValueError(f"tokenizer is {shown(kind)}; known are 'bytes', 'words' and 'file'")
    if kind == "bytes":
        return {**found, "tokenizer": ByteTokenizer()}
    tokenizer, digest = FileTokenizer.from_folder(folder), keys("tokenizer_sha256", str, None)
    if digest not in (None, tokenizer.digest):  # None: saved before there was one
        raise ValueError(
            f"tokenizer_sha256 is not that of {TOKENIZER_NAME} and {TOKENIZER_CONFIG_NAME}: they are another's, or the saving "
            "was interrupted; save the processor again"
        )
    return {**found, "tokenizer": tokenizer}


# --- Hugging Face's keys ----------------------------------------------------------------------------------------------


def _image_patches(keys: Keys) -> dict[str, Any]:
    which = next((key for key in ("image_processor_type", "feature_extractor_type") if keys.values.get(key)), None)
    kind = str(keys.values[which]).removesuffix("Fast").removesuffix("Pil") if which else "Qwen2VLImageProcessor"
    if kind not in _IMAGE_FRAMES:
        raise ValueError(_unknown(keys, which or "", _IMAGE_FRAMES))
    _check(keys, _CUT | _SAMPLING)  # an image processor's file may state a video's sampling, too
    bounds = _bounds(keys, PatchConfig().image_pixels)
    return {**_shared(keys), "image_pixels": bounds, "image_frames": _IMAGE_FRAMES[kind]}


def _video_patches(keys: Keys, patches: dict[str, Any]) -> dict[str, Any]:
    """Adds the bounds of videos to `patches`; returns how frames are sampled."""
    _check(keys, _CUT | _SAMPLING)
    of_images, values = PatchConfig(**patches), keys.values
    for own, stated in _shared(keys).items():
        if stated != getattr(of_images, own):
            key = next(key for key, mine in _OF_BOTH.items() if mine == own)
            raise ValueError(f"{keys.path(key)} is {stated}, images have {getattr(of_images, own)}: they must agree here")
    kind = str(values.get("video_processor_type") or _VIDEOS_OF[patches["image_frames"]])
    capped, area = keys("cap_pixels_per_frame", bool, None), of_images.factor**2
    tokens = keys("max_video_tokens", Count, None)
    only_size = Keys({"size": values.get("size")}, keys.at)  # of all frames together; transformers then looks at nothing else
    if kind == "Qwen3VLVideoProcessor":
        patches["whole_video_pixels"] = _bounds(only_size, (128 * area, 768 * area))
        patches["video_pixels"] = None if capped is False else (0, (tokens or 768) * area)
    elif kind in _GLM:
        patches["whole_video_pixels"] = _bounds(only_size, (112 * 112, 2 * 30_000 * 28 * 28))
        patches["video_pixels"] = None
    elif kind == "Qwen2VLVideoProcessor":
        patches["video_pixels"] = _bounds(keys, PatchConfig().video_pixels or (0, 0))
        budget = 2 * int(0.9 * (tokens or 128_000)) * area
        patches["whole_video_pixels"] = None if capped is False else (0, budget)
    else:
        raise ValueError(_unknown(keys, "video_processor_type", _VIDEOS))
    read = ("fps",) if kind in _GLM else ("fps", "num_frames", "min_frames", "max_frames")
    return {"sampling": kind} | {key: keys(key, SAVED[key]) for key in read if values.get(key) is not None}


def _unknown(keys: Keys, key: str, known: Iterable[str]) -> str:
    return f"{keys.path(key)} is {shown(keys.values.get(key))}, which is not known here (known: {', '.join(known)})"


def _shared(keys: Keys) -> dict[str, Any]:
    """What images and videos share, as fields of a PatchConfig."""
    hints = hints_of(PatchConfig)
    return {own: keys(key, hints[own]) for key, own in _OF_BOTH.items() if keys.values.get(key) is not None}


def _bounds(keys: Keys, defaults: tuple[int, int]) -> tuple[int, int]:
    """Fewest and most pixels, from `size`, or min_pixels and max_pixels, which take precedence as in transformers."""
    size = keys.values.get("size") or {}
    if not isinstance(size, Mapping) or not set(size) <= {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}:
        raise ValueError(f"{keys.path('size')} must have shortest_edge and longest_edge, numbers of pixels, got {shown(size)}")
    inner, found = keys.part("size"), []
    for key, edge, hint, default in (
        ("min_pixels", "shortest_edge", Fewest, defaults[0]),
        ("max_pixels", "longest_edge", Most, defaults[1]),
    ):
        found.append(keys(key, hint, None) or inner(edge, hint, None) or inner(key, hint, None) or default)
    if found[0] > found[1]:
        raise ValueError(
            f"{keys.path('size')}, min_pixels and max_pixels say {found} pixels: the fewest are more than the most"
        )
    return found[0], found[1]


def _check(keys: Keys, known: set[str]) -> None:
    for key, value in keys.values.items():
        if key in _FIXED:
            expected = _FIXED[key]
            close = isinstance(value, float) and any(isinstance(v, float) and abs(v - value) < 1e-9 for v in expected)
            if value not in expected and not close:
                raise ValueError(f"{keys.path(key)} is {shown(value)}, but mmrope knows {expected[0]!r} only")
        elif key not in known | _WITHOUT_EFFECT and value is not None:
            raise ValueError(
                f"{keys.path(key)} is {shown(value)}, and mmrope does not know it: the model may have been trained with "
                "other pixels"
            )
