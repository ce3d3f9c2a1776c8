"""Providers of pretrained networks: one module each, with a function ``load``."""
