"""Every error that CultureManager raises on purpose.

    CultureManagerError
    ├── ConfigError            a project, task or culture file is wrong
    │   └── UnknownCultureError
    ├── StorageError
    │   ├── IncompleteStageError   a stage has not run, or did not finish
    │   └── CorruptFileError       a file does not have the SHA-256 its manifest names
    ├── ProviderError          something outside failed
    │   ├── SearchError
    │   ├── FetchError
    │   ├── LanguageModelError
    │   │   └── UnusableAnswerError    one call's answer is no use; the endpoint itself works
    │   └── EmbeddingError
    ├── SynthesisError         nothing usable was found or written for a culture
    │   └── NothingFoundError      nor for any other
    ├── ModelError             a base model cannot be used
    │   └── UnknownModelError      the hub has none of that name, or does not show it
    ├── AdapterError           an adapter is missing, damaged or made for another base
    ├── TrainingError
    ├── RequestError           a request to the model that cannot be answered as it was asked
    └── ServingError           a port in use, an application that does not start
        └── OverloadedError    no room for one more request now

A message names the value, what was expected, and the next step. The command line prints it
in one line, without a traceback, and exits with `exit_code`: 2 where the command or a file of
the user's has to be corrected, 3 where some cultures were left without rows, 1 for all else.
"""


class CultureManagerError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class ConfigError(CultureManagerError):
    """A project, task or culture file is wrong."""

    exit_code = 2


class UnknownCultureError(ConfigError):
    """A culture id that neither the catalogue nor the project defines."""


class StorageError(CultureManagerError):
    """Reading or writing the workspace failed."""


class IncompleteStageError(StorageError):
    """A stage has not run, or did not finish."""


class CorruptFileError(StorageError):
    """A file does not have the SHA-256 that its manifest names."""


class ProviderError(CultureManagerError):
    """Something outside failed: a search engine, a page, a language model."""


class SearchError(ProviderError):
    """A search provider could not answer."""


class FetchError(ProviderError):
    """A page could not be fetched; `reason` is a short word for counting."""

    def __init__(self, message: str, reason: str = "failed") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):  # keeps `reason` when Ray carries the error between processes
        return (type(self), (self.args[0], self.reason))


class LanguageModelError(ProviderError):
    """A language model endpoint could not answer, or answered nonsense."""


class UnusableAnswerError(LanguageModelError):
    """One call's answer stayed unusable after asking again; the endpoint itself works."""


class EmbeddingError(ProviderError):
    """An embedding model could not be loaded or used."""


class SynthesisError(CultureManagerError):
    """Nothing usable was found or written for a culture."""

    exit_code = 3


class NothingFoundError(SynthesisError):
    """Nothing usable was found or written for any culture."""

    exit_code = 1


class ModelError(CultureManagerError):
    """A base model cannot be used."""


class UnknownModelError(ModelError):
    """The hub has no model of that name, or does not show it to us."""

    exit_code = 2


class AdapterError(CultureManagerError):
    """An adapter is missing, damaged, or made for another base model."""


class OtherBaseError(AdapterError):
    """An adapter was made for another base model."""


class TrainingError(CultureManagerError):
    """Training could not start or go on."""


class RequestError(CultureManagerError):
    """A request to the model that cannot be answered as it was asked: too long, empty, a setting out of range."""

    exit_code = 2


class ServingError(CultureManagerError):
    """The served application could not start or answer."""


class OverloadedError(ServingError):
    """There is no room for one more request now; the same request may go well in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self):  # keeps `retry_after_s` when Ray carries the error between processes
        return (type(self), (self.args[0], self.retry_after_s))
