"""`/openapi.json` is valid, its examples work, and no request by it gets a 5xx or an answer that it does not describe.

LOOPLINE_FUZZ=10000 sends about as many requests, others each time; without it they are the same 2,000.
"""

import io
import json
import math
import os
from collections import Counter
from contextlib import suppress

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

REQUESTS = int(os.environ.get("LOOPLINE_FUZZ", "2000"))


@pytest.fixture(scope="module")
def document(server):
    return requests.get(server.url + "/openapi.json", timeout=60).json()


def operations(document):
    return [(path, method, call) for path, methods in document["paths"].items() for method, call in methods.items()]


def test_the_document_is_valid_openapi_3_1(document):
    assert document["openapi"] == "3.1.0"
    validate(document, cls=OpenAPIV31SpecValidator)


def test_the_validator_refuses_a_broken_document(document):
    with pytest.raises(OpenAPIValidationError):
        validate(document | {"paths": {"/v2": {"get": {"responses": 3}}}}, cls=OpenAPIV31SpecValidator)


def test_the_document_has_every_route_of_every_model(server, document):
    index = requests.post(server.url + "/v2/repository/index", timeout=60).json()
    bases = [f"/v2/models/{m['name']}{v}" for m in index for v in ("", f"/versions/{m['version']}")]
    expected = {f"{base}{end}" for base in bases for end in ("", "/ready", "/infer")} | {
        f"/predict/{m['name']}" for m in index
    }
    expected |= {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index", "/metrics"}
    assert expected == set(document["paths"])
    assert len({operation["operationId"] for _, _, operation in operations(document)}) == len(operations(document))


def test_every_example_is_answered(server, document):
    sent = 0
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {"content": {}})["content"]
        bodies = [(kind, example) for kind, media in content.items() for example in examples(media)] or [(None, None)]
        for kind, example in bodies:
            if isinstance(example, dict) and "externalValue" in example:
                body = {"data": requests.get(server.url + example["externalValue"], timeout=60).content}
            else:
                body = {"json": example} if kind == "application/json" else {"data": (example or "").encode()}
            headers = {"content-type": kind} if kind else {}
            answer = requests.request(method, server.url + path, headers=headers, timeout=60, **body)
            assert answer.status_code == 200, (path, kind, answer.text)
            sent += 1
    assert sent > len(document["paths"])


def test_the_examples_are_the_bundles_golden_samples(document):
    bodies = {
        name: document["paths"][f"/predict/{name}"]["post"]["requestBody"]["content"] for name in ("classifier", "text")
    }
    assert bodies["classifier"]["image/png"]["examples"]["example"] == {"externalValue": "/examples/classifier/0"}
    assert bodies["text"]["text/plain"]["example"] == "good fine"
    several = bodies["text"]["application/json"]["examples"]["several"]["value"]
    assert several == {"texts": ["good fine", "bad awful"]}


def examples(media):
    if "example" in media:
        return [media["example"]]
    return [example.get("value", example) for example in media.get("examples", {}).values()]


def test_a_server_with_a_token_says_so(serve, folders):
    server = serve(folders["text"], env={"LOOPLINE_TOKEN": "secret"})
    document = requests.get(server.url + "/openapi.json", headers={"authorization": "Bearer secret"}, timeout=60).json()
    validate(document, cls=OpenAPIV31SpecValidator)
    for path, method, operation in operations(document):
        answer = requests.request(method, server.url + path, timeout=60)
        assert (answer.status_code == 401) == ("security" in operation), path


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SEEN = Counter()


def picture(size, mode, kind):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


SIDES = st.integers(1, 40)
PICTURES = st.builds(
    picture, st.tuples(SIDES, SIDES), st.sampled_from(["L", "RGB"]), st.sampled_from(["PNG", "JPEG", "WEBP"])
)
BROKEN = st.builds(lambda data, cut, end: data[:cut] + end, PICTURES, st.integers(0, 200), st.binary(max_size=20))


def repaired(body):
    """An inference request whose data fits its shape, which a schema cannot require."""
    for tensor in body["inputs"]:
        needed = math.prod(tensor["shape"])
        tensor["data"] = (tensor["data"] * needed or [0] * needed)[:needed]
    return body


def test_no_request_by_the_document_breaks_the_server_or_the_document(server):
    schemathesis.openapi.media_type("image/png", PICTURES | BROKEN, aliases=["image/jpeg", "image/webp"])
    operations = [
        result.ok() for result in schemathesis.openapi.from_url(server.url + "/openapi.json").get_all_operations()
    ]
    share = 1 + REQUESTS // sum(bool(operation.body) for operation in operations)
    with requests.Session() as session:
        for operation in operations:
            fuzz(operation, session, share if operation.body else 20)
    assert sum(SEEN.values()) >= REQUESTS, SEEN
    assert SEEN[200] > REQUESTS / 10, "fuzzing must get more than refusals"
    assert SEEN[400] > REQUESTS / 10
    assert requests.get(server.url + "/v2/health/ready", timeout=60).status_code == 200


def test_a_wrong_document_is_detected(server, document):
    path = "/v2/repository/index"
    lying = json.loads(json.dumps(document | {"paths": {path: document["paths"][path]}}).replace('"READY"', '"ready"'))
    schema = schemathesis.openapi.from_dict(lying)
    schema.config.update(base_url=server.url)
    (operation,) = [result.ok() for result in schema.get_all_operations()]
    with requests.Session() as session, pytest.raises(FailureGroup, match='"READY" is not one of'):
        fuzz(operation, session, 20)


def fuzz(operation, session, times):
    cases = st.one_of([operation.as_strategy(mode) for mode in GenerationMode])

    @settings(
        max_examples=times, suppress_health_check=list(HealthCheck), derandomize="LOOPLINE_FUZZ" not in os.environ
    )
    @given(cases, st.booleans())
    def is_answered(case, repair):
        if repair and case.path.endswith("/infer"):
            with suppress(Exception):  # a negative case may have any form
                case.body = repaired(case.body)
        # not case.call, which needs urllib3; grafana-client replaces that by urllib3-future
        answer = session.request(**case.as_transport_kwargs(), timeout=20)
        SEEN[answer.status_code] += 1
        if answer.status_code != 503 or "retry-after" not in answer.headers:  # a 503 is due to a short deadline
            case.validate_response(answer, checks=CHECKS)

    is_answered()
