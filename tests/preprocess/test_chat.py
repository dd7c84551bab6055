"""Conversations as checkpoints' chat templates write them: transformers' ids, no forged tokens, labels of answers alone."""

from __future__ import annotations

import dataclasses
import json
import random
import unicodedata

import jinja2
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template
from trl.data_utils import apply_chat_template as trl_text

from mmrope import Processor
from mmrope.preprocess import CHATML, ByteTokenizer, FileTokenizer
from mmrope.preprocess.chat import conversation_pieces
from tests.support import PROOF, cases
from tests.support.checkpoints import CHECKPOINTS, PAD, TEMPLATES, WITH_TOOLS, folder, small_tokenizer, template_of
from tests.support.conversations import TOOLS, conversation, for_transformers
from tests.support.films import film

# transformers makes numpy arrays of tensors in its GLM processor
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

NAMES = list(CHECKPOINTS)
MEDIA_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """By name: a folder, mmrope's processor of it, and transformers'."""
    made = {}
    for name in NAMES:
        path = folder(tmp_path_factory.mktemp(name), name)
        made[name] = path, Processor.from_pretrained(path), CHECKPOINTS[name]["processor"].from_pretrained(path)
    return made


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two short videos, of 8 and 25 frames a second."""
    path = tmp_path_factory.mktemp("films")
    return [film(path / f"{fps}.mp4", [round(n * 1000 / fps) for n in range(count)]) for fps, count in ((8, 26), (25, 50))]


def user(*items):
    return [{"role": "user", "content": list(items)}]


def theirs_of(processor, messages, **options):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)


# --- transformers' ids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(0, 100, 1 if PROOF else 5))
@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_written_as_by_transformers(name, seed, checkpoints, films):
    _, ours, theirs = checkpoints[name]
    draw = random.Random(seed)
    messages = conversation(draw, films, tools=name in WITH_TOOLS, reasoning=name in WITH_TOOLS[1:])
    tools = TOOLS if name in WITH_TOOLS and draw.random() < 0.5 else None
    prompt = draw.random() < 0.6
    options = {"add_vision_id": True} if name.startswith("qwen") and draw.random() < 0.3 else {}
    [decoded], kwargs = for_transformers([messages])
    expected = theirs_of(theirs, decoded, tools=tools, add_generation_prompt=prompt, processor_kwargs=kwargs, **options)
    made = ours(messages, tools=tools, add_generation_prompt=prompt, **options)
    for key in MEDIA_KEYS:
        assert (key in made) == (key in expected), key
        if key in made:
            assert made[key].tolist() == expected[key].tolist(), key


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_batches_are_padded_as_by_transformers(name, side, tmp_path, films):
    path = folder(tmp_path, name, padding_side=side)
    ours, theirs = Processor.from_pretrained(path), CHECKPOINTS[name]["processor"].from_pretrained(path)
    assert ours.padding_side == side
    draw = random.Random(0)
    batch = [conversation(draw, films, tools=False) for _ in range(5)]
    decoded, kwargs = for_transformers(batch)
    expected = theirs_of(theirs, decoded, add_generation_prompt=True, processor_kwargs=kwargs)
    made = ours(batch, add_generation_prompt=True)
    for key in MEDIA_KEYS:
        assert made[key].tolist() == expected[key].tolist(), key


@pytest.mark.parametrize("form", ["jinja", "json", "tokenizer", "list"])
def test_templates_are_found_where_transformers_finds_them(form, tmp_path):
    path = folder(tmp_path, "qwen3_vl", form=form)
    ours = Processor.from_pretrained(path)
    assert ours.chat_template == template_of("qwen3_vl")
    ours.save_pretrained(tmp_path / "own")
    assert Processor.from_pretrained(tmp_path / "own").chat_template == ours.chat_template


def test_a_template_that_cannot_be_chosen_is_refused(tmp_path):
    path = folder(
        tmp_path, "qwen3_vl", form="none", chat_template=[{"name": "a", "template": ""}, {"name": "b", "template": ""}]
    )
    with pytest.raises(ValueError, match=r": chat_template has \['a', 'b'\], and none is called 'default'"):
        Processor.from_pretrained(path)
    folder(tmp_path, "qwen3_vl", form="none", chat_template=3)
    with pytest.raises(ValueError, match=": chat_template must be a text, or several by name, got 3"):
        Processor.from_pretrained(path)


def test_a_family_whose_chat_text_is_not_known_is_refused(tmp_path):
    said = user({"type": "text", "text": "Hi"})
    path = folder(tmp_path, "glm4v", template="", form="none")
    for processor in (Processor(family="glm4v"), Processor.from_pretrained(path), Processor(family="ernie4_5_vl_moe")):
        with pytest.raises(ValueError, match=r"how \w+ writes conversations is not known without its chat template: read the"):
            processor(said)
    assert Processor(family="glm4v", chat_template=CHATML)(said)["input_ids"].shape[1] > 0


def test_placeholders_and_media_that_do_not_belong_together_are_refused(checkpoints):
    image = {"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}
    _, ours, _ = checkpoints["qwen3_vl"]
    with pytest.raises(ValueError, match=r"writes 0 image\(s\) and the messages have 1: it does not place them"):
        ours([*user({"type": "text", "text": "Draw"}), {"role": "assistant", "content": [image]}])  # of answers, texts alone
    forging = Processor(chat_template="<|image_pad|>{{ messages[0].content }}")
    with pytest.raises(ValueError, match=r"writes 1 image\(s\) and the messages have 0"):
        forging([{"role": "user", "content": "Hi"}])


# --- what templates ask for -------------------------------------------------------------------------------------------


def test_what_a_template_does_not_write_is_refused(checkpoints):
    said = [{"role": "user", "content": "Hi"}]
    for name, options, message in (
        ("qwen2_5_vl", {"tools": TOOLS}, r"this chat template does not ask for 'tools'; it asks for add_vision_id"),
        ("qwen3_vl", {"documents": [{"text": "x"}]}, r"does not ask for 'documents'; it asks for"),
        ("qwen3_vl", {"add_vision_ids": True}, r"does not ask for 'add_vision_ids'; did you mean 'add_vision_id'\?"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoints[name][1](said, **options)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(ValueError, match=r"does not write 'tool_calls', which a message of the role 'assistant' has"):
        checkpoints["qwen2_5_vl"][1]([*said, call])
    with pytest.raises(ValueError, match=r"does not write 'reasoning_content'"):
        checkpoints["qwen3_vl"][1]([*said, {"role": "assistant", "content": "4", "reasoning": "2 + 2"}])
    with pytest.raises(ValueError, match=r"tool calls and reasoning: that needs the checkpoint's own chat template"):
        Processor()([*said, call])


ROLES = ("system", "user", "assistant", "tool", "function", "developer", "observation", "User", "")
MEDIA = [{"type": "image", "grid": (2, 2)}, {"type": "video", "grid": (1, 2, 2), "fps": 1}]
EXTRAS = {
    "name": "a",
    "tool_call_id": "1",
    "reasoning_content": "hm",
    "refusal": "no",
    "function_call": {"name": "f", "arguments": "{}"},
    "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}],
}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_without_a_folder_a_conversation_is_written_as_by_the_released_template_or_refused(family):
    """Every role, key and kind of content in any turn; without the default system message of Qwen2-VL."""
    released = template_of("qwen3_vl" if family.startswith("qwen3") else "qwen2_5_vl")
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    draw, written, refused = random.Random(family), 0, set()
    for _ in range(cases(400)):
        messages, prompt = [], draw.random() < 0.5
        for _ in range(draw.randint(1, 4)):
            items = [{"type": "text", "text": "a"}, draw.choice(MEDIA), {"type": "text", "text": " b"}]
            content = draw.choice(["a", "", " \n", items[:1], items[:1], items])
            role = draw.choice(ROLES if draw.random() < 0.2 else ROLES[bool(messages) : 3])
            extra = draw.choice(list(EXTRAS.items())) if draw.random() < 0.1 else None
            messages.append({"role": role, "content": content, **dict([extra] if extra else [])})
        try:
            pieces = conversation_pieces(CHATML, messages, ByteTokenizer(), variables={}, add_generation_prompt=prompt)
        except ValueError as error:
            if not (str(error).endswith(OWN) or "does not write 'function_call'" in str(error)):
                raise
            refused.add(str(error).removesuffix(OWN).partition(": ")[2])
            continue
        [[expected], _] = render_jinja_template([messages], chat_template=released, add_generation_prompt=prompt)
        if messages[0]["role"] != "system" and family.startswith("qwen2"):
            expected = expected.removeprefix(default)
        assert "".join(pieces) == expected, messages
        written += 1
    assert written > 100
    assert {"tool calls and reasoning", "an image or a video in a message of the role 'assistant'"} <= refused
    assert {"message 0 has the role 'tool'", "message 0 has the role 'developer'"} <= refused
    assert any(why.endswith("is the system's and not the first") for why in refused)


OWN = (
    ": that needs the checkpoint's own chat template: read its folder with Processor.from_pretrained, or give chat_template=..."
)


def test_messages_that_a_template_leaves_out_are_refused(checkpoints):
    """Roles that it does not know, and system messages behind the first: transformers drops them."""
    said = [{"role": "user", "content": "Hi"}]
    for name, *roles in (("qwen3_vl", "developer", "function", "system"), ("qwen3_vl_thinking", "developer", "function")):
        _, ours, theirs = checkpoints[name]
        for role in roles:
            talk = [*said, {"role": role, "content": "Be brief."}, *said]
            assert theirs_of(theirs, talk)["input_ids"].tolist() == theirs_of(theirs, said * 2)["input_ids"].tolist()
            with pytest.raises(ValueError, match=rf"does not write message 1, of the role '{role}': leave it out, or give"):
                ours(talk)
    for name, role in (
        ("qwen2_5_vl", "developer"), ("qwen2_5_vl", "tool"), ("qwen2_5_vl", "system"), ("qwen3_vl_thinking", "system"),
        ("qwen3_vl", "tool"), ("glm46v", "system"),
    ):  # fmt: skip
        _, ours, theirs = checkpoints[name]
        talk = [*said, {"role": role, "content": "Be brief."}, *said]
        assert ours(talk)["input_ids"].tolist() == theirs_of(theirs, talk, add_generation_prompt=True)["input_ids"].tolist()


def test_documents_and_reasoning_reach_a_template_that_writes_them():
    template = (
        "{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}"
        "{% for m in messages %}{{ m.role }}({{ m.reasoning_content or '' }}){{ m.content }};{% endfor %}"
    )
    processor = Processor(chat_template=template)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4", "thinking": "2 + 2"}]
    parts = processor.conversation(talk, documents=[{"title": "A", "text": "é"}])
    assert "".join(part.label for part in parts) == "[A: é]user()Hi;assistant(2 + 2)4;"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{" + "(" * 2000 + "}}", r"the chat template is not Jinja that can be read: maximum recursion depth exceeded"),
        (
            "{% for m in messages %}" * 25 + "{% endfor %}" * 25,
            r"the chat template is not Jinja that can be read.*: too many statically nested blocks",
        ),
        ("{% for m in messages %}", r"the chat template is not Jinja that can be read, line 1: Unexpected end of template"),
        ("{{ ''.__class__.__mro__ }}", r"refuses this conversation: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception('no tools here') }}", r"the chat template refuses this conversation: no tools here"),
        ("{{ messages[0].content + 1 }}", r"the chat template refuses this conversation: can only concatenate str"),
        ("{{ messages.append(1) }}", r"refuses this conversation"),
        ("{% set n = namespace(__class__=1) %}", r"refuses this conversation: a namespace holds no '__class__'"),
        ("{{ messages[9].content.x }}", r"refuses this conversation"),
        ("{% for i in range(10**9) %}{% endfor %}", r"refuses this conversation: Range too big"),
    ],
)
def test_templates_run_in_a_sandbox(template, message):
    with pytest.raises(ValueError, match=message):
        Processor(chat_template=template)([{"role": "user", "content": "Hi"}])


def test_the_jinja_of_templates():
    """What transformers gives templates: a plain tojson, loop controls, the date, blocks without their line ends."""
    template = (
        "{%- for m in messages %}\n    {%- if loop.index0 == 1 %}{% break %}{% endif %}\n{{ m | tojson }}\n{% endfor %}"
        "{{ strftime_now('%Y')[:2] }}{{ eos_token }}"
    )
    words = json.loads(small_tokenizer("qwen3_vl").to_str())
    tokenizer = FileTokenizer(json.dumps(words), "<|endoftext|>", {"eos_token": "<|im_end|>"})
    pieces = conversation_pieces(
        template, [{"role": "user", "content": "<é>"}] * 2, tokenizer, variables={}, add_generation_prompt=False
    )
    assert pieces == ['{"role": "user", "content": "<é>"}\n20', "<|im_end|>"]


# --- no forged tokens -------------------------------------------------------------------------------------------------

_TOKEN_NAMES = [token for token, _ in CHECKPOINTS["glm46v"]["tokens"]] + [
    token for token, _ in CHECKPOINTS["qwen3_vl"]["tokens"]
]
_FORGED = st.lists(
    st.sampled_from([*_TOKEN_NAMES, "<|", "|>", "im_", "end", "<", "think>", " ", "\n", "é", "a"]), max_size=8
).map("".join)


@given(st.sampled_from(NAMES), st.data())
@settings(deadline=None)
def test_no_text_of_a_user_becomes_a_token_of_the_template(name, data):
    """Whatever tokenizer.json says of "special": the template's tokens are there, no more, and the texts come back as they were."""
    stated = json.loads(small_tokenizer(name).to_str())
    flags = data.draw(st.lists(st.booleans(), min_size=len(stated["added_tokens"]), max_size=len(stated["added_tokens"])))
    for token, special in zip(stated["added_tokens"], flags, strict=True):
        token["special"] = special
    tokenizer = FileTokenizer(json.dumps(stated), PAD)
    template = template_of(name)
    processor = Processor(family=CHECKPOINTS[name].get("model_type", name), tokenizer=tokenizer, chat_template=template)
    grid = {"type": "image", "grid": (2, 3)}
    text, other = data.draw(_FORGED), data.draw(_FORGED)

    def tokens(*texts):
        said = [{"role": "user", "content": [{"type": "text", "text": texts[0]}, grid, {"type": "text", "text": texts[1]}]}]
        return processor.conversation(said)

    plain, forged = tokens("x", "x"), tokens(text, other)
    special = set(tokenizer.special.values())

    def written(parts):
        return [token for part in parts for token in part.tokens if token in special]

    assert written(forged) == written(plain)
    shown = "".join(tokenizer.decode(part.tokens, special=True) for part in forged if part.segment.kind == "text")
    assert all(unicodedata.normalize("NFC", said) in shown for said in (text, other))


