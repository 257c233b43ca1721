"""What the user is told when the work cannot be done."""


class InputError(Exception):
    """Something given to the pipeline is wrong: a file, a band, a number, a setting.

    The message names the file or key, what was expected, and what to do. The command line
    prints it as one line and ends with exit code 2, which the flows never retry.
    """


class ServiceError(Exception):
    """A service that is needed does not answer, or refuses. Worth repeating later."""


class StorageError(Exception):
    """A result could not be written: no space, no permission. Nothing half-written remains."""
