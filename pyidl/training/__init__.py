"""Training: `fit`, its history, and its callbacks."""

from pyidl.training.callbacks import Checkpoint, EarlyStopping
from pyidl.training.fit import fit
from pyidl.training.ridge import ridge
from pyidl.training.run import History, Run

__all__ = ["Checkpoint", "EarlyStopping", "History", "Run", "fit", "ridge"]
