"""Compare each mechanism with the equations of its paper, one sample and head at a time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model import ConfigError, FastAttention, FastformerAttention
from model import PerformerAttention as Performer
from model import RegularAttention as Regular
from model.attention import MECHANISMS, Attention, orthogonal_features
from model.rotary import Rotation
from model.upstream import UPSTREAM_MECHANISMS

EXACT = 1e-10  # relative L2 in float64

# (batch and group axes, tokens, dim, heads, channels of a head)
SIZES = [
    ((1,), 1, 8, 1, 8),
    ((2,), 5, 12, 2, 6),
    ((3,), 7, 30, 3, 10),
    ((2, 3), 4, 16, 4, 4),
]
# Here heads x dim_head differs from dim. Fastformer adds its query to its output, so it needs
# equal widths.
NARROW_SIZES = [((2,), 5, 14, 3, 10), ((1, 2), 3, 9, 1, 4)]


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got - truth).norm() / truth.norm()).item()


def build(mechanism: type[Attention], dim: int, heads: int, dim_head: int, **options: object):
    torch.manual_seed(dim + heads)
    return mechanism(dim, dim_head, heads, **options).double().eval()


def tokens(leading: tuple[int, ...], n: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, n, dim, dtype=torch.float64, generator=generator)


def some_angles(n: int, dim_head: int) -> Tensor:
    pairs = torch.arange(1, dim_head // 2 + 1, dtype=torch.float64)
    return torch.arange(n, dtype=torch.float64)[:, None] * 0.7 / pairs  # n e/2


def as_rotation(angles: Tensor, heads: int) -> Rotation:
    """Convert angles of pairs to the layout that the modules take."""
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        torch.stack((cos, cos), -1).flatten(-2).repeat(1, heads),
        torch.stack((-sin, sin), -1).flatten(-2).repeat(1, heads),
    )


def turned(x: Tensor, angles: Tensor | None) -> Tensor:
    """Rotate the pairs of `(n, e)` as complex numbers."""
    if angles is None:
        return x
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def regular_head(_: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.zeros_like(v)
    for i in range(len(q)):
        weights = torch.stack([(q[i] @ k[j] / math.sqrt(len(q[i]))).exp() for j in range(len(k))])
        for j in range(len(v)):
            out[i] += weights[j] / weights.sum() * v[j]
    return out


def favor_head(attention: Performer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute the estimator of the paper, without a stabiliser."""
    omega, root = attention.projection_matrix, q.shape[-1] ** 0.25

    def phi(x: Tensor) -> Tensor:
        x = x / root
        return torch.stack([(w @ x - x @ x / 2).exp() for w in omega]) / math.sqrt(len(omega))

    phi_q, phi_k = torch.stack(list(map(phi, q))), torch.stack(list(map(phi, k)))
    weights = torch.einsum("im,jm->ij", phi_q, phi_k)
    return torch.einsum("ij,je->ie", weights / weights.sum(1, keepdim=True), v)


