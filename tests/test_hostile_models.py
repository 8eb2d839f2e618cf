"""Model folders of strangers: weights are plain safetensors inside the folder, of the size that the config says."""

import json
import random
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny

import spex_mech as sm
from spex_mech.errors import FormatError, SpexMechError

NATIVE = Path(__file__).resolve().parents[1] / "circuits" / "induction-2l" / "model"


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.fixture
def folder(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path / "m")
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "m" / "evil.bin")
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "evil.bin")
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "outside.safetensors")
    yield tmp_path / "m"
    assert not (tmp_path / "ran").exists()


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


NAMES = (
    "evil.bin", "../evil.bin", "../outside.safetensors", "/etc/passwd", "pytorch_model.bin", "gone.safetensors", "",
    ".", "..", "a\\b.safetensors", "sub/model.safetensors", None, 3, ["model.safetensors"], "\x1b[2J.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=str)
@pytest.mark.parametrize("place", ["index", "other index", "transformers_weights"])
def test_weight_files_that_are_named_are_plain_ones_of_the_folder(folder, name, place):
    if place == "transformers_weights":
        change(folder, transformers_weights=name)
    else:
        file = "model.safetensors.index.json" if place == "index" else "pytorch_model.bin.index.json"
        (folder / file).write_text(json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": name}}))
        if place == "index":
            (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(SpexMechError, match=r"plain safetensors files inside it[^$]*names"):
        sm.load_model(folder)


def test_an_index_that_names_files_of_the_folder_is_followed(folder):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    state = tiny("gpt2").state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sm.load_model(folder)[0].config.n_layer == 2


@pytest.mark.parametrize("kind", ["native", "huggingface"])
def test_weights_that_are_links_lead_into_the_hubs_cache_or_are_refused(folder, tmp_path, kind):
    if kind == "native":
        shutil.copytree(NATIVE, tmp_path / "n")
        folder = tmp_path / "n"
    cache = tmp_path / "hub" / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns("*.bin"))
    (cache / "blobs").mkdir()
    (snapshot / "model.safetensors").rename(cache / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert sm.load_model(snapshot)[0] is not None
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(SpexMechError, match="no plain file of the folder"):
        sm.load_model(snapshot)


def test_an_adapter_is_not_followed_to_its_base_model(folder, tmp_path):
    """Where peft is installed, transformers would load whatever the adapter names."""
    from peft import LoraConfig, get_peft_model

    adapter = get_peft_model(tiny("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapter.peft_config["default"].base_model_name_or_path = str(folder)
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(SpexMechError):
        sm.load_model(tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / name, folder / name)
    with pytest.raises(SpexMechError, match=r"adapter_config\.json makes another model"):
        sm.load_model(folder)


@pytest.mark.parametrize("value", ["evil/kernels", "evil/kernels:run", "paged|evil/x@1", "flash_attention_2", "a\\b"])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_kernels_of_the_hub_are_not_asked_for(folder, key, value):
    """Flash attention too: where only `kernels` is installed, transformers has it from the hub."""
    change(folder, **{key: value})
    with pytest.raises(SpexMechError, match="code from the hub"):
        sm.load_model(folder)


@pytest.mark.parametrize("value", ["eager", "sdpa"])
def test_kernels_of_torch_are_fine(folder, value):
    change(folder, _attn_implementation=value)
    assert sm.load_model(folder)[0].config.n_layer == 2


@pytest.mark.parametrize("values", [
    {"n_embd": 64_000, "n_head": 1}, {"vocab_size": 10**9}, {"n_inner": 10**9}, {"n_positions": 10**9},
    {"n_embd": 48_000, "n_inner": 1, "n_head": 16}, {"vocab_size": 2**62},
])  # fmt: skip
def test_a_config_of_few_bytes_takes_no_memory(folder, values):
    change(folder, **values)
    tracemalloc.start()
    before, started = peak_of_process(), time.monotonic()
    try:
        with pytest.raises(SpexMechError):
            sm.load_model(folder)
    finally:
        tracemalloc.stop()
    assert peak_of_process() - before < 512 << 20
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["d_model", "d_mlp", "d_head", "d_vocab", "d_vocab_out", "n_heads", "n_layers"])
def test_a_native_config_of_few_bytes_takes_no_memory(tmp_path, name):
    shutil.copytree(NATIVE, tmp_path / "n")
    change(tmp_path / "n", **{name: 10**7})
    before, started = peak_of_process(), time.monotonic()
    with pytest.raises(SpexMechError, match=f"asks for more than its weights can be:\n  - {name} is 10,000,000"):
        sm.load_model(tmp_path / "n")
    assert peak_of_process() - before < 256 << 20
    assert time.monotonic() - started < 10


def peak_of_process():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("what", ["native", "huggingface", "card"])
def test_loading_moves_no_random_state(folder, what):
    states = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: E731
    before = states()
    if what == "card":
        sm.open_study("induction-2l")
    else:
        sm.load_model(NATIVE if what == "native" else folder)
    assert states() == before


@pytest.mark.parametrize(("field", "value"), [("n_layers", 1), ("n_layers", True), ("n_layers", -3), ("n_heads", 4)])
def test_a_native_config_that_leaves_weights_without_a_place_is_refused(tmp_path, field, value):
    """Else a model of fewer layers than its weights have would be studied in silence."""
    folder = shutil.copytree(NATIVE, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(FormatError, match="config"):
        sm.load_model(folder)
