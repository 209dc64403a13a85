"""What can go wrong for a user: one tree of exceptions, each message with its remedy.

CnnSearchError        a user's mistake or the world's; one line on stderr, exit code 2
├── DataError         images or labels cannot be had, or are not what they should be
├── DefinitionError   a sweep's TOML file, an option or a hyperparameter is wrong
├── EngineError       workers or their scheduler cannot be reached, or cannot do what is asked
├── LedgerError       the record of a sweep is damaged, in use, or of another sweep
├── ModelError        a model's file cannot be opened, written in another format, or served
└── TrackingError     MLflow cannot be reached or written, or holds no such model

A message says where, what was expected, what was received, and what to do.
"""


class CnnSearchError(Exception):
    """Ends a command with one line on stderr and exit code 2."""


class DataError(CnnSearchError):
    """Images or labels cannot be had, or are not what they should be."""


class DefinitionError(CnnSearchError):
    """A sweep's TOML file, an option or a hyperparameter is wrong."""


class EngineError(CnnSearchError):
    """Workers or their scheduler cannot be reached, or cannot do what is asked."""


class LedgerError(CnnSearchError):
    """The record of a sweep is damaged, in use, or belongs to another sweep."""


class ModelError(CnnSearchError):
    """A model's file cannot be opened, written in another format, or served."""


class TrackingError(CnnSearchError):
    """MLflow cannot be reached or written, or holds no such model."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a foreign error says, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
