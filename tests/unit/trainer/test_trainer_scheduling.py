"""Pools by configuration, the order of leases, quotas: the parts without a database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from guidehall.core.auth import Principal, Role
from guidehall.core.settings import SettingsError
from services.trainer.launcher import Launch, LaunchFailed, job_of, target, waiting_for
from services.trainer.pools import choose_pool, most_queued
from services.trainer.scheduler import Claim, Order
from services.trainer.settings import LauncherSettings, PoolSettings, TrainerSettings
from services.trainer.workers import Pool

_LEAST = {
    "GUIDEHALL_TRAINER__POSTGRES__DATABASE": "d",
    "GUIDEHALL_TRAINER__POSTGRES__USER": "u",
    "GUIDEHALL_TRAINER__STORAGE__TARGET": "storage:7102",
}
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def settings(pools: object) -> TrainerSettings:
    return TrainerSettings.load(_LEAST | {"GUIDEHALL_TRAINER__POOLS": json.dumps(pools)})


def test_a_pool_has_its_own_settings_or_those_of_all_others() -> None:
    found = settings(
        {
            "h200": {"default_timeout_seconds": "2h"},
            "big": {"device_class": "b200"},
            "*": {"max_running_per_owner": 3},
        }
    )
    assert found.default_timeout_seconds("h200") == 7200
    assert found.default_timeout_seconds("big") == found.jobs.default_timeout_seconds
    assert [found.device_class(name) for name in ("h200", "big", "cpu", "beamline")] == [
        "H200",
        "B200",
        "cpu",
        "",
    ]
    assert found.pool("beamline").max_running_per_owner == 3
    assert found.pool("big").max_running_per_owner == 0
    assert found.named_pools == ["big", "cpu", "h200"]
    assert settings({}).pool("cpu") == PoolSettings()


@pytest.mark.parametrize(
    "pools",
    [
        {"No Pool": {}},
        {"gpu": {"device_class": "V100"}},
        {"gpu": {"default_timeout_seconds": "soon"}},
        {"gpu": {"default_timeout_seconds": "30d"}},
        {"gpu": {"max_running": {"ada": -1}}},
        {"gpu": {"launcher": {"kind": "command"}}},
        {"gpu": {"launcher": {"kind": "webhook", "url": "ftp://x", "secret_file": "/x"}}},
        {"gpu": {"launcher": {"kind": "kubernetes"}}},
        {"*": {"device_class": "H200"}},
        {"*": {"launcher": {"kind": "command", "command": ["x"]}}},
    ],
    ids=str,
)
def test_pools_that_make_no_sense_are_refused(pools: object) -> None:
    with pytest.raises(SettingsError, match="POOLS"):
        settings(pools)


def test_the_best_class_with_workers_is_chosen_and_without_any_the_best_there_is() -> None:
    pools = {"a": "T4", "b": "H200", "c": "H200", "d": "cpu", "e": ""}
    wanted = ("H200", "L4", "T4", "cpu")
    assert choose_pool(wanted, pools, {"c", "d"}) == "c"
    assert choose_pool(wanted, pools, {"d"}) == "d"
    assert choose_pool(wanted, pools, {"e"}) == "b"
    assert choose_pool(wanted[1:3], pools, ()) == "a"
    assert choose_pool(("B200",), pools, {"c"}) is None


def test_the_quota_is_the_owners_own_or_of_its_highest_role() -> None:
    pool = PoolSettings(max_queued_per_owner=5, max_queued={"ada": 9, "role:operator": 7, "": 2})
    ada = Principal("ada", "user", frozenset({Role.SCIENTIST, Role.OPERATOR}))
    assert most_queued(pool, ada, "ada") == 9
    assert most_queued(pool, ada, "olga") == 7
    assert most_queued(pool, Principal("sam", "user", frozenset({Role.SCIENTIST})), "sam") == 5
    assert most_queued(pool, Principal("", "guest"), "") == 2


def order(
    claims: list[tuple[str, str, str, float]],
    held: list[tuple[str, str]],
    pool: PoolSettings | None = None,
    share_seconds: float = 100.0,
) -> str:
    """Ids in their order; a claim is (id, owner, group, seconds)."""
    queued = [
        Claim(name, owner, group, _NOW + timedelta(seconds=rank)) for name, owner, group, rank in claims
    ]
    return "".join(turn[-1] for turn in Order(queued, held, pool or PoolSettings(), share_seconds).turns)


def test_owners_take_turns_and_each_keeps_its_own_order() -> None:
    claims = [("a", "ada", "", 0), ("b", "ada", "", 1), ("c", "ada", "", 2), ("x", "bo", "", 50)]
    assert order(claims, []) == "axbc"
    # Who has waited long enough goes anyway, whatever it runs.
    assert order(claims, [("ada", "")]) == "xabc"
    assert order([*claims[:3], ("x", "bo", "", 150)], [("ada", "")]) == "axbc"
    assert order(claims, [("ada", "")], share_seconds=0) == "abcx"


def test_what_others_of_a_group_run_counts_as_well() -> None:
    claims = [("a", "ada", "film", 0), ("x", "bo", "", 50)]
    assert order(claims, [("cy", "film")]) == "xa"
    # Once only, where it is the owner's own.
    assert order([("a", "ada", "film", 0), ("x", "bo", "", 150)], [("ada", "film")]) == "ax"


def test_what_is_beyond_a_cap_comes_last() -> None:
    claims = [("a", "ada", "", 0), ("b", "ada", "film", 1), ("x", "bo", "", 5000)]
    assert order(claims, [], PoolSettings(max_running_per_owner=1)) == "axb"
    assert order(claims, [], PoolSettings(max_running_per_owner=1, max_running={"ada": 0})) == "abx"
    assert order(claims, [("cy", "film")], PoolSettings(max_running_per_group=1)) == "axb"
    assert order(claims, [("cy", "film")], PoolSettings(max_running={"group:film": 1})) == "axb"


def test_a_place_in_between_is_found_for_a_job_that_came_later() -> None:
    queue = Order([Claim("a", "ada", "", _NOW)], [], PoolSettings(), 100.0)
    second = Claim("b", "ada", "", _NOW + timedelta(seconds=1))
    rank = second.queue_rank.timestamp()
    assert queue.turn(second, 1) == (False, rank + 100, rank, "b")
    assert queue.turns[0] < queue.turn(second, 1)


# Launchers ----------------------------------------------------------------------------------------------

_TEMPLATE = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "fixed", "labels": {"app": "guidehall"}},
    "spec": {
        "template": {"spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": "1"}]}]}}
    },
}


def test_a_job_of_kubernetes_gets_a_name_of_its_own_and_is_told_its_pool() -> None:
    job = job_of(_TEMPLATE, "h200", "H200")
    assert "name" not in job["metadata"]
    assert job["metadata"]["generateName"] == "guidehall-worker-h200-"
    assert job["metadata"]["labels"] == {"app": "guidehall", "guidehall.dev/pool": "h200"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [
        {"name": "A", "value": "1"},
        {"name": "GUIDEHALL_WORKER__POOL", "value": "h200"},
        {"name": "GUIDEHALL_DEVICE_CLASS", "value": "H200"},
    ]
    assert _TEMPLATE["metadata"]["name"] == "fixed"
    for wrong in (
        None,
        {"kind": "Pod"},
        {"kind": "Job", "spec": {}},
        {"kind": "Job", "spec": {"template": 1}},
    ):
        with pytest.raises(LaunchFailed, match="template_file"):
            job_of(wrong, "h200", "H200")


def test_a_launcher_says_what_it_starts_without_secrets() -> None:
    command = LauncherSettings(kind="command", command=("/opt/start-worker", "--token=abc"))
    hook = LauncherSettings(kind="webhook", url="https://u:p@host.example/x?key=abc", secret_file=Path("/s"))
    assert target(command) == "start-worker"
    assert target(hook) == "host.example"
    assert target(LauncherSettings()) == ""


def test_why_nothing_is_launched_just_now() -> None:
    def pool(due: int, live: int) -> Pool:
        return Pool("gpu", due, 0, 0, live, live, 0.0, due)

    assert waiting_for(Launch(), pool(0, 0)) == "no job waits"
    assert waiting_for(Launch(), pool(1, 1)) == "workers are there"
    assert waiting_for(Launch(), pool(1, 0)) == ""
    assert waiting_for(Launch(_NOW, True), pool(1, 0)) == "a launch is under way"
    assert waiting_for(Launch(_NOW, True, "no"), pool(1, 0)) == "throttled after a failure"
    assert waiting_for(Launch(_NOW, False, "no"), pool(1, 0)) == ""
