"""What docs/serving.md prints runs as printed against the shipped plan, and so does the protocol's best known client."""

import asyncio
import io
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from ray import serve
from serving import Images, running_serve

from code_ray.client import Client
from code_ray.data import DataSet

DOCS = Path(__file__).parent.parent / "docs" / "serving.md"
SERVICE = "fashion-cnn"


def blocks(language: str, holding: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in found if holding in block]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from deployments import app

    with running_serve(num_cpus=2) as base:
        serve.run(app)
        yield base


@pytest.fixture(scope="module")
def images(fashion: DataSet) -> Images:
    return fashion.test.images[:5]


@pytest.fixture(scope="module")
def labels(url: str, images: Images) -> list[str]:
    with Client(url, timeout_s=120) as client:
        return client.predict(SERVICE, images, path="original").labels


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://"), concurrency=4, network_timeout=120) as made:
        yield made


def tensor_of(images: Images, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("images", list(images.shape), "UINT8").set_data_from_numpy(images, binary_data=binary)


def texts(values: np.ndarray) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def test_the_commands_for_curl_answer_as_json(url: str, tmp_path: Path) -> None:
    program, _ = blocks("sh", "curl")
    assert program.count("http://127.0.0.1:8000") == 2
    done = subprocess.run(
        ["bash", "-euc", program.replace("http://127.0.0.1:8000", url)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answers, rest = [], done.stdout
    while rest.strip():
        answer, end = json.JSONDecoder().raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].lstrip()
    assert [answer["outputs"][0]["shape"] for answer in answers] == [[1, 10], [1, 10]]


def test_a_picture_is_answered_as_its_pixels_are(url: str, tmp_path: Path, images: Images, labels: list[str]) -> None:
    _, program = blocks("sh", "curl")
    Image.fromarray(images[0]).save(tmp_path / "shoe.png")
    done = subprocess.run(
        ["bash", "-euc", program.replace("http://127.0.0.1:8000", url)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    outputs = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    assert outputs["label"] == labels[:1]


@pytest.mark.parametrize("holding", ["with Client(", "tritonclient"])
def test_the_programs_print_labels_and_paths(holding: str, url: str, images: Images, labels: list[str]) -> None:
    (program,) = blocks("python", holding)
    address = url.removeprefix("http://")
    assert "127.0.0.1:8000" in program
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(program.replace("127.0.0.1:8000", address), str(DOCS), "exec"), {"images": images})
    assert all(label in printed.getvalue() for label in labels)
    assert "original" in printed.getvalue()


def test_the_asyncio_program_answers_all_batches(url: str, images: Images, labels: list[str]) -> None:
    (program,) = blocks("python", "AsyncClient")
    names: dict[str, object] = {}
    # Its deadline is for a machine that has nothing else to do.
    exec(compile(program.replace("http://127.0.0.1:8000", url).replace("deadline_ms=500", "deadline_ms=60_000"), str(DOCS), "exec"), names)
    answers = asyncio.run(names["classify"]([images] * 6))  # type: ignore[operator]
    assert [answer.labels for answer in answers] == [labels] * 6


def test_triton_finds_server_and_service_ready_and_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(SERVICE)
    assert client.is_model_ready(SERVICE, "1")
    assert not client.is_model_ready(SERVICE, "2")
    assert SERVICE in client.get_server_metadata()["models"]
    described = client.get_model_metadata(SERVICE, "1")
    assert described == client.get_model_metadata(SERVICE) | {"parameters": described["parameters"]}
    assert described["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]


@pytest.mark.parametrize("binary_in", [True, False], ids=["bytes in", "json in"])
@pytest.mark.parametrize("binary_out", [(True, True), (False, False), (True, False), None], ids=["bytes", "json", "both", "unsaid"])
def test_triton_gets_what_it_asks_for_in_the_form_it_asks_for(
    binary_in: bool, binary_out: tuple[bool, bool] | None, client: triton.InferenceServerClient, images: Images, labels: list[str]
) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=b) for name, b in zip(("logits", "label"), binary_out, strict=True)]
    answer = client.infer(
        SERVICE, [tensor_of(images, binary=binary_in)], "1", outputs, request_id="7", parameters={"path": "original", "min_accuracy": 0.5}
    )
    assert answer.as_numpy("logits").shape == (5, 10)
    assert texts(answer.as_numpy("label")) == labels
    assert (answer.get_response()["id"], answer.get_response()["parameters"]["path"]) == ("7", "original")


def test_tritons_own_concurrency_mixes_no_answers(client: triton.InferenceServerClient, fashion: DataSet) -> None:
    batches = [fashion.test.images[i : i + 3] for i in range(0, 36, 3)]
    asked = [client.async_infer(SERVICE, [tensor_of(batch)], request_id=str(i)) for i, batch in enumerate(batches)]
    answers = [request.get_result() for request in asked]
    assert [answer.get_response()["id"] for answer in answers] == [str(i) for i in range(len(batches))]
    logits = [client.infer(SERVICE, [tensor_of(batch)]).as_numpy("logits") for batch in batches]
    assert all(np.allclose(answer.as_numpy("logits"), one, atol=1e-4) for answer, one in zip(answers, logits, strict=True))


def test_triton_tells_its_user_our_reasons(client: triton.InferenceServerClient, images: Images) -> None:
    with pytest.raises(triton.InferenceServerException, match="service 'nobody' is unknown") as caught:
        client.infer("nobody", [tensor_of(images)])
    assert caught.value.status() == "404"
