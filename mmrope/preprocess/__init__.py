"""Files and words in, model inputs with position IDs out.

messages.py   a conversation, checked            text.py        its words as tokens
access.py     what may be opened                 errors.py      what is too large, and how it is said
image.py      any image file to pixels           patches.py     pixels to patches
animation.py  GIF, WebP, PNG and AVIF as films    formats.py     which images are opened, and why
video.py      a film: times, then frames         probe.py       its clock, from packets     readers.py   its frames
processor.py  all of it, for a model             pretrained.py  a checkpoint's settings
isolation.py, isolation_worker.py                bulk work in processes that can be killed
"""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
