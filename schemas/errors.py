"""Errors of the contracts, and the root of Tidegate's error tree.

TidegateError               every error of ours; `exit_code` is what the command line ends with
├── UserError               the user can mend it: one line, exit 2
│   └── (pipelines.errors)  ConfigError, BrokerError, AccessError, ModelError, SourceError
├── Fenced                  a transactional id was taken away; start again, if our claim is still the last
    │   └── TakenOver           it is not: another process goes on with this one's work
└── RecordError             a record that cannot be taken as it is
    ├── ForeignRecord       not one of ours: quarantined and counted, no item
    └── UnknownVersion      ours, but newer: its items are accounted for and dead-lettered
"""

__all__ = ["Fenced", "ForeignRecord", "RecordError", "TakenOver", "TidegateError", "UnknownVersion", "UserError"]


class TidegateError(Exception):
    """Every error of ours. `remedy` says what to do; the two are printed as one line."""

    exit_code = 1

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class UserError(TidegateError):
    """Something the user gave is wrong and can be mended by them. The command line prints one line and exits 2."""

    exit_code = 2


class Fenced(TidegateError):
    """A transactional id was taken away, or a transaction given up. Exit 5: a supervisor waits a while."""

    exit_code = 5


class TakenOver(Fenced):
    """What is stored shows it: another process has claimed the id since."""


class RecordError(TidegateError):
    """A record that cannot be taken as it is."""


class ForeignRecord(RecordError):
    """A record without our header, or with bytes that are not ours. It is quarantined; it has no item."""


class UnknownVersion(RecordError):
    """A record of a later version. `account` holds what never changes meaning, enough to dead-letter its items."""

    def __init__(self, problem: str, account: "tuple[int, str, int, int, int]") -> None:
        super().__init__(problem)
        self.account = account