@given(_FORGED.filter(str.strip))
@settings(deadline=None)
def test_no_other_text_of_a_conversation_becomes_one(forged):
    """System messages, tools, their calls and what they answer, roles: control tokens and placeholders are the template's."""
    tokenizer = FileTokenizer(small_tokenizer("qwen3_vl").to_str(), "<|endoftext|>")
    processor = Processor(family="qwen3_vl", tokenizer=tokenizer, chat_template=template_of("qwen3_vl"))

    def written(text):
        tool = {"type": "function", "function": {"name": text, "description": text, "parameters": {text: [text]}}}
        call = {"role": "assistant", "content": text, "tool_calls": [{"function": {"name": text, "arguments": {text: text}}}]}
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": text},
            call,
            {"role": "tool", "content": text},
        ]
        parts = processor.conversation(messages, tools=[tool])
        names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
        control = {tokenizer.special[name] for name in (*names, "<|image_pad|>", "<|video_pad|>")}
        return [token for part in parts for token in part.tokens if token in control]

    assert written(forged) == written("x")


_END = "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (CHATML, ["<|im_", "end|>"]),
        (CHATML, ["<", "|im_end|", ">"]),
        (CHATML, ["<|vision_start|><|image_", "pad|>"]),
        ("<{{ messages[0].content[0].text }}>", ["|im_end|"]),
        ("<|{{ messages[0].content[0].text }}|>", ["|>im_end<|"]),
        ("{{ messages[0].content[0].text | lower }}", ["<|IM_END|>"]),
        ("{{ messages[0].content[0].text | replace('x', '') }}", ["<|im_xend|>"]),
        ("{{ messages[0].content[0].text | list | join('') }}", [_END]),
        ("{{ messages[0].content[0].text | reverse }}", [_END[::-1]]),
        ("{{ messages[0].content[0].text[2:] }}{{ messages[0].content[0].text[:2] }}", ["d|><|im_en"]),
        ("{{ messages | tojson(ensure_ascii=True) }}", [_END]),
        ("{{ messages }}", [_END]),
    ],
)
def test_no_way_of_putting_texts_together_makes_one(template, texts):
    """Names in parts, in capitals, behind what a template does with texts: the same as with an x for each bracket."""
    processor = Processor(chat_template=template)

    def written(texts):
        parts = processor.conversation([{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}])
        return [token for part in parts for token in part.tokens if token in processor.tokenizer.special.values()]

    assert written(texts) == written([text.replace("<", "x").replace(">", "x") for text in texts])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("[:15]", "Hi <|im_end|> you"),
        ("| replace('a', 'b')", "Hi <a|> you"),
        ("| truncate(10)", "Hi <|im_end|> you <and> |me|"),
        ("| upper", "<|x|> [INST]"),
        ("| length", "<|im_end|>"),
        ("| tojson", '<"|\n>'),
        ("", "<\U0010f002|\U0010f000>"),  # the private characters themselves
    ],
)
def test_what_a_template_does_with_a_text_is_done_to_the_text(change, text):
    template = "{{ (messages[0].content CHANGE) }}".replace("CHANGE", change)
    [piece] = conversation_pieces(
        template, [{"role": "user", "content": text}], Processor().tokenizer, variables={}, add_generation_prompt=False
    )
    assert piece == jinja2.Environment().from_string(template).render(messages=[{"content": text}]).replace(
        "\\u003c", "<"
    ).replace("\\u003e", ">")


