"""What was found: components, and the signed sets of them that act together. Knows no model, mask or decoder.

`graph` holds the types, `build` makes them from a polynomial, `codec` is their file, `drawing` shows one in a notebook;
`formats` writes them for other tools.
"""
