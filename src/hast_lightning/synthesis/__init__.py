"""Where the training images come from: sample sources, objectives and transforms."""

from hast_lightning.synthesis.generator import ConditionalGenerator
from hast_lightning.synthesis.image_bank import ImageBank
from hast_lightning.synthesis.objectives import SynthesisObjective
from hast_lightning.synthesis.own_images import OwnImages
from hast_lightning.synthesis.source import SampleSource
from hast_lightning.synthesis.transforms import Augmentation

__all__ = [
    "Augmentation",
    "ConditionalGenerator",
    "ImageBank",
    "OwnImages",
    "SampleSource",
    "SynthesisObjective",
]
