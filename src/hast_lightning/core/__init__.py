"""The six nouns (network, batch, source, term, transform, stage), and what makes a class a part."""

from hast_lightning.core.batch import Answers, Batch, Needs, Progress, Seen, Trace
from hast_lightning.core.network import Network, PretrainedNetwork
from hast_lightning.core.part import Part, part, part_class, parts
from hast_lightning.core.source import Site, Source, TrainedSource
from hast_lightning.core.stage import Bench, Hook, Outcome, Stage, Stepper
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform

__all__ = [
    "Answers",
    "Batch",
    "Bench",
    "Hook",
    "Needs",
    "Network",
    "Outcome",
    "Part",
    "PretrainedNetwork",
    "Progress",
    "Seen",
    "Site",
    "Source",
    "Stage",
    "Stepper",
    "Term",
    "Trace",
    "TrainedSource",
    "Transform",
    "part",
    "part_class",
    "parts",
]
