"""Solvers: from a start to a maximum.

`loop` repeats steps of EM until `convergence` says that nothing is left to gain; between them
`acceleration` extrapolates, and `newton` polishes what comes out. `implicit` has the derivatives of
a maximum, in the steps around it that `tangent` defines; `gradient` is optax in the place of EM,
and `from_statistics` the loop of `em` around an E-step that the caller brings.
`settings` are checked first, and `results` say at last how it ended, with `degeneracy` for
components that mean nothing.
"""
