"""UsageService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

from typing import Any

from guidehall.contracts.usage.v1 import usage_pb2, usage_pb2_grpc
from guidehall.core import names
from guidehall.core.access import require_visible
from guidehall.core.auth import current_principal
from services.storage.usage import Quota

USAGE_SERVICE = "guidehall.usage.v1.UsageService"


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Decode, call, encode."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota

    async def GetUsage(self, request: usage_pb2.GetUsageRequest, context: Any) -> usage_pb2.Usage:
        principal = current_principal()
        owner = names.USER.parse(request.user, "user")["user"] if request.user else principal.subject
        name = names.USER.format(user=owner)
        require_visible(principal, owner, name)
        usage = await self._quota.usage(owner)
        return usage_pb2.Usage(
            user=name,
            dataset_bytes=usage.dataset_bytes,
            model_bytes=usage.model_bytes,
            artifact_bytes=usage.artifact_bytes,
            log_bytes=usage.log_bytes,
            total_bytes=usage.total_bytes,
            allowed_bytes=self._quota.allowed_bytes,
        )
