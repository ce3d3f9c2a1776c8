"""PretrainedNetwork networks: where they come from, their graphs, and the frozen teacher."""
