"""What transformers 5.23.0's get_rope_index does with inputs that it cannot place, and what mmrope does instead.

Each case runs both: the left side documents why the right side is there.
"""

from __future__ import annotations

import numpy as np
import pytest

from mmrope import Segment, position_ids, segments_from_inputs
from tests.positions.test_inputs import without
from tests.support.upstream_ids import TOKENS, as_inputs, transformers_ids, with_tokens

TEXT, IMAGE, WIDE = Segment.text(2), Segment.image(h=2, w=2), Segment.image(h=2, w=3)
FRAME = Segment.frame(h=1, w=2)
VIDEO = Segment.video(t=4, h=1, w=2, seconds_per_grid=1.0)


def inputs_of(name, row, **changes):
    return {**as_inputs([row], with_tokens(name)), **changes}


@pytest.mark.parametrize(
    ("name", "inputs", "theirs", "ours"),
    [
        pytest.param("qwen2_vl", inputs_of("qwen2_vl", [TEXT, IMAGE, TEXT, WIDE], image_grid_thw=np.array([[1, 4, 4]])), StopIteration,
            r"row 0: the 6 image tokens at 8..13 are more than the 1 grid\(s\) of image_grid_thw", id="a grid is missing"),
        pytest.param("qwen2_vl", without(inputs_of("qwen2_vl", [TEXT, IMAGE]), "image_grid_thw"), TypeError,
            r"row 0: the 4 image tokens at 2..5 are more than the 0 grid\(s\)", id="no grids at all"),
        pytest.param("qwen2_vl", inputs_of("qwen2_vl", [TEXT, IMAGE, TEXT], image_grid_thw=np.array([[1, 4, 6]])), RuntimeError,
            r"do not fit their grids: image 0 needs 6 tokens", id="a grid of another size"),
        pytest.param("qwen2_vl", {k: v[:, :4] if k != "image_grid_thw" else v for k, v in inputs_of("qwen2_vl", [TEXT, IMAGE]).items()},
            RuntimeError, r"image 0 needs 4 tokens \(1 x 2 x 2 after merge 2\), but 2 are left for it. Was the row truncated", id="truncated"),
        pytest.param("qwen2_5_omni", without(inputs_of("qwen2_5_omni", [TEXT, VIDEO, TEXT]), "video_second_per_grid"), TypeError,
            r"qwen2_5_omni places videos by time: the inputs have no second_per_grid_ts", id="no seconds, Omni"),
        pytest.param("hunyuan_vl", inputs_of("hunyuan_vl", [TEXT, IMAGE], image_grid_thw=np.array([[1, 4, 2], [1, 4, 2]])), ValueError,
            r"image_grid_thw has 2 row\(s\), but the image tokens end before image 1", id="a grid too many, HunYuan"),
        # and without a word
        pytest.param("qwen2_vl", inputs_of("qwen2_vl", [TEXT, IMAGE], image_grid_thw=np.array([[1, 4, 4], [1, 4, 4]])), None,
            r"image_grid_thw has 2 row\(s\), but the image tokens end before image 1", id="a grid too many"),
        pytest.param("qwen2_vl", inputs_of("qwen2_vl", [TEXT, IMAGE], image_grid_thw=np.array([[1, 5, 5]])), None,
            r"image_grid_thw row 0 is 1 x 5 x 5, but qwen2_vl merges 2 x 2", id="a grid that the merge does not divide"),
        pytest.param("qwen2_5_vl", without(inputs_of("qwen2_5_vl", [TEXT, VIDEO]), "second_per_grid_ts"), None,
            r"qwen2_5_vl places videos by time: the inputs have no second_per_grid_ts .* there is no default", id="no seconds"),
    ],
)  # fmt: skip
def test_refused_with_a_message(name, inputs, theirs, ours):
    rule = with_tokens(f"{name}@transformers-5.23")
    if theirs is None:
        transformers_ids(rule, inputs)
    else:
        with pytest.raises(theirs):
            transformers_ids(rule, inputs)
    with pytest.raises(ValueError, match=ours):
        segments_from_inputs(inputs, with_tokens(name))


@pytest.mark.parametrize(
    ("name", "batch", "theirs"),
    [
        pytest.param("qwen2_vl", [[TEXT, IMAGE, WIDE, TEXT]], RuntimeError, id="images that touch"),
        pytest.param("qwen3_vl", [[TEXT, FRAME, FRAME, TEXT]], RuntimeError, id="frames that touch"),
        pytest.param("qwen2_vl", [[TEXT, IMAGE], [Segment.pad(6)]], ValueError, id="a row of padding"),
    ],
)
def test_placed(name, batch, theirs):
    rule = with_tokens(name)
    inputs = as_inputs(batch, rule)
    with pytest.raises(theirs):
        transformers_ids(with_tokens(f"{name}@transformers-5.23"), inputs)
    assert segments_from_inputs(inputs, rule) == batch


def test_a_token_that_a_model_made_up():
    rule = with_tokens("qwen2_vl")
    batch = [[TEXT, IMAGE, Segment.text(4)]]
    inputs = as_inputs(batch, rule)
    inputs["input_ids"][0, 8], inputs["mm_token_type_ids"][0, 8] = TOKENS.image, 1
    with pytest.raises(StopIteration):
        transformers_ids(with_tokens("qwen2_vl@transformers-5.23"), inputs)
    assert segments_from_inputs(inputs, rule, prompt_lengths=[6]) == batch


def test_text_after_a_video_is_after_it():
    """A video of 8 grids of 2 x 2 tokens after 3 of text: text goes on inside the video's time, or after it."""
    row = [Segment.text(3), Segment.video(t=8, h=2, w=2), Segment.text(1)]
    inputs = as_inputs([row], with_tokens("qwen2_vl"))
    theirs, _ = transformers_ids(with_tokens("qwen2_vl@transformers-5.23"), inputs)
    assert theirs[0, 0, -1] == 5 < theirs[0, 0].max() == 10
    assert position_ids(segments_from_inputs(inputs, "qwen2_vl"), "qwen2_vl").ids[0, 0, -1] == 11


def test_seconds_are_read_under_either_name_but_not_under_both():
    inputs = inputs_of("qwen2_5_vl", [TEXT, VIDEO])
    renamed = {**without(inputs, "second_per_grid_ts"), "video_second_per_grid": inputs["second_per_grid_ts"]}
    assert segments_from_inputs(renamed, "qwen2_5_vl") == segments_from_inputs(inputs, "qwen2_5_vl")
    with pytest.raises(ValueError, match=r"inputs have second_per_grid_ts and video_second_per_grid: one of them is needed"):
        segments_from_inputs({**inputs, **renamed}, "qwen2_5_vl")


def test_one_row_does_not_number_the_images_of_another():
    """transformers counts HunYuan's images over the batch: a row's ids depend on the rows before it."""
    batch = [[TEXT, IMAGE], [TEXT, IMAGE]]
    inputs = as_inputs(batch, with_tokens("hunyuan_vl"))
    theirs, _ = transformers_ids(with_tokens("hunyuan_vl@transformers-5.23"), inputs)
    assert theirs[3, :, -1].tolist() == [0, 1]
    assert position_ids(segments_from_inputs(inputs, "hunyuan_vl"), "hunyuan_vl").ids[3, :, -1].tolist() == [0, 0]
