"""The files of mmrope's small model, which reads digits in pictures and films. Its card, README.md, says how well.

mmrope ask grid.png "What is at row 2, column 3?"
"""

from pathlib import Path

__version__ = "0.1.0"

FOLDER = Path(__file__).parent
