"""Training: `fit`, its history, and its callbacks; `readout` in closed form."""

from pyidl.training.callbacks import Checkpoint, EarlyStopping
from pyidl.training.fit import fit
from pyidl.training.readout import ReadOut, readout
from pyidl.training.ridge import ridge
from pyidl.training.run import History, Run

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "History",
    "ReadOut",
    "Run",
    "fit",
    "readout",
    "ridge",
]
