"""Wiring of `python -m services.trainer worker`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import uvloop
from prometheus_client import Info

from guidehall.core.bus import EventBus
from guidehall.core.channels import open_channel
from guidehall.core.settings import SettingsError, config_command, log_settings
from guidehall.core.telemetry import OpsServer, configure_logging, configure_tracing
from guidehall.science.registry import RegistryError
from services.trainer.worker.agent import Agent
from services.trainer.worker.attempt import Tools
from services.trainer.worker.child_process import ChildOptions
from services.trainer.worker.children import Children, SupplyOptions
from services.trainer.worker.doorbell import Doorbell
from services.trainer.worker.machine import find_machine
from services.trainer.worker.settings import WorkerSettings
from services.trainer.worker.storage_client import StorageStubs
from services.trainer.worker.trainer_client import TrainerClient
from services.trainer.worker.workspace import Workspace

logger = logging.getLogger(__name__)

_ENGINE = Info("guidehall_reflectometry_engine", "What calculates reflectivities here")

_SERVICE = "worker"
# A loop that does not answer for so long is stuck: it waits for nothing by itself. How many such answers make
# a restart is for the probe to say.
_ALIVE_SECONDS = 2.0


def run(argv: Sequence[str]) -> int:
    """Runs a worker until it is told to end.

    Returns:
        Exit status.
    """
    if argv[:1] == ["config"]:
        config_command(WorkerSettings, list(argv[1:]))
        return 0
    if argv:
        print("usage: python -m services.trainer worker [config show | describe]", file=sys.stderr)
        return 2
    try:
        settings = WorkerSettings.load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings.log, _SERVICE)
    log_settings(settings)
    configure_tracing(settings.telemetry, _SERVICE)
    try:
        uvloop.run(_serve(settings))
    except RegistryError as error:
        logger.error("%s", error)
        return 1
    return 0


async def _serve(settings: WorkerSettings) -> None:
    async with AsyncExitStack() as stack:
        workspace = Workspace(settings.temp_dir)
        stack.callback(workspace.close)
        trainer = await stack.enter_async_context(open_channel(settings.trainer))
        storage = await stack.enter_async_context(open_channel(settings.storage))
        bus = None
        if settings.nats.url is not None:
            bus = await EventBus.connect(settings.nats, _SERVICE)
            stack.push_async_callback(bus.close)
        ops = OpsServer(settings.ops, _alive(asyncio.get_running_loop()))
        ops.start()
        stack.callback(ops.stop)
        machine = await find_machine(settings.device)
        tell_engine(machine.software["reflectometry_engine"])
        tools = Tools(
            settings=settings,
            device=machine.device,
            trainer=TrainerClient(trainer, settings.credential_file, settings.calls.timeout_seconds),
            storage=StorageStubs(storage),
            children=Children(workspace, _child_options(settings), _supply(settings)),
        )
        agent = Agent(tools, machine, Doorbell(bus, settings.pool), workspace)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.stop)
        logger.info("worker of pool %s on %s, process %d", settings.pool, machine.device, os.getpid())
        await agent.run()


def tell_engine(name: str) -> None:
    """Says what calculates reflectivities in the jobs of this worker, such as "c (avx2)" or "torch"."""
    _ENGINE.info({"engine": name})
    if name == "torch":
        logger.warning(
            "the compiled reflectometry engine is not installed, so torch calculates reflectivities, more"
            " slowly; install the package where there is a C compiler"
        )


def _child_options(settings: WorkerSettings) -> ChildOptions:
    child = settings.child
    return ChildOptions(child.preload, child.pass_environment, child.threads, child.reap_seconds)


def _supply(settings: WorkerSettings) -> SupplyOptions:
    return SupplyOptions(settings.child.spare, settings.child.jobs, settings.child.rest_seconds)


def _alive(loop: asyncio.AbstractEventLoop) -> Callable[[], bool]:
    """Health as a probe of liveness: a worker whose trainer is away must not be restarted for that."""

    def alive() -> bool:
        answered = threading.Event()
        loop.call_soon_threadsafe(answered.set)
        return answered.wait(_ALIVE_SECONDS)

    return alive
