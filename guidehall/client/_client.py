"""The blocking client."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from guidehall.client import _jobs, _platform, _prediction, _stored, types
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
        token: str | None = None,
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
            token: bearer token. Without it GUIDEHALL_TOKEN counts, then the file that GUIDEHALL_TOKEN_FILE
                names.
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
        priority: str = "NORMAL",
        labels: Mapping[str, str] | None = None,
        timeout_seconds: int = 0,
        max_attempts: int = 0,
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
            priority: LOW, NORMAL or HIGH.
            labels: free words to find it by.
            timeout_seconds: longest run; 0 is the server's default.
            max_attempts: tries after failures that may pass; 0 is the server's default.
            validate_only: check everything and store nothing.
            request_id: UUID; the same request with the same id makes one job. Made here when not given.

        Returns:
            The job, with every default filled in.

        Raises:
            InvalidArgument: `violations` name the fields, such as "params.stack.layers[1].thickness".
        """
        return self._driver.run(
            _jobs.submit(
                self._config,
                pipeline,
                params,
                name=name,
                seed=seed,
                inputs=inputs,
                pool=pool,
                priority=priority,
                labels=labels,
                timeout_seconds=timeout_seconds,
                max_attempts=max_attempts,
                validate_only=validate_only,
                request_id=request_id,
            )
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
                pipeline, owner, pool, display_name and labels.KEY.
            order_by: "create_time", "update_time", either with " desc".
            limit: how many at most; None is all.
        """
        return self._driver.iterate(_jobs.jobs(self._config, filter, order_by, limit))

    def watch(self, job: str, after_seq: int = 0) -> Iterator[types.JobEvent]:
        """Every event of a job after `after_seq`, then each new one as it happens, until the job is over.

        A lost connection is taken up again where it broke: no event is missed and none comes twice.
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
        return self._driver.run(_jobs.cancel(self._config, job))

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

    def whoami(self) -> types.Identity:
        """Who the server takes the caller for."""
        return self._driver.run(_platform.whoami(self._config))
