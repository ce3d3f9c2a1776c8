"""One file a method, for what only that method has; nothing imports these files."""
