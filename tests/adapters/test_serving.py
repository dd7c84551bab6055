"""The doors into vLLM and SGLang: mmrope's ids behind their signatures, and what they themselves return, kept as data."""

from __future__ import annotations

import dataclasses
import inspect
import json
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope import FAMILIES, Segment, Span, position_ids, segments_from_inputs
from mmrope.adapters import sglang
from mmrope.adapters.vllm import get_mrope_input_positions, get_next_input_positions, get_next_input_positions_tensor
from mmrope.positions import AudioInVideo
from tests.positions.test_spans import spans_of
from tests.support import ROOT, cases
from tests.support.reference_format import segment
from tests.support.strategies import BY_KEY, padded, processed, upstream_rows
from tests.support.upstream_ids import TOKENS, VISION_END, _frames, _self, as_inputs, with_tokens

# --- rows as requests -------------------------------------------------------------------------------------------------


def feature(kind, offset, length, embed=None, **data):
    """What is read of vLLM's MultiModalFeatureSpec."""
    place = SimpleNamespace(offset=offset, length=length, is_embed=None if embed is None else torch.as_tensor(embed))
    return SimpleNamespace(
        modality=kind, mm_position=place, data={key: SimpleNamespace(data=value) for key, value in data.items()}
    )


def vllm_request(row, rule):
    """The tokens and the features that vLLM 0.33's processors make of a row with text around its media. A video that is split
    into frames is one feature with what stands between them; audio in video is two, over the same tokens with their markers."""
    inputs = as_inputs([row], rule)
    tokens, types = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
    features, offset, m, before = [], 0, rule.spatial_merge, ""
    for s in row:
        t, h, w = s.grid
        grid = torch.tensor([t * (rule.temporal_merge if s.kind == "video" else 1), h * m, (w - rule.row_token) * m])
        seconds = {"second_per_grid_ts": torch.tensor(s.seconds_per_grid)} if s.seconds_per_grid else {}
        if s.kind == "image":
            features.append(feature("image", offset, s.length, image_grid_thw=grid))
        elif s.kind == "video":
            features.append(feature("video", offset, s.length, video_grid_thw=grid, **seconds))
        elif s.kind == "audio":
            frames = torch.tensor(_frames(w, rule))
            features.append(feature("audio", offset, s.length, audio_feature_lengths=frames))
        elif s.kind == "audio_in_video":
            inside, yes = slice(offset + 1, offset + s.length - 1), torch.tensor(True)
            place = (inside.start, s.length - 2)
            video = {"video_grid_thw": grid, **seconds, "use_audio_in_video": yes}
            features.append(feature("video", *place, types[inside] == 2, **video))
            frames = torch.tensor(_frames(s.audio_tokens, rule))
            features.append(feature("audio", *place, types[inside] == 3, audio_feature_lengths=frames))
        elif s.kind == "canvas":
            sizes = torch.tensor([(a * m, b * m) for a, b in (s.grid[1:], *s.slices)])  # [crops, 2]
            features.append(feature("image", offset, s.length, tgt_sizes=sizes))
        elif s.kind == "frame":
            begin, count = offset - 1, 1  # from the marker before the first
            if before == "frame" and features[-1].data["video_grid_thw"].data[1:].tolist() == [h * m, w * m]:
                last = features.pop()
                begin, count = last.mm_position.offset, int(last.data["video_grid_thw"].data[0]) + 1
            length = offset + s.length - begin
            grid[0] = count
            features.append(feature("video", begin, length, types[begin : begin + length] == 2, video_grid_thw=grid))
        before = s.kind if s.kind != "text" else before
        offset += s.length
    return tokens.tolist(), features


def rule_of(name, revision=""):
    """The family's revision if it has that one, else the reference, with its tokens."""
    key = f"{name}@{revision}"
    return with_tokens(key if key in FAMILIES else name)


