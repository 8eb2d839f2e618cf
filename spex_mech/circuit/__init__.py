"""What was found: components, and the signed sets of them that act together. Knows no model, mask or decoder.

`graph` holds the types, `build` makes them from a polynomial, `codec` is their file, `interchange` writes them for
other tools, `plot` draws them.
"""
