"""Model surgery: run a model on prompts with sets of its components ablated. Never hears of Walsh, spectrum or circuit.

One vocabulary: a `Site` is a tensor inside the model where components live, an edit is a function on that tensor, a
`Subject` is a model that can run with edits. Adapters (one file a library) only translate sites to hooks; the
arithmetic
of ablation stands once, in `replacement`.
"""
