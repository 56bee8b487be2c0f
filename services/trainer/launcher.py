"""Starts workers for a pool that has work and none: by a command, a webhook, or a Kubernetes Job.

Runs in every replica. A row for each pool keeps them from launching at a time, and gives what was launched
the time to register before it is launched again.
"""

from __future__ import annotations

import asyncio
import copy
import http.client
import json
import logging
import os
import ssl
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import yaml
from prometheus_client import Counter
from sqlalchemy import func, select, text, update

from guidehall.core.errors import AppError
from services.trainer.database import Database
from services.trainer.documents import cleaned
from services.trainer.journal import seconds
from services.trainer.settings import LauncherSettings, TrainerSettings
from services.trainer.tables import launches
from services.trainer.workers import Pool, Workers

logger = logging.getLogger(__name__)

_LAUNCHES = Counter("guidehall_launches", "Launches of workers", ["pool", "outcome"])
_MOST_POOLS = 1000
_LONGEST_ERROR = 500
_MOST_ANSWER_BYTES = 1 << 20
_POOL_LABEL = "guidehall.dev/pool"
_POOL_VARIABLE = "GUIDEHALL_WORKER__POOL"
_CLASS_VARIABLE = "GUIDEHALL_DEVICE_CLASS"
# What a launched command does not need to know of us: our settings, and so our secrets.
_OWN_PREFIX = "GUIDEHALL_TRAINER__"


class LaunchFailed(Exception):
    """Why; for operators."""


@dataclass(frozen=True)
class Launch:
    """How it went last.

    Attributes:
        time: of the last one; None before the first.
        locked: whether the next one has to wait.
        error: why the last one failed; empty when it did not.
    """

    time: datetime | None = None
    locked: bool = False
    error: str = ""


def waiting_for(last: Launch, pool: Pool) -> str:
    """Why none is launched just now; empty when one would be."""
    if not pool.due:
        return "no job waits"
    if pool.live_workers:
        return "workers are there"
    if not last.locked:
        return ""
    return "throttled after a failure" if last.error else "a launch is under way"


def target(settings: LauncherSettings) -> str:
    """What is started, for people; neither arguments nor queries, which may hold secrets."""
    match settings.kind:
        case "command":
            return Path(settings.command[0]).name
        case "webhook":
            return urlsplit(settings.url).hostname or ""
        case "kubernetes":
            return f"Job in {settings.namespace or 'the namespace of the trainer'}"
    return ""


class Launches:
    """Looks after the pools that have a launcher."""

    def __init__(self, database: Database, workers: Workers, settings: TrainerSettings) -> None:
        self._database = database
        self._workers = workers
        self._settings = settings
        self._pools = [name for name, pool in settings.pools.items() if pool.launcher.kind != "none"]

    async def run(self) -> None:
        """Launches what is needed, until the process is about to end."""
        if not self._pools:
            return
        async with asyncio.TaskGroup() as tasks:
            under_way: dict[str, asyncio.Task[None]] = {}
            while not self._database.wakes.closed:
                with suppress(AppError):
                    for pool in await self.needed():
                        # One that takes long holds up no other pool.
                        if pool not in under_way or under_way[pool].done():
                            under_way[pool] = tasks.create_task(self._launch_quietly(pool))
                await asyncio.sleep(self._settings.sweep.interval_seconds)

    async def needed(self) -> list[str]:
        """Pools with a launcher that have due work and no worker."""
        known = await self._workers.pools(self._pools, "", _MOST_POOLS)
        return [
            pool.name for pool in known if pool.name in self._pools and pool.due and not pool.live_workers
        ]

    async def of_pools(self, pools: Sequence[str]) -> dict[str, Launch]:
        """How the last launch of each pool went."""
        locked = func.coalesce(launches.c.locked_until > func.now(), False).label("locked")
        statement = select(launches, locked).where(launches.c.pool.in_(pools))
        async with self._database.statements() as connection:
            rows = (await connection.execute(statement)).all()
        return {pool: Launch() for pool in pools} | {
            row.pool: Launch(row.launch_time, row.locked, row.last_error) for row in rows
        }

    async def _launch_quietly(self, pool: str) -> None:
        with suppress(AppError):
            await self.launch(pool)

    async def launch(self, pool: str) -> bool:
        """Launches for a pool, unless that is throttled or another replica does; whether it did."""
        settings = self._settings.pool(pool).launcher
        # First the lock, kept until the launch must be over: whoever dies in between launched at most once.
        values = {"pool": pool, "lock_seconds": settings.timeout_seconds + settings.retry_seconds}
        async with self._database.unit() as unit:
            if (await unit.connection.execute(_CLAIM, values)).first() is None:
                return False
        error = await self._carry_out(pool, settings)
        wait = settings.retry_seconds if error else settings.start_seconds
        done = {"last_error": error, "locked_until": func.now() + seconds(wait)}
        async with self._database.unit() as unit:
            await unit.connection.execute(update(launches).where(launches.c.pool == pool).values(done))
        _LAUNCHES.labels(pool, "failed" if error else "done").inc()
        return True

    async def _carry_out(self, pool: str, settings: LauncherSettings) -> str:
        """Why it failed; empty when it did not."""
        try:
            async with asyncio.timeout(settings.timeout_seconds):
                await _KINDS[settings.kind](settings, pool, self._settings.device_class(pool))
        except TimeoutError:
            error = f"took longer than {settings.timeout_seconds:g} s"
        except (LaunchFailed, OSError, http.client.HTTPException, ValueError, yaml.YAMLError) as failure:
            error = str(failure) or type(failure).__name__
        else:
            logger.info("launched workers for pool %s by %s", pool, settings.kind)
            return ""
        logger.warning("cannot launch workers for pool %s by %s: %s", pool, settings.kind, error)
        return cleaned(error, _LONGEST_ERROR)


