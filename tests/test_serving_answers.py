"""Answers over Ray Serve and HTTP: the numbers of one process, in both forms of the protocol, by hand and by client."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve
from serving import BATCH, FIXED, HOST, LOCAL, VECTORS, Run, eventually, exported, relative_difference, running_serve

from code_ray.blocks import ExecutionMode
from code_ray.client import AsyncClient, Client, Prediction
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.framing import HEADER_LENGTH
from code_ray.policy import ORIGINAL
from code_ray.runner import LegRunner
from code_ray.wire import decode_response, encode_request
from deployments import build_app
from deployments.config import AppOptions, RouterOptions

# Longer than a deadline on a busy machine: what is shown here are answers, not times.
PATIENT = RouterOptions(path_deadline_s=60, request_deadline_s=120, max_request_bytes=4 << 20, steering="plan")
# There guests would be sent away, to the original path.
PATIENT_HOST = FIXED.model_copy(update={"guest_wait_s": 60.0})


@pytest.fixture(scope="module")
def url(served_run: Run) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": PATIENT_HOST}, router=PATIENT)))
        yield base


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_s=120) as made:
        yield made


def ask(url: str, images: Any, **fields: Any) -> dict[str, Any]:
    """The answer to a JSON request."""
    datatype = "UINT8" if images.dtype == np.uint8 else "FP32"
    tensor = {"name": "images", "shape": list(images.shape), "datatype": datatype, "data": images.ravel().tolist()}
    response = httpx.post(f"{url}/v2/models/{LOCAL}/infer", json={"inputs": [tensor], **fields}, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    content: dict[str, Any] = response.json()
    return content


def get(url: str, route: str) -> httpx.Response:
    return httpx.get(f"{url}{route}", timeout=30, trust_env=False)


@pytest.mark.parametrize("count", [BATCH, 3 * BATCH, 1, 2 * BATCH + 5])
@pytest.mark.parametrize("name", list(VECTORS))
def test_a_path_over_ray_gives_the_logits_of_one_process(name: str, count: int, client: Client, served_run: Run, digits: DataSet) -> None:
    images = digits.test.images[:count]
    answer = client.predict(LOCAL, images, path=served_run.id_of(name))
    assert answer.path == served_run.id_of(name)
    assert relative_difference(answer.logits, served_run.logits(name, images)) <= 1e-5


def test_small_requests_go_together_and_each_gets_its_own_answer(url: str, served_run: Run, digits: DataSet) -> None:
    """Of all paths and both services at once, one to three images each."""
    asked = [(name, slice(i, i + 1 + i % 3)) for i in range(60) for name in (*VECTORS, HOST)]

    async def ask_all() -> list[Prediction]:
        async with AsyncClient(url, timeout_s=120, retries=0) as client:
            return await asyncio.gather(
                *(
                    client.predict(
                        HOST if name == HOST else LOCAL, digits.test.images[part], path=served_run.id_of(name) if name != HOST else None
                    )
                    for name, part in asked
                )
            )

    answers = asyncio.run(ask_all())
    logits = {name: served_run.logits(name, digits.test.images[:70]) for name in VECTORS}
    host = served_run.services[HOST]
    logits[HOST] = LegRunner(list(host.blocks), ExecutionMode())(host.preprocess(digits.test.images[:70])).numpy()
    for (name, part), answer in zip(asked, answers, strict=True):
        assert answer.path == (ORIGINAL if name == HOST else served_run.id_of(name))
        assert relative_difference(answer.logits, logits[name][part]) <= 1e-4
    eventually(lambda: "batch_images_sum" in exported(), "no batches are exported")
    found = {end: sum(value for _, value in exported()[f"batch_images_{end}"]) for end in ("sum", "count")}
    assert found["sum"] > 2.5 * found["count"]


def test_paths_do_not_give_each_others_logits(served_run: Run, digits: DataSet) -> None:
    logits = [served_run.logits(name, digits.test.images[:BATCH]) for name in VECTORS]
    differences = [relative_difference(a, b) for i, a in enumerate(logits) for b in logits[:i]]
    assert min(differences) > 1e-3


def test_labels_name_the_largest_logit_and_are_mostly_right(client: Client, digits: DataSet) -> None:
    answer = client.predict(LOCAL, digits.test.images[:100], path="original")
    assert answer.labels == [digits.labels[i] for i in answer.logits.argmax(axis=1)]
    right = sum(label == digits.labels[truth] for label, truth in zip(answer.labels, digits.test.labels[:100], strict=True))
    assert right >= 80


def test_the_host_serves_its_own_service_too(client: Client, served_run: Run, digits: DataSet) -> None:
    images = digits.test.images[:BATCH]
    service = served_run.services[HOST]
    value = service.preprocess(images)
    for block in service.blocks:
        value = block(value)
    answer = client.predict(HOST, images)
    assert answer.path == "original"
    assert relative_difference(answer.logits, value.numpy()) <= 1e-5


def test_json_and_binary_requests_get_the_same_answer(url: str, client: Client, served_run: Run, digits: DataSet) -> None:
    images, path = digits.test.images[:5], served_run.id_of("cross")
    binary = client.predict(LOCAL, images, path=path)
    answer = ask(url, images, parameters={"path": path})
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["logits"]["shape"] == [5, 10]
    assert outputs["label"] == {"name": "label", "shape": [5], "datatype": "BYTES", "data": binary.labels}
    assert np.array_equal(np.asarray(outputs["logits"]["data"], np.float32).reshape(5, 10), binary.logits)
    assert answer["parameters"] == {"path": path, "kind": "cross"}
    assert (answer["model_name"], answer["model_version"]) == (LOCAL, "1")


def test_float_pixels_from_0_to_1_are_the_same_images(url: str, digits: DataSet) -> None:
    images = digits.test.images[:3]
    asked = {"parameters": {"path": "original"}}
    assert ask(url, images.astype(np.float32) / 255, **asked) == ask(url, images, **asked)


def test_the_requests_id_comes_back(url: str, digits: DataSet) -> None:
    assert ask(url, digits.test.images[:1], id="request 7")["id"] == "request 7"
    assert "id" not in ask(url, digits.test.images[:1])


@pytest.mark.parametrize("names", [["label"], ["logits"], ["label", "logits"]])
def test_only_the_outputs_that_were_asked_for_come_in_their_order(names: list[str], url: str, digits: DataSet) -> None:
    answer = ask(url, digits.test.images[:2], outputs=[{"name": name} for name in names])
    assert [output["name"] for output in answer["outputs"]] == names


def test_a_json_request_can_ask_for_a_binary_answer(url: str, client: Client, digits: DataSet) -> None:
    images = digits.test.images[:2]
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True, "path": "original"}}
    response = httpx.post(f"{url}/v2/models/{LOCAL}/infer", json=body, timeout=120, trust_env=False)
    assert HEADER_LENGTH in response.headers
    labels, logits, path = decode_response(response.content, response.headers)
    expected = client.predict(LOCAL, images, path="original")
    assert (labels, path) == (expected.labels, "original")
    assert np.array_equal(logits, expected.logits)


def test_a_binary_request_needs_no_content_type(url: str, digits: DataSet) -> None:
    body, headers = encode_request(digits.test.images[:2])
    response = httpx.post(
        f"{url}/v2/models/{LOCAL}/infer", content=body, headers={HEADER_LENGTH: headers[HEADER_LENGTH]}, timeout=120, trust_env=False
    )
    assert response.status_code == 200


def test_the_root_lists_the_services(url: str) -> None:
    content = get(url, "/v2").json()
    assert content["models"] == [LOCAL, HOST]
    assert "binary_tensor_data" in content["extensions"]


@pytest.mark.parametrize("route", ["/v2/health/live", "/v2/health/ready", f"/v2/models/{LOCAL}/ready", f"/v2/models/{HOST}/ready"])
def test_what_runs_says_so(route: str, url: str) -> None:
    response = get(url, route)
    assert response.status_code == 200
    assert response.json() in ({"live": True}, {"ready": True}, {"name": route.split("/")[3], "ready": True})
    assert httpx.head(f"{url}{route}", timeout=30, trust_env=False).status_code == 200


def test_metadata_tells_shapes_dtypes_and_every_path_with_its_share(client: Client, served_run: Run) -> None:
    content = client.metadata(LOCAL)
    assert content["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in content["outputs"]] == [("logits", "FP32", [-1, 10]), ("label", "BYTES", [-1])]
    paths = content["parameters"]["paths"]
    assert {p["id"]: p["kind"] for p in paths} == {served_run.id_of(name): served_run.paths[name].kind for name in VECTORS}
    assert sum(p["share"] for p in paths) == pytest.approx(1.0)
    assert sum(p["images_per_second"] for p in paths) > 0
    assert content["parameters"]["network"] == []  # all on one node
    json.dumps(content)


def test_an_unpinned_load_follows_the_shares_of_the_plan(client: Client, digits: DataSet) -> None:
    shares = {p["id"] for p in client.metadata(LOCAL)["parameters"]["paths"] if p["share"] > 0.1}
    taken = {client.predict(LOCAL, digits.test.images[:1]).path for _ in range(40)}
    assert shares
    assert shares <= taken


def test_the_client_knows_when_a_server_is_ready(client: Client) -> None:
    assert client.is_ready()


def test_an_unknown_service_is_the_clients_404_and_lists_what_there_is(client: Client, digits: DataSet) -> None:
    with pytest.raises(RequestError, match=f"service 'nobody' is unknown; there are: {LOCAL}, {HOST}") as caught:
        client.predict("nobody", digits.test.images[:1])
    assert caught.value.status == 404
    with pytest.raises(RequestError) as caught:
        client.metadata("nobody")
    assert caught.value.status == 404


def test_a_service_name_is_no_part_of_a_route(client: Client) -> None:
    with pytest.raises(RequestError, match=rf"service '{LOCAL}\?x' is unknown") as caught:
        client.metadata(f"{LOCAL}?x")
    assert caught.value.status == 404


def test_images_of_another_shape_are_the_clients_422(client: Client, digits: DataSet) -> None:
    with pytest.raises(RequestError, match=r"this service takes \[-1, 28, 28\]") as caught:
        client.predict(LOCAL, digits.test.images[:2, :27])
    assert caught.value.status == 422


def test_more_bytes_than_the_server_takes_are_the_clients_413(client: Client) -> None:
    with pytest.raises(RequestError, match="send fewer images a request") as caught:
        client.predict(LOCAL, np.zeros((20_000, 28, 28), np.uint8))
    assert caught.value.status == 413
