"""What a worker fetches from a real storage and leaves there, with the token of one job."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from guidehall.core.auth import KeyPair, TokenIssuer
from guidehall.core.channels import open_channel
from guidehall.core.errors import AppError, DataLoss, NotFound, OutOfRange, PermissionDenied
from guidehall.core.settings import ChannelSettings
from guidehall.science.pipeline import Desired
from services.trainer.worker.lease import CheckpointFile, LeasedJob
from services.trainer.worker.storage_client import StorageClient, StorageStubs
from services.trainer.worker.trainer_client import StagedObject
from tests.fixtures.storage import StorageSite

MIB = 1 << 20
CONTENT = b"".join(b"%d %d\n" % (number, number * number) for number in range(200_000))


@pytest.fixture
async def channel(storage: StorageSite) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(ChannelSettings(target=storage.target)) as channel:
        yield channel


def client(storage: StorageSite, channel: grpc.aio.Channel, *inputs: str, job_id: str = "") -> StorageClient:
    """As an attempt has it that may read `inputs`."""
    job_id = job_id or str(uuid.uuid4())
    issuer = TokenIssuer("trainer", KeyPair.load(storage.identity.key_file("trainer")))
    token = issuer.mint(
        f"jobs/{job_id}",
        "job",
        ttl_seconds=600,
        audience="storage",
        job_id=job_id,
        lease_epoch=1,
        inputs=list(inputs),
        project="default",
    )
    job = LeasedJob(
        job=f"projects/default/jobs/{job_id}",
        epoch=1,
        attempt=1,
        pipeline="toy.line",
        pipeline_version="1",
        params={},
        seed=1,
        inputs={},
        token=token,
        lease_seconds=60,
        heartbeat_seconds=10,
        checkpoint=None,
        timeout_seconds=0,
        hang_seconds=0,
        desired=Desired.RUN,
        owner="ada",
        traceparent="",
    )
    return StorageClient(StorageStubs(channel), job, timeout_seconds=30, transfer_seconds=60)


@pytest.fixture
async def dataset(storage: StorageSite) -> str:
    """A version with `CONTENT`."""
    async with storage.user("ada") as ada:
        version = await ada.upload(f"points-{uuid.uuid4().hex[:8]}", CONTENT, filename="points.DAT")
    return version.name


def described(content: bytes) -> StagedObject:
    return StagedObject(hashlib.sha256(content).hexdigest(), len(content), "application/octet-stream")


async def test_a_dataset_arrives_whole_read_only_and_with_its_suffix(
    storage: StorageSite, channel: grpc.aio.Channel, dataset: str, tmp_path: Path
) -> None:
    path = await client(storage, channel, dataset).download_dataset(dataset, tmp_path / "input-0", 8 * MIB)
    assert path.name == "input-0.DAT"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o400


async def test_a_download_goes_on_where_it_broke_off(
    storage: StorageSite, channel: grpc.aio.Channel, dataset: str, tmp_path: Path
) -> None:
    target = tmp_path / "input-0"
    target.write_bytes(CONTENT[: MIB + 5])
    path = await client(storage, channel, dataset).download_dataset(dataset, target, 8 * MIB)
    assert path.read_bytes() == CONTENT


async def test_what_does_not_have_the_digest_is_not_kept(
    storage: StorageSite, channel: grpc.aio.Channel, dataset: str, tmp_path: Path
) -> None:
    target = tmp_path / "input-0"
    target.write_bytes(b"x" + CONTENT[1:MIB])
    reader = client(storage, channel, dataset)
    with pytest.raises(DataLoss, match="SHA-256"):
        await reader.download_dataset(dataset, target, 8 * MIB)
    assert not target.exists()
    assert (await reader.download_dataset(dataset, target, 8 * MIB)).read_bytes() == CONTENT


async def test_a_dataset_beyond_the_limit_is_not_fetched(
    storage: StorageSite, channel: grpc.aio.Channel, dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(OutOfRange, match=str(len(CONTENT))):
        await client(storage, channel, dataset).download_dataset(dataset, tmp_path / "input-0", MIB)


async def test_a_dataset_that_the_job_did_not_name_does_not_exist_for_it(
    storage: StorageSite, channel: grpc.aio.Channel, dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await client(storage, channel).download_dataset(dataset, tmp_path / "input-0", 8 * MIB)


async def test_a_checkpoint_comes_back_as_it_went(
    storage: StorageSite, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    job_id = str(uuid.uuid4())
    staging, source = client(storage, channel, job_id=job_id), tmp_path / "checkpoint-1"
    job = f"projects/default/jobs/{job_id}"
    source.write_bytes(CONTENT)
    staged = await staging.stage_checkpoint(3, source, described(CONTENT))
    assert staged.sha256 == described(CONTENT).sha256
    reference = CheckpointFile(job, 3, 1, staged.sha256, staged.size_bytes)
    for _ in range(2):
        path = await staging.read_checkpoint(reference, tmp_path / "checkpoint", 8 * MIB)
        assert path.read_bytes() == CONTENT
    other = CheckpointFile(job, 3, 1, "0" * 64, staged.size_bytes)
    with pytest.raises(DataLoss):
        await staging.read_checkpoint(other, tmp_path / "checkpoint", 8 * MIB)
    # A retry reads that of the job before it, and of no other.
    retry, stranger = client(storage, channel, job), client(storage, channel)
    path = await retry.read_checkpoint(reference, tmp_path / "checkpoint", 8 * MIB)
    assert path.read_bytes() == CONTENT
    with pytest.raises(PermissionDenied):
        await stranger.read_checkpoint(reference, tmp_path / "checkpoint", 8 * MIB)


async def test_a_file_that_is_gone_or_a_link_is_a_loss_and_not_a_cancellation(
    storage: StorageSite, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    staging = client(storage, channel)
    with pytest.raises(DataLoss, match="points cannot be read"):
        await staging.stage_artifact("points", tmp_path / "missing", described(CONTENT))
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    with pytest.raises(DataLoss, match="points cannot be read"):
        await staging.stage_artifact("points", link, described(CONTENT))


async def test_storage_refuses_what_is_not_as_described(
    storage: StorageSite, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    source = tmp_path / "artifact-1"
    source.write_bytes(CONTENT + b"more")
    with pytest.raises(AppError, match=r"size|sha256|bytes"):
        await client(storage, channel).stage_artifact("points", source, described(CONTENT))
