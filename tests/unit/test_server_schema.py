"""Whatever the server's own description allows, and what it does not: none of it makes the server fail."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from running import Running
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/health",
    "/ready",
    "/metrics",
)

CALM = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def described():
    with Running(max_waiting=8) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        server.wait_until_idle(10)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS)
def test_no_request_makes_it_fail(described, path, mode):
    [operation] = [
        found.ok() for found in described.get_all_operations() if found.ok().path == path
    ]

    @CALM
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        case.call_and_validate(checks=[not_a_server_error], timeout=20)

    try:
        send()
    except Unsatisfiable:
        pytest.skip("nothing can be wrong with such a request")


def test_every_route_is_tried(described):
    assert {found.ok().path for found in described.get_all_operations()} == set(PATHS)
