"""The small model reads a picture of handwritten digits, which it was not trained on.

python samples/ask_image.py [--device cpu]
"""

import argparse
from pathlib import Path

from mmrope.vlm.assistant import Assistant, Chat

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="auto")
assistant = Assistant.from_pretrained(device=parser.parse_args().device)
samples = Path(__file__).parent

# A conversation about a picture: it comes before the first question, and every question may refer to it.
chat = Chat(assistant, [{"type": "image", "image": samples / "grid.png"}])
for question in ("What is at row 2, column 3?", "Read row 3.", "Where is the 5?", "How many 8s are there?", "Read all."):
    print(f"{question:30}", end="", flush=True)
    for piece in chat.stream(question):  # as it is written
        print(piece, end="", flush=True)
    print()

# Many questions at once are a batch: one row each, of any lengths and numbers of images.
grid, strip = ({"type": "image", "image": samples / name} for name in ("grid.png", "strip.png"))
conversations = [
    [{"role": "user", "content": [strip, {"type": "text", "text": "Read all."}]}],
    [{"role": "user", "content": [grid, strip, {"type": "text", "text": "What is at row 1, column 3 of image 2?"}]}],
    [{"role": "user", "content": "What is 27 + 48?"}],
]
print(assistant.answer(conversations))
