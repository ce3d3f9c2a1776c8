"""What happens beside training: progress, timing and checkpoints.

Hand them to the Trainer in this order: the checkpoint last, so that it holds what the
others have counted in the same step.
"""

from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from hast_lightning.training.callbacks.progress import StageProgressBar
from hast_lightning.training.callbacks.timing import StageTimer

__all__ = ["LastCheckpoint", "StageProgressBar", "StageTimer"]
