"""Exports: a finished run in the forms that other tools load.

It answers: which file does tool X take, is it whole, and how good is it beside base and adapter? In flows the folder of
a run or of PEFT (source.py). Each kind (a file each) checks it, writes it aside (staging.py) out of the merged weights
(merge.py), and has it loaded again in a process of its own (reload.py, llama_cpp.py) on held-out rows (texts.py).
Out flows an `Export`: path, bytes, log-probs, commands to type next. exporting.py is the order of these steps.
"""

from __future__ import annotations

from autoft.trainer.export import bnb, gguf, gguf_lora, mlx, ollama, safetensors, vllm
from autoft.trainer.export.exporter import Exporter

_KINDS = (safetensors.EXPORTER, *bnb.EXPORTERS, gguf.EXPORTER, gguf_lora.EXPORTER, ollama.EXPORTER, vllm.EXPORTER)
EXPORTERS: dict[str, Exporter] = {exporter.name: exporter for exporter in (*_KINDS, mlx.EXPORTER)}

__all__ = ["EXPORTERS", "Exporter"]
