"""Fake quantization: settings, ranges, rounding, placement, quantized layers, conversion."""