def config_of(rule):
    """What vLLM and SGLang read of a checkpoint's config."""
    config = _self(rule).config
    if rule.ids_per_second is None:
        del config.vision_config.tokens_per_second
    else:
        config.vision_config.tokens_per_second = config.position_id_per_seconds
    config.model_type, config.vision_end_token_id, config.im_patch_id = rule.name, VISION_END, TOKENS.image
    config.spatial_conv_size, config.temporal_conv_size = rule.spatial_merge, rule.temporal_merge
    return config


def sglang_request(batch, rule):
    """The function and the arguments of SGLang 0.5.23 for rows of one length with text around their media."""
    inputs = as_inputs(batch, rule, types=False)
    tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
    grids = {key: tensors.get(key) for key in ("image_grid_thw", "video_grid_thw")}
    ids = tensors["input_ids"]
    if rule.checkpoint.token_ids.video_start is not None:
        return "get_rope_index_glm4v", {
            "input_ids": ids, "hf_config": config_of(rule), **grids, "attention_mask": tensors["attention_mask"]
        }  # fmt: skip
    if rule.temporal_merge > 1:
        video = torch.as_tensor(as_inputs(batch, rule)["mm_token_type_ids"] == 2)
        ids[:, :-1][video[:, 1:] & ~video[:, :-1]] = TOKENS.video_start
        ids[:, 1:][video[:, :-1] & ~video[:, 1:]] = TOKENS.video_end
        ids[video] = TOKENS.image
        return "get_rope_index_ernie45", {"input_ids": ids, "hf_config": config_of(rule), **grids}
    config, sound = config_of(rule), {}
    if rule.reading.states_audio:
        markers = (ids[:, :-1] == TOKENS.vision_start) & (ids[:, 1:] == TOKENS.audio_start)
        sound = {
            "audio_token_id": TOKENS.audio,
            "audio_start_token_id": TOKENS.audio_start,
            "position_id_per_seconds": config.position_id_per_seconds,
            "use_audio_in_video": bool(markers.any()),
            "audio_seqlens": tensors.get("audio_seqlens"),
        }
    return "get_rope_index", {
        "spatial_merge_size": rule.spatial_merge,
        "image_token_id": TOKENS.image,
        "video_token_id": TOKENS.video,
        "vision_start_token_id": TOKENS.vision_start,
        "model_type": rule.name,
        "tokens_per_second": getattr(config.vision_config, "tokens_per_second", None),
        "input_ids": ids,
        **grids,
        "second_per_grid_ts": tensors.get("second_per_grid_ts", tensors.get("video_second_per_grid")),
        **sound,
    }


WHOLE = [
    pytest.param(rule, id=key)
    for key, rule in sorted(BY_KEY.items())
    if not rule.fractional and "canvas" not in rule.media and not rule.center
]
FRACTIONAL = sorted(key for key, rule in BY_KEY.items() if rule.fractional)


# --- vLLM: laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", WHOLE)
@settings(max_examples=cases(20))
@given(data=st.data())
def test_a_prompt_has_the_ids_of_its_row(rule, data):
    """Of features in any order and of Spans alike; also media that touch, stand first or last, and nothing at all."""
    row = [s for s in data.draw(processed(rule)) if s.kind not in ("pad", "audio_in_video")]
    count, spans = spans_of(row, rule)
    features = [
        feature(
            span.kind,
            span.offset,
            span.length,
            **({f"{span.kind}_grid_thw": torch.tensor(span.grid)} if span.grid else {}),
            **({"second_per_grid_ts": torch.tensor(span.seconds_per_grid)} if span.seconds_per_grid else {}),
        )
        for span in spans
    ]
    whole = position_ids(row, rule)
    expected = whole.ids[:, 0]
    for given_as in (data.draw(st.permutations(features)), spans):
        ids, delta = get_mrope_input_positions([0] * count, given_as, rule)
        assert ids.dtype == torch.int64
        np.testing.assert_array_equal(ids, expected)
        assert type(delta) is int
        assert delta == (whole.next[0] if rule.advance == "time" else expected.max(initial=-1) + 1) - count


