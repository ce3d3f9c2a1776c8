"""What changes a batch before a network sees it."""
