"""Look for the circuit of every card that brings its model, and keep what was measured and found beside it.

    python examples/find_in_gallery.py [NAME ...]

Writes ``responses.safetensors`` (masks and values) and ``found.json`` into the card's folder: the polynomial that
`discover` read from them, with the command that does it again.
"""

import json
import sys
from pathlib import Path

import spex_mech as sm
from spex_mech.gallery import cards, open_card

GALLERY = Path(__file__).resolve().parents[1] / "circuits"
BUDGETS = {"years-2l": 1024, "names-3l": 1024}  # masks; 512 for the others
KEEPS = {"years-2l": 0.8}  # 132 components, of which any half is too much to lose
SEED, DECODER, LEAST = 0, "joint", 0.01


def found_record(name: str, found: sm.Discovery, budget: int, keep: float) -> dict[str, object]:
    """What goes into ``found.json``: terms whose coefficient is at least a hundredth of the largest."""
    spectrum = found.spectrum.mean_output().sorted()
    names, terms = found.components.names, list(spectrum.terms())
    least = LEAST * max(abs(c) for s, c in terms if s)
    return {
        "schema": 1,
        "command": f"spex-mech discover {name} --budget {budget} --keep {keep} --decoder {DECODER} --seed {SEED}",
        "decoder": DECODER,
        "seed": SEED,
        "outcome": found.decoded.outcome.name,
        "heldout_r2": found.heldout_r2,
        "unit": found.circuit.unit,
        "basis": spectrum.basis.kind,
        "keep_prob": spectrum.basis.keep_prob,
        "terms": [
            {"set": [names[i] for i in s], "coefficient": float(f"{c:.6g}")} for s, c in terms if abs(c) >= least
        ],
    }


def find(name: str) -> None:
    study, budget, keep = sm.open_study(name, device="cpu"), BUDGETS.get(name, 512), KEEPS.get(name, 0.5)
    found = sm.discover(
        study.subject,
        study.task,
        study.components,
        budget=budget,
        keep_prob=keep,
        replacement=study.replacement,
        decoder=DECODER,
        seed=SEED,
        per=study.per,
    )
    found.responses.save(GALLERY / name / "responses.safetensors")
    text = json.dumps(found_record(name, found, budget, keep), indent=1) + "\n"
    (GALLERY / name / "found.json").write_text(text, encoding="utf-8")
    print(f"{name}: held-out R² {found.heldout_r2:.4f}, {len(found.spectrum)} sets", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or [name for name in cards() if not open_card(name).on_hub]:
        find(name)
