"""Kernels for a GPU: what XLA makes with much traffic to memory, or in many launches, in one.

* `em_pass`: the E-step of long data, whose features are never written;
* `factors`: Cholesky factors of the M-step's matrices, and their inverses;
* `launching`: how a kernel is run.

Each has a plain form that it is tested against, which is used wherever it can't be, and whose
derivatives are its own: that of `em_pass` is in `steps/products.py`, those of `factors` are in
`arrays/matrices.py`. Whether there are kernels for a platform is said in `arrays/budgets.py`.
"""
