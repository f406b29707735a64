"""Operations that have more than one implementation.

Each module is one operation: `least_squares.solve`, `top_k.search`; `csr` is the sparse layout they share.
"""
