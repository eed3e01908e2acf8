import pytest
import torch

from rapm_cli.core.common.randomness import BLOCK, Draws


def generator():
    return torch.Generator().manual_seed(5)


def test_draws_are_those_of_torch_one_by_one():
    single = generator()
    draws = Draws(generator())
    for k in range(2 * BLOCK):
        if k % 3:
            assert draws.pick(range(k)) == int(torch.randint(k, (), generator=single))
        else:
            assert draws.is_hit(0.3) == (float(torch.rand((), generator=single)) < 0.3)


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_the_generator_is_left_where_single_draws_leave_it(count):
    single, shared = generator(), generator()
    with Draws(shared) as draws:
        ours = [draws.pick(range(9)) for _ in range(count)]
    assert ours == [int(torch.randint(9, (), generator=single)) for _ in range(count)]
    assert torch.equal(torch.randn(40, generator=shared), torch.randn(40, generator=single))