def test_a_models_own_words_may_hold_its_tokens(checkpoints):
    """<think>, <tool_call> and boxes in an answer that is given back are the tokens that the model wrote; a user's are text."""
    _, ours, theirs = checkpoints["qwen3_vl"]
    for answer in (
        "<think>\n2 + 2</think>4",
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
    ):
        talk = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": answer}]
        assert ours(talk)["input_ids"].tolist() == theirs_of(theirs, talk)["input_ids"].tolist()
        assert ours(talk, labels=True)["input_ids"].tolist() == theirs_of(theirs, talk)["input_ids"].tolist()
    special = ours.tokenizer.special
    asked = ours([{"role": "user", "content": "<think><|box_start|>"}])["input_ids"]
    assert not {special["<think>"], special["<|box_start|>"]} & set(asked[0].tolist())
    safe = theirs_of(theirs, [{"role": "user", "content": "<|im_end|><|image_pad|>"}], sanitize_control_tokens=True)
    assert ours.tokenizer.decode(safe["input_ids"][0].tolist(), special=True) in ours.tokenizer.decode(
        ours([{"role": "user", "content": "<|im_end|><|image_pad|>"}])["input_ids"][0].tolist(), special=True
    )


def test_tokens_that_cannot_be_told_apart_are_refused(tmp_path):
    path = folder(tmp_path, "qwen2_5_vl")
    stated = json.loads((path / "tokenizer.json").read_text())
    ids = {token["content"]: token for token in stated["added_tokens"]}
    ids["<|video_pad|>"]["id"] = ids["<|image_pad|>"]["id"]
    (path / "tokenizer.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"gives one id to several added tokens: <\|image_pad\|>, <\|video_pad\|>"):
        Processor.from_pretrained(path)
    folder(tmp_path, "qwen2_5_vl")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"image_token_id": 7}))
    said = [{"role": "user", "content": "Hi"}]
    with pytest.raises(
        ValueError, match=r"gives the images of qwen2_5_vl the id \d+, the checkpoint's config.json 7: they are"
    ):
        Processor.from_pretrained(path)(said)


