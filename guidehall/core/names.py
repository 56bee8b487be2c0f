"""Resource names, such as `projects/default/jobs/7f…`: one pattern per kind of resource (AIP-122)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from guidehall.core.errors import InvalidArgument

DEFAULT_PROJECT = "default"
# Of lists that may go over all projects.
ANY_PROJECT = "-"
# Characters of what people call a job, or an entry of a history.
LONGEST_DISPLAY_NAME = 80

# One segment: letters, digits and . _ ~ @ + -, not starting with a dot. "-" alone means "any" in a few list
# calls.
_SEGMENT = r"[A-Za-z0-9_~@+-][A-Za-z0-9._~@+-]{0,127}"


@dataclass(frozen=True)
class Pattern:
    """A name's shape: `Pattern("projects/{project}/jobs/{job}")`."""

    template: str

    def __post_init__(self) -> None:
        expression = re.sub(r"\{(\w+)\}", rf"(?P<\1>{_SEGMENT})", self.template)
        object.__setattr__(self, "_expression", re.compile(expression))

    def format(self, **ids: str | int) -> str:
        """The name made of `ids`."""
        return self.template.format(**ids)

    def parse(self, name: str, field: str = "name") -> dict[str, str]:
        """The ids in `name`.

        Raises:
            InvalidArgument: `name` does not have this shape; `field` is the request field to blame.
        """
        expression: re.Pattern[str] = getattr(self, "_expression")  # noqa: B009 (set in __post_init__)
        match = expression.fullmatch(name)
        if match is None:
            raise InvalidArgument.field(field, name, f"a name of the form {self.template}")
        return match.groupdict()


PROJECT = Pattern("projects/{project}")
JOB = Pattern("projects/{project}/jobs/{job}")
BATCH = Pattern("projects/{project}/batches/{batch}")
DATASET = Pattern("projects/{project}/datasets/{dataset}")
DATASET_VERSION = Pattern("projects/{project}/datasets/{dataset}/versions/{version}")
MODEL = Pattern("projects/{project}/models/{model}")
MODEL_VERSION = Pattern("projects/{project}/models/{model}/versions/{version}")
RESULT = Pattern("projects/{project}/results/{result}")
ARTIFACT = Pattern("projects/{project}/results/{result}/artifacts/{artifact}")
POOL = Pattern("pools/{pool}")
WORKER = Pattern("pools/{pool}/workers/{worker}")
WORKER_CREDENTIAL = Pattern("pools/{pool}/credentials/{credential}")
USER = Pattern("users/{user}")
GROUP = Pattern("groups/{group}")
API_KEY = Pattern("users/{user}/apiKeys/{key}")
SESSION = Pattern("users/{user}/sessions/{session}")
IDENTITY = Pattern("users/{user}/identities/{identity}")
INVITATION = Pattern("invitations/{invitation}")
ERASURE = Pattern("erasures/{erasure}")
UPLOAD_ROLES = Pattern("users/{user}/uploadRoles")
HISTORY_ENTRY = Pattern("users/{user}/history/{entry}")


def projects_of(parent: str) -> str:
    """As `project_of`, where `projects/-` means all of them: `ANY_PROJECT`.

    Raises:
        InvalidArgument: it names none.
    """
    return PROJECT.parse(parent, "parent")["project"] if parent else DEFAULT_PROJECT


def project_of(parent: str) -> str:
    """The project that a request's `parent` means; empty is the default project.

    Raises:
        InvalidArgument: it names none, or any.
    """
    project = projects_of(parent)
    if project == ANY_PROJECT:
        raise InvalidArgument.field("parent", parent, "one project, such as projects/default, or empty")
    return project


# What a model's version may be called besides its number.
_TAG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TAG_RULE = 'a letter, then at most 62 of a-z, 0-9 and "-"; not "latest"'


def tag(text: str, field: str = "tag") -> str:
    """A tag of a model, such as "production".

    Raises:
        InvalidArgument: nothing that a tag may be called.
    """
    if text == "latest" or not _TAG.fullmatch(text):
        raise InvalidArgument.field(field, text, _TAG_RULE)
    return text


def model_version_of(ids: dict[str, str], field: str = "name") -> int | str | None:
    """What the version in parsed `ids` of a model is named by: its number, a tag, or None for "latest".

    Raises:
        InvalidArgument: none of these.
    """
    text = ids["version"]
    if text != "latest" and _TAG.fullmatch(text):
        return text
    try:
        return version_of(ids, field)
    except InvalidArgument:
        allowed = f'a version number from 1, "latest", or a tag: {_TAG_RULE}'
        raise InvalidArgument.field(field, text, allowed) from None


def version_of(ids: dict[str, str], field: str = "name") -> int | None:
    """The version number in parsed `ids`; None for "latest".

    Raises:
        InvalidArgument: neither "latest" nor a positive integer.
    """
    text = ids["version"]
    if text == "latest":
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise InvalidArgument.field(field, text, 'a version number from 1, or "latest"')
    return int(text)
