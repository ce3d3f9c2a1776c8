"""Terms that several methods share: weighted, differentiable losses."""
