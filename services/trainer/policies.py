"""Who may call what. What a caller then sees is decided job by job: see guidehall.core.access."""

from __future__ import annotations

from guidehall.core.auth import Policy, Role
from services.trainer.control import WISHES
from services.trainer.servicers import jobs, pools, workers

_ASK = Policy(kinds=frozenset({"user", "guest", "service"}))
_WORK = Policy(kinds=frozenset({"user", "guest", "service"}), min_role=Role.SCIENTIST)
_OPERATE = Policy(kinds=frozenset({"user", "service"}), min_role=Role.OPERATOR)
# A guest cannot own anything.
_CLAIM = Policy(kinds=frozenset({"user", "service"}), min_role=Role.SCIENTIST)
_CHANGES = (
    "SubmitJob",
    "BatchSubmitJobs",
    "RetryJob",
    "UpdateJob",
    "ShareJob",
    "DeleteJob",
    "PurgeJobs",
    *WISHES,
)

POLICIES = {
    f"/{jobs.FULL_NAME}/*": _ASK,
    **{f"/{jobs.FULL_NAME}/{method}": _WORK for method in _CHANGES},
    f"/{jobs.FULL_NAME}/ClaimJob": _CLAIM,
    f"/{workers.FULL_NAME}/*": Policy(kinds=frozenset({"worker"})),
    f"/{pools.FULL_NAME}/*": _OPERATE,
    f"/{pools.FULL_NAME}/ListPools": _ASK,
    f"/{pools.FULL_NAME}/GetPool": _ASK,
}
