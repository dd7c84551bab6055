"""A processor of transformers for the model of tiny_qwen.py, as TRL wants one: a checkpoint's, or by default a tiny one.

python samples/tiny_processor.py [--model FOLDER]
"""

from PIL import Image
from tiny_qwen import CONVERSATIONS, SIZES, arguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from mmrope.preprocess.text import SPECIAL_TOKENS

TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for item in message.content if message.role != 'assistant' %}
        {{- item.text if item.type == 'text' else '<|vision_start|><|' + item.type + '_pad|><|vision_end|>' }}
    {%- endfor %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content[0].text + '<|im_end|>' }}{%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
"""Qwen's, with the answers marked, by which TRL and transformers find what is to be learned."""


def load_processor(options):
    """The folder's processor, or one whose tokens are bytes, as the tiny model's. It pads on the left, as GRPOTrainer takes for
    granted of one that it is given: `mm_token_type_ids` padded on the right do not belong to its prompts."""
    if options.model:
        return AutoProcessor.from_pretrained(options.model, padding_side="left")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(list(SPECIAL_TOKENS))  # ids 256 and up, as in mmrope's own
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, pad_token="<|pad|>", eos_token="<|im_end|>", padding_side="left"
    )
    least, most = SIZES["image_pixels"]
    images = Qwen2VLImageProcessor(size={"shortest_edge": least, "longest_edge": most})
    videos = Qwen2VLVideoProcessor(size={"shortest_edge": least, "longest_edge": 8 * most}, fps=2.0, do_sample_frames=True)
    return Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE)


def trl_row(conversation):
    """A conversation as a row of TRL's data sets: each content a list, and the images beside the messages."""
    messages, images = [], []
    for message in conversation:
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images += [str(item["image"]) for item in items if item["type"] == "image"]
        kept = [{"type": "image"} if i["type"] == "image" else {**i, i["type"]: str(i[i["type"]])} for i in items]
        messages.append({"role": message["role"], "content": kept})
    return {"messages": messages, "images": images}


if __name__ == "__main__":
    processor = load_processor(arguments(__doc__).parse_args())
    row = trl_row(CONVERSATIONS[0])
    text = processor.apply_chat_template(row["messages"])
    inputs = processor(text=[text], images=[Image.open(path) for path in row["images"]], return_tensors="pt")
    print(f"{type(processor).__name__}: {', '.join(inputs)}, {list(inputs['input_ids'].shape)} tokens")
