"""Names of this package: see extras.py."""

from mmrope.view.encodings import (
    plot_alibi as plot_alibi,
)
from mmrope.view.encodings import (
    plot_decay as plot_decay,
)
from mmrope.view.encodings import (
    plot_frequencies as plot_frequencies,
)
from mmrope.view.encodings import (
    plot_scalings as plot_scalings,
)
from mmrope.view.figure import save as save
from mmrope.view.ids import plot_ids as plot_ids
from mmrope.view.ids import plot_rules as plot_rules
from mmrope.view.model import plot_looks as plot_looks
from mmrope.view.model import plot_training as plot_training
