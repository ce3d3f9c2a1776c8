"""What a run leaves in its folder: result, failure, versions, tables."""
