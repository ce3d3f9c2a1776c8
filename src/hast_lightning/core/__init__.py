"""The six nouns (network, batch, source, term, transform, stage), and what makes a class a part."""
