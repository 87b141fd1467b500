"""Services for text: tokens, sentences, blocks that do not see padding, links along sequences, spaces, requests."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import GREY
from texts import TEXT, VOCABULARY, make_text_services
from torch import Tensor
from trained import train_path
from transformers import BertConfig, BertModel
from transformers.models.bert.tokenization_bert import BertTokenizer

from code_ray.activations import run_blocks
from code_ray.blocks import Boundary, ExecutionMode
from code_ray.controls import control_paths, random_host
from code_ray.data import DataSet, load_data
from code_ray.errors import LinkError, ServiceError
from code_ray.link_fit import fit_link
from code_ray.links import Link, LinkSpec, joins, link_spec
from code_ray.minilm import encoder_weights
from code_ray.path import path_from_vector
from code_ray.path_space import PathSpace
from code_ray.profiling import hop_bytes, measure_profile
from code_ray.recipe import Recipe
from code_ray.runner import PathRunner, make_links, walk
from code_ray.scoring import Scorer
from code_ray.sequences import mean_over, pack, pooled, unpack
from code_ray.service import Service
from code_ray.text_blocks import build_text_encoder
from code_ray.tokenizer import VOCABULARIES_DIR, get_tokenizer
from code_ray.training import Trainer
from code_ray.zoo import get_service

PLACEMENT = {"tiny": "a", "host": "b"}
TEXTS = ["It was great.", "not my cup of tea, at all!", "Naïve, but SO charming €5 中文 \u200b don't", "", "x" * 200]


@pytest.fixture(scope="module")
def sentences() -> DataSet:
    return load_data("vader-sentences")


@pytest.fixture(scope="module")
def small(sentences: DataSet) -> dict[str, Service]:
    return make_text_services(sentences)


def run(service: Service, tokens: npt.NDArray[Any] | Tensor) -> Tensor:
    value = tokens if isinstance(tokens, Tensor) else service.preprocess(tokens)
    with torch.inference_mode():
        for block in service.blocks:
            value = block(value)
    return value


def test_tokens_are_those_of_berts_own_tokenizer() -> None:
    theirs = BertTokenizer(str(VOCABULARIES_DIR / "bert-uncased.txt"))
    found = get_tokenizer("bert-uncased").encode(TEXTS, 32)
    for text, ids in zip(TEXTS, found, strict=True):
        expected = theirs(text, max_length=32, truncation=True, padding="max_length")["input_ids"]
        assert ids.tolist() == expected, text


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ServiceError, match="vocabulary 'klingon' is unknown; there are: bert-uncased"):
        get_tokenizer("klingon")


def test_no_sentence_is_in_two_splits(sentences: DataSet) -> None:
    splits = [{row.tobytes() for row in split.images} for split in (sentences.train, sentences.validation, sentences.test)]
    assert [len(split) for split in splits] == [14_348, 2_500, 2_500]
    assert len(set().union(*splits)) == sum(map(len, splits))
    assert all(0.45 < split.labels.mean() < 0.6 for split in (sentences.train, sentences.validation, sentences.test))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_comes_back_out_of_a_sequence(dtype: torch.dtype) -> None:
    values, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]) == 1
    sequence = pack(values, mask).to(dtype)
    kept, found = unpack(sequence)
    assert torch.equal(found, mask)
    assert not kept[~mask].any()
    torch.testing.assert_close(mean_over(sequence)[1].float(), values[1, :2].mean(0), rtol=0.02, atol=0.02)
    assert torch.equal(pooled(sequence)[2, 4:], values[2, 0].to(dtype))


@pytest.mark.parametrize("name", ["sentence-cnn", "minilm"])
def test_padding_changes_no_answer(name: str, sentences: DataSet) -> None:
    service = get_service(name)
    some = sentences.validation.images[:20]
    whole = run(service, some)
    for row, expected in zip(some, whole, strict=True):
        length = int((row != 0).sum())
        for kept in {length, min(length + 3, 48)}:
            found = run(service, torch.from_numpy(row[None, :kept].copy()))
            torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sentence-cnn", "minilm"])
def test_the_other_texts_of_a_batch_change_no_answer(name: str, sentences: DataSet) -> None:
    service, some = get_service(name), sentences.validation.images[:9]
    together = run(service, some)
    alone = torch.cat([run(service, some[i : i + 1]) for i in range(len(some))])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_the_encoder_computes_what_transformers_computes() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    theirs = BertModel(BertConfig(vocab_size=VOCABULARY, **sizes)).train(mode=False)
    blocks = build_text_encoder(VOCABULARY, 48, 48, 4, 96, 3).eval()
    blocks.load_state_dict(encoder_weights(theirs.state_dict(), 48, 3))
    tokens = torch.from_numpy(TEXT.encode(TEXTS))
    with torch.inference_mode():
        expected = theirs(input_ids=tokens.long(), attention_mask=(tokens != 0).long()).last_hidden_state
        value = tokens
        for block in blocks[:-1]:
            value = block(value)
    found, mask = unpack(value)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_minilm_tells_which_sentences_are_alike() -> None:
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    first, second, third = run(get_service("minilm"), TEXT.encode(texts))
    assert float(first @ second) > 0.5 > 0.2 > float(first @ third)


def test_the_shipped_classifier_knows_the_mood_of_sentences(sentences: DataSet) -> None:
    service, split = get_service("sentence-cnn"), sentences.validation.head(500)
    assert (run(service, split.images).argmax(1).numpy() == split.labels).mean() > 0.72


def test_images_are_no_texts(sentences: DataSet) -> None:
    with pytest.raises(ServiceError, match=r"torch.uint8 \(2, 28, 28\) came where int32 token ids \(n, 48\) are taken"):
        TEXT.apply(np.zeros((2, 28, 28), np.uint8))


def test_a_link_along_sequences_is_fitted_to_tokens_and_never_to_padding(sentences: DataSet) -> None:
    torch.manual_seed(0)
    mask = torch.from_numpy(sentences.train.images[:40] != 0)
    source, wanted = torch.randn(40, 48, 6), torch.nn.Linear(6, 4)
    inputs, targets = pack(source, mask), pack(wanted(source).detach(), mask)
    inputs[..., :-1][~mask] = 1e6  # what must not be seen
    link = Link(LinkSpec((48, 7), (48, 5), relu=False, masked=True))
    fit_link(link, inputs, targets, ridge=1e-9)
    torch.testing.assert_close(link(inputs), targets, rtol=1e-3, atol=1e-3)


def test_masks_that_differ_are_not_fitted() -> None:
    ones = torch.ones(3, 48, dtype=torch.bool)
    fewer = ones.clone()
    fewer[0, 20:] = False
    with pytest.raises(LinkError, match="144 tokens reach a link whose targets have 116; the masks of both services differ"):
        fit_link(Link(LinkSpec((48, 3), (48, 3), masked=True)), pack(torch.rand(3, 48, 2), ones), pack(torch.rand(3, 48, 2), fewer))


def test_links_lead_between_likes_and_out_of_sequences(small: dict[str, Service]) -> None:
    tokens, sequence, *_, logits = small["tiny"].forms
    image = Boundary((3, 8, 8), nonnegative=False).form
    leads = {(a, b): joins(a, b) for a in (tokens, sequence, image) for b in (tokens, sequence, image, logits)}
    assert {pair for pair, found in leads.items() if found} == {
        (tokens, tokens),
        (sequence, sequence),
        (sequence, image),
        (sequence, logits),
        (image, image),
        (image, logits),
    }


def test_token_ids_are_handed_on_as_they_are(small: dict[str, Service], sentences: DataSet) -> None:
    ends = small["tiny"].boundaries[0], small["host"].boundaries[0]
    link = Link(link_spec(*ends, rank=8, to_input=True, to_logits=False, skip=False))
    tokens = small["tiny"].preprocess(sentences.train.images[:3])
    assert torch.equal(link(tokens), tokens)
    assert not list(link.parameters())


def test_a_space_holds_the_paths_whose_links_lead_somewhere(small: dict[str, Service]) -> None:
    forms = {name: service.forms for name, service in small.items()}
    space, whole = (PathSpace("tiny", 6, {"host": 6}, ranks=(None, 4), forms=known) for known in (forms, {}))
    expected = [path for path in whole.paths() if space.joins(path)]
    assert sorted(map(str, space.paths())) == sorted(map(str, expected))
    assert len(space) == len(expected) < len(whole)
    assert all(path in space for path in expected)
    assert all((path.lout == 0) == (path.vector[1] == 1) for path in expected if path.hosts)
    assert {path.lout for path in expected if not path.hosts} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("min_lout", [0, 2])
def test_every_link_of_a_space_of_texts_is_timed(min_lout: int, small: dict[str, Service]) -> None:
    space = PathSpace("tiny", 6, {"host": 6}, min_lout=min_lout, forms={name: service.forms for name, service in small.items()})
    profile = measure_profile(space.link_paths(), small, PLACEMENT, batch_sizes=(2,))
    costs = [profile.cost(path, small) for path in space.paths()]
    assert all(seconds > 0 for cost in costs for seconds in cost.seconds.values())


def test_a_hop_carries_tokens_in_four_bytes_and_masks_with_activations(small: dict[str, Service]) -> None:
    assert hop_bytes(small["tiny"], 0, ExecutionMode("bfloat16")) == 48 * 4
    assert hop_bytes(small["tiny"], 1, ExecutionMode("bfloat16")) == 48 * 33 * 2


VECTORS = [(0, 1, 3, 4), (1, 2, 4, 5), (1, 2, 4), (1, 4), (3,)]


@pytest.mark.parametrize("mode", [ExecutionMode(), ExecutionMode("bfloat16", channels_last=True)])
@pytest.mark.parametrize("vector", VECTORS)
def test_links_of_every_kind_of_path_learn(
    vector: tuple[int, ...], mode: ExecutionMode, small: dict[str, Service], sentences: DataSet
) -> None:
    recipe = Recipe(samples=128, fit_samples=64, screen_samples=64, steps=8, joint_steps=4, batch_size=16)
    trainer = Trainer(small, "tiny", sentences, PLACEMENT, lambda _: mode, recipe)
    path = path_from_vector(vector, "tiny", 6, "host", 6)
    links = [dict(train_path(trainer, path, seed=0, fit_only=only).links) for only in (True, False)]
    fitted, trained = (trainer.logits(path, some, sentences.validation.head(64)) for some in links)
    assert fitted.shape == trained.shape == (64, 2)
    assert np.isfinite(trained).all()
    assert not np.array_equal(fitted, trained)
    score = Scorer(trainer).score([path])[path]
    assert score.accuracy == pytest.approx((fitted.argmax(1) == sentences.validation.labels[:64]).mean(), abs=0.05)


def test_padding_changes_nothing_on_a_path_through_both_services(small: dict[str, Service], sentences: DataSet) -> None:
    path = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6)
    torch.manual_seed(0)
    runner = PathRunner(walk(path, PLACEMENT), small, make_links(path, small), lambda _: ExecutionMode())
    row = sentences.validation.images[:1]
    length = int((row != 0).sum())
    torch.testing.assert_close(runner(torch.from_numpy(row[:, :length].copy())), runner(torch.from_numpy(row)), rtol=1e-4, atol=1e-5)


def test_the_random_control_of_an_encoder_is_another_encoder(small: dict[str, Service], sentences: DataSet) -> None:
    control = random_host(small["host"], sentences.train.images[:32])
    assert control.boundaries == small["host"].boundaries
    assert control.content_hash != small["host"].content_hash
    assert bool(run_blocks(control, 0, 6, TEXT.apply(sentences.train.images[:4]), ExecutionMode()).isfinite().all())


def test_controls_without_a_link_are_not_in_the_space(small: dict[str, Service]) -> None:
    space = PathSpace("tiny", 6, {"host": 6}, forms={name: service.forms for name, service in small.items()})
    controls = control_paths(path_from_vector((0, 1, 3, 4), "tiny", 6, "host", 6))
    assert {role for role, path in controls.items() if space.joins(path)} == {"random_host"}


def test_grey_images_still_have_a_shape_of_their_own() -> None:
    assert GREY.sample_shape == (28, 28)
    assert GREY.noise(2).dtype == np.uint8
