"""Owners are told of a job's end: by a real HTTP server's log and a real SMTP conversation, over TLS too."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import shutil
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import InvalidArgument
from tests.fixtures.certificates import Authority
from tests.fixtures.storage import eventually
from tests.fixtures.trainer import Cast, TrainerSite, refused

_SECRET = "between the two of us"


@dataclass
class Hook:
    """A receiver that answers what it is told to, first things first, and then 204."""

    answers: list[int] = field(default_factory=list)
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    origin: str = ""

    async def wait(self, count: int) -> None:
        """Returns when so many requests have come."""

        async def came() -> bool:
            return len(self.received) >= count

        await eventually(came)


@contextlib.contextmanager
def hook(tls: ssl.SSLContext | None = None) -> Iterator[Hook]:
    told = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.received.append((self.path, dict(self.headers), body))
            self.send_response(told.answers.pop(0) if told.answers else 204)
            # Only a redirect means anything by it: here, to a place where nothing must ever arrive.
            self.send_header("Location", f"{told.origin}/elsewhere")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    told.origin = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Mailbox:
    """A mail server that turns away the first conversations, and keeps what later ones bring.

    Attributes:
        security: as the trainer's setting; with `starttls` it takes nothing before.
        login: user and password; where set, it takes nothing from others.
        said: the commands that came unencrypted, without their arguments.
    """

    security: str = "none"
    tls: ssl.SSLContext | None = None
    login: tuple[str, str] | None = None
    said: list[str] = field(default_factory=list)
    turn_away: int = 0
    conversations: int = 0
    mails: list[tuple[str, str, EmailMessage]] = field(default_factory=list)
    port: int = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The server's side of RFC 5321, as far as a client needs it."""
        self.conversations += 1
        sender = recipient = ""
        secure, known = self.security != "starttls", self.login is None

        async def say(line: str) -> None:
            writer.write(line.encode() + b"\r\n")
            await writer.drain()

        await say("220 test" if self.conversations > self.turn_away else "421 too busy")
        while line := (await reader.readline()).decode().strip():
            command = line.split(maxsplit=1)[0].upper()
            if writer.get_extra_info("ssl_object") is None:
                self.said.append(command)
            match command:
                case "EHLO" | "HELO":
                    offered = ["AUTH PLAIN"] if secure and not known else []
                    offered += ["STARTTLS"] if not secure and self.tls else []
                    for name in ["test", *offered]:
                        await say(f"250-{name}")
                    await say("250 8BITMIME")
                case "STARTTLS" if self.tls:
                    await say("220 go on")
                    await writer.start_tls(self.tls)
                    secure = True
                case "AUTH" if secure and self.login:
                    known = line.split()[1:] == ["PLAIN", _plain(*self.login)]
                    await say("235 welcome" if known else "535 who?")
                case "MAIL" | "RCPT" | "DATA" if not (secure and known):
                    await say("530 not like this")
                case "MAIL":
                    sender = line.partition("<")[2].partition(">")[0]
                    await say("250 ok")
                case "RCPT":
                    recipient = line.partition("<")[2].partition(">")[0]
                    await say("250 ok")
                case "DATA":
                    await say("354 go on")
                    data = await reader.readuntil(b"\r\n.\r\n")
                    message: Any = message_from_bytes(data[:-5], policy=policy.default)
                    self.mails.append((sender, recipient, message))
                    await say("250 kept")
                case "QUIT":
                    await say("221 bye")
                    break
                case _:
                    await say("502 what?")
        writer.close()


def _plain(user: str, password: str) -> str:
    """RFC 4616."""
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


@dataclass
class Site:
    """A trainer that may tell of ends, and those whom it may tell."""

    cast: Cast
    hook: Hook
    mailbox: Mailbox
    trainer: TrainerSite


@contextlib.asynccontextmanager
async def notifying(
    own_trainer: Callable[..., TrainerSite],
    folder: Path,
    mailbox: Mailbox,
    hook_tls: ssl.SSLContext | None = None,
    **settings: object,
) -> AsyncIterator[Site]:
    """A trainer that may tell a new hook and a mailbox."""
    (folder / "secret").write_text(f"{_SECRET}\n")
    tls = mailbox.tls if mailbox.security == "tls" else None
    with hook(hook_tls) as told:
        async with await asyncio.start_server(mailbox.converse, "127.0.0.1", 0, ssl=tls) as server:
            mailbox.port = server.sockets[0].getsockname()[1]
            values: dict[str, object] = {
                "NOTIFY__WEBHOOK_ORIGINS": json.dumps([told.origin]),
                "NOTIFY__WEBHOOK_SECRET_FILE": folder / "secret",
                "NOTIFY__MAIL_HOST": "127.0.0.1",
                "NOTIFY__MAIL_PORT": mailbox.port,
                "NOTIFY__MAIL_SECURITY": mailbox.security,
                "NOTIFY__MAIL_FROM": "jobs@example.org",
                "NOTIFY__RETRY_LONGEST_SECONDS": 0.5,
            }
            trainer = own_trainer(**values | settings)
            await asyncio.to_thread(trainer.start)
            cast = Cast(trainer)
            yield Site(cast, told, mailbox, trainer)
            await cast.close()


