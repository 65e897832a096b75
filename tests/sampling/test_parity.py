"""Each solver has a test against an implementation that is not ours; some meet a closed form of Gaussian data here."""

import torch

from pipeline.diffusion.exact import Gaussian
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from tests.sampling import (
    test_fitted,
    test_parity_edm,
    test_parity_grids,
    test_parity_multistep,
    test_parity_singlestep,
    test_parity_stochastic,
)
from tests.sampling.peers import F64, NOISE, Peers, assert_equal, ours

MODULES = (
    test_parity_grids,
    test_parity_singlestep,
    test_parity_edm,
    test_parity_multistep,
    test_parity_stochastic,
    test_fitted,
)
PEERS: Peers = {
    solver: tuple(test for module in MODULES for test in module.PEERS.get(solver, ()))
    for solver in {solver for module in MODULES for solver in module.PEERS}
}


def test_every_solver_has_a_peer() -> None:
    assert PEERS.keys() == SOLVERS.keys()
    assert all(PEERS.values())


def test_gaussian_data_end_at_the_same_place_too() -> None:
    """Data with a linear denoiser has a closed form (Gaussian.flow), without network or peer."""
    oracle = Gaussian(0.2, 0.5)
    high = torch.tensor(80.0, dtype=F64)
    expected = oracle.flow(NOISE * 80, high, torch.zeros((), dtype=F64))
    for solver in ("heun", "rk4", "dpmpp_2s", "dpmpp_3m", "unipc", "exp_adams"):
        assert_equal(ours(Sampler(solver=solver), 400, oracle), expected, rtol=2e-3)
