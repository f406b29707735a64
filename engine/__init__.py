"""The functional core: data, factorization, retrieval and evaluation over pytrees."""
