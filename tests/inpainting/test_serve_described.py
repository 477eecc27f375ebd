"""`pconv-ext serve` answers as its OpenAPI document says, whatever comes."""

import pytest
from PIL import Image
from support.inpainters import PIXELS, VALID, make_net
from support.servers import content_of, served

import pconv_ext

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis")
strategies = pytest.importorskip("hypothesis.strategies")
pytestmark = pytest.mark.deep


checks = pytest.importorskip("schemathesis.specs.openapi.checks")

FILES = {"image": content_of(Image.fromarray(PIXELS)), "mask": content_of(Image.fromarray(VALID))}
RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("path", "mode"),
    [("/inpaint", RIGHT), ("/inpaint", WRONG), ("/progress/{name}", RIGHT), ("/health", RIGHT)],
)
def test_any_request(path, mode):
    """Requests made of the document, right and wrong: no server error, no answer but those described."""
    with served(pconv_ext.Inpainter(make_net(), device="cpu"), waiting=9) as (host, port):
        api = schemathesis.openapi.from_url(f"http://{host}:{port}/openapi.json")
        described = {one.ok().path: one.ok() for one in api.get_all_operations()}
        statuses = set()

        @hypothesis.given(described[path].as_strategy(generation_mode=mode), strategies.booleans())
        @hypothesis.settings(
            max_examples=150,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[*hypothesis.HealthCheck],
        )
        def requests_are_answered(case, pictures):
            if (path, mode) == ("/inpaint", RIGHT) and pictures:  # where a file may be any bytes
                case.body |= FILES
            answer = case.call()
            statuses.add(answer.status_code)
            # Neither can a document say which bytes are a picture, nor what else was made was meant for them.
            excluded = [checks.positive_data_acceptance, *[checks.negative_data_rejection] * pictures]
            case.validate_response(answer, excluded_checks=excluded)

        requests_are_answered()
    assert (200 in statuses) == (mode is RIGHT)
