"""Steps of EM: begin reading with `em_step`.

Data to `statistics`, statistics to a mixture. `rows` are the data, read through their
`standardization`. The E-step, `expectation`, has two forms: `products` of `features`, which are
fast, and `differences`, which lose no digits; `forms` chooses for each component, and a
`pass_record` writes it down. `accumulation` makes the same sums for responsibilities from
elsewhere. `maximization` is the M-step, `regularization` what both add
to the data, and a `problem` all that they depend on: rows, regularization and the covariance type.
"""
