"""The other lenses of SPEX: parts of a prompt, and training examples. Same responses, same decoders."""
