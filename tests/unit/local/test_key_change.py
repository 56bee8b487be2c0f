"""Another key signs for people: what the old one has signed holds until its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guidehall.core.auth import KeyFile, Role, TokenIssuer, TrustStore
from guidehall.core.auth.tokens import TokenVerifier
from guidehall.core.errors import FailedPrecondition, Unauthenticated
from guidehall.local.identity import Identity


def mint(issuer: TokenIssuer) -> str:
    return issuer.mint("ada", "user", ttl_seconds=600, roles=[Role.SCIENTIST])


def test_the_old_key_holds_for_a_while_and_then_no_more(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.ensure()
    issuer = TokenIssuer("storage", KeyFile(identity.key_file("storage")))
    verifier = TokenVerifier(TrustStore(identity.trust_file), "gateway", 30)
    first = mint(issuer)

    identity.announce_key()
    # Only trusted so far.
    assert verifier.verify(mint(issuer)).key is verifier.verify(first).key
    identity.ensure()
    identity.change_key(keep_seconds=3600)
    second = mint(issuer)
    identity.ensure()

    assert verifier.verify(first).key.until < verifier.verify(second).key.until
    assert len(json.loads(identity.trust_file.read_text())) == 5

    with pytest.raises(FailedPrecondition, match="no key is announced"):
        identity.change_key(keep_seconds=0)
    identity.announce_key()
    identity.change_key(keep_seconds=0)
    third = mint(issuer)

    with pytest.raises(Unauthenticated, match="trusted no longer"):
        verifier.verify(second)
    assert verifier.verify(third).principal.subject == verifier.verify(first).principal.subject == "ada"
    # What is over leaves the file with the next start.
    identity.ensure()
    assert len(json.loads(identity.trust_file.read_text())) == 5
    assert identity.key_file("storage").stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_breaks_changes_nothing(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.ensure()
    issuer = TokenIssuer("storage", KeyFile(identity.key_file("storage")))
    verifier = TokenVerifier(TrustStore(identity.trust_file), "gateway", 30)
    identity.key_file("storage").write_text("no key")
    assert verifier.verify(mint(issuer)).principal.subject == "ada"


def test_the_command(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.ensure()
    administrator = tmp_path / "administrator.token"
    administrator.write_text(identity.administrator_token())
    before = administrator.read_text()
    command = [sys.executable, "-m", "guidehall.cli", "rotate-key", "--folder", str(tmp_path), "--json"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GUIDEHALL_")}

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["renewed"] == [str(administrator)]
    verifier = TokenVerifier(TrustStore(identity.trust_file), "gateway", 30)
    old, new = verifier.verify(before), verifier.verify(administrator.read_text())
    assert old.key.until < new.key.until
