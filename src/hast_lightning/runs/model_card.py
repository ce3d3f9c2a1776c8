"""The model card: what a quantized network is, from what it was made, and what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hast_lightning.core.bits import FLOAT_BITS, Widths
from hast_lightning.core.front_end import FrontEnd
from hast_lightning.core.network import DIFFUSION, PICTURES, TOKENS
from hast_lightning.export.description import Description
from hast_lightning.records.result import EVALUATION, Result
from hast_lightning.records.results_table import readable_size

CARD_FILE = "MODEL_CARD.md"


def model_card(description: Description, result: Result | None, license_name: str | None) -> str:
    """Return the text of a model card in Markdown, whose head is what model hubs read.

    Args:
        description: Of the quantized network.
        result: Of the run that made it; none: a card without numbers.
        license_name: Of the full-precision weights; none: unknown.
    """
    bits = bits_of(description.quantizer)
    name = f"{description.network} {bits}"
    made = (
        f"The network {description.network}, quantized without any of the data it was trained on."
    )
    if bits == str(Widths(FLOAT_BITS, FLOAT_BITS)):
        made = f"A new network like {description.network}, trained in floating point without data."
    head = ["---", "library_name: hast-lightning", "tags: [quantization, zero-shot-quantization]"]
    head += [f"license: {license_name}"] if license_name else []
    lines = [*head, "---", "", f"# {name}", ""]
    lines += [
        made,
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {what} | {value} |" for what, value in _facts(description, result, license_name)),
        "",
        "## How it was made",
        "",
        *_how(description, result),
        "",
        "## Limits",
        "",
        *_limits(description, result),
        "",
    ]
    return "\n".join(lines)


def bits_of(quantizer: Mapping[str, Any]) -> str:
    """Return the bits in words: ``W4A8``, and that they are mixed where layers differ."""
    # A description is what a file says of itself: it may say nothing.
    usual = Widths(*(quantizer.get(f"{of}_bits", FLOAT_BITS) for of in ("weight", "activation")))
    ends = quantizer.get("first_and_last_8bit") and usual.unlike_8
    mixed = quantizer.get("overrides") or ends
    return f"{usual}, mixed" if mixed else str(usual)


def _facts(
    description: Description, result: Result | None, license_name: str | None
) -> Iterator[tuple[str, str]]:
    mean, std = (_numbers(values) for values in (description.mean, description.std))
    shape = " x ".join(map(str, description.input_shape))
    if description.modality == DIFFUSION:
        yield "Input", f"{shape}: noisy pictures as they are, the timestep as last channel"
        yield "Output", "the noise in the pictures"
    else:
        of = "pixels in [0, 1]" if description.modality == PICTURES else "features as they are"
        values = f"mean {mean}, standard deviation {std} of {of}"
        if description.modality == TOKENS:
            values = f"ids of tokens, 0 to {description.num_classes - 1}"
        yield "Input", f"{shape}, {values}"
        if description.front_end is not None:
            yield "Made of", _heard(description.front_end)
        if description.outputs is None:
            yield "Output", f"{description.num_classes} classes, {description.output}"
        else:
            yield "Outputs", description.outputs.in_words
    yield "Bits of weights and activations", bits_of(description.quantizer)
    yield "Full-precision weights", f"SHA-256 {description.teacher_checksum[:16]}..."
    yield "License of the weights", license_name or "not given: ask whoever trained them"
    if result is None:
        return
    smaller = result.teacher_bytes / max(result.quantized_bytes, 1)
    yield "Size", f"{readable_size(result.quantized_bytes)}, {smaller:.1f} times smaller"
    if result.kept_top1 is not None:
        full = f"; full precision {result.teacher_top1:.2f} %"
        if description.modality == TOKENS:
            what = f"next tokens in {result.evaluated_images:,} texts"
        else:
            what = f"{result.evaluated_images:,} images"
        yield "Top-1 accuracy", f"{result.kept_top1:.2f} % of {what}{full}"
    if result.kept_perplexity is not None:
        full = f"; full precision {result.teacher_perplexity:.3f}"
        texts = f" on {result.evaluated_images:,} texts"
        yield "Perplexity", f"{result.kept_perplexity:.3f}{texts}{full}"
    if result.output_error is not None:
        of = "each to its own" if result.output_errors else "to their"
        yield (
            f"Squared error of the outputs, relative {of} spread",
            f"{_kept_error(result):.3g} on {result.evaluated_images:,} {result.agreement_on}",
        )
        return
    agreement = result.teacher_agreement if result.kept_agreement is None else result.kept_agreement
    yield (
        "Agreement with the full-precision network",
        f"{agreement:.2f} % of {result.evaluated_images:,} {result.agreement_on}",
    )


def _kept_error(result: Result) -> float | None:
    """Return the error of the student that is handed back."""
    kept = result.judged.get(str(result.kept_stage), {}).get(EVALUATION, {})
    return kept.get("error", result.output_error)


def _heard(front_end: FrontEnd) -> str:
    """Return in words how features are made of a recording."""
    return (
        f"{front_end.seconds:g} s at {front_end.sample_rate} Hz: windows of "
        f"{front_end.window_ms:g} ms every {front_end.stride_ms:g} ms, {front_end.mel_bands} mel "
        f"bands of {front_end.lowest_hz:g} to {front_end.highest_hz:g} Hz, "
        f"{front_end.coefficients} MFCC"
    )


def _how(description: Description, result: Result | None) -> Iterator[str]:
    if result is None:
        version = description.product_version
        yield f"With the recipe {description.recipe} of hast-lightning {version}."
        return
    stages = ", ".join(f"{stage} ({steps:,})" for stage, steps in result.steps_by_stage.items())
    yield f"- Method: {result.method or description.recipe}"
    yield f"- Budget: {result.budget or 'of its own'}; seed {result.seed}"
    yield f"- Stages and their steps: {stages}"
    yield f"- Handed back: the network after the stage {result.kept_stage or 'that came last'}"
    yield ""
    yield "This makes it again:"
    yield from ("", "```sh", result.command, "```")


def _limits(description: Description, result: Result | None) -> Iterator[str]:
    if description.outputs is not None:
        yield "- The error was measured on images of the result's, and not on real ones."
        yield "- How good what is made of the outputs is, such as boxes, was not measured."
        return
    if result is not None and result.output_error is not None:
        yield "- The error was measured on points of the full-precision network's own sampling."
        yield "- How good samples look was not measured."
        return
    texts = description.modality == TOKENS
    what = "texts" if texts else "images"
    if result is None or result.kept_top1 is None:
        labeled = "texts of the user's" if texts else "labeled images"
        yield f"- Accuracy was not measured: no {labeled} were at hand."
        if result is not None and "synthetic" in result.agreement_on:
            yield f"- The agreement was measured on synthetic {what}; on real ones it may be lower."
    else:
        yield f"- The accuracy is of the {what} named above, and of no others."
    yield "- What the full-precision network gets wrong, this one gets wrong, too."
    if texts:
        yield "- It takes texts of that many tokens, no longer ones; nothing else was tried."
    else:
        yield "- It classifies images that are prepared as the table says; nothing else was tried."


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
