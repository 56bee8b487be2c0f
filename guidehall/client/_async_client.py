"""The client for asyncio: the methods of `Client`, awaited."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from guidehall.client import _control, _groups, _jobs, _platform, _prediction, _stored, _submissions, types
from guidehall.client._async_driver import AsyncDriver
from guidehall.client._client import as_timeouts
from guidehall.client._config import Config, Credentials, Timeouts, Tls
from guidehall.client._endpoints import Endpoints
from guidehall.core.names import DEFAULT_PROJECT


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited; those that give many items take `async for`.

        async with AsyncClient() as guidehall:
            async for event in guidehall.watch("3f2a"):
                print(event)

    To leave such a loop early, wrap it in `contextlib.aclosing`, which ends its stream at once.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str] | str | Path | None = None,
        token: str | Callable[[], str] | None = None,
        timeout: float | Timeouts = 30.0,
        *,
        project: str = DEFAULT_PROJECT,
        tls: Tls | None = None,
    ) -> None:
        """As `Client`; belongs to the event loop that first uses it."""
        self._config = Config(project, as_timeouts(timeout))
        self._driver = AsyncDriver(
            Endpoints.find(endpoints), Credentials.find(token), tls or Tls.from_environment(os.environ)
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is under way and disconnects."""
        await self._driver.close()

    # Jobs

    async def pipelines(self) -> list[types.Pipeline]:
        """As `Client.pipelines`."""
        return await self._driver.run(_jobs.pipelines(self._config))

    async def pipeline(self, name: str) -> types.Pipeline:
        """As `Client.pipeline`."""
        return await self._driver.run(_jobs.pipeline(self._config, name))

    async def submit(
        self,
        pipeline: str,
        params: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        seed: int = 0,
        inputs: Mapping[str, str] | None = None,
        pool: str = "",
        device_class: str = "",
        priority: str = "NORMAL",
        group: str = "",
        labels: Mapping[str, str] | None = None,
        timeout: int | float | str = 0,
        max_attempts: int = 0,
        memory_hint_bytes: int = 0,
        notify: Sequence[str] = (),
        validate_only: bool = False,
        request_id: str | None = None,
    ) -> types.Job:
        """As `Client.submit`."""
        submission = types.Submission(
            pipeline,
            params,
            name=name,
            seed=seed,
            inputs=inputs,
            pool=pool,
            device_class=device_class,
            priority=priority,
            group=group,
            labels=labels,
            timeout=timeout,
            max_attempts=max_attempts,
            memory_hint_bytes=memory_hint_bytes,
            notify=notify,
        )
        return await self._driver.run(
            _submissions.submit(self._config, submission, validate_only, request_id)
        )

    async def submit_many(
        self,
        submissions: Sequence[types.Submission] = (),
        sweep: types.Sweep | None = None,
        *,
        validate_only: bool = False,
        request_id: str | None = None,
    ) -> types.Batch:
        """As `Client.submit_many`."""
        return await self._driver.run(
            _submissions.submit_many(self._config, submissions, sweep, validate_only, request_id)
        )

    async def job(self, job: str) -> types.Job:
        """As `Client.job`."""
        return await self._driver.run(_jobs.job(self._config, job))

    def jobs(
        self, filter: str = "", order_by: str = "create_time desc", limit: int | None = None
    ) -> AsyncIterator[types.Job]:
        """As `Client.jobs`."""
        return self._driver.iterate(_jobs.jobs(self._config, filter, order_by, limit))

    def watch(self, job: str, after_seq: int = 0) -> AsyncIterator[types.JobEvent]:
        """As `Client.watch`."""
        return self._driver.iterate(_jobs.watch(self._config, job, after_seq))

    async def wait(self, job: str, timeout: float | None = None) -> types.Job:
        """As `Client.wait`."""
        return await self._driver.run(_jobs.wait(self._config, job, timeout))

    async def cancel(self, job: str) -> types.Job:
        """As `Client.cancel`."""
        return await self._driver.run(_control.ask(self._config, "CancelJob", job))

    async def stop(self, job: str) -> types.Job:
        """As `Client.stop`."""
        return await self._driver.run(_control.ask(self._config, "StopJob", job))

    async def pause(self, job: str) -> types.Job:
        """As `Client.pause`."""
        return await self._driver.run(_control.ask(self._config, "PauseJob", job))

    async def resume(self, job: str) -> types.Job:
        """As `Client.resume`."""
        return await self._driver.run(_control.ask(self._config, "ResumeJob", job))

    async def retry(
        self,
        job: str,
        changes: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        pool: str = "",
        name: str = "",
        timeout: int | float | str = 0,
        from_start: bool = False,
        validate_only: bool = False,
        request_id: str | None = None,
    ) -> types.Job:
        """As `Client.retry`."""
        return await self._driver.run(
            _submissions.retry(
                self._config,
                job,
                changes,
                seed=seed,
                pool=pool,
                name=name,
                timeout=timeout,
                from_start=from_start,
                validate_only=validate_only,
                request_id=request_id,
            )
        )

    async def update(
        self,
        job: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: str | None = None,
        notify: Sequence[str] | None = None,
        etag: str = "",
    ) -> types.Job:
        """As `Client.update`."""
        return await self._driver.run(
            _control.update(
                self._config, job, name=name, labels=labels, priority=priority, notify=notify, etag=etag
            )
        )

    async def delete(self, job: str, etag: str = "") -> None:
        """As `Client.delete`."""
        await self._driver.run(_control.delete(self._config, job, etag))

    async def purge(
        self, filter: str = "", *, include_queued: bool = False, force: bool = False
    ) -> types.Purge:
        """As `Client.purge`."""
        return await self._driver.run(_control.purge(self._config, filter, include_queued, force))

    async def claim(self, job: str) -> types.Job:
        """As `Client.claim`."""
        return await self._driver.run(_control.ask(self._config, "ClaimJob", job))

    def attempts(self, job: str, limit: int | None = None) -> AsyncIterator[types.Attempt]:
        """As `Client.attempts`."""
        return self._driver.iterate(_control.attempts(self._config, job, limit))

    async def result(self, job: str) -> types.Result:
        """As `Client.result`."""
        return await self._driver.run(_stored.result(self._config, job))

    async def download_artifact(self, job: str, filename: str, path: str | Path) -> Path:
        """As `Client.download_artifact`."""
        return await self._driver.run(_stored.download_artifact(self._config, job, filename, path))

    async def download_log(self, job: str, path: str | Path) -> Path:
        """As `Client.download_log`."""
        return await self._driver.run(_stored.download_log(self._config, job, path))

    # Models and datasets

    def models(self, filter: str = "", limit: int | None = None) -> AsyncIterator[types.Model]:
        """As `Client.models`."""
        return self._driver.iterate(_stored.models(self._config, filter, limit))

    def model_versions(
        self, model: str | None = None, filter: str = "", limit: int | None = None
    ) -> AsyncIterator[types.ModelVersion]:
        """As `Client.model_versions`."""
        return self._driver.iterate(_stored.model_versions(self._config, model, filter, limit))

    async def model_version(self, model: str) -> types.ModelVersion:
        """As `Client.model_version`."""
        return await self._driver.run(_stored.model_version(self._config, model))

    async def set_model_tag(self, model: str, tag: str, version: int) -> types.Model:
        """As `Client.set_model_tag`."""
        return await self._driver.run(_stored.set_model_tag(self._config, model, tag, version))

    async def delete_model_tag(self, model: str, tag: str) -> types.Model:
        """As `Client.delete_model_tag`."""
        return await self._driver.run(_stored.delete_model_tag(self._config, model, tag))

    async def pin_model(self, model: str) -> types.ModelVersion:
        """As `Client.pin_model`."""
        return await self._driver.run(_stored.set_pinned(self._config, model, True))

    async def unpin_model(self, model: str) -> types.ModelVersion:
        """As `Client.unpin_model`."""
        return await self._driver.run(_stored.set_pinned(self._config, model, False))

    async def download_model(self, model: str, folder: str | Path) -> types.ModelVersion:
        """As `Client.download_model`."""
        return await self._driver.run(_stored.download_model(self._config, model, folder))

    def datasets(self, filter: str = "", limit: int | None = None) -> AsyncIterator[types.Dataset]:
        """As `Client.datasets`."""
        return self._driver.iterate(_stored.datasets(self._config, filter, limit))

    def dataset_versions(self, dataset: str, limit: int | None = None) -> AsyncIterator[types.DatasetVersion]:
        """As `Client.dataset_versions`."""
        return self._driver.iterate(_stored.dataset_versions(self._config, dataset, limit))

    async def dataset_version(self, dataset: str) -> types.DatasetVersion:
        """As `Client.dataset_version`."""
        return await self._driver.run(_stored.dataset_version(self._config, dataset))

    async def upload_dataset(
        self,
        content: str | Path | bytes,
        dataset_id: str,
        *,
        filename: str = "",
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> types.DatasetVersion:
        """As `Client.upload_dataset`."""
        return await self._driver.run(
            _stored.upload_dataset(
                self._config, content, dataset_id, filename=filename, media_type=media_type, labels=labels
            )
        )

    async def dataset_from_result(
        self, job: str, filename: str, dataset_id: str, *, labels: Mapping[str, str] | None = None
    ) -> types.DatasetVersion:
        """As `Client.dataset_from_result`."""
        return await self._driver.run(
            _stored.dataset_from_result(self._config, job, filename, dataset_id, labels)
        )

    async def download_dataset(self, dataset: str, path: str | Path) -> Path:
        """As `Client.download_dataset`."""
        return await self._driver.run(_stored.download_dataset(self._config, dataset, path))

    # Answers

    async def predict(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> types.Prediction:
        """As `Client.predict`."""
        return await self._driver.run(_prediction.predict(self._config, model, inputs, outputs))

    async def analyze(
        self,
        curve: types.Curve,
        model: str | None = None,
        stage: types.Stage | str = types.Stage.NETWORK,
        *,
        samples: int = 0,
        seed: int = 0,
    ) -> types.Analysis:
        """As `Client.analyze`."""
        return await self._driver.run(_prediction.analyze(self._config, curve, model, stage, samples, seed))

    async def simulate(self, params: Mapping[str, Any]) -> types.Simulation:
        """As `Client.simulate`."""
        return await self._driver.run(_prediction.simulate(self._config, params))

    # The platform

    async def pools(self) -> list[types.Pool]:
        """As `Client.pools`."""
        return await self._driver.run(_platform.pools(self._config))

    async def workers(self, pool: str = "") -> list[types.Worker]:
        """As `Client.workers`."""
        return await self._driver.run(_platform.workers(self._config, pool))

    async def pool(self, name: str) -> types.Pool:
        """As `Client.pool`."""
        return await self._driver.run(_platform.pool(self._config, name))

    async def drain(self, worker: str, *, release_job: bool = False) -> types.Worker:
        """As `Client.drain`."""
        return await self._driver.run(_platform.drain(self._config, worker, release_job))

    async def reinstate(self, worker: str) -> types.Worker:
        """As `Client.reinstate`."""
        return await self._driver.run(_platform.reinstate(self._config, worker))

    async def create_worker_credential(
        self, pool: str, *, note: str = "", ttl: int | float | str = 0
    ) -> types.NewWorkerCredential:
        """As `Client.create_worker_credential`."""
        return await self._driver.run(_platform.create_worker_credential(self._config, pool, note, ttl))

    async def worker_credentials(self, pool: str = "") -> list[types.WorkerCredential]:
        """As `Client.worker_credentials`."""
        return await self._driver.run(_platform.worker_credentials(self._config, pool))

    async def revoke_worker_credential(self, credential: str) -> types.WorkerCredential:
        """As `Client.revoke_worker_credential`."""
        return await self._driver.run(_platform.revoke_worker_credential(self._config, credential))

    def audit(
        self, filter: str = "", order_by: str = "sequence desc", limit: int | None = None
    ) -> AsyncIterator[types.AuditEvent]:
        """As `Client.audit`."""
        return self._driver.iterate(_platform.audit(self._config, filter, order_by, limit))

    def export_audit(self, after_seal: int = 0) -> AsyncIterator[str]:
        """As `Client.export_audit`."""
        return self._driver.iterate(_platform.export_audit(self._config, after_seal))

    def export_person(self, user: str = "") -> AsyncIterator[str]:
        """As `Client.export_person`."""
        return self._driver.iterate(_platform.export_person(self._config, user))

    async def erase_person(self, user: str, hand_over_to: str = "") -> types.Erasure:
        """As `Client.erase_person`."""
        return await self._driver.run(_platform.erase_person(self._config, user, hand_over_to))

    async def erasure(self, name: str) -> types.Erasure:
        """As `Client.erasure`."""
        return await self._driver.run(_platform.erasure(self._config, name))

    async def api_keys(self, user: str = "") -> list[types.ApiKey]:
        """As `Client.api_keys`."""
        return await self._driver.run(_platform.api_keys(self._config, user))

    async def create_api_key(
        self,
        user: str = "",
        *,
        name: str = "",
        roles: Sequence[str] = (),
        ttl: int | float | str = 0,
        scopes: Sequence[str] = (),
    ) -> types.NewApiKey:
        """As `Client.create_api_key`."""
        return await self._driver.run(_platform.create_api_key(self._config, user, name, roles, ttl, scopes))

    async def revoke_api_key(self, key: str, user: str = "") -> types.ApiKey:
        """As `Client.revoke_api_key`."""
        return await self._driver.run(_platform.revoke_api_key(self._config, key, user))

    async def groups(self) -> list[types.Group]:
        """As `Client.groups`."""
        return await self._driver.run(_groups.groups(self._config))

    async def create_group(self, group: str, *, display_name: str = "", description: str = "") -> types.Group:
        """As `Client.create_group`."""
        return await self._driver.run(_groups.create_group(self._config, group, display_name, description))

    async def group_members(self, group: str) -> list[types.GroupMember]:
        """As `Client.group_members`."""
        return await self._driver.run(_groups.members(self._config, group))

    async def set_group_member(self, group: str, user: str, role: str = "MEMBER") -> types.GroupMember:
        """As `Client.set_group_member`."""
        return await self._driver.run(_groups.set_member(self._config, group, user, role))

    async def remove_group_member(self, group: str, user: str) -> None:
        """As `Client.remove_group_member`."""
        await self._driver.run(_groups.remove_member(self._config, group, user))

    async def service_accounts(self, group: str) -> list[types.ServiceAccount]:
        """As `Client.service_accounts`."""
        return await self._driver.run(_groups.service_accounts(self._config, group))

    async def create_service_account(
        self, group: str, user: str, *, display_name: str = "", roles: Sequence[str] = ()
    ) -> types.ServiceAccount:
        """As `Client.create_service_account`."""
        return await self._driver.run(
            _groups.create_service_account(self._config, group, user, display_name, roles)
        )

    async def share(
        self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """As `Client.share`."""
        return await self._driver.run(_groups.share(self._config, name, add, remove))

    async def whoami(self) -> types.Identity:
        """As `Client.whoami`."""
        return await self._driver.run(_platform.whoami(self._config))

    async def usage(self) -> types.Usage:
        """As `Client.usage`."""
        return await self._driver.run(_platform.usage(self._config))
