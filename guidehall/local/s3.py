"""An S3 endpoint over a folder: `rclone serve s3` with a random key, on loopback."""

from __future__ import annotations

from pathlib import Path

from guidehall.local.access import S3Access
from guidehall.local.binaries import find_program
from guidehall.local.errors import StackError
from guidehall.local.files import Secrets
from guidehall.local.ports import LOOPBACK
from guidehall.local.processes import Program

ACCESS_KEY = "guidehall"
BUCKET = "guidehall"


class S3Server:
    """S3 below `folder`: a bucket is a folder in `folder/s3/buckets`."""

    def __init__(self, folder: Path, port: int, secrets: Secrets) -> None:
        self.endpoint = f"{LOOPBACK}:{port}"
        self.access_key = ACCESS_KEY
        self.secret_key = secrets.text("s3-secret-key")
        self._secret_file = secrets.path("s3-secret-key")
        self._folder = folder / "s3"

    def program(self) -> Program:
        """The server as a program to supervise."""
        buckets = self._folder / "buckets"
        return Program(
            name="s3",
            argv=(
                str(find_program("rclone")), "serve", "s3", str(buckets), f"--addr={self.endpoint}",
                "--config=", f"--cache-dir={self._folder / 'cache'}", "--log-level=NOTICE",
                "--multipart-expiry=6h", "--multipart-streaming-buffer-total=256M",
            ),
            # By environment, which only our own account can read, and not by argument, which everyone can.
            environment={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self._folder),
                "RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"',
            },
            probe=f"s3://{self.endpoint}",
            prepare=lambda _: (buckets / BUCKET).mkdir(parents=True, exist_ok=True),
        )  # fmt: skip

    def access(self) -> S3Access:
        """How a service reaches the bucket of the platform."""
        return S3Access(self.endpoint, self.access_key, self._secret_file, BUCKET, secure=False)

    def create_bucket(self, name: str) -> str:
        """Makes the bucket `name`, if it is not there, and returns the name."""
        create_bucket(self.endpoint, self.access_key, self.secret_key, name, secure=False)
        return name


def create_bucket(endpoint: str, access_key: str, secret_key: str, name: str, *, secure: bool) -> None:
    """Makes a bucket on any S3 server unless it is there.

    Raises:
        StackError: the server refused, or cannot be reached.
    """
    import minio
    import urllib3

    pool = urllib3.PoolManager(timeout=10.0, retries=False)
    client = minio.Minio(
        endpoint,
        access_key=access_key,
        secret_key=secret_key,
        secure=secure,
        region="us-east-1",
        http_client=pool,
    )
    try:
        if not client.bucket_exists(name):
            client.make_bucket(name)
    except (ValueError, minio.error.MinioException, urllib3.exceptions.HTTPError) as error:
        raise StackError(f"S3 at {endpoint} refused bucket {name!r}: {type(error).__name__}") from error
    finally:
        pool.clear()
