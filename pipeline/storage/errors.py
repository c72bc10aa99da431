"""The exceptions by which a storage says that another process was there first."""


class AlreadyExists(Exception):
    """`Storage.create` found the name taken; the file there is unchanged."""


class Changed(Exception):
    """`Storage.replace` found another version than the expected one; nothing was written."""


class Busy(Exception):
    """Another process holds the lock. Names the lock, and in an object store its holder.

    Attributes:
        hint: the end of a sentence to the user: what to do if the lock has outlived its holder.
    """

    @property
    def hint(self) -> str:
        return f"; if none is, delete {self}" if "://" in str(self) else ""
