"""Who may be granted leave to act in spite of a block: `health.configure(grants=two_persons)`.

A policy is a function of a `GrantRequest` that gives `None` when the grant may be made, or else why not; what
it raises denies as well. The default is `anyone`: whoever gives a name and a reason.
"""

from ._runtime.grants import GrantDeniedError, GrantPolicy, GrantRequest, anyone, nobody, two_persons

__all__ = ["GrantDeniedError", "GrantPolicy", "GrantRequest", "anyone", "nobody", "two_persons"]
