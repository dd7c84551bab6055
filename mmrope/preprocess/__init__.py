"""Files and words in, model inputs with position IDs out.

messages.py   a conversation, checked              chat.py        as a chat template writes it    text.py      its tokens
template.py   untrusted chat templates: a sandbox, and what a rendering may take
access.py     what may be opened                   errors.py      what is too large, and how it is said
image.py      any image file to pixels             formats.py     which images are opened         jpeg.py      JPEG, faster
video.py      a video: times, then frames          probe.py       its clock, from packets         readers.py   its frames
animation.py  GIF, WebP, PNG and AVIF as videos    ends.py        what a cut file lacks           hdr.py       its colours
sampling.py   which frames are sampled             patches.py     sizes, and pixels to patches
measure.py    images and videos to patches         parts.py       text and media as segments, with their tokens
processor.py  all of it, for a model               pretrained.py  a checkpoint's settings
batches.py    its outputs, packed for training
isolation.py, isolation_worker.py, isolation_data.py   bulk work in processes that can be killed, and what they send back
sandbox.py                                         what such a process can give up: a network, writing, other processes
"""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
