"""README's ten lines run as written."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
from peft import PeftModel

from tests.tables import CASES, output

README = Path(__file__).parents[2] / "README.md"


def test_first_code_block_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    model = CASES["llama"].model()
    base = copy.deepcopy(model)
    ids = torch.randint(64, (6, 2, 8))
    names = {"model": model, "loader": [{"input_ids": x, "labels": x} for x in ids], "epochs": 2, "torch": torch}
    exec(code[1], names)

    assert "adapter written to out" in capsys.readouterr().out
    assert len(names["optimizer"].chain) == 3  # Evenly(3) ties two; folding the live link in ties the last
    batch = CASES["llama"].batch()
    adapted = PeftModel.from_pretrained(copy.deepcopy(base), "out").eval()
    torch.testing.assert_close(output(adapted, batch), output(names["model"], batch), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output(base, batch), output(names["model"], batch), atol=1e-4)
    assert torch.load("chain.pt", weights_only=True)["fwlora"]["step"] == 12
