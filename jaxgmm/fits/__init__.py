"""Fits: mixtures from data alone, many of them, and the best among several sizes.

`fitting` fits one data set and `batching` many, both by the program of `entry`: it starts
(`initialization`, by way of `kmeans`), climbs from each start (`restarts`, with `splitting` where
components collapse) and keeps the best; `problems` are the data of many fits. `selection` chooses
among the fits of `sweeps`, which `ranking` puts in order by `criteria`, and `redundancy` says which
features add nothing. `uncertainty` has standard errors.
"""
