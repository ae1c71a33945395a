"""Operations on mixtures as densities, without any data.

`algebra` has marginals, conditionals, regression and affine maps; `combination` products,
reductions and a common order; `divergences` entropies, distances and divergences, for which `pairs`
compares components and `transport` assigns them; `quantiles` distribution functions and outliers;
`priors` what a mixture says about the parameters of a Gaussian.
"""
