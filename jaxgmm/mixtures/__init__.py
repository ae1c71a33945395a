"""Mixtures: the model itself, its densities, its draws, and its parameters.

`mixture` has the pytree and its methods; `densities` the logarithms of densities and
responsibilities, `sampling` draws and their derivatives, and `parameters` the mixture as
unconstrained real numbers.
"""
