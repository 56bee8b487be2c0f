"""Messages as JSON."""

from __future__ import annotations

import json
import math

import pytest
from google.protobuf.message import Message

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.reflectometry.v1 import reflectometry_pb2
from guidehall.core.errors import InvalidArgument
from services.gateway.messages import enum_choices, enum_number, schema, struct_json, to_json, to_struct


def test_numbers_stay_numbers_and_enums_lose_their_prefix() -> None:
    job = jobs_pb2.Job(seed=2**52, state=jobs_pb2.JOB_STATE_RUNNING, labels={"a": "b"})
    job.params.update({"count": 3, "width": 0.5, "list": [1, None]})
    document = to_json(job)
    assert document["seed"] == 2**52
    assert document["state"] == "RUNNING"
    assert document["labels"] == {"a": "b"}
    assert document["params"] == {"count": 3, "width": 0.5, "list": [1, None]}
    assert isinstance(document["params"]["count"], int)


def test_unset_messages_and_optional_fields_are_left_out() -> None:
    assert "progress" not in to_json(jobs_pb2.Job())
    assert "chi_square" not in to_json(reflectometry_pb2.AnalyzeCurveResponse())
    assert to_json(reflectometry_pb2.AnalyzeCurveResponse(chi_square=0.0))["chi_square"] == 0.0


def test_only_the_set_member_of_a_oneof_is_there() -> None:
    event = to_json(jobs_pb2.JobEvent(seq=7, log_line=jobs_pb2.LogLine(line="x")))
    assert event == {"job": "", "seq": 7, "log_line": {"line": "x"}}


def test_an_enum_value_of_a_later_version_shows_its_number() -> None:
    assert to_json(jobs_pb2.StateChange(state=99))["state"] == "99"  # type: ignore[arg-type]


def test_enum_words_are_found_without_regard_to_case() -> None:
    states = jobs_pb2.JobState.DESCRIPTOR
    assert enum_number(states, "running") == jobs_pb2.JOB_STATE_RUNNING
    assert enum_number(states, "unspecified") is None
    assert enum_number(states, "sleeping") is None
    assert "UNSPECIFIED" not in enum_choices(states)


def test_doubles_that_json_has_no_word_for_are_null_wherever_they_are() -> None:
    progress = jobs_pb2.Progress(metrics={"loss": math.nan, "rate": 0.5})
    preview = jobs_pb2.Preview()
    preview.document.fields["curve"].list_value.values.add().number_value = math.inf
    curve = reflectometry_pb2.AnalyzeCurveResponse(chi_square=-math.inf)
    assert to_json(progress)["metrics"] == {"loss": None, "rate": 0.5}
    assert to_json(preview)["document"] == {"curve": [None]}
    assert to_json(curve)["chi_square"] is None


def test_a_struct_gives_back_the_json_that_it_was_made_of() -> None:
    document = {"a": [1, -0.5, None, True, "é", {}, []], "b": {"c": {"": False}}, "n": 2**52}
    assert struct_json(to_struct(document, "params")) == document


def test_the_deepest_struct_that_is_taken_passes_every_decoder() -> None:
    document = json.loads('{"a":' * 30 + "1" + "}" * 30)
    jobs = jobs_pb2.ListJobsResponse(jobs=[jobs_pb2.Job(params=to_struct(document, "params"))])
    assert to_json(jobs_pb2.ListJobsResponse.FromString(jobs.SerializeToString()))["jobs"][0]["params"] == (
        document
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"x": "\\ud800"}', "params.x"),
        ('{"\\ud800": 1}', "params.\ud800"),
        ('{"x": [0, {"y": NaN}]}', "params.x[1].y"),
        ('{"x": 1e999}', "params.x"),
        ('{"x": ' + "9" * 400 + "}", "params.x"),
        ('{"a":' * 31 + "1" + "}" * 31, "params"),
        ('{"a":' + "[" * 500 + "]" * 500 + "}", "params"),
    ],
)
def test_what_no_struct_holds_is_refused_by_its_place(text: str, place: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_struct(json.loads(text), "params")
    assert [violation.field for violation in caught.value.violations] == [place]


@pytest.mark.parametrize(
    "message", [jobs_pb2.JobEvent, jobs_pb2.Pipeline, reflectometry_pb2.AnalyzeCurveResponse]
)
def test_every_field_has_a_schema_and_references_resolve(message: type[Message]) -> None:
    components: dict[str, dict[str, object]] = {}
    assert schema(message.DESCRIPTOR, components) == {
        "$ref": f"#/components/schemas/{message.DESCRIPTOR.name}"
    }
    assert set(components[message.DESCRIPTOR.name]["properties"]) == {
        f.name for f in message.DESCRIPTOR.fields
    }  # type: ignore[arg-type]

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            found = [node["$ref"]] if "$ref" in node else []
            return found + [item for value in node.values() for item in references(value)]
        return [item for value in node for item in references(value)] if isinstance(node, list) else []

    assert {reference.rsplit("/", 1)[1] for reference in references(components)} <= set(components)
