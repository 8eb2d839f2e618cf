"""The gallery: where the cards are, and what a card says, checked before anything is run.

A card is a folder of data (`circuits/README.md`): a model, prompts, components, a replacement, and what is published or
known about its circuit. This reads and checks it; it loads no model. A card cannot name files outside its folder.
"""

from spex_mech.gallery.card import Card, PromptParts, Published, TaskRecipe, Truth
from spex_mech.gallery.finding import cards, open_card

__all__ = ["Card", "PromptParts", "Published", "TaskRecipe", "Truth", "cards", "open_card"]