def test_what_tokenizer_config_says(tmp_path):
    """Its special tokens are variables of templates; names that tokenizer.json lacks are refused; padding is asked for when
    there is something to pad."""
    template = "{{ vision_bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    path = folder(
        tmp_path, "qwen3_vl", template=template, extra_special_tokens={"vision_bos_token": "<|vision_start|>"}, pad_token=None
    )
    ours, said = Processor.from_pretrained(path), [{"role": "user", "content": "Hi"}]
    assert "".join(part.label for part in ours.conversation(said)) == "<|vision_start|>Hi<|im_end|>"
    assert ours([said, said])["input_ids"].shape[0] == 2
    with pytest.raises(ValueError, match="names no pad_token: give conversations one by one, or of one length"):
        ours([said, [{"role": "user", "content": "Good morning"}]])
    ours.save_pretrained(tmp_path / "own")
    again = Processor.from_pretrained(tmp_path / "own")
    assert again.tokenizer.variables == ours.tokenizer.variables
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == template
    for more in ({"additional_special_tokens": ["<|new|>"]}, {"added_tokens_decoder": {"9": {"content": "<|new|>"}}}):
        with pytest.raises(
            ValueError, match=r"names tokens that are not among the added tokens of tokenizer.json: add\S+ '<\|new\|>'"
        ):
            Processor.from_pretrained(folder(tmp_path, "qwen3_vl", **more))
    (path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer of .* cannot be read"):
        Processor.from_pretrained(path)


def test_files_that_are_no_templates_are_named(tmp_path):
    path = folder(tmp_path, "qwen3_vl")
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template.jinja is not UTF-8"):
        Processor.from_pretrained(path)
    (path / "chat_template.json").write_text(
        json.dumps({"chat_template": "first"})
    )  # which transformers takes, if both are there
    assert Processor.from_pretrained(path).chat_template == "first"
    (path / "chat_template.jinja").unlink()
    (path / "chat_template.json").unlink()
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "default.jinja").write_text("other")
    assert Processor.from_pretrained(path).chat_template == "other"
    with pytest.raises(ValueError, match="chat_template must be a text of Jinja, got int"):
        Processor(chat_template=3)
    assert Processor(chat_template="")([{"role": "user", "content": "Hi"}])["input_ids"].shape == (1, 0)


