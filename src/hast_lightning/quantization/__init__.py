"""Fake quantization: specification, rounding, ranges, quantized layers, conversion."""
