"""Any model as blocks: what is found, what is proven, and what is refused."""

import copy
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

import code_ray
from benchmarks.split import Case, disturb, try_case
from code_ray.blocks import ExecutionMode, content_hash, measure_boundaries, optimise
from code_ray.errors import SplitError
from code_ray.grouping import equal_groups

TINY = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64}
SAMPLE = [
    Case("branches, shuffled channels", "torchvision:shufflenet_v2_x0_5"),
    Case("dense connections", "torchvision:densenet121"),
    Case("windows of a sequence", "torchvision:swin_t"),
    Case("norms with activations", "timm:test_efficientnet.r160_in1k"),
    Case("image transformer", "timm:test_vit.r160_in1k"),
    Case("text transformer", "transformers:bert", TINY, is_text=True),
    Case("image transformer of another library", "transformers:vit", TINY | {"image_size": 64}),
]


def small_cnn() -> nn.Sequential:
    """Five convolutions, a pool and a head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def composed(blocks: nn.ModuleList, value: Tensor) -> Tensor:
    with torch.no_grad():
        for block in blocks:
            value = block(value)
    return value


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.family)
def test_models_of_three_libraries_are_cut_and_run_in_every_mode(case: Case) -> None:
    row = try_case(case)
    assert row.failed == ""
    assert row.blocks == 6
    assert row.error_channels_last < 1e-4
    assert row.error_bf16 < 0.1


def test_blocks_compose_to_the_bit_in_a_batch_of_a_size_that_nobody_has_seen() -> None:
    torch.manual_seed(0)
    model = get_model("resnet18", weights=None)
    disturb(model)
    found = code_ray.split(model, torch.rand(2, 3, 64, 64))
    unseen = torch.randn(7, 3, 64, 64)
    assert torch.equal(composed(found.blocks, unseen), model.eval()(unseen))
    assert [b.shape for b in measure_boundaries(found.blocks, unseen)][-2:] == [(512, 2, 2), (1000,)]


def test_the_head_stays_whole_and_the_others_end_where_weights_begin() -> None:
    found = code_ray.split(small_cnn(), torch.rand(2, 3, 16, 16), num_blocks=4)
    kinds = [[type(module) for module in block.modules() if not list(module.children())] for block in found.blocks]
    assert kinds[-1] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert all(block[0] is nn.Conv2d and block[-1] is nn.ReLU for block in kinds[:-1])
    assert len(found.seconds) == 4
    assert min(found.seconds) > 0


def test_blocks_hold_what_the_model_does_and_nothing_else() -> None:
    found = code_ray.split(small_cnn(), torch.rand(2, 3, 16, 16), num_blocks=3)
    kinds = [node.op for block in found.blocks for node in block.graph.nodes]  # type: ignore[union-attr]
    assert kinds.count("call_module") == len(small_cnn())
    assert {*kinds} == {"placeholder", "call_module", "output"}


def test_a_model_is_left_as_it_was() -> None:
    model = small_cnn().train()
    before = copy.deepcopy(model)
    found = code_ray.split(model, torch.rand(2, 3, 16, 16), num_blocks=3)
    with torch.no_grad():
        for parameter in found.blocks.parameters():
            parameter.zero_()
    assert content_hash(model) == content_hash(before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_block_writes_into_what_it_is_given() -> None:
    found = code_ray.split(small_cnn(), torch.randn(2, 3, 16, 16), boundaries=["1", "13"])  # "1": before an activation in place
    value = torch.randn(2, 8, 16, 16)
    given = value.clone()
    with torch.no_grad():
        found.blocks[1](value)
    assert torch.equal(value, given)


def test_boundaries_by_hand_are_where_blocks_end() -> None:
    model = get_model("resnet18", weights=None)
    found = code_ray.split(model, torch.rand(2, 3, 64, 64), boundaries=["maxpool", "layer2", "layer4"])
    assert found.boundaries == ("maxpool", "layer2", "layer4")
    assert [b.shape for b in measure_boundaries(found.blocks, torch.rand(2, 3, 64, 64))][1:-1] == [(64, 16, 16), (128, 8, 8), (512, 2, 2)]
    again = code_ray.split(model, torch.rand(2, 3, 64, 64), boundaries=found.boundaries)
    assert [content_hash(block) for block in again.blocks] == [content_hash(block) for block in found.blocks]


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        (["layer1", "layer9"], r"no single tensor crosses behind 'layer9'; it does behind \d+ others, such as .*layer"),
        (["layer1.0.conv1"], "no single tensor crosses behind 'layer1.0.conv1'"),  # the skip connection crosses as well
        (["layer2", "layer1"], "not in the order in which the model runs"),
        (["layer1", "layer1"], "not in the order in which the model runs"),
        ([], "name one at least"),
    ],
)
def test_boundaries_that_are_none_are_refused(boundaries: list[str], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        code_ray.split(get_model("resnet18", weights=None), torch.rand(2, 3, 64, 64), boundaries=boundaries)


def test_the_groups_are_those_with_the_least_sum_of_squares() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        seconds = rng.exponential(size=14)
        ends = sorted(rng.choice(np.arange(1, 14), 8, replace=False).tolist())

        def cost(chosen: tuple[int, ...], seconds: npt.NDArray[np.float64] = seconds, ends: list[int] = ends) -> float:
            edges = [0, *(ends[i] for i in chosen), len(seconds)]
            return float(sum(seconds[a:b].sum() ** 2 for a, b in pairwise(edges)))

        best = min(combinations(range(len(ends)), 4), key=cost)
        assert equal_groups(seconds.tolist(), ends, 5) == list(best)


class _Siblings(nn.Module):
    """A convolution and a norm that are registered as neighbours but do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.more = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, value: Tensor) -> Tensor:
        value = self.more(self.norm(torch.relu(self.conv(value))))
        logits: Tensor = self.head(value.mean((2, 3)))
        return logits


