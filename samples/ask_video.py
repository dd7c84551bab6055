"""The small model watches a film of handwritten digits, of a variable frame rate, and answers when and what.

python samples/ask_video.py [--device cpu]
"""

import argparse
from pathlib import Path

import mmrope
from mmrope.vlm.assistant import Assistant

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="auto")
assistant = Assistant.from_pretrained(device=parser.parse_args().device)
path = Path(__file__).parent / "digits.mp4"

# The file's frames are shown at uneven times. The model looks twice a second, and a look's time is its t id.
video = mmrope.preprocess.open_video(path)
print("frames at", *(f"{t:.2f}" for t in video.seconds))
film = {"type": "video", "video": path}
parts = assistant.processor.conversation([{"role": "user", "content": [film]}])
positions = mmrope.position_ids([part.segment for part in parts], assistant.processor.family)
print(mmrope.explain(positions))

for question in ("List the digits.", "What is shown at 2.0 s?", "When does the 5 appear?", "Which digit comes after the 5?"):
    print(f"{question:34}", assistant.answer([{"role": "user", "content": [film, {"type": "text", "text": question}]}]))
