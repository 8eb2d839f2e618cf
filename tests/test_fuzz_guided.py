"""Files from strangers, guided by coverage (atheris): whatever bytes reach a branch that none reached before are kept
and changed further. `test_fuzz` throws its inputs blindly."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86 only: pip install atheris")

# A child, since libFuzzer never returns: argv is the number of inputs, a folder for files, then what to read.
SCRIPT = """
import sys
import atheris
with atheris.instrument_imports(include=["spex_mech"]):
    import spex_mech as sm
    from spex_mech.ablation.backends import planted
    from spex_mech.files import json as files
    from spex_mech.formats import hif
    from spex_mech.formats import interchange
    from spex_mech.formats import mib
    from spex_mech.circuit import codec
    from spex_mech.auditing.run_audit import load_audit
    from spex_mech.tasks import prompts_file
    from spex_mech import components, gallery
    from spex_mech.errors import SpexMechError
    from spex_mech.api.shards import Shard
from pathlib import Path

runs, folder, what = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
path = folder / "file"

def circuit():
    interchange.read_circuit(path)

def prompts():
    sm.Task.from_jsonl(path)

def audit():
    load_audit(path)

def model():
    path.replace(folder / "planted.json")
    planted.load_planted(folder)

def card():
    path.replace(folder / "card.toml")
    gallery.open_card(folder)

def names():
    text = path.read_text(errors="replace")
    sm.ComponentSet.of(text.splitlines())
    Shard.parse(text)

def one(data):
    path.write_bytes(data)
    try:
        globals()[what]()
    except SpexMechError:
        pass

corpus = folder / "corpus"
atheris.Setup([sys.argv[0], str(corpus), f"-runs={runs}", "-seed=1", "-rss_limit_mb=4096", "-timeout=60",
               "-max_len=4096", f"-artifact_prefix={folder}/", "-verbosity=1"], one)
atheris.Fuzz()
"""
CARD = Path(__file__).resolve().parents[1] / "circuits" / "planted-and"
SEEDS = {
    "circuit": None,
    "prompts": CARD / "prompts.jsonl",
    "audit": None,
    "model": CARD / "model" / "planted.json",
    "card": CARD / "card.toml",
    "names": None,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound file of every kind, to begin with."""
    import spex_mech as sm
    from spex_mech.ablation.backends import planted

    folder = tmp_path_factory.mktemp("sound")
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=2))
    task = planted.task(n_prompts=2, seed=0)
    found = sm.discover(subject, task, budget=40, decoder="linear", link="identity", out=folder / "run")
    sm.audit(found, subject, task, budget=96).save(folder / "audit")
    (folder / "circuit").write_bytes((folder / "run" / "circuit.json").read_bytes())
    for name, path in SEEDS.items():
        if path is not None:
            (folder / name).write_bytes(path.read_bytes())
        elif name == "names":
            (folder / name).write_text("a0.h1\nm3.n0:4\n[a0.h0+m1]\n2/8")
    return folder


def fuzz(sound, folder, what, runs, timeout):
    (folder / "corpus").mkdir()
    (folder / "corpus" / "first").write_bytes((sound / what).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(runs), str(folder), what], capture_output=True, text=True, timeout=timeout,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert int(re.findall(r"Done (\d+) (?:runs|in)", done.stderr + done.stdout)[-1]) >= runs
    return len(list((folder / "corpus").iterdir()))


def test_inputs_guided_by_coverage_are_read_or_refused(sound, tmp_path):
    assert fuzz(sound, tmp_path, "names", 2_000, 250) > 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", SEEDS)
def test_many_inputs_guided_by_coverage_are_read_or_refused(sound, tmp_path, what):
    kept = fuzz(sound, tmp_path, what, 20_000, 1700)
    print(f"{what}: {kept} inputs reached something new")
    assert kept > 1
