"""Covariances: how they are stored, and how they are estimated.

`storage` has a class for each way of keeping a covariance, and all that densities and steps ask of
it. `structures` is the table of covariance types: each row names a class to store it and one of the
`estimators`, which maximize the expected log-likelihood of sufficient statistics. `traced` is a
type as data, for programs in which each model may have another one.
"""
