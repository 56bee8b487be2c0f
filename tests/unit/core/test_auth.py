"""Identity: what is accepted, and every way in which a token is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from guidehall.core.auth import (
    ON_BEHALF_OF,
    Authenticator,
    KeyPair,
    Kind,
    Policy,
    Principal,
    Role,
    TokenIssuer,
    TrustStore,
    current_principal,
    encode_delegation,
    set_principal,
)
from guidehall.core.errors import AppError, PermissionDenied, Unauthenticated
from guidehall.core.settings import AuthSettings, SettingsError

REMOTE = "ipv4:192.0.2.7:4711"
ANN = Principal("ann", "user", frozenset({Role.SCIENTIST}), frozenset({"film"}))


class Site:
    """Keys of three services, and a trust file that knows them as an installation would."""

    def __init__(self, folder: Path) -> None:
        self.trust_file = folder / "trust.json"
        self.storage = TokenIssuer("storage", KeyPair.generate())
        self.trainer = TokenIssuer("trainer", KeyPair.generate())
        self.gateway = TokenIssuer("gateway", KeyPair.generate())
        self.trust(
            TrustStore.entry(self.storage.key, "storage", ["user", "service"])
            | TrustStore.entry(self.trainer.key, "trainer", ["worker", "job", "service"])
            | TrustStore.entry(self.gateway.key, "gateway", ["service"], may_delegate=True)
        )

    def trust(self, entries: dict[str, Any]) -> None:
        """Writes the trust file anew, so that the change is seen whatever the clock's resolution."""
        fresh = self.trust_file.with_suffix(".new")
        fresh.write_text(json.dumps(entries))
        fresh.replace(self.trust_file)

    def authenticator(self, mode: str = "token", service: str = "inference") -> Authenticator:
        return Authenticator(AuthSettings(mode=mode, trust_file=self.trust_file), service)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def authenticate(authenticator: Authenticator, metadata: Mapping[str, str], peer: str) -> Principal:
    return asyncio.run(authenticator.authenticate(metadata, peer))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def refused(site: Site, token: str) -> str:
    """The reason why a token is refused."""
    with pytest.raises(Unauthenticated) as caught:
        authenticate(site.authenticator(), bearer(token), REMOTE)
    return caught.value.reason


def claims_for(issuer: TokenIssuer, **changes: Any) -> dict[str, Any]:
    now = time.time()
    claims = {
        "iss": issuer.issuer,
        "sub": "ann",
        "kind": "user",
        "aud": "guidehall",
        "iat": now,
        "exp": now + 60,
    }
    return {key: value for key, value in (claims | changes).items() if value is not None}


def test_a_user_is_who_the_token_says(site: Site) -> None:
    token = site.storage.mint(
        "ann", "user", ttl_seconds=60, roles=[Role.SCIENTIST], groups=["film"], jti="credential-1"
    )

    principal = authenticate(site.authenticator(), bearer(token), REMOTE)

    assert principal == Principal(
        "ann", "user", frozenset({Role.SCIENTIST}), frozenset({"film"}), credential_id="credential-1"
    )


def test_a_job_token_carries_its_attempt_and_its_inputs(site: Site) -> None:
    token = site.trainer.mint(
        "7f", "job", ttl_seconds=60, audience="storage",
        job_id="7f", lease_epoch=3, inputs=["projects/default/datasets/a/versions/1"], project="default",
    )  # fmt: skip

    principal = authenticate(site.authenticator(service="storage"), bearer(token), REMOTE)

    assert (principal.kind, principal.job_id, principal.lease_epoch) == ("job", "7f", 3)
    assert principal.inputs == ("projects/default/datasets/a/versions/1",)
    assert principal.project == "default"


def test_a_worker_token_carries_its_pool(site: Site) -> None:
    token = site.trainer.mint("w1", "worker", ttl_seconds=60, pool="cpu")

    assert authenticate(site.authenticator(), bearer(token), REMOTE).pool == "cpu"


