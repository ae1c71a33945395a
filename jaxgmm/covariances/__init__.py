"""Covariances: how they are stored, and how they are estimated.

`storage` has a class for each way of keeping a covariance, and all that densities and steps ask of
it; `transformations` make covariances of others. `structures` is the table of covariance types:
each row names a class to store it, one of the `estimators`, which maximize the expected
log-likelihood of sufficient statistics, and one of the `charts`, its free parameters.
`volume_shape` has both for components that share a shape. `traced` is a type as data, for programs
in which each model may have another one.
"""
