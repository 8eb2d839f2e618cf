"""The other lenses of SPEX: parts of a prompt, training examples, and heads and words at once. Same responses, same
decoders."""