@pytest.fixture
async def site(own_trainer: Callable[..., TrainerSite], tmp_path: Path) -> AsyncIterator[Site]:
    async with notifying(own_trainer, tmp_path, Mailbox(), NOTIFY__GIVE_UP_SECONDS=8) as site:
        yield site


async def test_a_webhook_that_fails_first_is_called_again_and_can_tell_who_calls(site: Site) -> None:
    owner, worker = site.cast.owner(), await site.cast.worker()
    # A redirect is a failure like any other: nobody is led elsewhere.
    site.hook.answers = [500, 307]
    url = f"{site.hook.origin}/ended?by=guidehall"
    job = await owner.submit(
        display_name="film", labels={"a": "b"}, notifications=[jobs_pb2.Notification(webhook_url=url)]
    )
    assert job.notifications[0].webhook_url == url
    lease = await worker.must_lease()
    await worker.finish(lease, "FAILED", "USER_ERROR", error={"code": "INVALID_ARGUMENT", "message": "no"})
    await site.hook.wait(3)
    assert {path for path, *_ in site.hook.received} == {"/ended?by=guidehall"}
    for _, headers, body in site.hook.received:
        signed = headers["X-Guidehall-Timestamp"].encode() + b"." + body
        expected = hmac.new(_SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["X-Guidehall-Signature"] == f"sha256={expected}"
        assert abs(int(headers["X-Guidehall-Timestamp"]) - time.time()) < 60
    ids = {headers["X-Guidehall-Event-Id"] for _, headers, _ in site.hook.received}
    assert len(ids) == 1
    told = json.loads(site.hook.received[-1][2])
    assert told["id"] in ids
    ended = await owner.get(job.name)
    assert (told["job"], told["state"], told["end_reason"]) == (job.name, "FAILED", "USER_ERROR")
    assert (told["error"]["message"], told["result"], told["labels"]) == ("no", None, {"a": "b"})
    assert told["end_time"].startswith(ended.end_time.ToDatetime().isoformat(timespec="seconds"))
    await untold(site, 0)


async def test_everybody_named_is_told_each_by_himself(site: Site) -> None:
    owner = site.cast.owner()
    site.mailbox.turn_away = 1
    site.hook.answers = [500] * 3
    both = [
        jobs_pb2.Notification(webhook_url=f"{site.hook.origin}/ended"),
        jobs_pb2.Notification(email_address="ada@example.org"),
    ]
    job = await owner.submit(display_name="Größe", notifications=both)
    await owner.cancel(job.name)

    async def mailed() -> bool:
        return bool(site.mailbox.mails)

    await eventually(mailed)
    sender, recipient, mail = site.mailbox.mails[0]
    assert (sender, recipient) == ("jobs@example.org", "ada@example.org")
    assert (mail["From"], mail["To"]) == ("jobs@example.org", "ada@example.org")
    assert mail["Subject"] == "Größe: cancelled"
    assert job.name in mail.get_content()
    assert mail["Message-ID"].endswith("@example.org>")
    assert site.mailbox.conversations == 2
    await site.hook.wait(4)
    await untold(site, 0)
    assert len(site.mailbox.mails) == 1


async def test_after_some_time_nobody_is_told_any_more(site: Site) -> None:
    owner = site.cast.owner()
    site.hook.answers = [503] * 1000
    target = jobs_pb2.Notification(webhook_url=f"{site.hook.origin}/ended")
    job = await owner.submit(notifications=[target])
    await owner.cancel(job.name)
    await site.hook.wait(1)
    assert await told_later(site) == 1
    await untold(site, 0)
    assert len(site.hook.received) >= 3


async def told_later(site: Site) -> int:
    query = "SELECT count(*) FROM trainer.outbox WHERE kind = 'notify'"
    return int((await site.trainer.fetch(query))[0]["count"])


async def untold(site: Site, count: int) -> None:
    """Returns when so many are left to tell."""

    async def left() -> bool:
        return await told_later(site) == count

    await eventually(left)


def server_tls(authority: Authority) -> ssl.SSLContext:
    """What a receiver shows that the authority vouches for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("receiver"))
    return context


async def failing(site: Site, problem: str) -> None:
    """Returns when telling has failed like this twice at least, and more often than before."""
    query = "SELECT tries, last_error FROM trainer.outbox WHERE kind = 'notify'"
    (before,) = await site.trainer.fetch(query)

    async def so() -> bool:
        (row,) = await site.trainer.fetch(query)
        return row["tries"] >= before["tries"] + 2 and problem in (row["last_error"] or "")

    await eventually(so)


async def test_a_webhook_over_tls_has_to_show_a_certificate_that_is_trusted(
    own_trainer: Callable[..., TrainerSite], tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    trusted = tmp_path / "trusted.pem"
    shutil.copy(stranger.file, trusted)
    tls = server_tls(authority)
    async with notifying(own_trainer, tmp_path, Mailbox(), tls, NOTIFY__WEBHOOK_CA_FILE=trusted) as site:
        target = jobs_pb2.Notification(webhook_url=f"{site.hook.origin}/ended")
        job = await site.cast.owner().submit(notifications=[target])
        await site.cast.owner().cancel(job.name)
        await failing(site, "SSLCertVerificationError")
        assert site.hook.received == []
        shutil.copy(authority.file, trusted)
        await untold(site, 0)
        ((path, headers, body),) = site.hook.received
        assert (path, json.loads(body)["job"]) == ("/ended", job.name)
        assert headers["X-Guidehall-Signature"].startswith("sha256=")


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_mail_server_over_tls_is_told_the_password_once_it_is_trusted(
    own_trainer: Callable[..., TrainerSite],
    tmp_path: Path,
    authority: Authority,
    stranger: Authority,
    security: str,
) -> None:
    trusted = tmp_path / "trusted.pem"
    shutil.copy(stranger.file, trusted)
    (tmp_path / "password").write_text("pass word\n")
    mailbox = Mailbox(security, server_tls(authority), login=("guidehall", "another"))
    settings = {
        "NOTIFY__MAIL_CA_FILE": trusted,
        "NOTIFY__MAIL_USER": "guidehall",
        "NOTIFY__MAIL_PASSWORD_FILE": tmp_path / "password",
    }
    async with notifying(own_trainer, tmp_path, mailbox, **settings) as site:
        target = jobs_pb2.Notification(email_address="ada@example.org")
        job = await site.cast.owner().submit(notifications=[target])
        await site.cast.owner().cancel(job.name)
        await failing(site, "SSLCertVerificationError")
        shutil.copy(authority.file, trusted)
        await failing(site, "SMTPAuthenticationError")
        assert mailbox.mails == []
        mailbox.login = ("guidehall", "pass word")
        await untold(site, 0)
        ((_, recipient, mail),) = mailbox.mails
        assert recipient == "ada@example.org"
        assert job.name in mail.get_content()
        # Neither the password nor a mail went without encryption.
        assert set(mailbox.said) == ({"EHLO", "STARTTLS"} if security == "starttls" else set())


async def test_a_mail_server_that_does_not_encrypt_gets_nothing_where_it_has_to(
    own_trainer: Callable[..., TrainerSite], tmp_path: Path
) -> None:
    mailbox = Mailbox("starttls")
    async with notifying(own_trainer, tmp_path, mailbox) as site:
        target = jobs_pb2.Notification(email_address="ada@example.org")
        job = await site.cast.owner().submit(notifications=[target])
        await site.cast.owner().cancel(job.name)
        await failing(site, "SMTPNotSupportedError")
        assert set(mailbox.said) <= {"EHLO", "HELO", "QUIT"}
        assert mailbox.mails == []


async def test_only_where_the_operator_allows_it(site: Site) -> None:
    owner, allowed = site.cast.owner(), site.hook.origin
    port = allowed.rpartition(":")[2]
    for url in (
        "https://127.0.0.1:1/x",
        f"http://localhost:{port}/",
        f"http://127.0.0.1:{port}@example.org/",
        f"http://ada@127.0.0.1:{port}/",
        f"{allowed}/a b",
        f"{allowed}\\@example.org/",
        "ftp://127.0.0.1/",
        "http://[::1/",
        "",
    ):
        async with refused(InvalidArgument) as found:
            await owner.submit(notifications=[jobs_pb2.Notification(webhook_url=url)])
        assert [item.field for item in found[0].violations] == ["notifications[0].webhook_url"], url
    for address in ("ada", "ada@", "a b@example.org", "ada@example.org\r\nBcc: bob@example.org", "<a@b>"):
        async with refused(InvalidArgument) as found:
            await owner.submit(notifications=[jobs_pb2.Notification(email_address=address)])
        assert [item.field for item in found[0].violations] == ["notifications[0].email_address"], address
    many = [jobs_pb2.Notification(email_address="ada@example.org")] * 9
    async with refused(InvalidArgument) as found:
        await owner.submit(notifications=many)
    assert [item.field for item in found[0].violations] == ["notifications"]


async def test_what_was_not_set_up_is_refused_at_submission(cast: Cast) -> None:
    for fields, blamed in (
        ({"webhook_url": "https://hooks.example.org/"}, "notifications[0].webhook_url"),
        ({"email_address": "ada@example.org"}, "notifications[0].email_address"),
        ({}, "notifications[0]"),
    ):
        async with refused(InvalidArgument) as found:
            await cast.owner().submit(notifications=[jobs_pb2.Notification(**fields)])
        assert [item.field for item in found[0].violations] == [blamed]
