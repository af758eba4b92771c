"""What can go wrong, as one tree.

A value that a caller chose wrongly is a plain ``ValueError`` that names the value, the rule and the
remedy. What goes wrong at run time is one of these::

    IsothermError
    ├── LinkError            the group through which ranks talk is broken
    ├── MissingExtraError    an optional dependency is not installed (also an ImportError)
    ├── PeerFailedError      something of Isotherm raised on another rank
    ├── PeerMismatchError    a rank was started with another configuration than its peers
    ├── PlanRefusedError     a policy returned a plan that breaks an invariant
    ├── ProtocolError        ranks no longer make the same rounds, or a digest does not match
    └── StreamError          work enqueued on a stream raised
"""


class IsothermError(Exception):
    """Base of everything that Isotherm raises at run time."""


class LinkError(IsothermError):
    """The group through which ranks talk is broken: a rank died, left, or was silent for longer than the
    group's time-out. Chained to what torch.distributed raised."""


class MissingExtraError(IsothermError, ImportError):
    """An optional dependency is missing. The message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed, and this needs it: pip install 'isotherm[{extra}]'")


class PeerFailedError(IsothermError):
    """Something of Isotherm raised on another rank, and rests on all for a while. The message names it."""


class PeerMismatchError(IsothermError):
    """A rank was started with another configuration than its peers."""


class PlanRefusedError(IsothermError):
    """A policy returned a plan that breaks an invariant. The message names layer and rule."""


class ProtocolError(IsothermError):
    """The ranks no longer make the same rounds, or a plan arrived with another digest."""


class StreamError(IsothermError):
    """Work enqueued on a stream raised; the stream runs nothing more."""
