"""Zero-shot quantization experiments: hard-sample synthesis and low-bit distillation."""

__version__ = "0.1.0"