_CLAIM = text(
    """
    INSERT INTO trainer.launches (pool, launch_time, locked_until)
    VALUES (:pool, now(), now() + make_interval(secs => :lock_seconds))
    ON CONFLICT (pool) DO UPDATE SET launch_time = excluded.launch_time, locked_until = excluded.locked_until
    WHERE coalesce(launches.locked_until <= now(), true)
    RETURNING pool
    """
)


async def _command(settings: LauncherSettings, pool: str, device_class: str) -> None:
    """Runs a program, which starts workers and ends; or stays, as a worker does, and is left alone."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_PREFIX)}
    told = {_POOL_VARIABLE: pool, _CLASS_VARIABLE: device_class}

    def start() -> int | None:
        # A session of its own: what ends us does not end the workers.
        process = subprocess.Popen(
            settings.command,
            env=environ | told,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(min(settings.settle_seconds, settings.timeout_seconds / 2))
        except subprocess.TimeoutExpired:
            # Whether as a launcher or as a worker, the pool will tell.
            _left.append(process)
            return None

    # Those that have ended meanwhile are reaped.
    _left[:] = [process for process in _left if process.poll() is None]
    if status := await asyncio.to_thread(start):
        raise LaunchFailed(f"{Path(settings.command[0]).name} ended with status {status}")


_left: list[subprocess.Popen[bytes]] = []


async def _webhook(settings: LauncherSettings, pool: str, device_class: str) -> None:
    assert settings.secret_file is not None  # noqa: S101 (the settings are checked)
    token = settings.secret_file.read_text().strip()
    body = {"pool": pool, "device_class": device_class}
    await _call("POST", settings.url, token, body, None, settings.timeout_seconds)


async def _kubernetes(settings: LauncherSettings, pool: str, device_class: str) -> None:
    """Makes a Job of the template, unless one for the pool is still active: its pod may wait for a node."""
    assert settings.template_file is not None  # noqa: S101 (the settings are checked)
    account = settings.account_dir
    token = (account / "token").read_text().strip()
    namespace = settings.namespace or (account / "namespace").read_text().strip()
    authority = account / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
    jobs_url = f"{_api_server(settings)}/apis/batch/v1/namespaces/{quote(namespace, safe='')}/jobs"
    job = job_of(yaml.safe_load(settings.template_file.read_text()), pool, device_class)
    query = urlencode({"labelSelector": f"{_POOL_LABEL}={pool}"})
    there = await _call("GET", f"{jobs_url}?{query}", token, None, context, settings.timeout_seconds)
    if any(item.get("status", {}).get("active") for item in there.get("items", [])):
        logger.info("a job for pool %s is active", pool)
        return
    await _call("POST", jobs_url, token, job, context, settings.timeout_seconds)


def _api_server(settings: LauncherSettings) -> str:
    if settings.url:
        return settings.url.rstrip("/")
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise LaunchFailed("not in a pod of Kubernetes: url is needed")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def job_of(template: Any, pool: str, device_class: str) -> dict[str, Any]:
    """A Kubernetes Job for a pool: the template with a name to be generated, our label, and the pool's name.

    Raises:
        LaunchFailed: the template is no Job with containers.
    """
    job = copy.deepcopy(template)
    if not isinstance(job, dict) or job.get("kind") != "Job":
        raise LaunchFailed("template_file: its kind must be Job")
    try:
        pod = job["spec"]["template"]
        containers = pod["spec"]["containers"]
        for part in (job, pod):
            part.setdefault("metadata", {}).setdefault("labels", {})[_POOL_LABEL] = pool
        for container in containers:
            env = [
                item
                for item in container.get("env") or []
                if item.get("name") not in (_POOL_VARIABLE, _CLASS_VARIABLE)
            ]
            container["env"] = [
                *env,
                {"name": _POOL_VARIABLE, "value": pool},
                {"name": _CLASS_VARIABLE, "value": device_class},
            ]
    except (KeyError, TypeError, AttributeError):
        raise LaunchFailed("template_file: needs spec.template.spec.containers") from None
    job["metadata"].pop("name", None)
    job["metadata"].setdefault("generateName", f"guidehall-worker-{pool}-")
    return job


async def _call(
    method: str,
    url: str,
    token: str,
    body: Any,
    context: ssl.SSLContext | None,
    timeout_seconds: float,
) -> dict[str, Any]:
    """One HTTP request with a bearer token. A redirect is a failure: the token is for this address alone.

    Returns:
        The JSON object of the answer; empty where it is none.

    Raises:
        LaunchFailed: the answer is no success.
        OSError, HTTPException: there is no answer.
    """
    parts = urlsplit(url)

    def ask() -> tuple[int, bytes]:
        assert parts.hostname  # noqa: S101 (the settings are checked)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_seconds)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        content = None if body is None else json.dumps(body)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        with closing(connection):
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_ANSWER_BYTES)

    status, content = await asyncio.to_thread(ask)
    if not http.client.OK <= status < http.client.MULTIPLE_CHOICES:
        raise LaunchFailed(f"{parts.hostname} answered {method} with {status}")
    try:
        answer = json.loads(content)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


_Kind = Callable[[LauncherSettings, str, str], Coroutine[Any, Any, None]]
_KINDS: dict[str, _Kind] = {"command": _command, "webhook": _webhook, "kubernetes": _kubernetes}
