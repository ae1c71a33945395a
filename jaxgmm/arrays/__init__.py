"""Arrays: numbers, before any statistics.

What people give is made an array (`conversion`, by way of `columns` for frames), refused if it
can't be meant (`validation`, `placement`), and padded to a few sizes (`padding`); `host` is what is
done without a program, and `printing` what is shown. `budgets` has every size that was tuned for a
platform, and is asked by `chunks`, which goes through long arrays a part at a time; `shards` adds
what devices make of rows that are spread over them. `numerics` has the functions of a textbook in
forms that lose no digits and have derivatives; without LAPACK, `matrices` has factors and inverses
of small matrices, `reflections` a QR decomposition, `krylov` a solver of linear systems.
"""
