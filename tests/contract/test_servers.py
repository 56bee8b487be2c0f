"""What every gRPC server offers besides its own calls: reflection, health, errors of one shape."""

from __future__ import annotations

import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core.errors import InvalidArgument, NotFound, from_rpc_error
from tests.fixtures.platform import Platform

pytestmark = pytest.mark.slow

SERVICES = {
    "trainer": {
        "guidehall.jobs.v1.JobsService",
        "guidehall.workers.v1.WorkerService",
        "guidehall.workers.v1.PoolsService",
    },
    "storage": {
        "guidehall.datasets.v1.DatasetsService",
        "guidehall.datasets.v1.UploadRolesService",
        "guidehall.models.v1.ModelsService",
        "guidehall.results.v1.ResultsService",
        "guidehall.results.v1.StagingService",
        "guidehall.results.v1.HistoryService",
        "guidehall.identity.v1.IdentityService",
        "guidehall.identity.v1.AuditService",
    },
    "inference": {
        "inference.GRPCInferenceService",
        "guidehall.prediction.v1.PredictionService",
        "guidehall.reflectometry.v1.ReflectometryService",
    },
}


@pytest.mark.parametrize("server", SERVICES)
def test_reflection_lists_every_service_and_health_answers_for_each(platform: Platform, server: str) -> None:
    with grpc.insecure_channel(platform.endpoints[server]) as channel:
        listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *SERVICES[server]):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    assert SERVICES[server] <= listed


@pytest.mark.parametrize("part", ["gateway", *SERVICES, "worker-1"])
def test_each_process_logs_its_settings_first_and_no_secret(platform: Platform, part: str) -> None:
    lines = [json.loads(line) for line in platform.log(part).splitlines() if line.startswith("{")]
    settings = next(line["settings"] for line in lines if line["msg"] == "settings")
    assert settings["log"]["level"] == "INFO"
    for group in ("postgres", "nats", "s3"):
        told = settings.get(group, {})
        assert {told[key] for key in ("password", "secret_key") if told.get(key)} <= {"**********"}


def test_an_error_names_the_field_and_carries_a_reason(platform: Platform) -> None:
    with grpc.insecure_channel(platform.endpoints["trainer"]) as channel:
        jobs = jobs_pb2_grpc.JobsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=-1), timeout=5)
        refused = from_rpc_error(caught.value)
        assert isinstance(refused, InvalidArgument)
        assert [violation.field for violation in refused.violations] == ["page_size"]
        nobody = jobs_pb2.GetJobRequest(name="projects/default/jobs/00000000-0000-4000-8000-000000000000")
        with pytest.raises(grpc.RpcError) as caught:
            jobs.GetJob(nobody, timeout=5)
        missing = from_rpc_error(caught.value)
        assert isinstance(missing, NotFound)
        assert missing.reason