@pytest.mark.parametrize("name", sorted(name for name, rule in BY_KEY.items() if rule.split_frames and not rule.revision))
@settings(max_examples=cases(20))
@given(data=st.data())
def test_a_split_video_is_one_feature_with_its_time_stamps(name, data):
    rule = with_tokens(name)
    row = data.draw(upstream_rows(rule))
    tokens, features = vllm_request(row, rule)
    ids, _ = get_mrope_input_positions(tokens, features, rule)
    np.testing.assert_array_equal(ids, position_ids(row, rule).ids[:, 0])


@settings(max_examples=cases(50))
@given(data=st.data())
def test_sound_in_video_is_placed_as_its_tokens_lie(data):
    rule = with_tokens("qwen2_5_omni")
    row = data.draw(upstream_rows(rule, "video"))
    ids, _ = get_mrope_input_positions(*vllm_request(row, rule), rule)
    expected = position_ids(segments_from_inputs(as_inputs([row], rule), rule), rule)
    np.testing.assert_array_equal(ids, expected.ids[:, 0])


@pytest.mark.parametrize("rule", WHOLE)
@settings(max_examples=cases(20))
@given(data=st.data(), new=st.integers(0, 9), ahead=st.integers(0, 3))
def test_what_follows_goes_on_where_the_prompt_ends(rule, data, new, ahead):
    """Wherever the rule lets text go on after the largest id: that of every model that vLLM has, but for audio in video."""
    row = [s for s in data.draw(processed(rule)) if s.kind not in ("pad", "audio_in_video")]
    count, spans = spans_of(row, rule)
    _, delta = get_mrope_input_positions([0] * count, spans, rule)
    whole = position_ids(row, rule, start=count + ahead, stop=count + ahead + new)
    if not rule.revision and rule.advance == "max" and rule.origin == "next":
        assert delta + count == whole.next
    if delta + count == whole.next:
        listed = get_next_input_positions(delta, count + ahead, count + ahead + new)
        out = np.zeros((len(rule.axes), new + 2), dtype=np.int64)[:, 1:]
        get_next_input_positions_tensor(out, 0, delta, count + ahead, new)
        np.testing.assert_array_equal(out[:, :new], whole.ids[:, 0])
        assert [listed[0]] * len(rule.axes) == whole.ids[:, 0].tolist()
        assert not out[:, new:].any()


def test_ids_below_0_are_refused_and_text_goes_on_where_the_rule_says():
    """Centred grids at the start of a prompt; vLLM's tables of cosines begin at 0."""
    with pytest.raises(ValueError, match=r"bailing_moe_v3_vl has ids below 0 here \(its grids are centred\)"):
        get_mrope_input_positions([0] * 260, [Span(offset=1, length=256, grid=(1, 32, 32))], "bailing_moe_v3_vl")
    row = [Segment.text(9), Segment.image(h=2, w=6), Segment.text(2)]
    count, spans = spans_of(row, FAMILIES["bailing_moe_v3_vl"])
    ids, delta = get_mrope_input_positions([0] * count, spans, "bailing_moe_v3_vl")
    assert delta + count == position_ids(row, "bailing_moe_v3_vl").next
    assert delta + count < int(ids.max()) + 9


# --- vLLM: what is refused --------------------------------------------------------------------------------------------

GRID = {"image_grid_thw": torch.tensor([1, 4, 4])}


