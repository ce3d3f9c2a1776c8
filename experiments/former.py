"""Words of what methods made their results with, where they do something else today."""

IMAGES = (
    "source@sources.bank=image_bank_of_schedule",
    "stages.synthesis.terms.bns.relative=false",
    "stages.synthesis.terms.hard_cross_entropy.weight=10",
)
"""The images that ``without_training``, ``reconstruct`` and ``mixed_bits`` had: those of HAST."""
