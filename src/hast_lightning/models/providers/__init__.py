"""Where pretrained networks come from: one module a provider, each with a ``load``."""