@pytest.mark.parametrize(
    ("features", "name", "message"),
    [
        ([feature("image", 3, 4)], "qwen2_vl", r"span 0 \(image at 3..6\) has no grid: state its patch grid"),
        ([feature("image", 3, 4, image_grid_thw=None)], "qwen2_vl", r"mm_features\[0\] \(image at 3\) has no data, which vLLM leaves out where its engine has them in a cache"),
        ([SimpleNamespace(modality="image", data=None, mm_position=feature("image", 3, 4).mm_position)], "qwen2_vl", r"mm_features\[0\] \(image at 3\) has no data"),
        ([feature("image", 3, 4, image_grid_thw=torch.tensor([[1, 4, 4]]))], "qwen2_vl", r"mm_features\[0\] \(image at 3\): its patch grid must be t, h, w \[3\], got \[1, 3\]"),
        ([feature("image", 3, 3, **GRID)], "qwen2_vl", r"needs 4 tokens \(1 x 2 x 2 after merge 2\), but the span has 3. Were tokens pruned"),
        ([feature("image", 9, 4, **GRID)], "qwen2_vl", r"span 0 \(image at 9..12\) is not within the 11 tokens of the prompt; was the prompt truncated"),
        ([feature("video", 3, 4, video_grid_thw=torch.tensor([1, 4, 4]))], "qwen2_5_vl@vllm-0.33", r"places videos by time: give seconds_per_grid"),
        ([feature("audio", 3, 4)], "qwen2_vl", r"span 0 \(audio at 3..6\): qwen2_vl places image, video by spans"),
        ([feature("image", 3, 4, [True, True, False, True], **GRID)], "qwen2_vl", r"the span has 3"),
        ([feature("image", 3, 4, **GRID), (7, 4, (1, 4, 4))], "qwen2_vl", r"mm_features\[1\] is no MultiModalFeatureSpec of vLLM and no Span: 'tuple' object has no attribute 'modality'"),
        ([feature("image", 3, 4, **GRID)], "minicpmv4_7", r"minicpmv4_7 places no media by spans"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_right_are_refused(features, name, message):
    with pytest.raises(ValueError, match=message):
        get_mrope_input_positions([0] * 11, features, name)


@pytest.mark.parametrize("key", FRACTIONAL)
def test_fractional_ids_do_not_fit_into_vllm(key):
    with pytest.raises(ValueError, match=r"has fractional ids, but vLLM's are int64: take the rule that vLLM computes instead"):
        get_mrope_input_positions([0] * 3, [], BY_KEY[key])


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        (np.zeros((3, 4)), (0, 0, 5, 1), r"out must be a numpy array \[axes, columns\] of whole numbers, got float64 \[3, 4\]"),
        (np.zeros(4, dtype=int), (0, 0, 5, 1), r"out must be a numpy array \[axes, columns\] of whole numbers, got int64 \[4\]"),
        (torch.zeros(3, 4), (0, 0, 5, 1), r"out must be a numpy array .*, got Tensor"),
        (np.zeros((3, 4), dtype=int), (2, 0, 5, 3), r"columns 2..4 are not within the 4 of out"),
        (np.zeros((3, 4), dtype=int), (-1, 0, 5, 1), r"columns -1..-1 are not within the 4 of out"),
        (np.zeros((3, 4), dtype=np.int8), (0, 0, 126, 3), r"position id 128 does not fit int8, the dtype of out"),
        (np.zeros((3, 4), dtype=int), (0, -6, 5, 1), r"mrope_position_delta -6 after 5 tokens is the id -1: is it another prompt's"),
        (np.zeros((3, 4), dtype=int), (0, 0, 5, -1), r"there are 5 tokens before and -1 new ones: neither may be less than 0"),
        (np.zeros((3, 4), dtype=int), (0, 0.5, 5, 1), r"mrope_position_delta must be a whole number of tokens, got 0.5"),
        (np.zeros((3, 4), dtype=int), (0, 0, 5, 1.0), r"num_new_tokens must be a whole number of tokens, got 1.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_into_a_buffer_is_refused(out, arguments, message):
    before = out.copy() if isinstance(out, np.ndarray) else out
    with pytest.raises(ValueError, match=message):
        get_next_input_positions_tensor(out, *arguments)
    np.testing.assert_array_equal(before, out)


def test_the_last_id_of_a_dtype_fits():
    out = np.zeros((3, 2), dtype=np.int8)
    get_next_input_positions_tensor(out, 0, 0, 126, 2)
    assert out.tolist() == [[126, 127]] * 3
    with pytest.raises(ValueError, match=r"there are 9 tokens before and -1 new ones"):
        get_next_input_positions(0, 9, 8)


# --- vLLM's own values ------------------------------------------------------------------------------------------------


def kept(name):
    return json.loads((ROOT / "tests" / "references" / "serving" / f"{name}.json").read_text())


VLLM, SGLANG = kept("vllm"), kept("sglang")


def rows_in(case):
    return [[segment(*item) for item in row] for row in case.get("rows", [case.get("row")])]


def has_sound_in_video(case):
    return any(s.kind == "audio_in_video" for row in rows_in(case) for s in row)


def numbered(cases):
    return [pytest.param(case, id=f"{case['family']} {n}") for n, case in enumerate(cases)]


@pytest.mark.parametrize("case", numbered(case for case in VLLM["cases"] if not has_sound_in_video(case)))
def test_prompts_have_the_ids_that_vllm_gives_them(case):
    """The reference's, but where the table has a revision for vLLM. Requests are made anew of the row."""
    tokens, features = vllm_request(rows_in(case)[0], rule_of(case["family"]))
    ids, delta = get_mrope_input_positions(tokens, features, rule_of(case["family"], "vllm-0.33"))
    np.testing.assert_array_equal(ids, case["ids"])
    assert delta == case["delta"]


@pytest.mark.parametrize(
    "case", numbered(case for case in VLLM["cases"] if has_sound_in_video(case) and case["family"] == "qwen2_5_omni")
)
def test_vllm_gives_sound_in_video_of_qwen2_5_omni_the_ids_of_the_token_after(case):
    """Its placeholder begins with the start marker of the sound, which its positions take for the first token of the video. The
    authors' code, and so the reference, has the marker before it: vLLM is wrong by one token, and so is all that follows."""
    [row], rule = rows_in(case), dataclasses.replace(rule_of(case["family"]), time="seconds_float64")  # as vLLM has it
    ids, _ = get_mrope_input_positions(*vllm_request(row, rule), rule)
    theirs, offset = np.array(case["ids"]), 0
    assert (ids.numpy() != theirs).any()
    for s in row:
        if s.kind == "audio_in_video":
            inside = slice(offset + 2, offset + s.length - 2)
            shifted = theirs[:, inside.start - 1 : inside.stop - 1]
            np.testing.assert_array_equal(shifted - shifted[:, :1], ids[:, inside] - ids[:, inside.start : inside.start + 1])
        offset += s.length


def test_vllm_gives_sound_in_video_of_qwen3_omni_ids_of_the_other_medium():
    """Its tokens lie in the order of fractional times, its ids in that of times cut to whole steps: where these differ, a token
    of sound has the place of one of video. The family's revision for vLLM places no audio in video, and so says the door."""
    crossed = 0
    for case in VLLM["cases"]:
        if case["family"] == "qwen3_omni_moe" and has_sound_in_video(case):
            [row], rule = rows_in(case), rule_of(case["family"])
            is_sound = as_inputs([row], rule)["mm_token_type_ids"][0] == 3
            t, h, w = np.array(case["ids"])[:, is_sound]
            crossed += ((t != h) | (t != w)).any()
            ours = position_ids(segments_from_inputs(as_inputs([row], rule), rule), rule).ids[:, 0, is_sound]
            assert (ours == ours[0]).all()
            with pytest.raises(ValueError, match=r"qwen3_omni_moe@vllm-0.33 interleaves no such media"):
                get_mrope_input_positions(*vllm_request(row, rule), rule_of(case["family"], "vllm-0.33"))
    assert crossed


@pytest.mark.parametrize("case", VLLM["after"], ids=lambda case: f"{case['count']} after {case['context']}")
def test_what_follows_has_the_ids_that_vllm_gives_it(case):
    delta, context, count = case["delta"], case["context"], case["count"]
    assert get_next_input_positions(delta, context, context + count) == case["listed"]
    assert get_next_input_positions(delta, context, context + count, axes=4) == [*case["listed"], case["listed"][0]]
    out = np.zeros((3, 6), dtype=np.int64)
    get_next_input_positions_tensor(out, 1, delta, context, count)
    assert out.tolist() == case["written"]


# --- SGLang: laws -----------------------------------------------------------------------------------------------------

BY_INDEX = sorted({case["family"] for case in SGLANG["cases"]})


def loosened(batch):
    """Rows of one length without padding: the functions without an attention mask know none."""
    return [[Segment.text(s.length) if s.kind == "pad" else s for s in row] for row in batch]


@pytest.mark.parametrize("name", BY_INDEX)
@settings(max_examples=cases(20))
@given(data=st.data())
def test_batches_have_the_ids_of_their_rows(name, data):
    """In the shapes and dtypes of the function; padding, where it knows any, carries 1."""
    rule = with_tokens(name)
    without = data.draw(st.sampled_from(("video", "audio_in_video"))) if "audio_in_video" in rule.media else ""
    batch = data.draw(padded(upstream_rows(rule, without)))
    masked = rule.checkpoint.token_ids.video_start is not None
    batch = batch if masked else loosened(batch)
    function, arguments = sglang_request(batch, rule)
    ids, deltas = getattr(sglang, function)(**arguments)
    expected = position_ids(segments_from_inputs(as_inputs(batch, rule), rule), rule)
    has_media = any(arguments[key] is not None for key in ("image_grid_thw", "video_grid_thw"))
    rows = slice(None) if has_media or masked else slice(1)
    assert ids.dtype == (torch.float32 if rule.fractional and has_media else torch.int64)
    np.testing.assert_array_equal(ids, np.where(expected.mask, expected.ids, 1)[:, rows])
    largest = np.where(expected.mask, expected.ids, -1).max(axis=(0, 2))
    np.testing.assert_array_equal(deltas[:, 0], (largest + 1 - ids.shape[2])[rows])


@pytest.mark.parametrize("name", [name for name in BY_INDEX if not with_tokens(name).reading.states_audio])
@settings(max_examples=cases(20))
@given(data=st.data(), ahead=st.integers(0, 3))
def test_decoding_goes_on_where_the_row_ends(name, data, ahead):
    rule = with_tokens(name)
    row = data.draw(upstream_rows(rule))
    function, arguments = sglang_request([row], rule)
    ids, deltas = getattr(sglang, function)(**arguments)
    count = ids.shape[2] + ahead
    expected = position_ids(row, rule, start=count, stop=count + 1).ids[:, :, 0]
    np.testing.assert_array_equal(sglang.decode_positions(deltas, torch.tensor([count + 1])), expected)


def test_dtypes_are_those_of_the_tokens():
    function, arguments = sglang_request([[Segment.text(2), Segment.image(h=1, w=2), Segment.text(2)]], with_tokens("qwen2_vl"))
    arguments["input_ids"] = arguments["input_ids"].int()
    ids, deltas = getattr(sglang, function)(**arguments)
    assert (ids.dtype, deltas.dtype) == (torch.int32, torch.int64)


# --- SGLang: what is refused ------------------------------------------------------------------------------------------

IDS = torch.tensor([[10, 202, 201, 201, 203]])
PLAIN = (2, 200, 201, 202)
VIDEO = {"input_ids": IDS, "video_grid_thw": torch.tensor([[2, 2, 2]])}


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (("qwen9_vl", 2), {"input_ids": IDS}, r"model_type 'qwen9_vl', which is not .* Known are .*qwen2_5_vl"),
        (("glm4v", 2), {"input_ids": IDS}, r"get_rope_index is not told enough to place glm4v: it places .*qwen2_vl.* Others have a function of their own"),
        (("hunyuan_vl", 2), {"input_ids": IDS}, r"get_rope_index is not told enough to place hunyuan_vl"),
        (("qwen2_vl", None), {"input_ids": IDS, "attention_mask": torch.ones(1, 5)}, r"unknown keywords attention_mask: SGLang's function has no use"),
        (("qwen2_vl", None), {}, r"input_ids must be a tensor \[B, S\], got NoneType"),
        (("qwen2_5_vl", None), VIDEO, r"qwen2_5_vl places videos by time: pass tokens_per_second, which its config states"),
        (("qwen3_omni_moe", 2), VIDEO, r"qwen3_omni_moe places videos by time: pass position_id_per_seconds"),
        (("qwen2_5_vl", 2), VIDEO, r"qwen2_5_vl places videos by time: the inputs have no second_per_grid_ts"),
        (("qwen2_vl", None), {"input_ids": IDS}, r"the 2 video tokens at 2..3 are more than the 0 grid"),
        (("qwen2_vl", None), {**VIDEO, "video_grid_thw": torch.tensor([[4, 2, 2]])}, r"video 0 needs 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_refused(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        sglang.get_rope_index(*PLAIN, *arguments, **keywords)


def test_sound_in_video_is_told_by_its_flag_too():
    row = [Segment.text(2), AudioInVideo.make(t=1, h=1, w=1, audio=2, seconds_per_grid=1.0), Segment.text(2)]
    function, arguments = sglang_request([row], with_tokens("qwen3_omni_moe"))
    with pytest.raises(
        ValueError, match=r"the markers say that a video has its audio in it, but use_audio_in_video is not set"
    ):
        getattr(sglang, function)(**{**arguments, "use_audio_in_video": False})


@pytest.mark.parametrize("name", ["glm4v", "ernie4_5_vl_moe"])
def test_configs_must_say_what_is_read(name):
    rule = with_tokens(name)
    function, arguments = sglang_request([[Segment.text(2)]], rule)
    with pytest.raises(ValueError, match=r"unknown keywords sync"):
        getattr(sglang, function)(**arguments, sync=True)
    for missing in ("model_type", "video_end_token_id"):
        config = config_of(rule)
        delattr(config, missing)
        with pytest.raises(ValueError, match=rf"hf_config has no {missing}: pass the checkpoint's own config"):
            getattr(sglang, function)(**{**arguments, "hf_config": config})


@pytest.mark.parametrize(("deltas", "lengths"), [([[0, 1]], [3, 4]), ([0, 1], [3]), ([0], 3)])
def test_decoding_takes_a_delta_a_sequence(deltas, lengths):
    with pytest.raises(ValueError, match=r"mrope_position_deltas must be \[B\] or \[B, 1\] and seq_lens \[B\], got"):
        sglang.decode_positions(torch.tensor(deltas), torch.tensor(lengths))


@pytest.mark.parametrize("case", numbered(case for case in VLLM["cases"] if case["family"] in ("qwen2_vl", "qwen3_vl")))
def test_the_samples_model_class_places_as_vllm_does_where_that_is_right(case):
    """A subclass of a model's class, as a plugin registers it: with vLLM's own features of these rows."""
    rule = rule_of(case["family"])
    base = type("Base", (), {"get_mrope_input_positions": None})
    model = runpy.run_path(str(ROOT / "samples" / "vllm_model.py"))["with_mmrope"](base)()
    model.config = {"model_type": rule.name, "vision_config": {"spatial_merge_size": rule.spatial_merge}}
    assert type(model).__name__ == "Base"
    ids, delta = model.get_mrope_input_positions(*vllm_request([segment(*item) for item in case["row"]], rule))
    assert (ids.tolist(), delta) == (case["ids"], case["delta"])


# --- SGLang's own values ----------------------------------------------------------------------------------------------


def by_sglangs_door(case, **changes):
    function, arguments = sglang_request(rows_in(case), rule_of(case["family"]))
    return getattr(sglang, function)(**{**arguments, **changes})


def assert_same(found, case):
    for ours, theirs, dtype in zip(found, (case["ids"], case["deltas"]), case["dtypes"], strict=True):
        assert str(ours.dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(ours, np.array(theirs, dtype=dtype))


@pytest.mark.parametrize("case", numbered(case for case in SGLANG["cases"] if not has_sound_in_video(case)))
def test_rows_have_the_ids_that_sglang_gives_them(case):
    assert_same(by_sglangs_door(case), case)


def test_sglang_lays_sound_in_video_by_float32_times():
    """As transformers' get_rope_index does, and not as the tokens lie: where a time is whole but for rounding, it takes a token
    of sound for one of video."""
    differ = 0
    for case in SGLANG["cases"]:
        if has_sound_in_video(case):
            rule = rule_of(case["family"], "transformers-5.23")
            inputs = as_inputs(rows_in(case), rule)
            np.testing.assert_array_equal(position_ids(segments_from_inputs(inputs, rule), rule).ids, case["ids"])
            differ += not np.array_equal(by_sglangs_door(case)[0], case["ids"])
    assert differ


def test_sglang_takes_a_second_a_grid_where_none_is_said():
    """Its scheduler asks so for requests that come without positions, whatever the rate of the video."""
    case = SGLANG["without_seconds"]
    assert_same(by_sglangs_door(case, second_per_grid_ts=[1.0]), case)
    with pytest.raises(ValueError, match=r"places videos by time: the inputs have no second_per_grid_ts"):
        by_sglangs_door(case, second_per_grid_ts=None)


def test_decoding_by_fractional_deltas_is_exact_past_2_24():
    ids = sglang.decode_positions(torch.tensor([-1.0, -1.5]), torch.tensor([2**24 + 3, 2**24 + 4]))
    assert ids[0].tolist() == [2**24 + 1, 2**24 + 1.5]


@pytest.mark.parametrize("case", SGLANG["decode"], ids=lambda case: str(case["deltas"]))
def test_decoding_has_the_ids_that_sglang_computes(case):
    """But for fractional deltas, which SGLang cuts towards 0 first: its ids of Qwen3-Omni are off by that fraction."""
    ids = sglang.decode_positions(torch.tensor(case["deltas"]), torch.tensor(case["lengths"]))
    whole = [int(delta) for delta in case["deltas"]]
    np.testing.assert_array_equal(ids - (torch.tensor(case["deltas"]) - torch.tensor(whole)), case["ids"])
    assert ids.dtype == (torch.int64 if whole == case["deltas"] else torch.float64)


# --- both -------------------------------------------------------------------------------------------------------------


def names_of(function):
    """A signature without annotations, as text."""
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(plain))


def test_signatures_are_the_upstreams():
    for name, text in SGLANG["signatures"].items():
        assert names_of(getattr(sglang, name)) == text
    asked = VLLM["signatures"]
    ours = names_of(get_next_input_positions)  # and, by keyword, the axes of families that have not three
    assert ours == asked["get_next_input_positions"].replace(")", ", *, axes=3)")
    assert names_of(get_next_input_positions_tensor) == asked["get_next_input_positions_tensor"]
    prompt = asked["get_mrope_input_positions"].replace("self, ", "").replace(")", ", family)")  # the model, as a family
    assert names_of(get_mrope_input_positions) == prompt


@pytest.mark.parametrize("held", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_of_each_family_there_are_values_or_a_reason(held):
    established = {case["family"] for case in held["cases"]}
    assert established | set(held["not_established"]) == {row.name for row in FAMILIES.values()}
    assert not established & set(held["not_established"])
