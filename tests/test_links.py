"""Links: shapes, sizes, where a ReLU stands, and the least-squares start (DESIGN 2.2, 3.4)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from code_ray.blocks import Boundary
from code_ray.errors import LinkError
from code_ray.link_fit import LinkFit, fit_link
from code_ray.links import MAX_FIT_ROWS, Link, LinkSpec, link_spec, resample

MAP, SMALL, WIDE = (4, 8, 8), (6, 4, 4), (3, 4, 16)


def noise(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def num_parameters(link: Link) -> int:
    return sum(parameter.numel() for parameter in link.parameters())


def weight_of(link: Link) -> Tensor:
    """The linear map a link makes, (outputs, features), its two halves multiplied."""
    weights = [parameter.detach().flatten(1) for name, parameter in link.body.named_parameters() if name.endswith("weight")]
    return weights[0] if len(weights) == 1 else weights[1] @ weights[0]


@pytest.mark.parametrize(
    ("in_shape", "out_shape"),
    [(MAP, SMALL), (SMALL, MAP), (MAP, MAP), (MAP, WIDE), (WIDE, MAP), (MAP, (10,)), ((10,), MAP), ((7,), (10,)), ((2, 2, 2), (5,))],
)
@pytest.mark.parametrize("rank", [None, 2])
def test_a_link_leads_from_one_shape_to_the_other(in_shape: tuple[int, ...], out_shape: tuple[int, ...], rank: int | None) -> None:
    link = Link(LinkSpec(in_shape, out_shape, rank))
    assert link(noise(3, in_shape)).shape == (3, *out_shape)


@pytest.mark.parametrize(
    ("in_shape", "out_shape", "grid"), [(MAP, SMALL, (4, 4)), (SMALL, MAP, (4, 4)), (MAP, WIDE, (4, 8)), (MAP, (9,), (3, 3))]
)
def test_the_trained_part_runs_at_the_smaller_resolution(
    in_shape: tuple[int, ...], out_shape: tuple[int, ...], grid: tuple[int, int]
) -> None:
    link = Link(LinkSpec(in_shape, out_shape))
    seen: list[torch.Size] = []
    link.body.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    link(noise(2, in_shape))
    assert link.spec.grid == grid
    assert seen == [(2, in_shape[0], *grid) if link.spec.is_conv else (2, in_shape[0] * grid[0] * grid[1])]


@pytest.mark.parametrize("shapes", [((4, 8), (5, 8)), (MAP, (4, 8)), ((8,), (4, 8)), ((), MAP), (MAP, (1, 2, 3, 4))])
def test_where_no_link_leads_it_says_between_what_links_do(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(LinkError, match="between vectors and maps one does, between sequences of one length"):
        Link(LinkSpec(*shapes))


def test_a_normal_link_is_one_3x3_convolution_with_bias() -> None:
    assert num_parameters(Link(LinkSpec((64, 7, 7), (96, 14, 14)))) == 64 * 96 * 9 + 96


def test_a_reduced_link_squeezes_through_its_rank() -> None:
    assert num_parameters(Link(LinkSpec((64, 7, 7), (96, 14, 14), rank=5))) == (64 * 5 * 9 + 5) + (5 * 96 + 96)
    assert num_parameters(Link(LinkSpec((64, 7, 7), (100,), rank=5))) == (64 * 9 * 5 + 5) + (5 * 100 + 100)


@pytest.mark.parametrize(
    ("nonnegative", "to_input", "to_logits", "relu"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False), (True, False, True, False)],
    ids=["behind a ReLU", "linear bottleneck", "network input", "logits"],
)
def test_a_relu_stands_only_where_the_next_block_expects_one(nonnegative: bool, to_input: bool, to_logits: bool, relu: bool) -> None:
    target = Boundary(MAP, nonnegative)
    spec = link_spec(Boundary(MAP, True), target, rank=None, to_input=to_input, to_logits=to_logits, skip=False)
    assert spec.relu == relu
    assert bool((Link(spec)(noise(4, MAP)) < 0).any()) != relu


def test_a_link_to_the_logits_is_never_reduced() -> None:
    spec = link_spec(Boundary(MAP, True), Boundary((10,), False), rank=3, to_input=False, to_logits=True, skip=False)
    assert spec.rank is None


@pytest.mark.parametrize(("skip", "rank", "pool"), [(True, 5, "max"), (True, None, "avg"), (False, 5, "avg")])
def test_only_reduced_skips_pool_by_maximum(skip: bool, rank: int | None, pool: str) -> None:
    spec = link_spec(Boundary(MAP, True), Boundary(SMALL, True), rank=rank, to_input=False, to_logits=False, skip=skip)
    assert spec.pool == pool
    expected = functional.max_pool2d if pool == "max" else functional.avg_pool2d
    value = noise(2, MAP)
    torch.testing.assert_close(resample(spec, value), expected(value, 2))


def conv_map(value: Tensor) -> Tensor:
    return functional.conv2d(value, noise(6, (4, 3, 3), seed=5), noise(6, (), seed=6), padding=1)


def linear_map(value: Tensor) -> Tensor:
    return functional.linear(value.flatten(1), noise(5, (16,), seed=5) / 4, noise(5, (), seed=6))


EXACT: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "convolution": ((4, 6, 6), (6, 6, 6), conv_map),
    "pooled, then convolution": ((4, 12, 12), (6, 6, 6), lambda value: conv_map(functional.avg_pool2d(value, 2))),
    "vector to vector": ((16,), (5,), linear_map),
    "map to vector": ((4, 2, 2), (5,), linear_map),
    "vector to map": ((16,), (5, 1, 1), lambda value: linear_map(value).view(-1, 5, 1, 1)),
}


@pytest.mark.parametrize(("in_shape", "out_shape", "exact"), EXACT.values(), ids=EXACT.keys())
def test_least_squares_recovers_a_map_that_a_link_can_make(
    in_shape: tuple[int, ...], out_shape: tuple[int, ...], exact: Callable[[Tensor], Tensor]
) -> None:
    link = Link(LinkSpec(in_shape, out_shape, relu=False))
    inputs, fresh = noise(200, in_shape), noise(20, in_shape, seed=2)
    fit_link(link, inputs, exact(inputs), ridge=1e-9)
    torch.testing.assert_close(link(fresh), exact(fresh), rtol=1e-3, atol=1e-3)


def test_a_fit_before_up_sampling_is_to_what_averages_to_the_target() -> None:
    link = Link(LinkSpec((4, 6, 6), (6, 12, 12), relu=False))
    inputs = noise(100, (4, 6, 6))
    fit_link(link, inputs, functional.interpolate(conv_map(inputs), scale_factor=2, mode="nearest"), ridge=1e-9)
    torch.testing.assert_close(link.body(inputs), conv_map(inputs), rtol=1e-3, atol=1e-3)


def test_a_fit_reproduces_relu_activations_behind_its_own_relu() -> None:
    link = Link(LinkSpec((16,), (5,), relu=True))
    inputs = noise(200, (16,))
    targets = functional.relu(linear_map(inputs) + 6)  # almost never clipped: nearly linear
    fit_link(link, inputs, targets, ridge=1e-9)
    assert float((link(inputs).detach() - targets).abs().mean()) < 0.01


def test_the_mean_is_fitted_without_a_penalty() -> None:
    link = Link(LinkSpec((3,), (2,), relu=False))
    inputs = noise(100, (3,)) + 50
    fit_link(link, inputs, torch.full((100, 2), 7.0), ridge=1e3)
    torch.testing.assert_close(link(inputs), torch.full((100, 2), 7.0))


def test_a_larger_ridge_gives_smaller_weights() -> None:
    inputs, targets = noise(30, (16,)), noise(30, (5,), seed=1)
    sizes = []
    for ridge in (1e-6, 1e-2, 1.0, 100.0):
        link = Link(LinkSpec((16,), (5,), relu=False))
        fit_link(link, inputs, targets, ridge)
        sizes.append(float(torch.linalg.matrix_norm(weight_of(link))))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * sizes[0]


@pytest.mark.parametrize(("in_shape", "out_shape"), [((4, 6, 6), (6, 6, 6)), ((16,), (9,))], ids=["convolution", "linear"])
def test_a_reduced_fit_is_the_best_approximation_of_its_rank(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
    inputs, targets = noise(200, in_shape), noise(200, out_shape, seed=1)
    full, reduced = (Link(LinkSpec(in_shape, out_shape, rank, relu=False)) for rank in (None, 2))
    fit_link(full, inputs, targets)
    fit_link(reduced, inputs, targets)
    wanted, found = weight_of(full), weight_of(reduced)
    assert int(torch.linalg.matrix_rank(found, rtol=1e-4)) == 2
    error = float(torch.linalg.matrix_norm(found - wanted))
    for seed in range(20):
        # Another one: the best weights whose rows lie in two random directions.
        basis = torch.linalg.qr(noise(wanted.shape[1], (2,), seed)).Q
        assert error <= float(torch.linalg.matrix_norm(wanted @ basis @ basis.T - wanted))
    # Nor does a small step away from it lead to a better one.
    for seed in range(20):
        with torch.no_grad():
            for parameter in reduced.parameters():
                parameter.add_(0.01 * noise(parameter.numel(), (), seed).view(parameter.shape) * parameter.abs().mean())
        assert error <= float(torch.linalg.matrix_norm(weight_of(reduced) - wanted)) + 1e-6
        fit_link(reduced, inputs, targets)


def test_a_reduced_fit_of_full_rank_is_the_full_fit() -> None:
    inputs, targets = noise(100, (16,)), noise(100, (5,), seed=1)
    full, reduced = (Link(LinkSpec((16,), (5,), rank, relu=False)) for rank in (None, 8))
    fit_link(full, inputs, targets)
    fit_link(reduced, inputs, targets)
    torch.testing.assert_close(reduced(inputs), full(inputs), rtol=1e-4, atol=1e-5)


def test_a_fit_looks_at_no_more_positions_than_the_limit() -> None:
    link = Link(LinkSpec((2, 20, 20), (2, 20, 20), relu=False))
    inputs = noise(2 * MAX_FIT_ROWS // 100, (2, 20, 20))
    targets = inputs.clone()
    targets[MAX_FIT_ROWS // 100 :] = 1e6
    fit_link(link, inputs, targets, ridge=1e-9)
    torch.testing.assert_close(link(inputs), inputs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [((8, 4, 8, 8), (8, 6, 4, 4)), ((8, 4, 4, 4), (8, 6, 8, 8)), ((8, 4, 8, 8), (7, 6, 8, 8)), ((8, 4), (8, 6, 8, 8))],
    ids=["targets", "inputs", "counts", "a vector"],
)
def test_shapes_that_do_not_fit_the_link_are_refused(inputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    link = Link(LinkSpec(MAP, (6, 8, 8)))
    with pytest.raises(LinkError, match=r"cannot fit a link \(4, 8, 8\) -> \(6, 8, 8\) to \("):
        fit_link(link, torch.zeros(inputs), torch.zeros(targets))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_values_that_are_not_finite_are_refused_and_leave_the_link_as_it_was(value: float, where: str) -> None:
    link = Link(LinkSpec((16,), (5,)))
    before = [parameter.clone() for parameter in link.parameters()]
    tensors = {"inputs": noise(50, (16,)), "targets": noise(50, (5,), seed=1)}
    tensors[where][3, 2] = value
    with pytest.raises(LinkError, match="values that are not finite"):
        fit_link(link, tensors["inputs"], tensors["targets"])
    assert all(torch.equal(a, b) for a, b in zip(before, link.parameters(), strict=True))


@pytest.mark.parametrize("outputs", [(6, 4, 4), (9, 2, 2), (3, 8, 8)])
def test_links_that_see_the_same_features_share_a_fit(outputs: tuple[int, ...]) -> None:
    inputs, targets = noise(60, (4, 4, 4)), noise(60, outputs, seed=1)
    shared, alone = (Link(LinkSpec((4, 4, 4), outputs, relu=False)) for _ in range(2))
    fit_link(alone, inputs, targets)
    other = LinkSpec((4, 4, 4), (7, *outputs[1:]), relu=True)
    assert other.design == shared.spec.design
    LinkFit(other, inputs).fit(shared, targets)
    torch.testing.assert_close(weight_of(shared), weight_of(alone))


def test_a_fit_is_not_for_links_that_see_other_features() -> None:
    fit = LinkFit(LinkSpec((4, 4, 4), (6, 4, 4)), noise(10, (4, 4, 4)))
    with pytest.raises(LinkError, match=r"cannot fit a link \(4, 4, 4\) -> \(6, 2, 2\)"):
        fit.fit(Link(LinkSpec((4, 4, 4), (6, 2, 2))), noise(10, (6, 2, 2)))