def fastformer_head(attention: FastAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    root = math.sqrt(q.shape[-1])
    w_q, w_k = attention.Wq.weight[0], attention.Wk.weight[0]
    alpha = torch.stack([(w_q @ query / root).exp() for query in q])  # (1)
    global_query = sum(a / alpha.sum() * query for a, query in zip(alpha, q, strict=True))  # (2)
    p = torch.stack([global_query * key for key in k])  # (3)
    beta = torch.stack([(w_k @ p_i / root).exp() for p_i in p])  # (4)
    global_key = sum(b / beta.sum() * p_i for b, p_i in zip(beta, p, strict=True))  # (5)
    return torch.stack([global_key * value for value in v])


HEADS = {"regular": regular_head, "performer": favor_head, "fastformer": fastformer_head}


def by_the_paper(name: str, attention: Attention, x: Tensor, angles: Tensor | None) -> Tensor:
    if x.ndim > 2:
        return torch.stack([by_the_paper(name, attention, sample, angles) for sample in x])
    inner = attention.heads * attention.dim_head
    weight, bias = attention.to_qkv.weight, attention.to_qkv.bias
    projected = x @ weight.T + (0 if bias is None else bias)
    query, key, value = projected[:, :inner], projected[:, inner : 2 * inner], projected[:, -inner:]
    mixed = torch.zeros_like(value)
    for head in range(attention.heads):
        own = slice(head * attention.dim_head, (head + 1) * attention.dim_head)
        q, k = turned(query[:, own], angles), turned(key[:, own], angles)
        mixed[:, own] = HEADS[name](attention, q, k, value[:, own])
    out = mixed @ attention.to_out.weight.T + attention.to_out.bias
    return out + query if name == "fastformer" else out


GRID = [(name, size) for name in MECHANISMS for size in SIZES] + [
    (name, size) for name in ("regular", "performer") for size in NARROW_SIZES
]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize(("name", "size"), GRID)
def test_attention_equals_the_equations_of_the_paper(name, size, rotated, bias):
    leading, n, dim, heads, dim_head = size
    attention = build(MECHANISMS[name], dim, heads, dim_head, qkv_bias=bias)
    x = tokens(leading, n, dim)
    angles = some_angles(n, dim_head) if rotated else None
    got = attention(x, None if angles is None else as_rotation(angles, heads))
    assert got.shape == x.shape
    assert rel_l2(got, by_the_paper(name, attention, x, angles)) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize("name", MECHANISMS)
def test_rotation_changes_the_output(name):
    attention, x = build(MECHANISMS[name], 16, 2, 8), tokens((2,), 6, 16)
    rotation = as_rotation(some_angles(6, 8), 2)
    assert rel_l2(attention(x, rotation), attention(x)) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", MECHANISMS)
def test_attention_without_positions_is_permutation_equivariant(name):
    attention, x = build(MECHANISMS[name], 16, 2, 8), tokens((2,), 6, 16)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert rel_l2(attention(x[:, order]), attention(x)[:, order]) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize("name", ["regular", "fastformer"])
def test_qk_scale_sets_the_scale_of_the_logits(name):
    options = {"dim": 16, "heads": 2, "dim_head": 8}
    x = tokens((2,), 6, 16)
    same = build(MECHANISMS[name], **options, qk_scale=8**-0.5)(x)
    other = build(MECHANISMS[name], **options, qk_scale=2.0)(x)
    default = build(MECHANISMS[name], **options)(x)
    assert rel_l2(same, default) <= EXACT
    assert rel_l2(other, default) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("magnitude", [1.0, 100.0])
def test_output_of_a_sample_is_independent_of_the_others(name, magnitude):
    attention = build(MECHANISMS[name], 24, 3, 8)
    x = tokens((3, 2), 5, 24)
    x[1:] *= magnitude
    alone, together = attention(x[:1]), attention(x)[:1]
    assert rel_l2(together, alone) <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", ["regular", "fastformer", "performer"])
def test_upstream_output_of_a_sample_is_independent_of_the_others(name):
    attention, x = build(UPSTREAM_MECHANISMS[name], 24, 3, 8), tokens((3, 2), 5, 24)
    assert rel_l2(attention(x)[:1], attention(x[:1])) <= 1e-9  # performer is ill-conditioned


@torch.no_grad()
@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 100.0, 1e4])
def test_large_inputs_give_finite_outputs(name, magnitude):
    attention = build(MECHANISMS[name], 32, 2, 16).float()
    x = tokens((2,), 9, 32).float() * magnitude
    assert torch.isfinite(attention(x)).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["regular", "performer"])
@pytest.mark.parametrize("magnitude", [1.0, 100.0])
def test_output_is_a_weighted_average_of_the_values(name, magnitude):
    """Positive weights that sum to one keep the output between the least and the largest value."""
    attention = build(MECHANISMS[name], 16, 2, 8)
    attention.to_out.weight.copy_(torch.eye(16))
    attention.to_out.bias.zero_()
    x = tokens((4,), 6, 16) * magnitude
    values = x @ attention.to_qkv.weight[-16:].T
    got, slack = attention(x), 1e-12 * magnitude
    assert (got >= values.amin(1, keepdim=True) - slack).all()
    assert (got <= values.amax(1, keepdim=True) + slack).all()
    if magnitude == 1.0:  # for larger inputs, all queries select the same value
        assert got.std(dim=1).min() > 0


@pytest.mark.parametrize("name", MECHANISMS)
def test_gradients_equal_numerical_gradients(name):
    attention = build(MECHANISMS[name], 8, 2, 4)
    x = tokens((2,), 3, 8).requires_grad_()
    rotation = as_rotation(some_angles(3, 4), 2)
    parameters = tuple(attention.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: attention(x, rotation), (x, *parameters), fast_mode=True
    )


