"""Resource names, and who sees what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core import names
from guidehall.core.access import may_see, owner_for, require_visible
from guidehall.core.auth import Principal, Role
from guidehall.core.errors import InvalidArgument, NotFound, PermissionDenied

SEGMENTS = st.from_regex(r"[A-Za-z0-9_~@+-][A-Za-z0-9._~@+-]{0,127}", fullmatch=True)

ANN = Principal("ann", "user", frozenset({Role.SCIENTIST}))
OPERATOR = Principal("olga", "user", frozenset({Role.OPERATOR}))
GUEST = Principal("guest", "guest")
TRAINER = Principal("trainer", "service")
JOB = Principal("7f", "job")


@given(SEGMENTS, SEGMENTS)
def test_a_name_is_what_it_was_made_of(project: str, job: str) -> None:
    assert names.JOB.parse(names.JOB.format(project=project, job=job)) == {"project": project, "job": job}


@pytest.mark.parametrize(
    "name",
    ["", "projects/a", "projects/a/jobs/", "projects/a/jobs/b/c", "projects//jobs/b", "projects/a/jobs/..",
     "projects/a/jobs/.b", "projects/a/jobs/b\n", "projects/a/jobs/b c", "projects/a/jobs/" + "x" * 129,
     "/projects/a/jobs/b"],
)  # fmt: skip
def test_what_is_no_name_is_refused_by_its_field(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.JOB.parse(name, "job")

    assert caught.value.violations[0].field == "job"


def test_an_empty_parent_is_the_default_project() -> None:
    assert names.project_of("") == "default"
    assert names.project_of("projects/film") == "film"


def test_any_project_is_no_parent() -> None:
    with pytest.raises(InvalidArgument, match="one project"):
        names.project_of("projects/-")


@pytest.mark.parametrize(("text", "version"), [("latest", None), ("1", 1), ("12", 12)])
def test_versions(text: str, version: int | None) -> None:
    assert names.version_of({"version": text}) == version


@pytest.mark.parametrize("text", ["0", "01", "-1", "newest", "1.0", "9" * 19])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        names.version_of({"version": text})


@pytest.mark.parametrize(
    ("text", "version"),
    [("latest", None), ("12", 12), ("production", "production"), ("v-2", "v-2"), ("a" * 63, "a" * 63)],
)
def test_versions_of_models(text: str, version: int | str | None) -> None:
    assert names.model_version_of({"version": text}) == version


@pytest.mark.parametrize("text", ["0", "01", "-1", "1.0", "2nd", "Production", "a_b", "a" * 64, "-", "a\n"])
def test_what_is_neither_a_version_nor_a_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="or a tag"):
        names.model_version_of({"version": text})
    with pytest.raises(InvalidArgument):
        names.tag(text)


def test_no_tag_is_called_as_the_newest_is() -> None:
    assert names.tag("production") == "production"
    with pytest.raises(InvalidArgument):
        names.tag("latest")


@pytest.mark.parametrize(
    ("principal", "owner", "sees"),
    [
        (ANN, "ann", True), (ANN, "ben", False), (ANN, "", False), (OPERATOR, "ann", True),
        (TRAINER, "ann", True),
        (GUEST, "guest", False), (GUEST, "", False), (Principal("", "guest"), "", False),
    ],
)  # fmt: skip
def test_who_sees_what(principal: Principal, owner: str, sees: bool) -> None:
    assert may_see(principal, owner) is sees


def test_the_unknown_and_the_invisible_look_alike() -> None:
    messages = set()
    for owner in (None, "ben"):
        with pytest.raises(NotFound) as caught:
            require_visible(ANN, owner, "projects/default/jobs/1")
        messages.add((caught.value.message, caught.value.reason, tuple(caught.value.metadata.items())))

    assert len(messages) == 1
    require_visible(ANN, "ann", "projects/default/jobs/1")


def test_what_is_created_belongs_to_its_creator() -> None:
    assert owner_for(ANN) == "ann"
    assert owner_for(GUEST) == ""
    with pytest.raises(PermissionDenied):
        owner_for(JOB)