def test_texts_that_a_tokenizer_cannot_read():
    vocabulary = [("<unk>", 0.0), ("H", -1.0), ("i", -1.0), ("▁", -2.0)]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0))
    model.add_special_tokens(["<unk>", "<s>"])
    tokenizer = FileTokenizer(model.to_str())
    assert tokenizer.encode("Hi🙂") == [1, 2, 0]  # what it does not know, and no forged token
    with pytest.raises(ValueError, match=r"a text has half of a character \(a lone surrogate\) at 1, behind"):
        tokenizer.encode("H\ud800")
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    with pytest.raises(ValueError, match="it puts a blank before the first word of a prompt alone"):
        FileTokenizer(model.to_str())


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_labels_are_the_templates_own_marks(name, seed, tmp_path):
    """With TRL's templates, which mark answers: the assistant masks of transformers."""
    template = (TEMPLATES / f"{name}_training.jinja").read_text()
    path = folder(tmp_path, name, template=template)
    ours, theirs = Processor.from_pretrained(path), CHECKPOINTS[name]["processor"].from_pretrained(path)
    messages = conversation(random.Random(seed), [], tools=name in WITH_TOOLS)
    if all(message["role"] != "assistant" for message in messages):
        with pytest.raises(ValueError, match="labels are of answers, and this conversation has none"):
            ours(messages, labels=True)
        messages.append({"role": "assistant", "content": "Yes"})
    expected = theirs_of(theirs, messages, return_assistant_tokens_mask=True)
    made = ours(messages, labels=True, add_generation_prompt=False)
    assert made["input_ids"].tolist() == expected["input_ids"].tolist()
    assert (made["labels"] != -100).tolist() == expected["assistant_masks"].bool().tolist()
    answered = made["labels"] != -100
    assert torch.equal(made["labels"][answered], made["input_ids"][answered])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_labels_by_turns_are_completions(name, seed, checkpoints):
    """Where a template marks nothing: what TRL takes as the completion of a prompt, for each answer."""
    _, ours, theirs = checkpoints[name]
    messages = conversation(random.Random(seed), [], tools=name in WITH_TOOLS)
    texts = [{**m, "content": m["content"].lstrip() if isinstance(m["content"], str) else "Look."} for m in messages]
    if texts[-1]["role"] != "assistant":
        texts.append({"role": "assistant", "content": " Yes. "})
    made = ours(texts, labels=True)
    ids, labels = made["input_ids"][0].tolist(), made["labels"][0].tolist()
    expected = [-100] * len(ids)
    for n, message in enumerate(texts):
        if message["role"] == "assistant":
            said = trl_text({"prompt": texts[:n], "completion": [message]}, theirs)
            before, both = (
                theirs.tokenizer(text)["input_ids"] for text in (said["prompt"], said["prompt"] + said["completion"])
            )
            expected[len(before) : len(both)] = both[len(before) :]
    assert labels == expected