@pytest.mark.parametrize("name", MECHANISMS)
def test_output_dropout_acts_in_training_only(name):
    attention, x = build(MECHANISMS[name], 16, 2, 8, proj_drop=0.5), tokens((2,), 6, 16)
    assert torch.equal(attention(x), attention(x))
    assert torch.equal(attention(x), build(MECHANISMS[name], 16, 2, 8)(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("name", ["regular", "fastformer"])
def test_attention_dropout_acts_in_training_only(name):
    attention, x = build(MECHANISMS[name], 16, 2, 8, attn_drop=0.5), tokens((2,), 6, 16)
    assert torch.equal(attention(x), attention(x))
    assert torch.equal(attention(x), build(MECHANISMS[name], 16, 2, 8)(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))


class TestSizes:
    def test_default_dim_head_is_64_as_published(self):
        attention = FastAttention(dim=128)
        assert (attention.heads, attention.dim_head) == (2, 64)
        assert FastformerAttention is FastAttention

    @pytest.mark.parametrize("name", MECHANISMS)
    def test_dim_that_is_not_a_multiple_of_dim_head_is_refused(self, name):
        with pytest.raises(ConfigError, match=r"dim_head 64: got 48"):
            MECHANISMS[name](dim=48)

    def test_fastformer_with_heads_that_do_not_fill_dim_is_refused(self):
        with pytest.raises(ConfigError, match=r"got 3 x 8 and 16"):
            FastAttention(16, 8, 3)

    def test_fastformer_heads_share_one_weight_vector(self):
        shapes = {name: tuple(p.shape) for name, p in FastAttention(32, 8).named_parameters()}
        assert shapes["Wq.weight"] == shapes["Wk.weight"] == (1, 8)


class TestFavor:
    """FAVOR+ (Choromanski et al. 2021): test the features and their approximation of softmax."""

    FEATURES = (32, 64, 128, 256, 512, 1024, 2048)
    SEEDS = 24
    SLOPE = (-0.65, -0.35)  # of log error over log m; independent features give -1/2

    @torch.no_grad()
    def test_error_is_proportional_to_one_over_the_root_of_the_features(self):
        dim, heads, dim_head = 32, 2, 16
        regular = build(Regular, dim, heads, dim_head)
        x = tokens((2,), 9, dim, seed=3) / 4
        truth = regular(x) - regular.to_out.bias
        errors = []
        for features in self.FEATURES:
            squares = []
            for seed in range(self.SEEDS):
                performer = Performer(dim, dim_head, heads, nb_features=features, seed=seed)
                performer.to(torch.float64).load_state_dict(regular.state_dict(), strict=False)
                squares.append(rel_l2(performer(x) - regular.to_out.bias, truth) ** 2)
            errors.append(math.sqrt(np.mean(squares)))
        # The second part detects an error that stops falling.
        for part in (slice(None), slice(3, None)):
            slope = np.polyfit(np.log(self.FEATURES[part]), np.log(errors[part]), 1)[0]
            assert self.SLOPE[0] < slope < self.SLOPE[1]

    @torch.no_grad()
    @pytest.mark.parametrize("name", ["regular", "fastformer"])
    def test_error_is_zero_for_regular_attention_only(self, name):
        """The error measure is valid: it is zero for softmax attention only."""
        regular, other = build(Regular, 32, 2, 16), build(MECHANISMS[name], 32, 2, 16)
        other.load_state_dict(regular.state_dict(), strict=False)
        error = rel_l2(other(tokens((2,), 9, 32)), regular(tokens((2,), 9, 32)))
        assert (error <= EXACT) == (name == "regular")

    @torch.no_grad()
    def test_features_estimate_the_softmax_kernel_without_bias(self):
        dim_head = 8
        q, k = tokens((), 2, dim_head) / 4
        omega = orthogonal_features(20_000 * dim_head, dim_head, seed=1).double()
        phi_q, phi_k = ((omega @ x - x @ x / 2).exp() for x in (q, k))
        products = phi_q * phi_k
        standard_error = (products.std() / math.sqrt(len(products))).item()
        assert standard_error < 0.01
        assert abs(products.mean() - (q @ k).exp()).item() < 4 * standard_error

    @torch.no_grad()
    @pytest.mark.parametrize("tokens_of_a_group", [3, 8, 9, 40])
    def test_both_orders_of_the_product_give_the_same_output(self, tokens_of_a_group):
        performer = build(Performer, 16, 2, 8)
        q, k, v = torch.randn(3, 2, tokens_of_a_group, 8, dtype=torch.float64)
        q_logits = q @ performer.projection_matrix.T
        few, many = performer.mix_few(q_logits, k, v), performer.mix_many(q_logits, k, v)
        assert rel_l2(few, many) <= EXACT

    @pytest.mark.parametrize(("features", "dim_head"), [(24, 8), (44, 16), (5, 8), (7, 3)])
    @pytest.mark.parametrize("ortho_scaling", [0, 1])
    def test_features_are_orthogonal_within_blocks(self, features, dim_head, ortho_scaling):
        omega = orthogonal_features(features, dim_head, ortho_scaling, seed=0)
        assert omega.shape == (features, dim_head)
        for block in omega.split(dim_head):
            directions = block / block.norm(dim=1, keepdim=True)
            gram = directions @ directions.T
            assert (gram - torch.eye(len(block))).abs().max().item() < 1e-5
        if ortho_scaling == 1:
            expected = torch.full((features,), math.sqrt(dim_head))
            torch.testing.assert_close(omega.norm(dim=1), expected, rtol=1e-5, atol=0)

    def test_features_are_isotropic(self):
        """Each row of a block must be isotropic. QR alone would fix the signs of the directions."""
        blocks, dim_head = 4000, 8
        omega = orthogonal_features(blocks * dim_head, dim_head, 1, seed=0)
        mean = omega.unflatten(0, (blocks, dim_head)).mean(0)
        assert mean.abs().max().item() < 5 / math.sqrt(blocks)  # components have variance one

    def test_features_of_different_blocks_are_not_orthogonal(self):
        omega = orthogonal_features(32, 16, seed=0)
        assert (omega[:16] @ omega[16:].T).abs().max().item() > 0.1

    def test_norms_have_mean_and_variance_of_gaussian_vectors(self):
        squares = orthogonal_features(16 * 4000, 16, seed=0).square().sum(1)
        assert squares.mean().item() == pytest.approx(16, rel=0.01)
        assert squares.var().item() == pytest.approx(2 * 16, rel=0.05)

    def test_same_seed_gives_the_same_features(self):
        first, same, other = (Performer(32, 16, seed=seed).projection_matrix for seed in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_seed_does_not_change_the_global_generator(self):
        before = torch.random.get_rng_state()
        orthogonal_features(8, 4, seed=1)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_features_without_a_seed_come_from_the_global_generator(self):
        torch.manual_seed(5)
        first = Performer(32, 16).projection_matrix
        torch.manual_seed(5)
        assert torch.equal(Performer(32, 16).projection_matrix, first)
        assert not torch.equal(Performer(32, 16).projection_matrix, first)

    @torch.no_grad()
    def test_redraw_replaces_the_features_in_place(self):
        performer, x = build(Performer, 16, 2, 8), tokens((1,), 5, 16)
        place = performer.projection_matrix.data_ptr()
        before, kept = performer(x), performer.projection_matrix.clone()
        performer.redraw_projection_matrix(seed=9)
        assert performer.projection_matrix.data_ptr() == place
        assert performer.projection_matrix.dtype == torch.float64
        assert not torch.equal(performer.projection_matrix, kept)
        after = performer(x)
        assert rel_l2(after, before) > 1e-4
        performer.redraw_projection_matrix(seed=9)
        assert torch.equal(performer(x), after)

    def test_features_are_part_of_the_state_dict(self):
        saved = Performer(32, 16, seed=1)
        other = Performer(32, 16, seed=2)
        other.load_state_dict(saved.state_dict())
        assert torch.equal(other.projection_matrix, saved.projection_matrix)

    def test_default_number_of_features_is_dim_head_log_dim_head(self):
        assert Performer(128).projection_matrix.shape == (int(64 * math.log(64)), 64)
        assert Performer(32, 16, nb_features=10).projection_matrix.shape == (10, 16)

    def test_unknown_ortho_scaling_is_refused(self):
        with pytest.raises(ConfigError, match=r"0 or 1: got 2"):
            Performer(32, 16, ortho_scaling=2)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1: got 0"),
        ({"dim": "32"}, "dim must be a whole number of at least 1: got '32'"),
        ({"dim": 10**12}, "dim must be at most 16,384"),
        ({"dim_head": 0}, "dim_head must be a whole number"),
        ({"dim_head": -1}, "dim_head must be a whole number"),
        ({"heads": 1.5}, "heads must be a whole number"),
    ],
)
def test_a_wrong_size_of_a_layer_is_refused(name, wrong, said):
    with pytest.raises(ConfigError, match=said):
        MECHANISMS[name](**{"dim": 32, "dim_head": 16, **wrong})
