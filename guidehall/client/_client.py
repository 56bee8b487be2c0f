"""The blocking client."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from guidehall.client import _control, _groups, _jobs, _platform, _prediction, _stored, _submissions, types
from guidehall.client._config import Config, Credentials, Timeouts, Tls
from guidehall.client._endpoints import Endpoints
from guidehall.client._sync_driver import SyncDriver
from guidehall.core.names import DEFAULT_PROJECT


def as_timeouts(timeout: float | Timeouts) -> Timeouts:
    """A number is how long one call may take."""
    return timeout if isinstance(timeout, Timeouts) else Timeouts(call_seconds=timeout)


class Client:
    """A connection to a Guidehall, for one thread or several.

        with Client() as guidehall:
            job = guidehall.submit("reflectometry.nr_sld", {"epochs": 5})
            print(guidehall.wait(job.id).state)

    A job is named by its resource name, its id, or the first four or more signs of its id. A model or dataset
    is named by its resource name or its id, a version of it by `film@3`; without a version the newest counts.
    Every method raises `guidehall.client.errors.AppError`.
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
        """Finds the services; connects when first needed.

        Args:
            endpoints: addresses by service, as a mapping or as `trainer=host:port,storage=…,inference=…`, or
                the path of an endpoints.json. Without it GUIDEHALL_ENDPOINTS counts, then the stack of this
                machine. `grpcs://host:port` is an address with TLS.
            token: bearer token or API key, or a function that gives it before every call. Without it
                GUIDEHALL_TOKEN counts, then the file that GUIDEHALL_TOKEN_FILE names.
            timeout: seconds that one call may take, or every time limit.
            project: where ids are looked up and jobs are submitted.
            tls: certificates for `grpcs://` addresses. Without it GUIDEHALL_CA_FILE, GUIDEHALL_CERT_FILE and
                GUIDEHALL_KEY_FILE count, then the roots of the system.

        Raises:
            Unavailable: no endpoints were given and no stack was started on this machine.
        """
        self._config = Config(project, as_timeouts(timeout))
        self._driver = SyncDriver(
            Endpoints.find(endpoints), Credentials.find(token), tls or Tls.from_environment(os.environ)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is under way and disconnects."""
        self._driver.close()

    # Jobs

    def pipelines(self) -> list[types.Pipeline]:
        """What jobs can run."""
        return self._driver.run(_jobs.pipelines(self._config))

    def pipeline(self, name: str) -> types.Pipeline:
        """One pipeline, with the JSON Schema of its parameters."""
        return self._driver.run(_jobs.pipeline(self._config, name))

    def submit(
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
        """Puts a job into the queue.

        Args:
            pipeline: such as "reflectometry.nr_sld".
            params: its parameters; what is left out takes its default.
            name: a person's name for the job.
            seed: every random draw comes from it; 0 lets the server choose.
            inputs: datasets that the job reads, by the role that the pipeline gives them.
            pool: queue to wait in; empty is the server's default.
            device_class: such as "H200", in the place of a pool: the pool of that class, or of the next lower
                one that has workers or can launch them.
            priority: LOW, NORMAL or HIGH.
            group: the one of the caller's groups whose share and quota it counts against; empty for none.
            labels: free words to find it by.
            timeout: longest run, in seconds or such as "30m"; 0 is the default of the pool.
            max_attempts: tries after failures that may pass; 0 is the server's default.
            memory_hint_bytes: what it is expected to need on its device; 0 is unknown.
            notify: who is told when it has ended: web addresses (a signed POST) and e-mail addresses.
            validate_only: check everything and store nothing.
            request_id: UUID; the same request with the same id makes one job. Made here when not given.

        Returns:
            The job, with every default filled in.

        Raises:
            InvalidArgument: `violations` name the fields, such as "params.stack.layers[1].thickness".
        """
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
        return self._driver.run(_submissions.submit(self._config, submission, validate_only, request_id))

    def submit_many(
        self,
        submissions: Sequence[types.Submission] = (),
        sweep: types.Sweep | None = None,
        *,
        validate_only: bool = False,
        request_id: str | None = None,
    ) -> types.Batch:
        """Puts several jobs into the queue, all or none.

            template = Submission("reflectometry.nr_sld", {"stack": ...})
            guidehall.submit_many(sweep=Sweep(template, {"training.epochs": [5, 10, 20]}))

        Args:
            submissions: one job each.
            sweep: further jobs, which differ in some parameters.
            validate_only: check everything and store nothing.
            request_id: UUID; the same request with the same id makes the jobs once. Made here when not given.

        Returns:
            The jobs, in the order of the submissions, then of the sweep.

        Raises:
            InvalidArgument: `violations` name the fields of the submission at fault.
        """
        return self._driver.run(
            _submissions.submit_many(self._config, submissions, sweep, validate_only, request_id)
        )

    def job(self, job: str) -> types.Job:
        """A job as it is now."""
        return self._driver.run(_jobs.job(self._config, job))

    def jobs(
        self, filter: str = "", order_by: str = "create_time desc", limit: int | None = None
    ) -> Iterator[types.Job]:
        """Jobs, newest first; further pages are asked for as they are needed.

        Args:
            filter: terms such as `state = "RUNNING" AND pipeline = "reflectometry.nr_sld"`, over state,
                end_reason, pipeline, owner, group, pool, batch, retried_from, display_name and labels.KEY.
            order_by: "create_time", "update_time", either with " desc".
            limit: how many at most; None is all.
        """
        return self._driver.iterate(_jobs.jobs(self._config, filter, order_by, limit))

    def watch(self, job: str, after_seq: int = 0) -> Iterator[types.JobEvent]:
        """Every event of a job after `after_seq`, then each new one as it happens, until the job is over.

        A lost connection is taken up again where it broke: no event is missed and none comes twice. Only
        events so old that they are no longer kept are passed over: then `seq` makes a step.
        """
        return self._driver.iterate(_jobs.watch(self._config, job, after_seq))

    def wait(self, job: str, timeout: float | None = None) -> types.Job:
        """Waits until a job is over and its result, if it has one, can be read.

        Raises:
            DeadlineExceeded: it was not over after `timeout` seconds.
        """
        return self._driver.run(_jobs.wait(self._config, job, timeout))

    def cancel(self, job: str) -> types.Job:
        """Asks for the end of a job; to ask again does no harm. `wait` tells when it is over."""
        return self._driver.run(_control.ask(self._config, "CancelJob", job))

    def stop(self, job: str) -> types.Job:
        """Asks for an early end that keeps the best model so far. To ask again does no harm."""
        return self._driver.run(_control.ask(self._config, "StopJob", job))

    def pause(self, job: str) -> types.Job:
        """Asks a job to save its state and to give up its device. To ask again does no harm."""
        return self._driver.run(_control.ask(self._config, "PauseJob", job))

    def resume(self, job: str) -> types.Job:
        """Lets a paused job go on from where it was. To ask again does no harm."""
        return self._driver.run(_control.ask(self._config, "ResumeJob", job))

    def retry(
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
        """Submits a job that has ended once more: same parameters, seed and dataset versions unless changed.

        Args:
            changes: parameters to change, by their paths, such as {"training.steps": 500}.
            seed: another one; 0 keeps it, and with it the data.
            pool: another one; empty keeps it, and likewise `name`.
            timeout: another one, in seconds or such as "30m"; 0 keeps it.
            from_start: begin anew even where a checkpoint is kept. With changes it always begins anew.
            validate_only: check everything and store nothing.
            request_id: UUID; the same request with the same id makes one job. Made here when not given.

        Returns:
            The new job.
        """
        return self._driver.run(
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

    def update(
        self,
        job: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: str | None = None,
        notify: Sequence[str] | None = None,
        etag: str = "",
    ) -> types.Job:
        """Changes a job; what is None stays.

        Args:
            name: a person's name for it.
            labels: instead of those that it has.
            priority: LOW, NORMAL or HIGH, while it is queued.
            notify: web addresses and e-mail addresses, instead of those that it has.
            etag: unless empty, of the job as it must still be.
        """
        return self._driver.run(
            _control.update(
                self._config, job, name=name, labels=labels, priority=priority, notify=notify, etag=etag
            )
        )

    def delete(self, job: str, etag: str = "") -> None:
        """Deletes a job that has ended; its result and models stay.

        Raises:
            FailedPrecondition: it has not ended.
            Aborted: `etag` is not empty, and the job has changed since.
        """
        self._driver.run(_control.delete(self._config, job, etag))

    def purge(self, filter: str = "", *, include_queued: bool = False, force: bool = False) -> types.Purge:
        """Counts, or with `force` deletes, the caller's own jobs that have ended and that `filter` finds.

        Args:
            filter: as in `jobs`.
            include_queued: cancel and delete queued and paused ones too.
            force: without it nothing is deleted.
        """
        return self._driver.run(_control.purge(self._config, filter, include_queued, force))

    def claim(self, job: str) -> types.Job:
        """Makes a guest's job the caller's own."""
        return self._driver.run(_control.ask(self._config, "ClaimJob", job))

    def attempts(self, job: str, limit: int | None = None) -> Iterator[types.Attempt]:
        """The attempts at a job, newest first: who held it, how long, and how that ended."""
        return self._driver.iterate(_control.attempts(self._config, job, limit))

    def result(self, job: str) -> types.Result:
        """What a job that succeeded left: its document, and the list of its files."""
        return self._driver.run(_stored.result(self._config, job))

    def download_artifact(self, job: str, filename: str, path: str | Path) -> Path:
        """Writes one of the files that a job left to `path`, or into the folder `path`.

        The file appears under its name only when it is complete and its SHA-256 is right.

        Returns:
            Where it is now.
        """
        return self._driver.run(_stored.download_artifact(self._config, job, filename, path))

    def download_log(self, job: str, path: str | Path) -> Path:
        """Writes the whole log of a job that has ended, however it ended, to `path`, or into that folder.

        Returns:
            Where it is now.
        """
        return self._driver.run(_stored.download_log(self._config, job, path))

    # Models and datasets

    def models(self, filter: str = "", limit: int | None = None) -> Iterator[types.Model]:
        """Models; `filter` takes terms over architecture, owner and labels.KEY."""
        return self._driver.iterate(_stored.models(self._config, filter, limit))

    def model_versions(
        self, model: str | None = None, filter: str = "", limit: int | None = None
    ) -> Iterator[types.ModelVersion]:
        """Versions of one model, or of all, newest first."""
        return self._driver.iterate(_stored.model_versions(self._config, model, filter, limit))

    def model_version(self, model: str) -> types.ModelVersion:
        """One version of a model, or its newest, with its manifest."""
        return self._driver.run(_stored.model_version(self._config, model))

    def set_model_tag(self, model: str, tag: str, version: int) -> types.Model:
        """Makes `tag`, such as "production", point to a version; it may have pointed to another before."""
        return self._driver.run(_stored.set_model_tag(self._config, model, tag, version))

    def delete_model_tag(self, model: str, tag: str) -> types.Model:
        """Takes a tag away. To ask again does no harm."""
        return self._driver.run(_stored.delete_model_tag(self._config, model, tag))

    def pin_model(self, model: str) -> types.ModelVersion:
        """Has one version (`film@3`) kept in memory where models are served; its model cannot be deleted
        then. For operators."""
        return self._driver.run(_stored.set_pinned(self._config, model, True))

    def unpin_model(self, model: str) -> types.ModelVersion:
        """Ends what `pin_model` did. To ask again does no harm."""
        return self._driver.run(_stored.set_pinned(self._config, model, False))

    def download_model(self, model: str, folder: str | Path) -> types.ModelVersion:
        """Writes `model.safetensors` and `manifest.json` into `folder`, which is made when missing."""
        return self._driver.run(_stored.download_model(self._config, model, folder))

    def datasets(self, filter: str = "", limit: int | None = None) -> Iterator[types.Dataset]:
        """Datasets."""
        return self._driver.iterate(_stored.datasets(self._config, filter, limit))

    def dataset_versions(self, dataset: str, limit: int | None = None) -> Iterator[types.DatasetVersion]:
        """Versions of a dataset, newest first."""
        return self._driver.iterate(_stored.dataset_versions(self._config, dataset, limit))

    def dataset_version(self, dataset: str) -> types.DatasetVersion:
        """One version of a dataset, or its newest."""
        return self._driver.run(_stored.dataset_version(self._config, dataset))

    def upload_dataset(
        self,
        content: str | Path | bytes,
        dataset_id: str,
        *,
        filename: str = "",
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> types.DatasetVersion:
        """Adds a version to a dataset, which is made when it is not there.

        Args:
            content: path of a file, or the bytes themselves.
            dataset_id: the dataset's id or name.
            filename: name to keep it under; a file keeps its own.
            media_type: guessed from the file name when not given.
            labels: free words to find it by.
        """
        return self._driver.run(
            _stored.upload_dataset(
                self._config, content, dataset_id, filename=filename, media_type=media_type, labels=labels
            )
        )

    def dataset_from_result(
        self, job: str, filename: str, dataset_id: str, *, labels: Mapping[str, str] | None = None
    ) -> types.DatasetVersion:
        """Adds a file that a job left, such as nr_train.npy, to a dataset, for other jobs to read.

        It passes through a temporary file of this machine. The dataset is made when it is not there.
        """
        return self._driver.run(_stored.dataset_from_result(self._config, job, filename, dataset_id, labels))

    def download_dataset(self, dataset: str, path: str | Path) -> Path:
        """Writes one version of a dataset, or its newest, to `path`, or into the folder `path`."""
        return self._driver.run(_stored.download_dataset(self._config, dataset, path))

    # Answers

    def predict(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> types.Prediction:
        """Asks a model of any science: named arrays in, named arrays out.

        Args:
            model: the model; its inputs, with shapes and units, are in `model_version(model).inputs`.
            inputs: arrays in those shapes.
            outputs: the wanted outputs; none names all.
        """
        return self._driver.run(_prediction.predict(self._config, model, inputs, outputs))

    def analyze(
        self,
        curve: types.Curve,
        model: str | None = None,
        stage: types.Stage | str = types.Stage.NETWORK,
        *,
        samples: int = 0,
        seed: int = 0,
    ) -> types.Analysis:
        """Physics from a measured reflectivity curve.

        Args:
            curve: the measurement.
            model: without one, of the newest versions of the models that accept the curve, the one whose
                network explains it best answers.
            stage: "network" for the network's answer, "refined" for a bounded least-squares fit after it.
            samples: of the posterior, for intervals and bands; only for "refined"; needs dr. 0 draws none.
            seed: of the fit's starts and of the samples; the same seed gives the same answer.
        """
        return self._driver.run(_prediction.analyze(self._config, curve, model, stage, samples, seed))

    def simulate(self, params: Mapping[str, Any]) -> types.Simulation:
        """The curve that a film would give; parameters of the pipeline "reflectometry.simulate"."""
        return self._driver.run(_prediction.simulate(self._config, params))

    # The platform

    def pools(self) -> list[types.Pool]:
        """The queues, and how full they are."""
        return self._driver.run(_platform.pools(self._config))

    def workers(self, pool: str = "") -> list[types.Worker]:
        """The workers of one pool, or of all."""
        return self._driver.run(_platform.workers(self._config, pool))

    def pool(self, name: str) -> types.Pool:
        """One queue."""
        return self._driver.run(_platform.pool(self._config, name))

    def drain(self, worker: str, *, release_job: bool = False) -> types.Worker:
        """Takes a worker out of service: it finishes its job and takes no other.

        Args:
            worker: its name, its id, or the first four or more signs of its id.
            release_job: its job saves its state and leaves, for another worker to go on with.
        """
        return self._driver.run(_platform.drain(self._config, worker, release_job))

    def reinstate(self, worker: str) -> types.Worker:
        """Takes a worker that was drained, or has quarantined itself, into service again."""
        return self._driver.run(_platform.reinstate(self._config, worker))

    def create_worker_credential(
        self, pool: str, *, note: str = "", ttl: int | float | str = 0
    ) -> types.NewWorkerCredential:
        """Makes what the workers of a pool prove themselves with.

        Args:
            pool: its name or id.
            note: what it is for, such as the machine's name.
            ttl: how long it counts, in seconds or such as "90d"; 0 is a year.

        Returns:
            The credential with its token, which is told this once.
        """
        return self._driver.run(_platform.create_worker_credential(self._config, pool, note, ttl))

    def worker_credentials(self, pool: str = "") -> list[types.WorkerCredential]:
        """The credentials of the workers of one pool, or of all."""
        return self._driver.run(_platform.worker_credentials(self._config, pool))

    def revoke_worker_credential(self, credential: str) -> types.WorkerCredential:
        """Ends a credential, named as in `drain`: what its workers hold is lost to them."""
        return self._driver.run(_platform.revoke_worker_credential(self._config, credential))

    def audit(
        self, filter: str = "", order_by: str = "sequence desc", limit: int | None = None
    ) -> Iterator[types.AuditEvent]:
        """Who did what, newest first: all for operators, for others what concerns themselves.

        Args:
            filter: terms such as `subject = "ada" AND time > "2026-08-01T00:00:00Z"`, over subject, kind,
                actor, service, method, resource, outcome, job, request_id, trace_id and time.
            order_by: "sequence desc" or "sequence".
            limit: how many at most; None is all.
        """
        return self._driver.iterate(_platform.audit(self._config, filter, order_by, limit))

    def export_audit(self, after_seal: int = 0) -> Iterator[str]:
        """The lines of the audit log with its seals, from after a batch on; for operators."""
        return self._driver.iterate(_platform.export_audit(self._config, after_seal))

    def export_person(self, user: str = "") -> Iterator[str]:
        """All that is kept about a user, or oneself, as lines of JSON; of others for administrators."""
        return self._driver.iterate(_platform.export_person(self._config, user))

    def erase_person(self, user: str, hand_over_to: str = "") -> types.Erasure:
        """Closes a user's account and erases what is kept about them; what was theirs may go to another.

        A repeat finds the erasure that is under way. For administrators.
        """
        return self._driver.run(_platform.erase_person(self._config, user, hand_over_to))

    def erasure(self, name: str) -> types.Erasure:
        """How far an erasure is; for administrators."""
        return self._driver.run(_platform.erasure(self._config, name))

    def api_keys(self, user: str = "") -> list[types.ApiKey]:
        """The API keys of a user, or one's own."""
        return self._driver.run(_platform.api_keys(self._config, user))

    def create_api_key(
        self,
        user: str = "",
        *,
        name: str = "",
        roles: Sequence[str] = (),
        ttl: int | float | str = 0,
        scopes: Sequence[str] = (),
    ) -> types.NewApiKey:
        """Makes an API key, by which programs call in a user's name.

        Args:
            user: for whom; empty is the caller.
            name: a person's name for it.
            roles: VIEWER, SCIENTIST, OPERATOR, ADMIN, none above the user's; empty are all of those.
            ttl: how long it counts, in seconds or such as "90d"; 0 is for ever.
            scopes: such as "jobs:write", to which it is limited; empty is all that the roles allow.

        Returns:
            The key with its secret, which is told this once.
        """
        return self._driver.run(_platform.create_api_key(self._config, user, name, roles, ttl, scopes))

    def revoke_api_key(self, key: str, user: str = "") -> types.ApiKey:
        """Ends an API key, for good; it is named as in `drain`, among the user's or one's own."""
        return self._driver.run(_platform.revoke_api_key(self._config, key, user))

    def groups(self) -> list[types.Group]:
        """The caller's groups; for operators all."""
        return self._driver.run(_groups.groups(self._config))

    def create_group(self, group: str, *, display_name: str = "", description: str = "") -> types.Group:
        """Adds a group, empty. For administrators."""
        return self._driver.run(_groups.create_group(self._config, group, display_name, description))

    def group_members(self, group: str) -> list[types.GroupMember]:
        """Who is in a group."""
        return self._driver.run(_groups.members(self._config, group))

    def set_group_member(self, group: str, user: str, role: str = "MEMBER") -> types.GroupMember:
        """Adds a member as READER, MEMBER or MANAGER, or gives another of these roles. For managers."""
        return self._driver.run(_groups.set_member(self._config, group, user, role))

    def remove_group_member(self, group: str, user: str) -> None:
        """Takes somebody out of a group; may be repeated. For managers."""
        self._driver.run(_groups.remove_member(self._config, group, user))

    def service_accounts(self, group: str) -> list[types.ServiceAccount]:
        """The service accounts of a group."""
        return self._driver.run(_groups.service_accounts(self._config, group))

    def create_service_account(
        self, group: str, user: str, *, display_name: str = "", roles: Sequence[str] = ()
    ) -> types.ServiceAccount:
        """Adds an account for a program; its keys are made by `create_api_key(user)`. For managers."""
        return self._driver.run(
            _groups.create_service_account(self._config, group, user, display_name, roles)
        )

    def share(self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[str, ...]:
        """Lets "group:..." or "user:..." read a thing by its name, or no longer; gives all who may."""
        return self._driver.run(_groups.share(self._config, name, add, remove))

    def whoami(self) -> types.Identity:
        """Who the server takes the caller for."""
        return self._driver.run(_platform.whoami(self._config))

    def usage(self) -> types.Usage:
        """What the caller has stored, how much it may be, and the caller's jobs."""
        return self._driver.run(_platform.usage(self._config))
