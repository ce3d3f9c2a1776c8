"""Distillation: knowledge distillation, feature alignment, sample difficulty promotion."""
