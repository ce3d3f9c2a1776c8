"""The Python interface: as much as the command line does, in one function and what it returns.

The package itself hands them out, each with no more than it needs: what is loaded and predicts
needs no Lightning, which takes most of the time that ``quantize`` takes to be imported.
"""
