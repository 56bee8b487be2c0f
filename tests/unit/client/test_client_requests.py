"""What is refused before anything is sent: the field at fault is named, whether a service is there or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from guidehall.client import Client, Curve, Submission, Sweep
from guidehall.client.errors import InvalidArgument

JOB = "0a1b2c3d-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda client: client.submit("p", priority="urgent"), "priority"),
        (lambda client: client.submit("p", timeout="soon"), "timeout"),
        (lambda client: client.submit("p", timeout=-1), "timeout"),
        (lambda client: client.submit("p", notify=["lab.example"]), "notify"),
        (lambda client: client.submit("p", notify=["ftp://lab@example"]), "notify"),
        (lambda client: client.submit_many(), "submissions"),
        (lambda client: client.submit_many([Submission("p", {"x": object()})]), "submissions[0].params.x"),
        (lambda client: client.submit_many(sweep=Sweep(Submission("p"), {"x": [2**60]})), "sweep.axes.x[0]"),
        (
            lambda client: client.submit_many(sweep=Sweep(Submission("p", notify=["x"]), {})),
            "sweep.template.notify",
        ),
        (lambda client: client.retry(JOB, {"x": float("nan")}), "changes.x"),
        (lambda client: client.retry(JOB, timeout="1y"), "timeout"),
        (lambda client: client.update(JOB), "update"),
        (lambda client: client.update(JOB, priority="urgent"), "priority"),
        (lambda client: client.pause("no job"), "job"),
        (lambda client: client.pool("a b"), "pool"),
        (lambda client: client.drain("w"), "worker"),
        (lambda client: client.drain("projects/default/jobs/a"), "worker"),
        (lambda client: client.revoke_worker_credential("?"), "credential"),
        (lambda client: client.create_worker_credential("cpu", ttl="ever"), "ttl"),
        # Indices of points, which are no mask.
        (lambda client: client.analyze(Curve(np.ones(2), np.ones(2), mask=np.array([0, 1]))), "curve.mask"),
    ],
)
def test_a_wrong_value_is_refused_by_name(ask: Callable[[Client], Any], field: str) -> None:
    with Client("trainer=127.0.0.1:1") as client, pytest.raises(InvalidArgument) as caught:
        ask(client)

    assert [violation.field for violation in caught.value.violations] == [field]
