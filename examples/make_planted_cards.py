# %% [markdown]
# # Write the planted cards
#
# Four subjects whose polynomial is known, one a card: a conjunction (synergy), a backup (redundancy), a parity (no
# lower-order trace at all) and a sum (no interaction at all), each among heads and neurons that do nothing. They are
# the smallest studies there are, and their truth is exact: `python examples/make_planted_cards.py --out circuits`.

# %%
import argparse
import json
from pathlib import Path

from spex_mech.ablation.backends import planted
from spex_mech.ablation.backends.planted import PlantedLayout, PlantedSubject
from spex_mech.components import select

LAYOUT = PlantedLayout(n_layers=2, n_heads=4, d_mlp=3)
COMPONENTS = "a*.h*, m*.n*"  # 8 heads and 6 neurons
PROMPTS, SEED = 8, 0

# name → subject, title, summary, and what is to be found: roles, and the sets that act together
CARDS: dict[str, tuple[PlantedSubject, str, str, dict[str, str], list[tuple[list[str], str]]]] = {
    "planted-and": (
        planted.conjunction(["a0.h1", "a1.h2", "m1.n0"], strength=4.0, layout=LAYOUT, spread=0.5),
        "A planted AND",
        "Two heads and a neuron that are worth 4 logits together and nothing without one of them.",
        dict.fromkeys(["a0.h1", "a1.h2", "m1.n0"], "needed"),
        [(["a0.h1", "a1.h2", "m1.n0"], "synergy")],
    ),
    "planted-or": (
        planted.backup(["a0.h0", "a1.h1", "m0.n2"], strength=4.0, layout=LAYOUT, spread=0.5),
        "A planted OR",
        "Two heads and a neuron that back each other up: any one of them is enough.",
        dict.fromkeys(["a0.h0", "a1.h1", "m0.n2"], "enough by itself"),
        [(["a0.h0", "a1.h1", "m0.n2"], "redundancy")],
    ),
    "planted-xor": (
        planted.parity_subject(["a0.h3", "a1.h0", "m0.n0", "m1.n1"], strength=2.0, layout=LAYOUT, spread=0.5),
        "A planted XOR",
        "The parity of two heads and two neurons: one Walsh term of order 4, with no trace in any lower order.",
        dict.fromkeys(["a0.h3", "a1.h0", "m0.n0", "m1.n1"], "flips the sign"),
        [(["a0.h3", "a1.h0", "m0.n0", "m1.n1"], "synergy")],
    ),
    "planted-additive": (
        planted.additive(
            {"a0.h0": 2.0, "a0.h2": -1.0, "a1.h3": 1.5, "m0.n1": 0.5, "m1.n2": -0.25}, layout=LAYOUT, spread=0.5
        ),
        "A planted sum",
        "Three heads and two neurons that add up: main effects of both signs, and no interaction to be found.",
        {"a0.h0": "helps", "a0.h2": "hurts", "a1.h3": "helps", "m0.n1": "helps", "m1.n2": "hurts"},
        [],
    ),
}

CARD_TOML = """[card]
schema = 1
title = "{title}"
summary = "{summary}"
licence = "MIT"
source = "written by examples/make_planted_cards.py"

[model]
kind = "planted"
path = "model"

[task]
metric = "logit_diff"
unit = "logit"

[components]
default = "{components}"

[replacement]
default = "mean"
per = "position"
"""


# %%
def truth_record(subject: PlantedSubject) -> dict[str, object]:
    """The exact Walsh polynomial over the card's components, by names."""
    components = select(subject, COMPONENTS)
    spectrum = planted.truth(subject, components).sorted()
    terms = [{"set": [components.names[i] for i in s], "coefficient": value} for s, value in spectrum.terms()]
    return {"basis": "walsh", "components": list(components.names), "terms": terms}


def write_card(folder: Path, name: str) -> None:
    subject, title, summary, roles, interactions = CARDS[name]
    task = planted.task(PROMPTS, SEED)
    assert task.reference is not None
    planted.save_planted(subject, folder / "model")
    task.to_jsonl(folder / "prompts.jsonl")
    reference = "".join(json.dumps({"tokens": row}) + "\n" for row in task.reference.tokens.tolist())
    (folder / "reference.jsonl").write_text(reference, encoding="utf-8")
    text = CARD_TOML.format(title=title, summary=summary, components=COMPONENTS)
    (folder / "card.toml").write_text(text, encoding="utf-8")
    published = {
        "nodes": roles,
        "interactions": [{"components": names, "kind": kind} for names, kind in interactions],
        "citation": "planted: known by construction",
    }
    for file, record in (("published.json", published), ("truth.json", truth_record(subject))):
        (folder / file).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the planted cards.")
    parser.add_argument("--out", type=Path, required=True, help="the gallery's folder")
    out = parser.parse_args().out
    for name in CARDS:
        (out / name / "model").mkdir(parents=True, exist_ok=True)
        write_card(out / name, name)
        print(out / name)


if __name__ == "__main__":
    main()
