"""Text over Ray Serve and HTTP: sentences by hand and by client, with the numbers of one process."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from ray import serve
from serving import BATCH, FIXED, LOCAL, VECTORS, Run, handle_of, make_run, relative_difference, running_serve
from texts import TEXT, make_text_services

from code_ray.client import Client
from code_ray.data import DataSet, load_data
from code_ray.errors import RequestError
from deployments import build_app
from deployments.config import AppOptions, RouterOptions

PATIENT = RouterOptions(path_deadline_s=60, request_deadline_s=120, steering="plan")
PATIENT_HOST = FIXED.model_copy(update={"guest_wait_s": 60.0})
TEXTS = ["What a lovely day.", "This is the worst film I have ever seen!", "Well. It runs."]


@pytest.fixture(scope="module")
def sentences() -> DataSet:
    return load_data("vader-sentences")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sentences: DataSet) -> Run:
    vectors = {**VECTORS, "raw cross": (0, 1, 4, 5)}
    return make_run(tmp_path_factory.mktemp("run"), make_text_services(sentences), sentences, vectors=vectors)


@pytest.fixture(scope="module")
def url(served: Run) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=served.root, providers={"alpha": FIXED, "beta": PATIENT_HOST}, router=PATIENT)))
        yield base


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_s=120) as made:
        yield made


@pytest.mark.parametrize("name", list(VECTORS))
def test_a_path_over_ray_gives_the_logits_of_one_process(name: str, client: Client, served: Run, sentences: DataSet) -> None:
    tokens = sentences.validation.images[: BATCH + 5]
    answer = client.predict(LOCAL, tokens, path=served.id_of(name))
    assert answer.path == served.id_of(name)
    assert relative_difference(answer.logits, served.logits(name, tokens)) < 1e-4


def test_sentences_are_answered_as_their_tokens_are(client: Client, served: Run) -> None:
    answer = client.predict(LOCAL, TEXTS, path=served.id_of("cross"))
    assert relative_difference(answer.logits, served.logits("cross", TEXT.encode(TEXTS))) < 1e-4
    assert set(answer.labels) <= {"negative", "positive"}
    assert len(answer.labels) == len(TEXTS)


def test_a_sentence_may_be_asked_by_hand(url: str, served: Run) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2]}
    body = {"inputs": [tensor], "parameters": {"path": served.id_of("exit")}}
    response = httpx.post(f"{url}/v2/models/{LOCAL}/infer", json=body, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    logits = next(output["data"] for output in response.json()["outputs"] if output["name"] == "logits")
    expected = served.logits("exit", TEXT.encode(TEXTS[:2]))
    assert relative_difference(np.array(logits, np.float32).reshape(2, 2), expected) < 1e-4


def test_a_service_for_text_says_that_it_takes_text(client: Client) -> None:
    assert client.metadata(LOCAL)["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


def test_images_sent_to_it_are_refused(client: Client) -> None:
    with pytest.raises(RequestError, match="send BYTES, one text each, or token ids") as refused:
        client.predict(LOCAL, np.zeros((1, 28, 28), np.uint8))
    assert refused.value.status == 422


def test_its_providers_find_themselves_well(url: str) -> None:
    for provider in ("alpha", "beta"):
        handle_of(f"provider-{provider}").check_health.remote().result(timeout_s=60)
