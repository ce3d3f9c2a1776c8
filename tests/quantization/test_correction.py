from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from hast_lightning.graph.tracing import trace
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.correction import correct_biases, reestimate_batch_norms
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    set_activation_mode,
)
from hast_lightning.quantization.settings import QuantizerConfig

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.norm2(self.second(x)))
        return self.head(x.mean((2, 3)))


def teacher() -> fx.GraphModule:
    torch.manual_seed(0)
    network = Network().train()
    for _ in range(20):
        network(IMAGES + 0.3)
    return trace(network.eval())


def student(bits: int, *, quantizes: bool = True) -> fx.GraphModule:
    made = convert(teacher(), QuantizerConfig(bits=bits))
    if quantizes:
        set_activation_mode(made, ActivationMode.OBSERVE)
        with torch.no_grad():
            made(IMAGES)
        freeze_ranges(made)
    return made


def test_a_student_that_does_not_quantize_stays_as_it_is_bit_for_bit() -> None:
    float_student = teacher()
    before = copy.deepcopy(float_student.state_dict())
    assert reestimate_batch_norms(float_student, teacher(), IMAGES) == 2
    assert correct_biases(float_student, teacher(), IMAGES) == 0  # it has no quantized layer
    for name, value in float_student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_statistics_move_by_what_quantizing_does_layer_by_layer() -> None:
    made, of_teacher = student(2), teacher()
    reestimate_batch_norms(made, of_teacher, IMAGES)
    with torch.no_grad():
        value_t = of_teacher.get_submodule("first")(IMAGES)
        value_s = made.get_submodule("first")(IMAGES)
    norm_t, norm_s = of_teacher.get_submodule("norm"), made.get_submodule("norm")
    difference = value_s.mean((0, 2, 3)) - value_t.mean((0, 2, 3))
    expected = norm_t.running_mean + difference  # type: ignore[operator]
    assert torch.allclose(norm_s.running_mean, expected, atol=1e-5)  # type: ignore[arg-type]
    ratio = value_s.var((0, 2, 3), correction=0) / value_t.var((0, 2, 3), correction=0)
    expected = norm_t.running_var * ratio  # type: ignore[operator]
    assert torch.allclose(norm_s.running_var, expected, rtol=1e-4)  # type: ignore[arg-type]


def moments_behind(network: fx.GraphModule, layer: str) -> tuple[Tensor, Tensor]:
    found = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *a: found.append(a[2]))
    with torch.no_grad():
        network(IMAGES)
    handle.remove()
    return found[0].mean((0, 2, 3)), found[0].var((0, 2, 3), correction=0)


def test_corrected_norms_put_out_the_teachers_moments_also_behind_corrected_layers() -> None:
    made, of_teacher = student(2), teacher()
    reestimate_batch_norms(made, of_teacher, IMAGES)
    for layer in ("norm", "norm2"):
        (mean_s, var_s), (mean_t, var_t) = (moments_behind(n, layer) for n in (made, of_teacher))
        assert torch.allclose(mean_s, mean_t, atol=0.02), layer
        assert torch.allclose(var_s, var_t, rtol=0.05), layer


def test_a_channel_that_does_not_vary_keeps_the_teachers_variance() -> None:
    of_teacher = teacher()
    with torch.no_grad():
        of_teacher.get_submodule("first").weight[0] = 0  # type: ignore[index,union-attr]
    made = convert(of_teacher, QuantizerConfig(bits=2))
    reestimate_batch_norms(made, of_teacher, IMAGES)
    norm = made.get_submodule("norm")
    assert bool(norm.running_var.isfinite().all())  # type: ignore[operator,union-attr]
    assert norm.running_var[0] == of_teacher.get_submodule("norm").running_var[0]  # type: ignore[index,union-attr]


def test_the_mean_error_of_a_layer_without_batch_norm_is_gone() -> None:
    made, of_teacher = student(2), teacher()
    assert correct_biases(made, of_teacher, IMAGES) == 1
    with torch.no_grad():
        error = (made(IMAGES) - of_teacher(IMAGES)).mean(0)
    assert float(error.abs().max()) < 1e-5
