"""The process that opens a GGUF file with llama.cpp's runtime (xllamacpp) and scores texts.

    python -m autoft.trainer.export.llama_cpp SPEC.json ANSWER.json

SPEC: `model`; `lora`, an adapter file, or null; `rows` and `scored` as texts.Texts has them; `texts`; `chats`.
ANSWER: `logprobs`; `ids` of texts; `prompts`, the chats as llama.cpp renders the template in the file.

llama.cpp's server tells the log-prob of the token that it samples: a bias that acts on sampling alone makes it sample
the token that is scored. Each row has a slot that keeps what was read, so a token costs one step, shared by all rows.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MOST_SLOTS = 8
BIAS = 1e6  # more than any logit


def main(question: Path, answer: Path) -> None:
    """Answer one question."""
    import psutil
    import xllamacpp

    spec: dict[str, Any] = json.loads(question.read_text(encoding="utf-8"))
    slots = max(1, min(MOST_SLOTS, len(spec["rows"])))
    longest = max((len(row) for row in spec["rows"]), default=0)
    params = xllamacpp.CommonParams()
    params.model.path = spec["model"]
    params.n_parallel = slots
    params.n_ctx = slots * (-(-(longest + 16) // 256) * 256)
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (psutil.cpu_count(logical=False) or 2) - 1)
    params.warmup = params.ui = params.fit_params = False
    params.verbosity = 1  # errors
    if spec.get("lora"):
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(spec["lora"], 1.0)]
    server = xllamacpp.Server(params)
    jobs = [
        (at % slots, row, places) for at, (row, places) in enumerate(zip(spec["rows"], spec["scored"], strict=True))
    ]
    with ThreadPoolExecutor(slots) as threads:
        rows = list(threads.map(lambda job: _logprobs(server, *job), jobs))
    address = str(server.listening_address)
    ids = [
        _post(address, "tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        for text in spec["texts"]
    ]
    prompts = [_post(address, "apply-template", {"messages": chat})["prompt"] for chat in spec["chats"]]
    logprobs = [each for row in rows for each in row]
    answer.write_text(json.dumps({"logprobs": logprobs, "ids": ids, "prompts": prompts}), encoding="utf-8")


def _logprobs(server: Any, slot: int, row: Sequence[int], places: Sequence[int]) -> list[float]:
    """Nats of the row's tokens at `places`. Raises: ValueError where llama.cpp answers about another token."""
    logprobs = []
    for place in places:
        reply = server.handle_completions(
            {
                "prompt": list(row[:place]),
                "n_predict": 1,
                "n_probs": 1,
                "logit_bias": [[row[place], BIAS]],
                "temperature": 0.0,
                "samplers": ["top_k"],
                "id_slot": slot,
                "cache_prompt": True,
            }
        )
        if "choices" not in reply:
            raise ValueError(str(reply)[:200])
        sampled = reply["choices"][0]["logprobs"]["content"][0]
        if sampled["id"] != row[place]:
            raise ValueError(f"llama.cpp scored token {sampled['id']} in place of {row[place]}")
        logprobs.append(float(sampled["logprob"]))
    return logprobs


def _post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The server's answer; it listens on this machine alone."""
    request = urllib.request.Request(
        f"{address}/{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as reply:
        answer: dict[str, Any] = json.loads(reply.read())
    return answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