def test_labels_change_no_ids(checkpoints):
    """Where the prompt opens a thought and the answer begins with another token that is spelled alike at first; and marks whose
    blanks a template cuts off are refused."""
    _, ours, _ = checkpoints["qwen3_vl"]
    template = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    assert template != CHATML
    thinking = dataclasses.replace(ours, chat_template=template)
    talk = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": "<tool_call>\n{}\n</tool_call>"}]
    made = thinking(talk, labels=True)
    assert made["input_ids"].tolist() == thinking(talk)["input_ids"].tolist()
    assert (made["labels"] == ours.tokenizer.special["<tool_call>"]).sum() == 1
    cut = "{% set x %}{% generation %} {{ messages[1].content }} {% endgeneration %}{% endset %}{{ x | trim }}"
    with pytest.raises(ValueError, match=r"changes texts by what stands beside its {% generation %} marks"):
        dataclasses.replace(ours, chat_template=cut)(talk, labels=True)
    nested = "{% generation %}a{% generation %}b{% endgeneration %}c{% endgeneration %}d"
    made = Processor(chat_template=nested)(talk, labels=True)
    assert [chr(token) for token in made["labels"][0].tolist() if token != -100] == ["a", "b", "c"]


def test_labels_of_media_and_padding_are_not_learned(checkpoints):
    _, ours, _ = checkpoints["qwen2_5_vl"]
    image = {"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}
    talk = [*user(image, {"type": "text", "text": "What?"}), {"role": "assistant", "content": "A square"}]
    made = ours([talk, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]], labels=True)
    assert (made["labels"][made["attention_mask"] == 0] == -100).all()
    assert (made["labels"][made["mm_token_type_ids"] != 0] == -100).all()
    shown = [ours.tokenizer.decode(row[row != -100].tolist(), special=True) for row in made["labels"]]
    assert shown == ["A square<|im_end|>\n", "Hello<|im_end|>\n"]


