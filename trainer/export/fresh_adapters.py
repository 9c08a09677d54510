"""The process that loads a base with several adapters of PEFT, as another machine would, and scores texts with each.

    python -m autoft.trainer.export.fresh_adapters SPEC.json ANSWER.json

SPEC: `folder` of the base; `dtype`; `adapters`, their folders; `texts`, by name `rows` and `scored` as texts.Texts has.
ANSWER: `logprobs`, by name of the text, of the base and then of each adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(question: Path, answer: Path) -> None:
    """Answer one question."""
    from autoft.trainer.runtime import environment

    environment.prepare()
    environment.import_libraries()
    environment.quiet()
    spec = json.loads(question.read_text(encoding="utf-8"))
    from peft import PeftModel

    from autoft.trainer.export.fresh import load_model
    from autoft.trainer.export.scores import score

    model: Any = load_model(spec["folder"], spec["dtype"]).eval()
    logprobs = [{name: score(model, **texts)[0] for name, texts in spec["texts"].items()}]
    for number, folder in enumerate(spec["adapters"]):
        if number == 0:
            model = PeftModel.from_pretrained(model, folder, adapter_name="0").eval()
        else:
            model.load_adapter(folder, adapter_name=str(number))
            model.set_adapter(str(number))
        logprobs.append({name: score(model, **texts)[0] for name, texts in spec["texts"].items()})
    answer.write_text(json.dumps({"logprobs": logprobs}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