def test_the_scheme_may_be_written_in_any_case(site: Site) -> None:
    token = site.storage.mint("ann", "user", ttl_seconds=60)

    assert authenticate(site.authenticator(), {"authorization": f"bearer  {token} "}, REMOTE).subject == "ann"


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "Bearer ", "token"])
def test_anything_but_a_bearer_token_is_refused(site: Site, header: str) -> None:
    with pytest.raises(Unauthenticated, match="bearer"):
        authenticate(site.authenticator(), {"authorization": header}, REMOTE)


@pytest.mark.parametrize("token", ["x", "a.b.c", "..", "e30.e30.", "[" * 5000, "x" * 100_000])
def test_garbage_is_refused(site: Site, token: str) -> None:
    assert refused(site, token) == "BAD_CREDENTIAL"


def test_a_deeply_nested_header_is_refused(site: Site) -> None:
    header = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")

    assert refused(site, f"{header}.e30.AA") == "BAD_CREDENTIAL"


def test_a_key_that_nobody_trusts_is_refused(site: Site) -> None:
    assert refused(site, TokenIssuer("storage", KeyPair.generate()).mint("ann", "user", ttl_seconds=60)) == (
        "BAD_CREDENTIAL"
    )


def test_a_foreign_key_under_a_trusted_id_is_refused(site: Site) -> None:
    foreign = KeyPair.generate()
    foreign.kid = site.storage.key.kid

    assert (
        refused(site, TokenIssuer("storage", foreign).mint("ann", "user", ttl_seconds=60)) == "BAD_CREDENTIAL"
    )


def test_an_unsigned_token_is_refused(site: Site) -> None:
    headers = {"kid": site.storage.key.kid}

    assert refused(site, jwt.encode(claims_for(site.storage), "", algorithm="none", headers=headers)) == (
        "BAD_CREDENTIAL"
    )


@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_a_token_signed_with_the_public_key_as_a_shared_secret_is_refused(site: Site, algorithm: str) -> None:
    text = site.storage.key.public_key
    secrets = [text.encode(), base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) * 2]

    for secret in secrets:
        token = jwt.encode(
            claims_for(site.storage),
            secret.ljust(64, b"\0"),
            algorithm=algorithm,
            headers={"kid": site.storage.key.kid},
        )
        assert refused(site, token) == "BAD_CREDENTIAL"


@pytest.mark.parametrize(
    ("algorithm", "generate"),
    [
        ("RS256", lambda: rsa.generate_private_key(65537, 2048)),
        ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
    ],
)
def test_other_algorithms_are_refused(site: Site, algorithm: str, generate: Callable[[], Any]) -> None:
    token = jwt.encode(
        claims_for(site.storage), generate(), algorithm=algorithm, headers={"kid": site.storage.key.kid}
    )

    assert refused(site, token) == "BAD_CREDENTIAL"


def test_a_changed_token_is_refused(site: Site) -> None:
    header, _, signature = site.storage.mint("ann", "user", ttl_seconds=60).split(".")
    forged = (
        base64.urlsafe_b64encode(json.dumps(claims_for(site.storage, sub="root")).encode())
        .decode()
        .rstrip("=")
    )

    assert refused(site, f"{header}.{forged}.{signature}") == "BAD_CREDENTIAL"


@pytest.mark.parametrize(
    ("issuer", "kind"),
    [
        ("trainer", "user"), ("gateway", "user"), ("gateway", "worker"), ("storage", "job"),
        ("storage", "worker"), ("gateway", "guest"), ("storage", "root"), ("storage", None),
    ],
)  # fmt: skip
def test_an_issuer_speaks_only_for_its_kinds(site: Site, issuer: str, kind: str | None) -> None:
    speaker: TokenIssuer = getattr(site, issuer)

    assert refused(site, speaker.key.sign(claims_for(speaker, kind=kind))) == "BAD_CREDENTIAL"


def test_a_service_speaks_only_for_itself(site: Site) -> None:
    assert refused(site, site.gateway.mint("trainer", "service", ttl_seconds=60)) == "BAD_CREDENTIAL"
    own = site.gateway.mint("gateway", "service", ttl_seconds=60)
    assert authenticate(site.authenticator(), bearer(own), REMOTE).kind == "service"


