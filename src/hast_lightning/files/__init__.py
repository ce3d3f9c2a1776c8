"""Reading files that somebody else may have made: archives, pictures, tensors."""
