"""What can go wrong."""


class SkipbenchError(Exception):
    """A folder that holds no run, an experiment that the binary refuses, a binary or a library that is not there."""