def test_norms_are_folded_by_what_runs_not_by_what_is_registered() -> None:
    torch.manual_seed(0)
    model = _Siblings().eval()
    assert model.norm.running_mean is not None
    model.norm.running_mean.uniform_(1, 2)
    found = code_ray.split(model, torch.rand(2, 3, 8, 8), num_blocks=2)
    value = torch.rand(3, 3, 8, 8)
    fast = nn.Sequential(*(optimise(block, ExecutionMode()) for block in found.blocks))
    torch.testing.assert_close(fast(value), model(value), rtol=1e-4, atol=1e-5)


class _Made(nn.Module):
    """A layer whose forward is ``function``, between two convolutions and a head."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.layer = _Layer(function)
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, value: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.layer(self.first(value))).mean((2, 3)))
        return logits


class _Layer(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        assert callable(self.function)
        made: Tensor = self.function(value)
        return made


FOLLOWED = {
    "a loop over channels": lambda x: torch.stack([x[:, i] * i for i in range(x.shape[1])], 1),
    "a shape with the batch in it": lambda x: x.reshape(x.shape[0] * 2, 2, *x.shape[2:]).reshape(-1, 4, *x.shape[2:]),
    "numbers made for the batch": lambda x: x + torch.arange(len(x), device=x.device).to(x.dtype).view(-1, 1, 1, 1) * 0,
    "written in place": lambda x: written(torch.zeros_like(x), x),
    "written through a view": lambda x: x * written_through(torch.ones(4, 1, 1)),
    "a course by values": lambda x: x * 2 if float(x.mean()) > 0.3 else x,
    "what torch does not see": lambda x: torch.from_numpy(x.numpy() * 2),
}


def written(empty: Tensor, value: Tensor) -> Tensor:
    empty[:, ::2] = value[:, 1::2]
    empty += 1
    return empty


def written_through(ones: Tensor) -> Tensor:
    ones[1:3].mul_(3)
    return ones


@pytest.mark.parametrize("function", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_what_runs_can_be_followed(function: object) -> None:
    model = _Made(function).eval()
    found = code_ray.split(model, torch.rand(2, 3, 12, 12), boundaries=["first", "layer", "last"])
    value = torch.rand(5, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(composed(found.blocks, value), model(value))


class _Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = small_cnn()

    def forward(self, value: Tensor) -> Tensor:
        made: Tensor = self.layers(value if float(value.mean()) > 0.1 else -value)
        return made


REFUSED = {
    "a loop over samples": (_Made(lambda x: torch.stack([x[i] for i in range(len(x))])), "its course depends on the batch"),
    "values read by a model": (_Reads(), "the model's own forward cannot be followed: .* reads by 'float'"),
    "no numbers": (_Made(lambda x: x / 0), "answers with NaN or infinity"),
    "another shape": (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)), "does not run on 2 samples of shape .*; give an example"),
    "two outputs": (nn.LSTM(12, 4, batch_first=True), "the model returns tuple, not one tensor"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_split_says_why(model: nn.Module, message: str) -> None:
    example = torch.rand(2, 12, 12) if isinstance(model, nn.LSTM) else torch.rand(2, 3, 12, 12) * 0.1
    with pytest.raises(SplitError, match=message):
        code_ray.split(model.eval(), example, num_blocks=3)


def test_more_blocks_than_there_are_places_for_is_an_error_that_says_how_many_there_can_be() -> None:
    with pytest.raises(SplitError, match="which makes 6 blocks at most, not 9; ask for fewer"):
        code_ray.split(small_cnn(), torch.rand(2, 3, 16, 16), num_blocks=9)


class _TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = small_cnn(), small_cnn()

    def forward(self, value: Tensor) -> Tensor:
        logits: Tensor = self.one(value) + self.other(value)
        return logits


def test_two_streams_from_end_to_end_are_no_blocks() -> None:
    with pytest.raises(SplitError, match="nowhere does a single tensor cross: two streams or more"):
        code_ray.split(_TwoStreams(), torch.rand(2, 3, 16, 16))
