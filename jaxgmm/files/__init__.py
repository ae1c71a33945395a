"""Files, and mixtures of other libraries.

`storage` saves mixtures and loads them. `tables` reads tables of numbers: by `text_tables` what is
text, with the names and choices that `table_columns` knows; `table_writing` writes them.
`interchange` has mixtures of scikit-learn and NumPyro.
"""