def test_the_issuer_must_be_the_keys_owner(site: Site) -> None:
    assert refused(site, site.trainer.key.sign(claims_for(site.storage))) == "BAD_CREDENTIAL"


# The year 2100: the same for every process that lists the tests.
_FAR_AHEAD = 4102444800


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None}, {"iat": None}, {"iss": None}, {"aud": None}, {"sub": None},
        {"nbf": _FAR_AHEAD}, {"iat": _FAR_AHEAD}, {"aud": "trainer"}, {"aud": ["a", "b"]},
        {"exp": "soon"}, {"roles": ["KING"]}, {"roles": 7}, {"lease_epoch": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_claims_that_are_missing_or_wrong_are_refused(site: Site, changes: dict[str, Any]) -> None:
    assert refused(site, site.storage.key.sign(claims_for(site.storage, **changes))) == "BAD_CREDENTIAL"


def test_several_audiences_count_for_each(site: Site) -> None:
    token = site.storage.mint("ann", "user", ttl_seconds=60, audience=["trainer", "inference"])

    assert authenticate(site.authenticator(service="inference"), bearer(token), REMOTE).subject == "ann"
    assert refused(site, site.storage.mint("ann", "user", ttl_seconds=60, audience=["trainer", "storage"]))


def test_clocks_may_differ_by_the_leeway_and_no_more(site: Site) -> None:
    late = site.storage.key.sign(claims_for(site.storage, exp=time.time() - 20))
    later = site.storage.key.sign(claims_for(site.storage, exp=time.time() - 40))

    assert authenticate(site.authenticator(), bearer(late), REMOTE).subject == "ann"
    assert refused(site, later) == "EXPIRED_CREDENTIAL"


def test_a_token_that_was_accepted_still_expires(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = site.authenticator()
    token = site.storage.mint("ann", "user", ttl_seconds=60)
    authenticate(authenticator, bearer(token), REMOTE)
    later = SimpleNamespace(time=lambda: time.time() + 100)

    with monkeypatch.context() as patch:
        patch.setattr("guidehall.core.auth.tokens.time", later)
        with pytest.raises(Unauthenticated) as caught:
            authenticate(authenticator, bearer(token), REMOTE)

    assert caught.value.reason == "EXPIRED_CREDENTIAL"


def test_a_key_that_leaves_the_trust_file_counts_no_longer(site: Site) -> None:
    authenticator = site.authenticator()
    token = site.storage.mint("ann", "user", ttl_seconds=60)
    authenticate(authenticator, bearer(token), REMOTE)

    site.trust(TrustStore.entry(site.gateway.key, "gateway", ["service"]))

    with pytest.raises(Unauthenticated):
        authenticate(authenticator, bearer(token), REMOTE)


def test_a_trust_file_that_could_not_be_read_once_is_read_again(site: Site) -> None:
    authenticator = site.authenticator()
    token = site.storage.mint("ann", "user", ttl_seconds=60)
    site.trust(TrustStore.entry(site.gateway.key, "gateway", ["service"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with asyncio.Runner() as runner:
        runner.get_loop()
        # No file can be opened now, but it can be looked at.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            known = runner.run(authenticator.authenticate(bearer(token), REMOTE))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert known.subject == "ann"

    with pytest.raises(Unauthenticated):
        authenticate(authenticator, bearer(token), REMOTE)


@pytest.mark.parametrize(
    "content",
    ["{half a fi", '{"k": {}}', "[]", '{"k": {"issuer": "a", "public_key": "AA", "may_issue": []}}'],
)
def test_a_broken_trust_file_changes_nothing_and_a_mended_one_counts(site: Site, content: str) -> None:
    authenticator = site.authenticator()
    token = site.storage.mint("ann", "user", ttl_seconds=60)
    good = json.loads(site.trust_file.read_text())

    fresh = site.trust_file.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(site.trust_file)
    assert authenticate(authenticator, bearer(token), REMOTE).subject == "ann"
    site.trust_file.unlink()
    assert authenticate(authenticator, bearer(token), REMOTE).subject == "ann"

    newcomer = TokenIssuer("storage", KeyPair.generate())
    site.trust(good | TrustStore.entry(newcomer.key, "storage", ["user"]))
    late = newcomer.mint("ben", "user", ttl_seconds=60)
    assert authenticate(authenticator, bearer(late), REMOTE).subject == "ben"


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"k": {"issuer": "a", "public_key": "AA==", "may_issue": "user"}}']
)
def test_a_server_does_not_start_without_a_sound_trust_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "trust.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(SettingsError, match="trust"):
        Authenticator(AuthSettings(mode="token", trust_file=path), "storage")


def test_without_a_trust_file_no_token_holds(site: Site) -> None:
    token = site.storage.mint("ann", "user", ttl_seconds=60)

    with pytest.raises(Unauthenticated, match="no token is trusted"):
        authenticate(Authenticator(AuthSettings(), "storage"), bearer(token), "unix:")


@pytest.mark.parametrize(
    "peer",
    ["ipv4:127.0.0.1:40000", "ipv4:127.3.2.1:1", "ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "unix:", "unix:/run/x"],
)
def test_in_single_mode_this_machine_is_the_local_user(peer: str) -> None:
    settings = AuthSettings(mode="single", local_user="me")

    assert authenticate(Authenticator(settings, "storage"), {}, peer) == Principal(
        "me", "user", frozenset({Role.ADMIN})
    )


@pytest.mark.parametrize(
    "peer", [REMOTE, "ipv4:10.0.0.1:127", "ipv6:[2001:db8::1]:1", "ipv6:[::ffff:10.0.0.1]:1", "unknown", ""]
)
def test_in_single_mode_other_machines_are_nobody(peer: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        authenticate(Authenticator(AuthSettings(mode="single"), "storage"), {}, peer)

    assert caught.value.reason == "NO_CREDENTIAL"


@pytest.mark.parametrize("mode", ["proxy", "token"])
def test_in_other_modes_this_machine_is_nobody_either(site: Site, mode: str) -> None:
    with pytest.raises(Unauthenticated):
        authenticate(site.authenticator(mode), {}, "ipv4:127.0.0.1:1")


def test_a_token_is_verified_in_single_mode_too(site: Site) -> None:
    with pytest.raises(Unauthenticated):
        authenticate(site.authenticator("single"), bearer("nonsense"), "ipv4:127.0.0.1:1")


def delegated(site: Site, token: str, text: str) -> Principal:
    return authenticate(site.authenticator(), bearer(token) | {ON_BEHALF_OF: text}, REMOTE)


def test_the_gateway_acts_for_a_user(site: Site) -> None:
    token = site.gateway.mint("gateway", "service", ttl_seconds=60)

    assert delegated(site, token, encode_delegation(ANN)) == Principal(
        "ann", "user", frozenset({Role.SCIENTIST}), frozenset({"film"}), actor="gateway"
    )
    assert delegated(site, token, encode_delegation(Principal("guest", "guest"))).kind == "guest"


@pytest.mark.parametrize("issuer", ["storage", "trainer"])
def test_a_service_that_may_not_delegate_acts_for_nobody(site: Site, issuer: str) -> None:
    speaker: TokenIssuer = getattr(site, issuer)
    token = speaker.mint(issuer, "service", ttl_seconds=60)

    with pytest.raises(Unauthenticated, match="may not act for others"):
        delegated(site, token, encode_delegation(ANN))


def test_a_user_acts_for_nobody(site: Site) -> None:
    with pytest.raises(Unauthenticated, match="may not act for others"):
        delegated(site, site.storage.mint("eve", "user", ttl_seconds=60), encode_delegation(ANN))


@pytest.mark.parametrize("kind", ["service", "worker", "job"])
def test_nobody_acts_for_a_service_a_worker_or_a_job(site: Site, kind: Kind) -> None:
    token = site.gateway.mint("gateway", "service", ttl_seconds=60)

    with pytest.raises(Unauthenticated, match="delegation"):
        delegated(site, token, encode_delegation(Principal("trainer", kind)))


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"{}", b'{"kind": "user"}', b'{"kind": ["user"], "sub": "a"}', b"[" * 3000,
             b'{"kind": "user", "sub": "a", "roles": ["KING"]}'],
)  # fmt: skip
def test_a_delegation_that_makes_no_sense_is_refused(site: Site, body: bytes) -> None:
    token = site.gateway.mint("gateway", "service", ttl_seconds=60)

    for text in (base64.urlsafe_b64encode(body).decode(), "é" + body.decode("latin-1")):
        with pytest.raises(Unauthenticated):
            delegated(site, token, text)


def test_a_delegation_cannot_carry_the_claims_of_a_job(site: Site) -> None:
    body = {"sub": "ann", "kind": "user", "job_id": "7f", "lease_epoch": 1, "inputs": ["x"], "pool": "cpu"}
    token = site.gateway.mint("gateway", "service", ttl_seconds=60)

    principal = delegated(site, token, base64.urlsafe_b64encode(json.dumps(body).encode()).decode())

    assert (principal.job_id, principal.lease_epoch, principal.inputs, principal.pool) == (
        None,
        None,
        (),
        None,
    )


@pytest.mark.parametrize(
    ("policy", "principal", "allowed"),
    [
        (Policy(), ANN, True),
        (Policy(), Principal("ann", "user"), False),
        (Policy(min_role=Role.OPERATOR), ANN, False),
        (Policy(min_role=Role.OPERATOR), Principal("op", "user", frozenset({Role.ADMIN})), True),
        (Policy(), Principal("guest", "guest"), False),
        (Policy(kinds=frozenset({"guest", "user"})), Principal("guest", "guest"), True),
        (Policy(), Principal("trainer", "service"), True),
        (Policy(services=frozenset({"trainer"})), Principal("trainer", "service"), True),
        (Policy(services=frozenset({"trainer"})), Principal("gateway", "service"), False),
        (Policy(kinds=frozenset({"job"})), Principal("7f", "job"), True),
        (Policy(), Principal("w1", "worker"), False),
    ],
)
def test_policies(policy: Policy, principal: Principal, allowed: bool) -> None:
    if allowed:
        policy.check(principal, "/a.B/C")
    else:
        with pytest.raises(PermissionDenied, match=r"/a\.B/C"):
            policy.check(principal, "/a.B/C")


def test_outside_a_request_nobody_calls() -> None:
    with pytest.raises(Unauthenticated):
        current_principal()


async def test_a_task_may_go_on_as_the_service_itself() -> None:
    set_principal(ANN)
    set_principal(None)

    with pytest.raises(Unauthenticated):
        current_principal()


def test_keys_are_written_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("something that anybody reads")
    path.chmod(0o644)
    key = KeyPair.generate()

    key.save(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyPair.load(path).kid == key.kid
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_key_files_that_hold_no_key_of_ours_are_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    files = {
        "missing": None,
        "garbage": b"no key",
        "elliptic": other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "locked": other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        ),
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError, match=name):
            KeyPair.load(tmp_path / name)


def test_refusals_never_repeat_the_credential(site: Site) -> None:
    token = TokenIssuer("storage", KeyPair.generate()).mint("ann", "user", ttl_seconds=60)

    with pytest.raises(AppError) as caught:
        authenticate(site.authenticator(), bearer(token), REMOTE)

    assert token not in repr(caught.value.__dict__)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_many_tokens_do_not_fill_the_memory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidehall.core.auth.tokens._REMEMBERED_TOKENS", 4)
    authenticator = site.authenticator()

    for number in range(10):
        token = site.storage.mint(f"user{number}", "user", ttl_seconds=60)
        assert authenticate(authenticator, bearer(token), REMOTE).subject == f"user{number}"

    verifier = authenticator._verifier
    assert verifier is not None
    assert len(verifier._remembered) <= 4
