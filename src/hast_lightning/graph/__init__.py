"""A network as its graph: tracing, operations, blocks."""