def test_answers_that_cannot_be_told_by_turns_are_refused():
    forgets = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %};{% endfor %}"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    with pytest.raises(ValueError, match=r"has no {% generation %} marks and writes message 1, an answer, differently where"):
        Processor(chat_template=forgets)(talk, labels=True)
    with pytest.raises(ValueError, match=r"the first message is the assistant's: nothing asks for it"):
        Processor()(talk[1:2], labels=True)


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_cut_and_media_are_not(name, checkpoints):
    _, ours, theirs = checkpoints[name]
    image = {"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}
    talk = user({"type": "text", "text": "Look"}, image, {"type": "text", "text": "What is in this picture?"})
    whole = ours(talk)
    types = whole["mm_token_type_ids"][0].tolist()
    begin, end, total = types.index(1), len(types) - types[::-1].index(1), len(types)
    for length in (end, end + 1, total - 1, total, total + 5):
        kwargs = {"truncation": True, "max_length": length}
        expected = theirs_of(theirs, talk, add_generation_prompt=True, processor_kwargs=kwargs)
        made = ours(talk, max_length=length)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            assert made[key].tolist() == expected[key].tolist()
    for length in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="max_length must be a whole number of tokens, at least 1, got"):
            ours(talk, max_length=length)
    for length in (begin + 1, end - 1, begin):
        with pytest.raises(
            ValueError, match=rf"a conversation of {total} tokens cannot be cut to max_length={length}: .* would"
        ):
            ours(talk, max_length=length)
        with pytest.raises(ValueError, match="Mismatch in `image` token count"):
            theirs_of(theirs, talk, add_generation_prompt=True, processor_kwargs={"truncation": True, "max_length": length})


def test_tokenizers_of_ones_own_are_held_to_it():
    class Forging(ByteTokenizer):
        def encode(self, text):
            return [258 if text.endswith("!") else 65]

    class Short(ByteTokenizer):
        def offsets(self, text):
            return []

    talk = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(ValueError, match=r"the tokenizer makes special tokens of the text 'user\\nHi!': its encode must not"):
        Processor(tokenizer=Forging())(talk)
    with pytest.raises(ValueError, match=r"the tokenizer gives 0 offsets for \d+ tokens: one for each is needed"):
        Processor(tokenizer=Short())(talk, labels=True)
