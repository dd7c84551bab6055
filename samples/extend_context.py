"""A document that is longer than the training length: a small model goes on writing it, as it was trained and with YaRN.

Trains a byte-level model with RoPE on windows of 128 bytes of the Python standard library, half a minute on a CPU, and gives it
432 bytes of a file that it never saw, to be 512 with what it writes. A released model is extended by the same line:
`spec_of(model).scaled(YaRN(...))`.

python samples/extend_context.py [--device cpu] [--steps 400]
"""

import argparse

import torch

from mmrope import RotarySpec, YaRN
from mmrope.lab import length
from mmrope.lab.encodings import Rotary
from mmrope.lab.harness import Cell
from mmrope.lab.text import source, windows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", default="cpu")
parser.add_argument("--steps", type=int, default=400)
options = parser.parse_args()

cell = Cell(settings={**length.EXPERIMENT.full, "steps": options.steps}, device=options.device, say=print)
trained, long, more = cell.length, 4 * cell.length, 80  # bytes: of the training, of the document in the end, written
torch.manual_seed(0)
model = length.make("rope", cell)
length.trained(model, 0, cell, steps=cell.steps, length=trained, batch=cell.batch)

document = windows(source(test=True), torch.tensor([30_000]), long).to(options.device)  # [1, 512]
print("\nThe document ends with:", bytes(document[0, more - trained :].tolist()).decode(errors="replace"), sep="\n")

plain = RotarySpec.rope(cell.hidden // cell.heads)  # what the model was trained with
extended = plain.scaled(YaRN(factor=long / trained, original_max_position=trained))
for name, spec, read in (
    ("As it was trained", plain, trained),
    ("As it was trained", plain, long),
    ("With YaRN", extended, long),
):
    model.encoding = Rotary(spec).to(options.device)
    _, perplexity = length.perplexities(model, read, cell)
    written = bytes(model.write(document[:, more - read :], more)[0].tolist()).decode(errors="replace")
    print(
        f"\n{name}, {read} bytes in all (perplexity of the last 64 in such windows {perplexity:.1f}), it goes on:",
        written,
        sep="\n",
    )
