"""Files that a run leaves in its folder: result, failure, versions; and tables."""
