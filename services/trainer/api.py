"""The program `api`: everything put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from guidehall.contracts.jobs.v1.jobs_pb2_grpc import add_JobsServiceServicer_to_server
from guidehall.contracts.workers.v1.workers_pb2_grpc import (
    add_PoolsServiceServicer_to_server,
    add_WorkerServiceServicer_to_server,
)
from guidehall.core.audit import Counts, sender
from guidehall.core.auth import Authenticator, TokenIssuer
from guidehall.core.bus import EventBus
from guidehall.core.channels import ServiceTokens, credentials_interceptors, open_channel
from guidehall.core.directory import IDEMPOTENT, RemoteDirectory
from guidehall.core.errors import Unavailable
from guidehall.core.grpc_server import GrpcServer, Service, until_signalled
from guidehall.core.postgres import create_engine, wait_until_ready
from guidehall.core.telemetry import OpsServer
from guidehall.science import registry
from services.trainer.batches import Batches
from services.trainer.control import Control
from services.trainer.credentials import Credentials
from services.trainer.database import Database
from services.trainer.datasets import Datasets
from services.trainer.erasures import Erasures
from services.trainer.jobs import Jobs
from services.trainer.journal import Journal
from services.trainer.launcher import Launches
from services.trainer.leases import Leases
from services.trainer.outbox import Relay
from services.trainer.owner_tellers import OwnerTellers
from services.trainer.policies import POLICIES
from services.trainer.pools import Pools
from services.trainer.queues import Queues
from services.trainer.reports import Reports
from services.trainer.retries import Retries
from services.trainer.servicers import jobs, pools, workers
from services.trainer.sessions import Sessions
from services.trainer.settings import TrainerSettings
from services.trainer.submissions import Submissions
from services.trainer.sweeper import Sweeper
from services.trainer.tellers import SERVICE, BusTellers, StorageTellers
from services.trainer.wakes import Wakes
from services.trainer.watching import Watching
from services.trainer.workers import Workers

logger = logging.getLogger(__name__)


class Readiness:
    """Whether the api can answer: it needs its database, and nothing else."""

    def __init__(self, server: GrpcServer) -> None:
        self.ready = False
        self._server = server

    async def tell(self, ready: bool) -> None:
        """Passes on whether the database was there just now."""
        if ready == self.ready:
            return
        self.ready = ready
        logger.log(logging.INFO if ready else logging.WARNING, "ready: %s", ready)
        for name in (jobs.FULL_NAME, workers.FULL_NAME, pools.FULL_NAME):
            await self._server.set_serving(name, ready)


async def serve(settings: TrainerSettings, issuer: TokenIssuer) -> None:
    """Answers calls, tells what the outbox holds and sweeps, until the process is asked to end.

    Raises:
        Unavailable: the database did not answer within the time for starting.
        OSError: the port is taken.
    """
    # A science that cannot be imported is found out here, not by the first submission.
    logger.info("starting", extra={"pipelines": sorted(registry.pipelines())})
    async with contextlib.AsyncExitStack() as stack:
        engine = create_engine(settings.postgres)
        stack.push_async_callback(engine.dispose)
        await wait_until_ready(engine, settings.start_seconds)
        credentials = credentials_interceptors(ServiceTokens(issuer))
        channel = await stack.enter_async_context(open_channel(settings.storage, credentials, IDEMPOTENT))
        bus = None
        if settings.nats.url is not None:
            bus = await EventBus.connect(settings.nats, SERVICE, owns_streams=True)
            stack.push_async_callback(bus.close)

        database = Database(engine, Wakes())
        journal = Journal(settings.lease)
        workers_table = Workers(database, settings.lease)
        leases = Leases(database, journal, workers_table, issuer, settings)
        datasets = Datasets(channel, settings.storage_seconds)
        launches = Launches(database, workers_table, settings)
        choosing = Pools(database, workers_table, settings)
        queues = Queues(settings)
        control = Control(database, journal, choosing, queues, settings)
        submissions = Submissions(database, journal, datasets, choosing, queues, leases, settings)
        services = _services(database, journal, workers_table, leases, submissions, queues, control, settings)
        services.append(_for_operators(database, workers_table, launches, issuer, settings))
        directory = RemoteDirectory(channel, settings.auth.lookups.call_seconds)
        authenticator = Authenticator(settings.auth, SERVICE, directory)
        counts = Counts(SERVICE, sender(channel, settings.storage_seconds))
        server = GrpcServer(settings.grpc, services, authenticator, POLICIES, counts)
        readiness = Readiness(server)
        ops = OpsServer(settings.ops, lambda: readiness.ready)
        ops.start()
        stack.callback(ops.stop)

        port = await server.start()
        logger.info("listening", extra={"port": port, "ops_port": ops.port})
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(database.listener(settings.postgres).run())
            storage = StorageTellers(database, channel, settings.storage_seconds)
            owners = OwnerTellers(settings.notify)
            stack.callback(owners.close)
            relay = settings.relay
            # Of its own: a webhook that does not answer holds up nobody else.
            patient = settings.notify.relay(relay)
            tasks.create_task(Relay(database, owners.tellers(), patient, relay.leisure_seconds).run())
            # Somebody waits for a result; the others have heard by themselves of what the bus is told.
            leisurely = {**BusTellers(database, bus).tellers(), **storage.deeds()}
            for told, pace in ((storage.endings(), relay.pace_seconds), (leisurely, relay.leisure_seconds)):
                tasks.create_task(Relay(database, told, relay, pace).run())
            sweeper = Sweeper(database, journal, leases, workers_table, settings, readiness.tell)
            tasks.create_task(sweeper.run())
            tasks.create_task(launches.run())
            counting = tasks.create_task(counts.run())
            erasures = Erasures(database, control, channel, settings)
            asking = tasks.create_task(erasures.run())
            if bus is not None:
                tasks.create_task(_provision(bus))
            await until_signalled()
            logger.info("stopping")
            # Held calls and streams end now, with word to ask again; then what is left may finish.
            database.wakes.close()
            await server.stop()
            await counts.close()
            listening.cancel()
            counting.cancel()
            asking.cancel()


def _services(
    database: Database,
    journal: Journal,
    workers_table: Workers,
    leases: Leases,
    submissions: Submissions,
    queues: Queues,
    control: Control,
    settings: TrainerSettings,
) -> list[Service]:
    """What the api answers to owners and workers."""
    for_owners = jobs.JobsServicer(
        submissions,
        Batches(submissions, settings.jobs),
        Retries(database, submissions),
        Jobs(database, queues),
        control,
        Watching(database, settings.watch),
        workers_table,
    )
    reports = Reports(database, journal, leases, settings.lease)
    sessions = Sessions(leases, reports, database.wakes, settings.lease)
    for_workers = workers.WorkerServicer(workers_table, leases, reports, sessions, settings.lease)
    return [
        Service(jobs.FULL_NAME, add_JobsServiceServicer_to_server, for_owners),
        Service(workers.FULL_NAME, add_WorkerServiceServicer_to_server, for_workers),
    ]


def _for_operators(
    database: Database,
    workers_table: Workers,
    launches: Launches,
    issuer: TokenIssuer,
    settings: TrainerSettings,
) -> Service:
    servicer = pools.PoolsServicer(workers_table, Credentials(database, issuer), launches, settings)
    return Service(pools.FULL_NAME, add_PoolsServiceServicer_to_server, servicer)


async def _provision(bus: EventBus) -> None:
    """Makes the streams; if the broker is away, the first publication that finds none makes them."""
    with contextlib.suppress(Unavailable):
        await bus.provision()
