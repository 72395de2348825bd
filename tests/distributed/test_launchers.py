"""Two processes started as users start them, by torchrun and by `accelerate launch`: the run is that of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.distributed import launched
from tests.distributed.launching import assert_same, differences, environment
from tests.distributed.ranks import STEPS, facts, llama, step, tokens

COMMANDS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    # Its `--cpu` starts one process where there is no MPI; so the script asks for the CPU.
    "accelerate": [
        *["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
        *["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"],
    ],
}
LAUNCHER_OF = {scenario.__name__: name for name, scenarios in launched.SCENARIOS.items() for scenario in scenarios}
WHOLE_RUNS = [name for name in LAUNCHER_OF if name != "best_sharded"]
# Checkpoints with base weights that are read into layers as they were written.
MERGED = ["sharded", "created_sharded"]
RESUMED = ["sharded", "created", "created_sharded", "peft_sharded"]
WRAPPED = {
    "accelerated": "DistributedDataParallel",
    "lit": "DistributedDataParallel",
    "created": "DistributedDataParallel",
    "created_sharded": "FSDPLlamaForCausalLM",
    "peft_sharded": "FSDPPeftModel",
}


class Launch:
    """What the processes of a launcher returned and left in `out`."""

    def __init__(self, launcher: str, out: Path) -> None:
        self.out = out
        process = subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[launcher], launched.__file__, launcher],
            # Without the configuration of whoever runs this.
            env=environment(LAUNCHED_OUT=str(out), HF_HOME=str(out / "home")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            log, _ = process.communicate(timeout=240)
        finally:
            process.terminate()  # and it ends its processes
            process.wait()
        assert process.returncode == 0, log[-8000:]
        self.outcomes = [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory) -> Launch:
    """One launch for all its scenarios."""
    return Launch("torchrun", tmp_path_factory.mktemp("torchrun"))


@pytest.fixture(scope="module")
def accelerate(tmp_path_factory) -> Launch:
    """One launch for all its scenarios."""
    return Launch("accelerate", tmp_path_factory.mktemp("accelerate"))


def alone(scenario: str, steps: int) -> dict:
    """One process on the joint batches: a plain loop without a process group."""
    model = launched.model_for(scenario)
    chain = launched.chain_for(model)
    for k in range(steps):
        step(model, chain, launched.joint(k))
    return facts(chain)


@pytest.fixture
def run(request) -> tuple[str, Path, dict, dict]:
    """A scenario's name, its folder and what each rank returned."""
    launch = request.getfixturevalue(LAUNCHER_OF[request.param])
    return request.param, launch.out, *(outcome[request.param] for outcome in launch.outcomes)


@pytest.mark.parametrize("run", WHOLE_RUNS, indirect=True)
def test_ranks_agree_on_every_tensor_and_record(run):
    """After 3 knots on different rows, with different global seeds."""
    _name, _out, first, second = run
    assert first["knots"] == second["knots"] == [3, 6, 9]
    assert first["progress"] == (STEPS, 3, 1)
    assert_same(first, second)


@pytest.mark.parametrize("run", WHOLE_RUNS, indirect=True)
def test_two_processes_are_one_on_the_joint_batch(run):
    """Weights, live factors and links to 1e-6; they have moved by far more."""
    name, _out, first, _second = run
    single = alone(name, STEPS)
    assert 0 < max(differences(first, single).values()) <= 1e-6
    for site in single["sites"]:
        assert single["tensors"][f"link0.{site}.B"].abs().max() > 1e-3


@pytest.mark.parametrize("run", WHOLE_RUNS, indirect=True)
def test_rank_0_alone_writes_the_whole_chain(run):
    """Adapter and state of all links and the whole ledger; the other rank calls too, and gets the same report."""
    name, out, first, second = run
    assert (first["ranks"], first["errors"]) == (second["ranks"], second["errors"])
    assert set(first["ranks"].values()) == {4 * 4}
    written = {path.name for path in out.glob(f"{name}-[as]*")}
    assert written == {f"{name}-adapter-0", f"{name}-state-0"}
    adapter = out / f"{name}-adapter-0"
    model = launched.model_for(name)
    chain = launched.chain_for(model)
    chain.load(out / f"{name}-state-0")
    assert_same(launched.outcome(chain), first)
    exported = PeftModel.from_pretrained(llama(), str(adapter))
    ids = tokens(99, 0)
    with torch.no_grad():
        assert float((exported(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()) <= 1e-6


@pytest.mark.parametrize("run", WRAPPED, indirect=True)
def test_model_is_wrapped_by_the_framework(run):
    name, _out, *outcomes = run
    assert [outcome["wrapped"] for outcome in outcomes] == [WRAPPED[name]] * 2


@pytest.mark.parametrize("run", RESUMED, indirect=True)
def test_run_resumed_on_fresh_models_is_the_uninterrupted_run(run):
    """From the framework's checkpoint after a knot, bit for bit on both ranks; links are replayed where it has no weights."""
    name, _out, *outcomes = run
    for outcome in outcomes:
        assert_same(outcome["resumed"], outcome)
        assert outcome["resumed"]["replay"] == [None if name in MERGED else "exact", None, None]


@pytest.mark.parametrize("run", ["sharded"], indirect=True)
def test_prepared_chain_steps_the_shards_that_accelerate_swapped_in(run):
    _name, _out, *outcomes = run
    assert [(outcome["is_cut"], outcome["is_adopted"]) for outcome in outcomes] == [(True, True)] * 2


@pytest.mark.parametrize("run", ["lit", "created", "created_sharded"], indirect=True)
def test_callback_exports_from_all_ranks_at_saves_and_at_the_end(run):
    """The adapter that `export_adapter` gives, and a line a knot."""
    name, out, *_outcomes = run
    paths = ["chain_adapter"] if name == "lit" else ["chain_adapter", "chain_adapters/step-10"]
    folders = [out / f"{name}-runs" / path for path in paths]
    written = {(folder / "adapter_model.safetensors").read_bytes() for folder in folders}
    assert all(len((folder / "ledger.jsonl").read_text().splitlines()) == 3 for folder in folders)
    assert written == {(out / f"{name}-adapter-0" / "adapter_model.safetensors").read_bytes()}


@pytest.mark.parametrize("run", ["best_sharded"], indirect=True)
def test_chain_in_shards_follows_trainer_to_the_best_model(run):
    """Weights, links and ledger of step 4, after ten."""
    name, _out, first, second = run
    assert_same(first, second)
    assert first["knots"] == [3]
    assert 0 < max(differences(first, alone(name, 4)).values()) <= 1e-6
