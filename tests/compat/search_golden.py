#!/usr/bin/env python3
"""Writes tests/golden/search.json: the search library's numerics as GPyTorch and BoTorch compute them.

    pip install torch==2.11.0 gpytorch==1.15.2 botorch==0.18.1
    python tests/compat/search_golden.py

* gaussian_process: posterior and log marginal likelihood of the kernel of search/gaussian_process.h
  (scaled Matern-5/2 over features, plus a constant and a linear kernel over the m-values), exact
  inference in double precision by GPyTorch.
* hypervolume_improvement: BoTorch's analytic ExpectedHypervolumeImprovement (Yang et al. 2019) over two
  normal objectives, the second with a standard deviation of 1e-8 bytes: known, as bytes are.
"""
import json
import pathlib

import gpytorch
import numpy as np
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.utils.multi_objective.box_decompositions.non_dominated import (
    FastNondominatedPartitioning,
)
from botorch.utils.testing import MockModel, MockPosterior

torch.set_default_dtype(torch.float64)


class LinearMeanGp(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, prior, hyper):
        super().__init__(x, y, likelihood)
        dims = x.shape[1] - 1
        self.mean_module = gpytorch.means.ZeroMean()
        matern = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.MaternKernel(nu=2.5, active_dims=tuple(range(dims)))
        )
        matern.outputscale = hyper["signal_stddev"] ** 2
        matern.base_kernel.lengthscale = hyper["length_scale"]
        linear = gpytorch.kernels.LinearKernel(active_dims=(dims,))
        linear.variance = prior["slope_stddev"] ** 2
        constant = gpytorch.kernels.ConstantKernel()
        constant.constant = torch.tensor(prior["intercept_stddev"] ** 2)
        self.covar_module = matern + linear + constant

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def gaussian_process(rng):
    n, m, dims = 15, 6, 4
    prior = {"intercept_mean": 0.25, "intercept_stddev": 2.0, "slope_mean": 0.9, "slope_stddev": 0.5}
    hyper = {"signal_stddev": 0.35, "length_scale": 0.8, "noise_stddev": 0.05}
    x, query = rng.uniform(size=(n, dims)), rng.uniform(size=(m, dims))
    basis, query_basis = rng.uniform(-6, 0, n), rng.uniform(-6, 0, m)
    y = 0.1 + 0.8 * basis + 0.3 * np.sin(4 * x[:, 0]) + 0.05 * rng.normal(size=n)

    inputs = torch.tensor(np.column_stack([x, basis]))
    queries = torch.tensor(np.column_stack([query, query_basis]))
    residual = torch.tensor(y - prior["intercept_mean"] - prior["slope_mean"] * basis)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        noise_constraint=gpytorch.constraints.GreaterThan(1e-9)
    )
    likelihood.noise = hyper["noise_stddev"] ** 2
    model = LinearMeanGp(inputs, residual, likelihood, prior, hyper)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        model.train()
        likelihood.train()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        evidence = mll(model(inputs), residual).item() * n
        model.eval()
        likelihood.eval()
        posterior = model(queries)
        mean = posterior.mean.numpy() + prior["intercept_mean"] + prior["slope_mean"] * query_basis
        variance = posterior.variance.numpy()
    return {
        "prior": prior,
        "hyperparameters": hyper,
        "x": x.tolist(),
        "basis": basis.tolist(),
        "y": y.tolist(),
        "query": query.tolist(),
        "query_basis": query_basis.tolist(),
        "log_marginal_likelihood": evidence,
        "mean": mean.tolist(),
        "variance": variance.tolist(),
    }


def hypervolume_improvement(rng):
    cases = []
    for size in (0, 1, 2, 5, 12):
        points = rng.uniform(size=(size, 2))  # (bytes, quality), minimised.
        reference = [0.95, 0.9]
        partitioning = FastNondominatedPartitioning(
            ref_point=-torch.tensor(reference),
            Y=-torch.tensor(points.reshape(-1, 2)),
        )
        for _ in range(4):
            size_, mean, stddev = rng.uniform(), rng.uniform(), 0.02 + 0.3 * rng.uniform()
            posterior = MockPosterior(
                mean=-torch.tensor([[[size_, mean]]]),
                variance=torch.tensor([[[1e-16, stddev**2]]]),
            )
            acquisition = ExpectedHypervolumeImprovement(
                model=MockModel(posterior),
                ref_point=[-v for v in reference],
                partitioning=partitioning,
            )
            value = acquisition(torch.zeros(1, 1, 1)).item()
            cases.append(
                {
                    "points": points.tolist(),
                    "reference": reference,
                    "bytes": size_,
                    "mean": mean,
                    "stddev": stddev,
                    "expected": value,
                }
            )
    return cases


def main():
    rng = np.random.default_rng(20261124)
    golden = {
        "script": "tests/compat/search_golden.py",
        "gaussian_process": gaussian_process(rng),
        "hypervolume_improvement": hypervolume_improvement(rng),
    }
    path = pathlib.Path(__file__).resolve().parents[1] / "golden" / "search.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
