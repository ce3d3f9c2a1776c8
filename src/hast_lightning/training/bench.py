"""What stages work at before anything is trained: networks, sources, and the stages themselves.

Nothing here needs Lightning, so a run can be looked at without it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from hast_lightning.config import Config
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Source
from hast_lightning.core.stage import Bench, Stage
from hast_lightning.graph.network import Learner
from hast_lightning.models.ensemble import teacher_of
from hast_lightning.quantization.convert import student_of
from hast_lightning.quantization.equalization import equalized
from hast_lightning.training.agenda import Agenda


class PreparedBench(nn.Module):
    """Student, teacher, sources and bound stages of a run, and the agenda that follows from them.

    Args:
        config: A checked configuration.
        pretrained: The full-precision network; it becomes the teacher, with those that teach
            together with it, and the student is made of it.
        sources: Where batches come from, by name, built.

    Attributes:
        sources: By name.
        stages: Those that run, by name and in their order; copies, bound to the networks.
        ranges_frozen: The student is calibrated, or has nothing to calibrate.
        float_student: It is a new network in floating point.

    Raises:
        UserError: the network cannot be quantized, or parts do not fit together.
    """

    def __init__(
        self, config: Config, pretrained: PretrainedNetwork, sources: Mapping[str, Source]
    ) -> None:
        super().__init__()
        self.config, self.teacher_checksum = config, pretrained.teaching_checksum
        if config.quantizer.equalize:
            # Of both networks, so that their inner values can be compared.
            pretrained = equalized(pretrained, per_tensor=config.quantizer.per_tensor)
        self.float_student = config.quantizer.floating
        self.student = student_of(pretrained.network, config.quantizer, config.seed)
        self.learner = Learner(self.student, pretrained)
        self.teacher = teacher_of(pretrained)
        self.micro_batch = config.trainer.micro_batch
        self.halve_on_out_of_memory = config.trainer.halve_on_out_of_memory
        self.sources = dict(sources)
        self.stages: dict[str, Stage] = copy.deepcopy(config.ordered)
        self._bind()
        # Under names of their own: one called "train" must not take the place of a method.
        for kind, named in (("source", self.sources), ("stage", self.stages)):
            for name, each in named.items():
                self.add_module(f"{kind}_{name}", each)
        self.agenda = Agenda.of(self.stages, self.bench)
        if config.trainer.channels_last:
            self.student.to(memory_format=torch.channels_last)
            self.teacher.to(memory_format=torch.channels_last)
        if config.trainer.compile:
            self.teacher.compile_passes()
            self.learner.passes.compiled = True
        self.ranges_frozen = self.float_student

    def _bind(self) -> None:
        """Bind the stages in their order."""
        self.ranges_frozen = self.float_student
        for name, stage in self.stages.items():
            stage.place(name, f"stages.{name}")
            stage.bind(self.bench)
            self.ranges_frozen |= stage.calibrates

    @property
    def bench(self) -> Bench:
        """Return the module as stages see it."""
        return cast("Bench", self)
