"""Random requests, right ones and wrong ones, for every operation that `/openapi.json` describes.

`GUIDEHALL_FUZZ_LONG=1` adds a value for every bound in the document: many more requests, and many minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guidehall.local.control import status
from tests.fuzz.site import furnish

ROOT = Path(__file__).parents[2]
LONG = bool(os.environ.get("GUIDEHALL_FUZZ_LONG"))
PHASES = "examples,coverage,fuzzing" if LONG else "examples,fuzzing"
# How many are drawn for each operation, besides those at its bounds.
EXAMPLES = "10" if LONG else "4"
SEED = "1"
LEAST_REQUESTS = 5_000 if LONG else 300
# Of the answers of each operation; except:
LEAST_GOOD = 0.3
LEAST_JUDGED = 10
FEW_GOOD = {
    "POST /api/v1/analyze": "no model of curves is here",
    "GET /auth/oidc/{provider}/login": "nobody is a provider of this gateway's",
    "GET /auth/oidc/{provider}/callback": "as above; a success is a redirection",
    "POST /auth/device/token": "somebody in a browser would have to approve",
    "POST /auth/password": "its caller has a key, not a password",
    "POST /api/v1/jobs/{job}:claim": "guests' jobs are of another mode",
}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_request_breaks_a_server_and_answers_are_as_described(
    token_platform: Path, tmp_path: Path
) -> None:
    endpoints = status(token_platform).endpoints
    token = (token_platform / "secrets" / "administrator.token").read_text().strip()
    site = furnish(endpoints["gateway"], token)
    (tmp_path / "site.json").write_text(json.dumps(site))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{endpoints['gateway']}/openapi.json"),
            *("--header", f"Authorization: Bearer {site['key']}"),
            *("--phases", PHASES, "--checks", ",".join(CHECKS)),
            *("--max-examples", EXAMPLES, "--seed", SEED, "--no-shrink", "--continue-on-failure"),
            *("--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off"),
        ],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.fuzz.http_hooks",
            "GUIDEHALL_FUZZ": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    answers: dict[str, dict[str, int]] = json.loads((tmp_path / "answers.json").read_text())
    few = []
    for operation, counts in sorted(answers.items()):
        good = sum(count for code, count in counts.items() if code.startswith("2"))
        share = good / sum(counts.values())
        print(f"{share:5.0%} of {sum(counts.values()):4d}  {operation}  {dict(sorted(counts.items()))}")
        # Of a few requests the share is chance, but that some of them are good is not.
        enough = share >= LEAST_GOOD if sum(counts.values()) >= LEAST_JUDGED else good > 0
        if not enough and operation not in FEW_GOOD:
            few.append(f"{operation}: {share:.0%}")
    total = sum(sum(counts.values()) for counts in answers.values())
    print(f"{total} requests for {len(answers)} operations")
    assert ran.returncode == 0, ran.stdout[-30_000:] + ran.stderr[-5_000:]
    assert total >= LEAST_REQUESTS
    assert not few, "fewer good answers than there should be"
