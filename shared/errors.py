"""The errors that cross a module's border. An exception's docstring is its message for people."""

from __future__ import annotations


class GenfleetError(Exception):
    """Something went wrong in genfleet."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class BusError(GenfleetError):
    """The message bus refused or failed."""


class BusUnavailable(BusError):
    """The message bus did not answer in time: whether the write happened is unknown."""


class NotPermitted(BusUnavailable):
    """The broker does not allow that to these credentials: nothing was written or asked."""


class KeyExists(BusError):
    """The key has been written before (a deletion marker counts)."""


class WrongRevision(BusError):
    """Someone else wrote the key since it was read."""


class BucketFull(BusError):
    """The bucket is at its limit."""


class ValueTooLarge(BusError):
    """The value is larger than its bucket takes."""


class InvalidKey(BusError):
    """A key or subject has characters or a length that the bus does not carry."""


class NoResponders(BusError):
    """Nobody listens on that subject."""


class TopologyError(BusError):
    """A stream or bucket exists with settings other than the ones genfleet needs."""


class ArtifactError(GenfleetError):
    """The artifact store failed."""


class ArtifactNotFound(ArtifactError):
    """No such artifact."""


class ArtifactRefused(ArtifactError):
    """The artifact store, or who stands before it, says no: asking once more does not help."""


class SettingsError(GenfleetError):
    """A setting is unknown or has a value that is not allowed."""


class InvalidRequest(GenfleetError):
    """The request cannot be served as it is.

    Attributes:
        field: dotted path of the field at fault (``""`` for the whole request).
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field
