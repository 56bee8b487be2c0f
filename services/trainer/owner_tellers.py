"""How those are told who want to know of a job's end: a signed HTTP POST, or an e-mail.

Both block, so each runs in a thread of a small pool of its own, with time-outs. What fails is told again by
the relay, later and later, until too much time has passed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import logging
import smtplib
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from functools import partial
from urllib.parse import urlsplit

from prometheus_client import Counter

from guidehall.core.errors import InvalidArgument, Unavailable
from services.trainer.documents import Document
from services.trainer.notifications import check_targets
from services.trainer.origins import port_of
from services.trainer.outbox import Message, Teller
from services.trainer.settings import NotifySettings

logger = logging.getLogger(__name__)

EVENT_HEADER = "X-Guidehall-Event-Id"
TIMESTAMP_HEADER = "X-Guidehall-Timestamp"
SIGNATURE_HEADER = "X-Guidehall-Signature"
_GIVEN_UP = Counter("guidehall_notifications_given_up", "Owners who could not be told of an end", ["target"])
_ACCEPTED = range(200, 300)


class OwnerTellers:
    """Tells owners that a job has ended."""

    def __init__(self, settings: NotifySettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.parallel, "notify")

    def tellers(self) -> Mapping[str, Teller]:
        """By kind of message."""
        return {"notify": Teller(self.notify)}

    def close(self) -> None:
        """Waits for nobody: what is not told yet is told after the next start."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def notify(self, ends: Sequence[Message]) -> None:
        """Tells one target of one job.

        Raises:
            Unavailable: it has to be told again.
        """
        for end in ends:
            target = end.payload["target"]
            age = datetime.now(UTC) - datetime.fromisoformat(end.payload["since"])
            late = age.total_seconds() >= self._settings.give_up_seconds
            if late and end.tries > 1:
                # Whatever kept the tries before from an answer.
                self._give_up(end, "it takes too long")
                continue
            try:
                # What was allowed when the job was submitted need not be so any more.
                check_targets([target], self._settings)
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, partial(self._tell, target, end))
            except InvalidArgument as error:
                self._give_up(end, error.message)
            except Unavailable as error:
                if not late:
                    raise
                self._give_up(end, error.message)

    def _give_up(self, end: Message, problem: str) -> None:
        (kind,) = end.payload["target"]
        _GIVEN_UP.labels(kind).inc()
        job = end.payload["event"]["job"]
        logger.warning("nobody is told that %s has ended: after %d tries: %s", job, end.tries, problem)

    def _tell(self, target: Mapping[str, str], end: Message) -> None:
        try:
            if "webhook_url" in target:
                self._post(target["webhook_url"], end)
            else:
                self._mail(target["email_address"], end)
        except (OSError, http.client.HTTPException, smtplib.SMTPException) as error:
            raise Unavailable(f"cannot be told: {type(error).__name__}") from error

    def _post(self, url: str, end: Message) -> None:
        """One request; a redirect is an answer like any other that is not 2xx, and is not followed."""
        settings = self._settings
        parts = urlsplit(url)
        host, port = parts.hostname or "", port_of(parts)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=settings.webhook_ca_file)
            connection = http.client.HTTPSConnection(
                host, port, timeout=settings.call_seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=settings.call_seconds)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        body = json.dumps({"id": end.message_id} | end.payload["event"]).encode()
        timestamp = str(int(time.time()))
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "guidehall",
            EVENT_HEADER: end.message_id,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: f"sha256={signature(secret, timestamp, body)}",
        }
        try:
            connection.request("POST", path, body, headers)
            status = connection.getresponse().status
        finally:
            connection.close()
        if status not in _ACCEPTED:
            raise Unavailable(f"the webhook answered {status}")

    def _mail(self, address: str, end: Message) -> None:
        settings = self._settings
        message = _message(settings.mail_from, address, end.payload["event"])
        # A repeat has the same id, by which mail programs recognise it.
        message["Message-ID"] = f"<{end.message_id}@{settings.mail_from.rpartition('@')[2]}>"
        host, port, seconds = settings.mail_host or "", settings.mail_port, settings.call_seconds
        context = ssl.create_default_context(cafile=settings.mail_ca_file)
        if settings.mail_security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=seconds, context=context)
        else:
            server = smtplib.SMTP(host, port, timeout=seconds)
        with server:
            if settings.mail_security == "starttls":
                server.starttls(context=context)
            if settings.mail_user is not None:
                server.login(settings.mail_user, settings.mail_password.get_secret_value())
            server.send_message(message)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What a receiver computes too: the HMAC-SHA256 of `<timestamp>.<body>`, in lower-case hexadecimal."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def _message(sender: str, address: str, event: Document) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = sender, address
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Auto-Submitted"] = "auto-generated"
    title = event["display_name"] or event["pipeline"]
    message["Subject"] = f"{title}: {event['state'].lower()}"
    lines = [f"{event['job']} ({event['pipeline']}) has ended: {event['state']}, {event['end_reason']}."]
    if event["error"]:
        lines.append(f"Error: {event['error']['message']}")
    if event["result"]:
        lines.append(f"Result: {event['result']}")
    lines += [f"{what}: {event[key]}" for what, key in _TIMES.items() if event[key]]
    message.set_content("\n".join(lines) + "\n")
    return message


_TIMES = {"Submitted": "create_time", "Started": "start_time", "Ended": "end_time"}
