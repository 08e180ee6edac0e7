"""Hugging Face transformers: batches of like lengths, as its users make them."""

from typing import Any

import torch
from protocol import Jobs, serve
from transformers import AutoModelForCausalLM


def load(model: str, settings: dict[str, Any]):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings["dtype"]))
    loaded.eval()

    def complete(jobs: Jobs) -> int:
        rows = [job for job in jobs for _ in range(job["n"])]
        # Rows of a batch run for as long as the longest: those of like lengths go together.
        rows.sort(key=lambda job: (job["max_tokens"], len(job["prompt"])))
        size = settings["batch"]
        return sum(batch(rows[at : at + size]) for at in range(0, len(rows), size))

    def batch(rows: Jobs) -> int:
        longest = max(len(row["prompt"]) for row in rows)
        new = max(row["max_tokens"] for row in rows)
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row["prompt"]) :] = torch.tensor(row["prompt"])
            mask[i, longest - len(row["prompt"]) :] = 1
        with torch.inference_mode():
            out = loaded.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=rows[0]["n"] > 1,
                pad_token_id=0,
                eos_token_id=None,
            )
        if out.shape != (len(rows), longest + new):
            raise RuntimeError(f"a batch came back as {tuple(out.shape)}")
        return sum(row["max_tokens"] for row in rows)

    return complete


if __name__ == "__main__":
    serve(load, ["transformers", "torch"])
