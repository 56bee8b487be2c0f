"""`python -m services.storage migrate|serve|audit|config`"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from guidehall.contracts.datasets.v1 import datasets_pb2_grpc
from guidehall.contracts.identity.v1 import (
    accounts_pb2_grpc,
    audit_pb2_grpc,
    groups_pb2_grpc,
    identity_pb2_grpc,
    log_ins_pb2_grpc,
    personal_data_pb2_grpc,
)
from guidehall.contracts.models.v1 import models_pb2_grpc
from guidehall.contracts.results.v1 import history_pb2_grpc, results_pb2_grpc, staging_pb2_grpc
from guidehall.contracts.usage.v1 import usage_pb2_grpc
from guidehall.core import audit_chain
from guidehall.core.audit import Counts
from guidehall.core.auth import Authenticator, KeyFile, TokenIssuer
from guidehall.core.bus import EventBus
from guidehall.core.errors import AppError
from guidehall.core.grpc_server import GrpcServer, Service, until_signalled
from guidehall.core.migrations import migrate
from guidehall.core.postgres import create_engine, wait_until_ready
from guidehall.core.settings import SettingsError, config_command, log_settings
from guidehall.core.telemetry import OpsServer, configure_logging, configure_tracing
from services.storage.audit.export import export
from services.storage.audit.sealer import Sealer
from services.storage.audit.use_cases import AuditLog
from services.storage.database import Database
from services.storage.datasets import Datasets
from services.storage.downloads import Downloads
from services.storage.garbage import Collector
from services.storage.health import Health
from services.storage.history import History
from services.storage.identity.accounts import Accounts
from services.storage.identity.admissions import Admissions
from services.storage.identity.api_keys import ApiKeys
from services.storage.identity.devices import Devices
from services.storage.identity.directory import LocalDirectory
from services.storage.identity.groups import Groups
from services.storage.identity.providers import Providers
from services.storage.identity.sessions import Sessions
from services.storage.identity.users import Users
from services.storage.intake import Intake
from services.storage.job_logs import JobLogs
from services.storage.limits import Transfers
from services.storage.models import Models
from services.storage.objects import ObjectStore
from services.storage.outbox import Relay
from services.storage.personal_data.eraser import Eraser
from services.storage.personal_data.erasures import Erasures
from services.storage.policy import POLICIES
from services.storage.promotion import Promotion
from services.storage.results import Results
from services.storage.servicers.accounts import ACCOUNTS, AccountsServicer
from services.storage.servicers.datasets import DATASETS, UPLOAD_ROLES, DatasetsServicer, UploadRolesServicer
from services.storage.servicers.groups import GROUPS, GroupsServicer
from services.storage.servicers.history import HISTORY, HistoryServicer
from services.storage.servicers.identity import AUDIT, IDENTITY, AuditServicer, IdentityServicer
from services.storage.servicers.log_ins import LOG_INS, LogInsServicer
from services.storage.servicers.models import MODELS, ModelsServicer
from services.storage.servicers.personal_data import PERSONAL_DATA, PersonalDataServicer
from services.storage.servicers.results import RESULTS, STAGING, ResultsServicer, StagingServicer
from services.storage.servicers.usage import USAGE_SERVICE, UsageServicer
from services.storage.settings import StorageSettings
from services.storage.staging import Staging
from services.storage.sweep import Sweeper
from services.storage.upload_roles import UploadRolesUseCases
from services.storage.usage import Quota

NAME = "storage"
_PACKAGE = "services.storage"
USAGE = (
    "usage: python -m services.storage serve | migrate [--down-to REVISION] | "
    "audit verify [--expect NUMBER:SEAL] | audit export | config [show]"
)

logger = logging.getLogger("services.storage")


def _services(
    settings: StorageSettings,
    database: Database,
    store: ObjectStore,
    collector: Collector,
    sessions: Sessions,
    accounts: Accounts,
    job_logs: JobLogs,
    audit_log: AuditLog,
    log_ins: LogInsServicer,
) -> list[Service]:
    limits = settings.limits
    transfers = Transfers(limits)
    downloads = Downloads(store, transfers, settings.transfer)
    intake = Intake(database, store, collector, transfers, limits, settings.transfer)
    staging = Staging(database, intake, collector, limits)
    promotion = Promotion(database, collector)
    quota = Quota(database, limits.max_user_bytes)
    most = limits.max_document_bytes
    return [
        Service(
            DATASETS,
            datasets_pb2_grpc.add_DatasetsServiceServicer_to_server,
            DatasetsServicer(Datasets(database, intake, quota), downloads, settings.transfer),
        ),
        Service(
            UPLOAD_ROLES,
            datasets_pb2_grpc.add_UploadRolesServiceServicer_to_server,
            UploadRolesServicer(UploadRolesUseCases(database), most),
        ),
        Service(
            MODELS,
            models_pb2_grpc.add_ModelsServiceServicer_to_server,
            ModelsServicer(Models(database, intake, quota), downloads, settings.transfer),
        ),
        Service(
            RESULTS,
            results_pb2_grpc.add_ResultsServiceServicer_to_server,
            ResultsServicer(Results(database), job_logs, downloads),
        ),
        Service(
            STAGING,
            staging_pb2_grpc.add_StagingServiceServicer_to_server,
            StagingServicer(staging, promotion, downloads, most, settings.transfer),
        ),
        Service(
            HISTORY,
            history_pb2_grpc.add_HistoryServiceServicer_to_server,
            HistoryServicer(History(database), most),
        ),
        Service(
            IDENTITY,
            identity_pb2_grpc.add_IdentityServiceServicer_to_server,
            IdentityServicer(Users(database), ApiKeys(database), Admissions(database)),
        ),
        Service(
            GROUPS,
            groups_pb2_grpc.add_GroupsServiceServicer_to_server,
            GroupsServicer(Groups(database)),
        ),
        Service(
            ACCOUNTS,
            accounts_pb2_grpc.add_AccountsServiceServicer_to_server,
            AccountsServicer(accounts, sessions),
        ),
        Service(AUDIT, audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(audit_log)),
        Service(
            PERSONAL_DATA,
            personal_data_pb2_grpc.add_PersonalDataServiceServicer_to_server,
            PersonalDataServicer(database, Erasures(database, settings.accounts.erase_after_seconds)),
        ),
        Service(USAGE_SERVICE, usage_pb2_grpc.add_UsageServiceServicer_to_server, UsageServicer(quota)),
        Service(LOG_INS, log_ins_pb2_grpc.add_LogInsServiceServicer_to_server, log_ins),
    ]


async def serve(settings: StorageSettings) -> None:
    """Serves until it is told to end; running calls get the drain time."""
    log_settings(settings)
    engine = create_engine(settings.postgres)
    store = ObjectStore(settings.s3, settings.transfer)
    bus = await EventBus.connect(settings.nats, NAME) if settings.nats.url else None
    try:
        await wait_until_ready(engine, settings.start_seconds)
        await _run(settings, engine, store, bus)
    finally:
        if bus is not None:
            await bus.close()
        await store.close()
        await engine.dispose()


async def _run(
    settings: StorageSettings, engine: AsyncEngine, store: ObjectStore, bus: EventBus | None
) -> None:
    database = Database(engine)
    collector = Collector(database, store, settings.upkeep)
    key_file = settings.auth.service_key_file
    issuer = None if key_file is None else TokenIssuer(NAME, KeyFile(key_file))
    sessions = Sessions(database, settings.accounts, issuer)
    offered = settings.auth.mode == "token" and issuer is not None
    accounts = Accounts(database, settings.accounts, sessions, offered=offered)
    job_logs = JobLogs(database, settings.upkeep.job_log_max_age_seconds)
    audit_log = AuditLog(database)
    providers = Providers(database, settings.accounts.providers, sessions, offered=offered)
    devices = Devices(database, settings.accounts, sessions, offered=offered)
    log_ins = LogInsServicer(providers, devices)
    services = _services(
        settings, database, store, collector, sessions, accounts, job_logs, audit_log, log_ins
    )
    authenticator = Authenticator(settings.auth, NAME, LocalDirectory(ApiKeys(database)))
    sealer = Sealer(database, settings.audit)
    counts = Counts(NAME, audit_log.append_own)
    server = GrpcServer(settings.grpc, services, authenticator, POLICIES, counts)
    with_objects = [DATASETS, MODELS, RESULTS, STAGING]
    without_objects = [service.full_name for service in services if service.full_name not in with_objects]
    health = Health(database, store, settings.probe_seconds, without_objects, with_objects)
    ops = OpsServer(settings.ops, lambda: health.ready, lambda: health.missing)
    await health.begin(server)
    port = await server.start()
    ops.start()
    logger.info("listening", extra={"port": port})
    try:
        async with asyncio.TaskGroup() as tasks:
            background: list[Coroutine[Any, Any, None]] = [
                health.run(server),
                collector.run(),
                Sweeper(
                    database,
                    store,
                    collector,
                    settings.upkeep,
                    (sessions.forget, accounts.forget, devices.forget, job_logs.forget, sealer.retain),
                ).run(),
                sealer.run(),
                counts.run(),
                Eraser(database, collector, settings.upkeep.sweep_seconds).run(),
            ]
            if bus is not None:
                relay = Relay(
                    engine,
                    bus,
                    database.announced,
                    settings.relay_retry_seconds,
                    settings.upkeep.sweep_seconds,
                )
                background.append(relay.run())
            running = [tasks.create_task(task) for task in background]
            await until_signalled()
            logger.info("draining")
            await server.stop()
            await counts.close()
            for task in running:
                task.cancel()
            await collector.settle()
    finally:
        ops.stop()


async def verify_audit(settings: StorageSettings, expect: str = "") -> None:
    """Checks the audit log in the database, and that it still has a seal that was noted earlier."""
    noted = audit_chain.parse_seal(expect) if expect else None
    async with _database(settings) as database:
        print(await audit_chain.verify_stream(export(database), noted))


async def export_audit(settings: StorageSettings) -> None:
    """Writes the audit log with its seals to standard output."""
    async with _database(settings) as database:
        async for lines in export(database):
            sys.stdout.writelines(f"{line}\n" for line in lines)


@asynccontextmanager
async def _database(settings: StorageSettings) -> AsyncIterator[Database]:
    engine = create_engine(settings.postgres)
    try:
        await wait_until_ready(engine, settings.start_seconds)
        yield Database(engine)
    finally:
        await engine.dispose()


def main() -> None:
    """Runs the command that the arguments name."""
    command, *rest = sys.argv[1:] or ["serve"]
    try:
        match [command, *rest]:
            case ["config", *arguments]:
                config_command(StorageSettings, arguments)
            case ["serve"]:
                _start(serve)
            case ["migrate"]:
                _start(lambda settings: migrate(settings, _PACKAGE))
            case ["migrate", "--down-to", revision]:
                _start(lambda settings: migrate(settings, _PACKAGE, revision))
            case ["audit", "verify"]:
                _start(verify_audit)
            case ["audit", "verify", "--expect", seal]:
                _start(lambda settings: verify_audit(settings, seal))
            case ["audit", "export"]:
                _start(export_audit)
            case _:
                raise SystemExit(USAGE)
    except (SettingsError, AppError, OSError) as error:
        raise SystemExit(str(error)) from None


def _start(command: Callable[[StorageSettings], Coroutine[Any, Any, None]]) -> None:
    settings = StorageSettings.load()
    configure_logging(settings.log, NAME)
    configure_tracing(settings.telemetry, NAME)
    uvloop.run(command(settings))


if __name__ == "__main__":
    main()
