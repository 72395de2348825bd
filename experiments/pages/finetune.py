"""The report of a fine-tuning run, and its summary for the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from experiments import plots
from experiments.records import RunFolder
from experiments.report import Page, Table, describe


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    config = folder.read_json("config.json")
    steps, evaluations = _metrics(folder)
    ledger = folder.rows("ledger.jsonl")
    page = Page("Fine-tuning with a chain of LoRA", f"{config['model']} on {config['train']}")
    page.findings(findings(folder))
    if steps:
        knots = [record["step"] for record in ledger]
        png = plots.loss_curves(
            {"loss": [[row["loss"] for row in steps]]}, {"loss": knots}, ylabel="training loss (nats per token)"
        )
        page.figure("loss", png, "Training loss, smoothed over 2% of the run; knots marked.")
    if evaluations:
        page.heading("Held-out rows")
        rows = [[str(row["step"]), f"{row['eval_loss']:.4f}", f"{row['eval_perplexity']:.2f}"] for row in evaluations]
        page.table(Table(["step", "nats per token", "perplexity"], rows))
    page.heading("Knots")
    if ledger:
        page.table(_knots(ledger))
    else:
        page.paragraph("No knot was tied: this run is LoRA.")
    page.heading("Load the adapter")
    page.code(load_lines(folder))
    page.heading("Options")
    groups = [(name, value) for name, value in config.items() if isinstance(value, dict)]
    flat = [(name, value) for name, value in config.items() if not isinstance(value, dict)]
    options = flat + [pair for _, group in groups for pair in group.items()]
    page.table(Table(["option", "value"], [[f"--{name.replace('_', '-')}", _shown(value)] for name, value in options]))
    return page.publish(folder, describe(folder.read_json("environment.json")))


def findings(folder: RunFolder) -> list[str]:
    """What came out, in sentences.

    Args:
        folder: the run's folder.

    Returns:
        The sentences.
    """
    steps, evaluations = _metrics(folder)
    ledger, export = folder.rows("ledger.jsonl"), folder.read_json("export.json")
    found = []
    if len(evaluations) > 1:
        first, last = evaluations[0]["eval_perplexity"], evaluations[-1]["eval_perplexity"]
        found.append(f"Held-out perplexity: {first:.2f} before, {last:.2f} after.")
    elif steps:
        tail = [row["loss"] for row in steps[-max(1, len(steps) // 10) :]]
        found.append(
            f"Training loss: {steps[0]['loss']:.3f} nats per token at the first step, {sum(tail) / len(tail):.3f} over the "
            f"last tenth. Give --eval to measure on held-out rows."
        )
    where = ", ".join(str(record["step"]) for record in ledger) or "none"
    # A knot after the last step begins a link that takes none.
    ends_with_knot = bool(ledger) and bool(steps) and ledger[-1]["step"] == steps[-1]["step"]
    links = len(ledger) + (not ends_with_knot)
    found.append(f"Knots after steps: {where}; {links} link{'s' if links != 1 else ''} over {len(steps)} steps.")
    found.append(
        f"Adapter: rank {export['rank']} at most, {export['sites']} layers, largest relative error {export['error']:.1e}."
    )
    return found


def load_lines(folder: RunFolder) -> str:
    """The lines that load the adapter."""
    config = folder.read_json("config.json")
    dtype = ', dtype="bfloat16"' if config["training"]["dtype"] == "bf16" else ""
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({config['model']!r}{dtype})\n"
        f"model = PeftModel.from_pretrained(model, {str(folder.path / 'adapter')!r})"
    )


def summary(folder: RunFolder) -> str:
    """What the terminal is told at the end."""
    load = textwrap.indent(load_lines(folder), "    ")
    return "\n".join([*findings(folder), f"Report: {folder.path / 'report.html'}", "Load the adapter with", load])


def _metrics(folder: RunFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows = folder.rows("metrics.jsonl")
    return [row for row in rows if "loss" in row], [row for row in rows if "eval_loss" in row]


def _knots(ledger: list[dict[str, Any]]) -> Table:
    rows = []
    for record in ledger:
        updates = list(record["relative_updates"].values())
        ranks = sorted(set(record["ranks"].values()))
        rows.append([
            str(record["knot"]), str(record["step"]), str(record["link_steps"]), " ".join(map(str, ranks)),
            f"{sum(updates) / len(updates):.2e}", f"{max(updates):.2e}", record["refused"] or "",
        ])  # fmt: skip
    return Table(["knot", "step", "link's steps", "rank", "mean |dW|/|W|", "largest |dW|/|W|", "refused"], rows)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
